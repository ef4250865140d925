"""Records tensors that a graph does not keep, and frees those that it keeps needlessly.

Additions save none of their operands, linear layers save no bias: a function mode of the
calling thread records both. Inside of branches the graph holds tensors that only the gradients of
activations and gates would need; they are freed as soon as the branch has been added to its stream.
Nothing is attached to the model, and every value is its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - PyTorch's usual name

from captum_lrpx.trace.graph import maker_of, node_of
from captum_lrpx.trace.watch import FunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch.autograd.graph import Node
    from typing_extensions import Self

_BIAS_AT: Final = {
    "linear": 2,
    "conv1d": 2,
    "conv2d": 2,
    "layer_norm": 3,
    "group_norm": 3,
    "batch_norm": 4,
    "addmm": 0,
    "baddbmm": 0,
}
"""Functions that add a bias, and its place among their arguments."""
_SUMS: Final = {
    **dict.fromkeys(("add", "__add__", "__radd__", "__iadd__", "add_"), (1, 1)),
    **dict.fromkeys(("sub", "__sub__", "__isub__", "sub_"), (1, -1)),
    **dict.fromkeys(("__rsub__", "rsub"), (-1, 1)),
}
"""Functions that add or subtract, and the signs of their operands."""
_IN_PLACE: Final = frozenset({"__iadd__", "add_", "__isub__", "sub_"})
_SOFTMAX: Final = frozenset({F.softmax, torch.softmax, torch.Tensor.softmax})
_ATTENTION: Final = frozenset({"softmax", "scaled_dot_product_attention"})
_MATRIX_PRODUCTS: Final = frozenset({"matmul", "__matmul__", "bmm", "einsum"})


_Key = tuple["Node", int]


class _Saved:
    """A tensor saved by a node."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor: Tensor | None = tensor

    def get(self) -> Tensor:
        if self.tensor is None:
            raise ValueError(
                "ALTI-Logit needs a tensor of the forward pass that was already freed: the model "
                "took another path than in its first pass. Explain it by a new ALTILogit."
            )
        return self.tensor


class _Kept:
    """Tensors saved in branches, until these have been added to their stream.

    Nodes refer to the function that packed their tensors, and a recording refers to nodes: a cycle
    of the two would never be freed, since Python's collector cannot see into nodes. So this object
    refers to no node.

    Attributes:
        open: Tensors that may be freed.
        in_attention: Whether the running function mixes tokens.
    """

    def __init__(self, widths: Collection[int]) -> None:
        self._widths = widths
        self.open: list[_Saved] = []
        self.in_attention = False

    def pack(self, tensor: Tensor) -> _Saved:
        """Wrap a tensor that a node saves."""
        saved = _Saved(tensor.detach())
        if tensor.requires_grad and tensor.ndim > 1 and tensor.shape[-1] > 1:
            if self.in_attention or tensor.shape[-1] in self._widths:
                self.open.append(saved)
            else:
                saved.tensor = None
        return saved


def _key_of(tensor: Tensor) -> _Key:
    """Node that computed a tensor with a graph, and the index among its results."""
    key: Any = maker_of(node_of(tensor), tensor.output_nr)
    found: _Key = key
    return found


class Recording:
    """Observes the functions that one thread calls, for a ``with`` block.

    Args:
        width: Width of the residual stream. If it is known, tensors saved in branches of this width
            are freed; if it is None, everything is kept.
        widths: Widths of tensors on the paths of directions; tensors of other
            widths are not kept at all, except in attention.
        outside: Whether to record arguments of functions outside of the model.

    Attributes:
        constants: For each node of a function that adds constants: these, and their signs.
        picked: Values selected from a parameter, by their address, and the parameter.
        given: Arguments of functions outside of the model, by node and index among its results.
        depth: Number of nested running modules: a model, and its base.
        used: Whether a pass has been recorded.
    """

    def __init__(
        self, width: int | None, widths: Collection[int] = (), *, outside: bool = True
    ) -> None:
        self.given: dict[_Key, Tensor] = {}
        self.depth = 0
        self.used = False
        self._outside = outside
        self.constants: dict[Node, list[tuple[Any, int]]] = {}
        self.picked: dict[int, tuple[Tensor, Tensor]] = {}
        self._values: dict[_Key, tuple[Tensor, int]] = {}
        self._sums: dict[_Key, tuple[_Key, _Key, int]] = {}
        self._width = width
        self._kept = _Kept(widths)
        self._open = self._kept.open
        self._after_softmax = False
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._kept.pack, _Saved.get)

    def __enter__(self) -> Self:
        """Start recording."""
        self.used = True
        if self._width is not None:
            self._hooks.__enter__()
        self._mode = FunctionMode(self._call)
        self._mode.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        """Stop recording."""
        self._mode.__exit__(*error)  # type: ignore[no-untyped-call]
        del self._mode  # it refers back to this object, and would keep its tensors alive
        if self._width is not None:
            self._hooks.__exit__(*error)

    @property
    def frees(self) -> bool:
        """Whether tensors that nodes have saved are freed."""
        return self.used and self._width is not None

    def know(self, tensor: Tensor) -> None:
        """Record a tensor that is known from elsewhere."""
        if tensor.requires_grad and _key_of(tensor) not in self._values:
            self._hold(_key_of(tensor), tensor.detach())

    def _hold(self, key: _Key, tensor: Tensor) -> None:
        self._values[key] = tensor, tensor._version  # noqa: SLF001 - no public name

    def value(self, node: Node, output: int) -> Tensor | None:
        """A tensor that was added to another, or the sum; None for other tensors."""
        key = node, output
        if key in self._values:
            tensor, version = self._values[key]
            if tensor._version != version:  # noqa: SLF001 - no public name
                raise ValueError(
                    "The model writes into its residual stream after adding to it, which "
                    "ALTI-Logit does not cover: let it return new tensors."
                )
            return tensor
        if key not in self._sums:
            return None
        first, second, sign = self._sums[key]
        one, other = self.value(*first), self.value(*second)
        if one is None or other is None:
            return None
        return one + other if sign > 0 else one - other

    # Functions --------------------------------------------------------------------------------

    def _call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function, and record what is needed."""
        name = getattr(func, "__name__", "")
        if self._outside and not self.depth:
            for each in args:
                if isinstance(each, Tensor) and each.requires_grad:
                    self.given[_key_of(each)] = each.detach()
        if name in _SUMS and len(args) > 1:
            return self._sum(name, func, args, kwargs)
        before = len(self._open)
        self._kept.in_attention = name in _MATRIX_PRODUCTS or name in _ATTENTION
        result = func(*args, **kwargs)
        self._kept.in_attention = False
        if name == "__getitem__" and isinstance(args[0], nn.Parameter):
            self.picked[result.data_ptr()] = result, args[0]  # kept alive, so the address is valid
        place = _BIAS_AT.get(name)
        if place is not None:
            bias = args[place] if len(args) > place else kwargs.get("bias")
            if isinstance(bias, Tensor) and not bias.requires_grad:
                whole = result._base  # noqa: SLF001 - a view gets a new node when it is written
                self._add_constant(result if whole is None else whole, bias, 1)
        if len(self._open) > before or func in _SOFTMAX:  # over one position it saves nothing wide
            self._keep(func, name, before, result)
        return result

    def _sum(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operands, signs = args[:2], _SUMS[name]
        dependent = [isinstance(each, Tensor) and each.requires_grad for each in operands]
        if not (all(dependent) and self._is_branch(*operands)):
            result = func(*args, **kwargs)
            for each, depends, sign in zip(operands, dependent, signs, strict=True):
                if not depends and any(dependent):
                    self._add_constant(result, each, sign)
            return result
        keys: list[_Key] = []
        for each in operands:
            key = _key_of(each)
            keys.append(key)
            if key not in self._values and key not in self._sums:
                kept = each.detach()
                if name in _IN_PLACE and each is operands[0]:
                    kept = kept.clone()
                self._hold(key, kept)
        result = func(*args, **kwargs)
        key = _key_of(result)
        if all(each in self._values for each in keys) and not kwargs and signs[0] > 0:
            self._sums[key] = keys[0], keys[1], signs[1]  # not held: it can be recomputed
        else:
            self._hold(key, result.detach())
        for saved in self._open:
            saved.tensor = None
        self._open.clear()
        self._after_softmax = False
        return result

    def _is_branch(self, one: Tensor, other: Tensor) -> bool:
        width = self._width
        return one.shape == other.shape and (width is None or one.shape[-1] == width)

    def _add_constant(self, result: Any, constant: Any, sign: int) -> None:
        node = node_of(result) if isinstance(result, Tensor) else None
        if node is not None:
            kept = constant.detach() if isinstance(constant, Tensor) else constant
            self.constants.setdefault(node, []).append((kept, sign))

    # Tensors saved by nodes -------------------------------------------------------------------

    def _keep(self, func: Any, name: str, before: int, result: Any) -> None:
        """Keep tensors of attention: values and weights, or what the weights are computed from."""
        if func is F.scaled_dot_product_attention:
            output = result.data_ptr()
            self._open[before:] = [
                each
                for each in self._open[before:]
                if each.tensor is not None and each.tensor.data_ptr() == output
            ]
        elif func in _SOFTMAX:
            self._after_softmax = True
            del self._open[before:]
        elif self._after_softmax and name in _MATRIX_PRODUCTS:
            del self._open[before:]
