"""Origins of the constants that functions add to values depending on the inputs.

A constant is no operand in the graph: a bias, a position embedding, an additive mask. The
watched pass sees it as an argument of a function, and a ledger names it after the
parameters and embeddings that it was computed from.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from captum_lrpx.parallel import whole
from captum_lrpx.trace.graph import node_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from torch.autograd.graph import Node


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Origin(NamedTuple):
    """A parameter, a buffer, or a table of embeddings.

    Attributes:
        kind: Of a table ``"positions"`` or ``"token_types"``, by its index; else ``"bias"``.
        module: Its module.
        name: Its name there; empty for a table.
    """

    kind: Literal["bias", "positions", "token_types"]
    module: nn.Module
    name: str = ""


class Added(NamedTuple):
    """A constant in a function of values that depend on the inputs.

    Attributes:
        origins: Parameters and tables that it was computed from; empty if unknown.
        value: The summand, broadcastable to the result of the function; None if unknown.
    """

    origins: tuple[Origin, ...]
    value: Tensor | None = None

    @property
    def is_table(self) -> bool:
        """Whether rows of tables are part of it."""
        return any(each.kind != "bias" for each in self.origins)


class Called(NamedTuple):
    """A function called during a watched pass.

    Attributes:
        function: The function.
        name: Its name.
        args: Its arguments.
        kwargs: Its keyword arguments.
        taken: The tensors among them whose numbers matter.
        module: The innermost running module of the model; None outside of it.
    """

    function: Callable[..., Any]
    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    taken: list[Tensor]
    module: nn.Module | None


class Masked(NamedTuple):
    """A mask of finite numbers in a call of ``scaled_dot_product_attention``.

    Attributes:
        attention: The call, as a function of the mask.
        mask: The mask.
        of_values: Whether the values depend on the inputs too, rather than the weights alone.
    """

    attention: Callable[[Tensor], Tensor]
    mask: Tensor
    of_values: bool


_BIAS_AT: Final = {
    **dict.fromkeys(_names("layer_norm group_norm"), 3),
    **dict.fromkeys(_names("linear conv1d conv2d conv3d"), 2),
    **dict.fromkeys(_names("conv_transpose1d conv_transpose2d conv_transpose3d"), 2),
}
"""Functions with a bias, and its place among their arguments."""

_WITH_SUMMAND: Final = _names(
    "addmm addmm_ baddbmm baddbmm_ addbmm addbmm_ addmv addmv_ addr addr_ addcmul addcmul_"
)
_ADD: Final = _names("add add_ __add__ __radd__ __iadd__")
_SUB: Final = _names("sub sub_ subtract __sub__ __isub__")
_SUB_FROM: Final = _names("rsub __rsub__")

_VIEWS: Final = _names(
    "to type_as float double half bfloat16 view reshape expand expand_as unsqueeze squeeze "
    "contiguous clone detach __getitem__ narrow permute transpose repeat"
)
_CARRYING: Final = (
    _VIEWS
    | _ADD
    | _names(
        "mul mul_ __mul__ __rmul__ __imul__ div __truediv__ neg clamp dropout layer_norm cat stack "
        "repeat_interleave index_select masked_fill where pad chunk split"
    )
)
"""Functions whose result is named after their operands."""

_CHOOSING: Final = _names("gather index_select take take_along_dim __getitem__ expand_as type_as")
"""Functions whose result consists of elements of their first operand."""

_ATTENTION: Final = (
    *("query", "key", "value", "attn_mask"),
    *("dropout_p", "is_causal", "scale", "enable_gqa"),
)


class Origins:
    """Records the constants of a watched pass as they are computed and used.

    Args:
        modules: The modules of the model.

    Attributes:
        added: For nodes that depend on the inputs, the constants in their functions, as far as
            they are known; none if they are only zeros and exclusions.
        masked: For nodes of attention with a mask of finite numbers, that mask.
        embedded: Modules called with integers, and their outputs.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.added: dict[Node, list[Added]] = {}
        self.masked: dict[Node, Masked] = {}
        self.embedded: list[tuple[nn.Module, Tensor]] = []
        self._owners = {
            id(tensor): Origin("bias", module, name)
            for module in modules
            for name, tensor in _own(module)
        }
        # Terms that a constant is the sum of; a single term without a value is the constant itself.
        self._terms = WeakTensorKeyDictionary()
        self._counters = WeakTensorKeyDictionary()

    def record(self, called: Called, made: list[Tensor], *, partly: bool) -> None:
        """Record the constants in a function.

        Args:
            called: The function.
            made: The tensors that it returned, or wrote into.
            partly: Whether it wrote into a part of a tensor.
        """
        node = node_of(made[0]) if torch.is_grad_enabled() else None
        if node is not None:
            self._used(called, node, partly=partly)
        elif not any(each.requires_grad for each in called.taken):
            self._constant(called, made)

    def _constant(self, called: Called, made: list[Tensor]) -> None:
        """Record the constants that a function computes from constants."""
        name = called.name
        taken = called.taken[:1] if name in _CHOOSING else called.taken
        counts = name in ("arange", "cumsum") or any(each in self._counters for each in taken)
        terms = self._looked_up(called) or (self._combined(called) if name in _CARRYING else [])
        for tensor in made:
            if counts:
                self._counters[tensor] = True
            if terms:
                self._terms[tensor] = terms

    def _looked_up(self, called: Called) -> list[Added]:
        """The table whose rows a function returns, if any."""
        if called.name not in ("embedding", "index_select", "__getitem__"):
            return []
        whole = [each for each in called.taken if each.is_floating_point()]
        index = [each for each in called.taken if _is_whole_number(each)]
        origins = [term.origins for each in whole[:1] for term in self._of(each, called.module)]
        if not index:
            return []
        counts = index[0] in self._counters
        if called.name == "embedding":
            counts |= _counts(index[0])
        elif not counts or not origins:  # for instance a bias per expert
            return []
        kind: Literal["positions", "token_types"] = "positions" if counts else "token_types"
        if not origins:  # weights of a custom class
            return [] if called.module is None else [Added((Origin(kind, called.module),))]
        _, module, name = origins[0][0]
        return [Added((Origin(kind, module, "" if name == "weight" else name),))]

    def _combined(self, called: Called) -> list[Added]:
        """Terms of a result: its operands' terms, kept apart as long as possible."""
        taken = [each for each in called.taken if each.is_floating_point()]
        known = {id(each): terms for each in taken if (terms := self._of(each, called.module))}
        if called.name in ("add", "__add__") and len(known) == 2 and not called.kwargs:
            return [
                term if term.value is not None else term._replace(value=each)
                for each in taken
                for term in known[id(each)]
            ]
        terms = [term for each in known.values() for term in each]
        if called.name in _VIEWS and called.args and len(known) == 1 and len(terms) > 1:
            again = partial(called.function, **called.kwargs)
            return [each._replace(value=again(each.value, *called.args[1:])) for each in terms]
        # A parameter that scales something unknown is not its origin.
        found = [_together(terms)] if terms else []
        return [each for each in found if len(known) == len(taken) or each.is_table]

    def _of(self, tensor: Tensor, module: nn.Module | None) -> list[Added]:
        """Terms of a constant, empty if unknown."""
        if tensor in self._terms:
            terms: list[Added] = self._terms[tensor]
            return terms
        whole = tensor if tensor._base is None else tensor._base  # noqa: SLF001 - no public name
        if module is not None:  # its parameters are replaced while it is offloaded
            for name, own in _own(module):
                if own is whole:
                    return [Added((Origin("bias", module, name),))]
        owner = self._owners.get(id(whole))
        return [] if owner is None else [Added((owner,))]

    def left(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Record the output of an embedding module."""
        given = args[0] if args else None
        if isinstance(given, Tensor) and _is_whole_number(given) and isinstance(output, Tensor):
            self.embedded.append((module, output))

    # In functions of values that depend on the inputs ------------------------------------------

    def _used(self, called: Called, node: Node, *, partly: bool) -> None:
        """Record the constants in a function of values that depend on the inputs."""
        if called.name == "scaled_dot_product_attention":
            self._attention(called, node)
            return
        summand = None if partly else _summand(called)
        if summand is not None:
            self.added[node] = self._terms_of(summand, called.module)
            return
        constants = [each for each in called.taken if not each.requires_grad]
        terms = [term for each in constants for term in self._of(each, called.module)]
        if terms:
            self.added[node] = [_together(terms)]

    def _terms_of(self, summand: _Summand, module: nn.Module | None) -> list[Added]:
        """Terms of a summand, copied where it may be overwritten later."""
        constant, factor, shape = summand
        if not isinstance(constant, Tensor):
            number = torch.tensor(factor * constant, device="cpu")
            return [Added((), number)] if constant else []
        if not _has_finite_terms(constant):
            return []
        terms = self._of(constant, module) or [Added(())]
        if isinstance(constant, nn.Parameter):
            (term,) = terms
            return [term._replace(value=constant.detach().view(shape or constant.shape))]
        values = [constant if term.value is None else term.value for term in terms]
        return [
            term._replace(value=factor * value.detach().view(shape or value.shape))
            for term, value in zip(terms, values, strict=True)
        ]

    def _attention(self, called: Called, node: Node) -> None:
        given = dict(zip(_ATTENTION, called.args, strict=False), **called.kwargs)
        mask = given.pop("attn_mask", None)
        if mask is None or mask.requires_grad or not _has_finite_terms(mask):
            return
        of_values = given["value"].requires_grad
        given |= {name: given[name].detach() for name in _ATTENTION[:3]} | {"dropout_p": 0.0}
        attention = lambda mask: called.function(attn_mask=mask, **given)  # noqa: E731
        self.masked[node] = Masked(attention, mask.detach().clone(), of_values)


class _Summand(NamedTuple):
    constant: Tensor | float
    factor: float = 1.0
    shape: tuple[int, ...] | None = None  # to broadcast to the result, if not its own


def _summand(called: Called) -> _Summand | None:
    """The constant summand of a function, if the other operands enter linearly."""
    name, args, kwargs = called.name, called.args, called.kwargs
    if name in _BIAS_AT:
        return _bias(called)
    if name in _WITH_SUMMAND and args and not args[0].requires_grad:
        return _Summand(args[0], kwargs.get("beta", 1.0))
    if name in _ADD | _SUB | _SUB_FROM and len(args) > 1:
        first, second = args[:2]
        if not _depends(second):
            return _Summand(second, kwargs.get("alpha", 1.0) * (-1.0 if name in _SUB else 1.0))
        if not _depends(first):
            return _Summand(first, -1.0 if name in _SUB_FROM else 1.0)
    return None


def _bias(called: Called) -> _Summand | None:
    name, args, place = called.name, called.args, _BIAS_AT[called.name]
    bias = args[place] if len(args) > place else called.kwargs.get("bias")
    if bias is None:
        return _Summand(0.0)
    if bias.requires_grad:
        return None
    if name == "group_norm":
        return _Summand(bias, shape=(-1, *[1] * (called.taken[0].ndim - 2)))
    return _Summand(bias, shape=(-1, *[1] * int(name[-2]))) if "conv" in name else _Summand(bias)


def _depends(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_finite_terms(constant: Tensor) -> bool:
    """Whether a constant contains more than zeros and exclusions of scores."""
    constant = whole(constant)
    if not constant.is_floating_point():
        return constant.dtype != torch.bool and bool((constant != 0).any())
    excluded = torch.finfo(constant.dtype).min / 2
    return bool(((constant != 0) & (constant > excluded)).any())


def _counts(index: Tensor) -> bool:
    """Whether most of some row of an index, or of its base, are consecutive numbers."""
    whole = index if index._base is None else index._base  # noqa: SLF001 - no public name
    steps = whole.reshape(-1, whole.shape[-1]).diff(dim=-1) == 1
    most = int(steps.sum(-1).max()) if len(steps) else 0
    return most > 1 and 2 * most > steps.shape[-1]


def _is_whole_number(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


def _together(terms: Iterable[Added]) -> Added:
    """Merge terms into one; tables take precedence over parameters, which only scale them."""
    origins = dict.fromkeys(origin for term in terms for origin in term.origins)
    tables = tuple(origin for origin in origins if origin.kind != "bias")
    return Added(tables or tuple(origins))


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for tensors in (module._parameters, module._buffers):  # noqa: SLF001 - not of submodules
        for name, tensor in tensors.items():
            if tensor is not None:
                yield name, tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in a nested structure."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
