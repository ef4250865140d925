"""Blocks recomputed in the backward pass instead of storing their saved tensors.

Activation checkpointing (Chen et al. 2016, https://arxiv.org/abs/1604.06174). The graph is the same
as without it, so operations, rules and coverage do not change; missing are only the
tensors that nodes inside of blocks have saved. As soon as the backward pass or a rule needs
one of them, its block runs again on its inputs, and the tensors that it saves replace the
first run's. Only one block's tensors exist at a time: memory is needed for one block, plus one
hidden state per block; time is up to one more forward pass.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import weakref
from contextlib import nullcontext
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, cast

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.weak import WeakTensorKeyDictionary

from captum_lrpx.fast.repetition import WAY_OUT, Repetition
from captum_lrpx.fast.saved import SCALAR, Economy, Numbered, Saved
from captum_lrpx.structure import blocks_of
from captum_lrpx.trace.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from torch import nn

    from captum_lrpx.rules.node_rules import Zeros


_C_LIBRARY: Final = ctypes.CDLL(None) if sys.platform == "linux" else None

_GIVEN_BACK_AFTER: Final = 2**25
"""Bytes of block inputs after which freed memory is returned, which takes time itself."""


class _Enough(BaseException):
    """Stops a repeated block once all needed tensors exist."""


# Blocks -------------------------------------------------------------------------------------------


def _address(tensor: Tensor) -> int:
    """Address of a tensor's storage; 0 for tensors without one, such as offloaded ones."""
    plain = type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return tensor.untyped_storage().data_ptr() if plain else 0


def _nothing() -> None:
    """Placeholder of a piece that is not needed."""


class _Piece(Numbered):
    """Placeholder of a tensor saved in a block.

    Attributes:
        run: The run of the block.
        form: Class, shape, dtype and device of the tensor.
        found: The tensor saved in its place when the block ran again, as long as it is kept.
    """

    __slots__ = ("form", "found", "run")

    def __init__(self, number: int, run: _Run, tensor: Tensor) -> None:
        super().__init__(number)
        self.run = run
        self.form = _form_of(tensor)
        self.found: Any = None


class _Form(NamedTuple):
    """Class, shape, dtype and device of a tensor."""

    kind: type[Tensor]
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _form_of(tensor: Tensor) -> _Form:
    return _Form(type(tensor), tensor.shape, tensor.dtype, tensor.device)


class _Run:
    """One run of a block.

    Attributes:
        repetition: Repeats the run.
        pieces: Weak references to the placeholders of all saved tensors.
        operands: Number of operands needed that no node saves.
        found: These operands, as long as they are kept.
    """

    def __init__(self, repetition: Repetition) -> None:
        self.repetition = repetition
        self.pieces: list[Callable[[], _Piece | None]] = []
        self.operands = 0
        self.found: list[Tensor] | None = None

    def forget(self) -> None:
        """Free the tensors that the block saved."""
        self.found = None
        for reference in self.pieces:
            piece = reference()
            if piece is not None:
                piece.found = None


class Checkpoints(Saved):
    """The tensors saved in a forward pass outside of its blocks.

    Args:
        economy: Tensors that need not be kept; None to measure.
        zeros: Zeros of the pass.
        functions: Names of functions whose operand is kept, because their nodes do not save it.

    Attributes:
        running: The block run that the forward pass is in.
        repeating: Whether a block is being recomputed.
    """

    def __init__(self, economy: Economy | None, zeros: Zeros, functions: frozenset[str]) -> None:
        super().__init__(economy, zeros)
        self.running: _Run | None = None
        self.repeating = False
        self._functions = functions
        self._copies = WeakTensorKeyDictionary()
        self._weights: set[int] = set()
        self._since = 0  # bytes of block inputs since memory was last returned
        self._within = Economy(None, 0)
        self._there: weakref.ref[_Run] | None = None
        self._lock = threading.RLock()  # backward passes of several devices may overlap

    def patches(self, model: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """Blocks of a model, each with a wrapper of its forward."""
        weights = chain(model.parameters(), model.buffers())
        self._weights = {_address(each) for each in weights} - {0}
        for trunk in blocks_of(model):
            # The backward pass starts in the last block: recomputing it would save nothing.
            for block in trunk[:-1] or trunk:
                yield block, partial(self._run, block)

    def _run(self, block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.running is not None or self.repeating or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        repetition = Repetition(block, forward, args, kwargs, self._copies)
        self.running = _Run(repetition)
        try:
            return forward(*args, **kwargs)
        finally:
            self.running = None
            repetition.over()
            self._give_back(repetition.size)

    def _give_back(self, size: int) -> None:
        """Return memory that blocks have freed on a CPU to the system, every now and then.

        The nodes of the graph stay, between the memory that blocks allocate and free. The C library
        keeps such gaps, into which the tensors of the next block do not quite fit: for a long text
        they would take more than everything else.
        """
        self._since += size
        trim = getattr(_C_LIBRARY, "malloc_trim", None)  # glibc only
        if trim is not None and self._since >= _GIVEN_BACK_AFTER:
            self._since = 0
            trim(0)

    def allow(self, economy: Economy | None, key: Hashable) -> None:
        """Set which tensors of blocks need not be kept when they run again.

        Args:
            economy: Tensors of a graph that need not be kept.
            key: Key of the graph of the next backward pass.
        """
        fits = economy is not None and (economy.key, economy.count) == (key, self.count)
        self._within = economy if fits and economy is not None else Economy(None, 0)

    # Saved tensors ----------------------------------------------------------------------------

    def _pack(self, tensor: Tensor) -> Any:
        run = self.running
        if run is None:
            return super()._pack(tensor)
        if _address(tensor) in self._weights:  # which exist anyway
            run.pieces.append(_nothing)
            return super()._pack(tensor)
        piece = _Piece(self._number(tensor), run, tensor)
        run.pieces.append(weakref.ref(piece))
        return piece

    def _unpack(self, packed: Any) -> Tensor:
        if type(packed) is not _Piece:
            return super()._unpack(packed)
        owns = self._owns(packed)
        if owns is not None:
            _, shape, dtype, device = packed.form
            if owns:
                return self._zeros.of(shape, dtype, device)
            return self._zeros.of(SCALAR, dtype, device).expand(shape)
        with self._lock:
            if packed.found is None:
                self._repeat(packed.run)
            return super()._unpack(packed.found)

    def _owns(self, piece: _Piece) -> bool | None:
        """Whether zeros in a tensor's place need their own memory; None if it is needed itself."""
        return self._within.absent.get(piece.number) if piece.form.kind is Tensor else None

    def operand(self, run: _Run, place: int) -> Tensor:
        """Operand of a function in a block, which no node saves."""
        with self._lock:
            if run.found is None:
                self._repeat(run)
            assert run.found is not None  # noqa: S101 - it has been repeated
            return run.found[place]

    def _forget(self) -> None:
        run = None if self._there is None else self._there()
        if run is not None:
            run.forget()
        self._there = None

    def _repeat(self, run: _Run) -> None:
        """Run a block again, and fill its placeholders with the tensors that it saves."""
        if self.running is not None or self.repeating:
            _no_gradients()
        self._forget()
        self._give_back(run.repetition.size)
        self._there = weakref.ref(run)
        filling = _Filling(run, lambda piece: self._owns(piece) is None, self._put)
        watch: Any = nullcontext()
        if run.operands:
            watch = Watch((), self._functions, names=False)
        self.repeating = True
        try:
            with saved_tensors_hooks(filling, _no_gradients), watch:
                run.repetition.repeat()
            filling.require_all()
            if run.operands:
                run.found = list(watch.inputs.values())
        except _Enough:
            pass
        except BaseException:
            self._forget()
            raise
        finally:
            self.repeating = False
            self._sources.clear()

    def _put(self, piece: _Piece, tensor: Tensor) -> None:
        piece.found = self._packed(tensor, piece.number, self._within)


class _Filling:
    """Receives the tensors that a block saves when it runs again.

    Args:
        run: The run.
        is_wanted: Whether the tensor of a piece is needed.
        put: Puts a tensor into a piece.
    """

    def __init__(
        self,
        run: _Run,
        is_wanted: Callable[[_Piece], bool],
        put: Callable[[_Piece, Tensor], None],
    ) -> None:
        self._run = run
        self._put = put
        self._count = 0
        alive = ((place, each()) for place, each in enumerate(run.pieces))
        self._wanted = {place for place, each in alive if each is not None and is_wanted(each)}
        stops = run.repetition.may_stop and not run.operands and self._wanted
        self._last = max(self._wanted) if stops else None

    def __call__(self, tensor: Tensor) -> None:
        place = self._count
        self._count += 1
        if place >= len(self._run.pieces):
            self._differs()
        piece = self._run.pieces[place]()
        if piece is not None:
            if piece.form != _form_of(tensor):
                self._differs()
            if place in self._wanted:
                self._put(piece, tensor)
        if place == self._last:
            raise _Enough

    def require_all(self) -> None:
        """Refuse a run that saved fewer tensors than the first one."""
        if self._count != len(self._run.pieces):
            self._differs()

    def _differs(self) -> NoReturn:
        raise RuntimeError(
            f"{self._run.repetition.name} computes something else when it is recomputed in the "
            "backward pass: it depends on more than its arguments, or on something that changes "
            f"from run to run. {WAY_OUT}"
        )


def _no_gradients(*_: object) -> NoReturn:
    raise RuntimeError(
        "A block computes gradients while it runs, for which its tensors would have to be "
        f"kept. {WAY_OUT}"
    )


# Operands -----------------------------------------------------------------------------------------


class WatchOfBlocks(Watch):
    """A :class:`Watch` that keeps no operands of functions inside of blocks.

    Args:
        blocks: The blocks.
        modules: See :class:`Watch`.
        need_input: See :class:`Watch`.
        names: See :class:`Watch`.
    """

    def __init__(
        self,
        blocks: Checkpoints,
        modules: Iterable[nn.Module],
        need_input: frozenset[str],
        *,
        names: bool = True,
    ) -> None:
        super().__init__(modules, need_input, names=names)
        self._blocks = blocks

    def _keep(self, kept: dict[Any, Tensor], key: Any, tensor: Tensor) -> None:
        run = self._blocks.running
        if run is None or key is None:
            super()._keep(kept, key, tensor)
        else:
            kept[key] = cast("Tensor", _Operand(self._blocks, run, run.operands))
            run.operands += 1

    def enter(self, module: nn.Module, args: Any = ()) -> None:
        """Record that a module runs, unless it is being recomputed."""
        if not self._blocks.repeating:
            super().enter(module, args)


class _Operand:
    """Placeholder of an operand in a block, which a rule resolves by ``detach``."""

    __slots__ = ("_blocks", "_place", "_run")

    def __init__(self, blocks: Checkpoints, run: _Run, place: int) -> None:
        self._blocks = blocks
        self._run = run
        self._place = place

    def detach(self) -> Tensor:
        return self._blocks.operand(self._run, self._place).detach()
