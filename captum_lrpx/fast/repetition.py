"""Runs a module again as it ran before: the same arguments and circumstances."""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.nn.attention import _cur_sdpa_kernel_backends, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import get_device_states, set_device_states

from captum_lrpx.structure import modules_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch.utils.weak import WeakTensorKeyDictionary


WAY_OUT: Final = "Leave `checkpointing` out for this model."


class Repetition:
    """A run of a module that can be repeated.

    Attributes:
        name: The name of its class.
        size: Bytes of its inputs on a CPU.
        may_stop: Whether a run may be stopped in the middle without leaving anything to undo.

    Args:
        module: The module.
        forward: Its forward.
        args: Its arguments.
        kwargs: Its keyword arguments.
        copies: Known copies of inputs that are shared with other modules.
    """

    def __init__(
        self,
        module: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        copies: WeakTensorKeyDictionary,
    ) -> None:
        self.name = type(module).__name__
        # Offloading wraps the forward, to move the weights to their device around each call.
        self._forward = module.forward if "_old_forward" in vars(module) else forward
        self.may_stop = not any("_old_forward" in vars(each) for each in modules_of(module))
        given, self._structure = pytree.tree_flatten((args, kwargs))
        self._circumstances = _Circumstances(given)
        self._before = [
            (each, each._version)  # noqa: SLF001 - no public name
            for each in given
            if _is_input(each)
        ]
        self._written = False
        self.size = sum(each.nbytes for each, _ in self._before if each.device.type == "cpu")
        tensors: list[Tensor] = []
        self._given = [_own(each, tensors, copies) for each in given]
        self._versions = [(each, each._version) for each in tensors]  # noqa: SLF001

    def over(self) -> None:
        """Record whether the first run wrote into its inputs."""
        self._written = any(tensor._version != version for tensor, version in self._before)  # noqa: SLF001
        self._before.clear()

    def repeat(self) -> None:
        """Run the module with the same arguments under the same circumstances.

        Raises:
            RuntimeError: If an argument other than a graph input has been overwritten.
        """
        if any(tensor._version != version for tensor, version in self._versions):  # noqa: SLF001
            raise RuntimeError(
                f"{self.name} cannot be recomputed in the backward pass: one of its "
                f"arguments has been overwritten. {WAY_OUT}"
            )
        with self._circumstances.again():
            given = [
                each.clone() if self._written and _is_input(each) else _own(each, [], None)
                for each in self._given
            ]
            args, kwargs = pytree.tree_unflatten(given, self._structure)
            self._forward(*args, **kwargs)


def _is_input(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _own(value: Any, tensors: list[Tensor], copies: WeakTensorKeyDictionary | None) -> Any:
    """An argument safe from changes: a copy of an input, and of a mutable object.

    Args:
        value: The argument.
        tensors: A list that fills with the tensors shared with others.
        copies: Known copies of inputs; None to copy none.
    """
    if isinstance(value, Tensor):
        if copies is not None and value.requires_grad and type(value) is Tensor:
            return _copied(value, tensors, copies)
        tensors.append(value)
        return value
    if type(value) in (tuple, list):
        return type(value)(_own(each, tensors, copies) for each in value)
    if type(value) is dict:
        return {key: _own(each, tensors, copies) for key, each in value.items()}
    if not hasattr(value, "__dict__") or isinstance(value, (dict, list)) or callable(value):
        return value
    twin = copy.copy(value)  # a cache, to which the block appends its keys and values
    for name, each in vars(value).items() if twin is not value else ():
        vars(twin)[name] = _own(each, tensors, None)
    return twin


def _copied(value: Tensor, tensors: list[Tensor], copies: WeakTensorKeyDictionary) -> Tensor:
    known = copies.get(value)  # type: ignore[no-untyped-call]
    if known is None or known[0] != value._version:  # noqa: SLF001
        known = copies[value] = value._version, _apart(value)  # noqa: SLF001
    twin: Tensor = known[1]
    if twin is value:
        tensors.append(value)
    return twin


@torch.no_grad()
def _apart(tensor: Tensor) -> Tensor:
    """A copy of a tensor with the same strides; the tensor itself if these have gaps."""
    if torch.empty_like(tensor, device="meta").stride() != tensor.stride():
        return tensor
    return tensor.clone().requires_grad_()


class _Circumstances:
    """Random state, autocast, default device and attention kernels at the time of a run.

    Args:
        values: Arguments, among them the tensors whose devices matter.
    """

    def __init__(self, values: Sequence[object]) -> None:
        tensors = (each for each in values if isinstance(each, Tensor) and not each.is_meta)
        devices = {"cpu", *(each.device.type for each in tensors)}
        self._autocast = [
            (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
            for device in devices
            if torch.amp.is_autocast_available(device)
        ]
        self._caches = torch.is_autocast_cache_enabled()
        self._kind = next((device for device in devices if device != "cpu"), "cuda")
        self._random = torch.get_rng_state()
        self._devices, self._states = get_device_states(*values)
        self._default = torch.get_default_device()
        self._kernels = _cur_sdpa_kernel_backends()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Restore them in a ``with`` block."""
        with ExitStack() as stack:
            # In a backward pass over many targets at once (vmap), the block still runs once.
            stack.enter_context(temporarily_clear_interpreter_stack())
            stack.enter_context(torch.enable_grad())
            for device, dtype, enabled in self._autocast:
                stack.enter_context(
                    torch.autocast(device, dtype, enabled=enabled, cache_enabled=self._caches)
                )
            if self._default.type != "cpu":
                stack.enter_context(self._default)
            if self._kernels != _cur_sdpa_kernel_backends():
                stack.enter_context(sdpa_kernel(self._kernels))
            stack.enter_context(torch.random.fork_rng(self._devices, device_type=self._kind))
            torch.set_rng_state(self._random)
            set_device_states(self._devices, self._states, device_type=self._kind)
            yield
