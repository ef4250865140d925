"""Hints for facts that no pass shows: keys of a recurrence, or the gate among two factors.

The autograd graph shows a product of two factors that are both linear in the stream, but not their
roles. A hint states them for a class of modules, with its reason: the family's paper or code. Hints
give results a *nature* (see :mod:`captum_lrpx.trace.natures`), from which the rest follows: a
``"constant"`` is held constant in every recipe, an ``"activated"`` result is the gate of a gated
product, a ``"gate"`` is like a router's weights.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, NamedTuple

from captum_lrpx.module_tree import modules_of
from captum_lrpx.trace.graph import Edge

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.natures import Nature


class Hint(NamedTuple):
    """Nature of some results in modules of a class.

    Attributes:
        modules: Names of classes (patterns, separated by spaces); subclasses are included.
        nature: Nature of the results.
        reason: The paper or code that supports it.
        child: Name of a submodule; the hint is for all of its results.
        operator: An operator that the module itself calls.
        outputs: Indices of that operator's results, from 0; only operators with ``of`` results
            count.
        of: Number of results of the operator.
    """

    modules: str
    nature: Nature
    reason: str
    child: str = ""
    operator: str = ""
    outputs: tuple[int, ...] = (0,)
    of: int = 1


_SELECTIVE: Final = (
    "a selective state space is linear in its input once step, B and C are given: MambaLRP "
    "(Jafari et al. 2024, arXiv 2406.07592, section 4.2) holds them constant"
)
_DELTA: Final = (
    "linear attention writes values to a state and reads them: queries and keys address it, as "
    "the weights of a softmax do (Yang et al. 2024, arXiv 2412.06464, equation 10)"
)
_SHORT_CONVOLUTION: Final = (
    "the code of LFM3's vision layers names the three parts input gate, output gate and input of "
    "the convolution"
)

_SEPARABLE: Final[dict[str, Nature]] = {"Expand": "activated", "Relu": "signal"}

HINTS: Final[tuple[Hint, ...]] = (
    Hint(
        "MambaMixer FalconMambaMixer JambaMambaMixer ZambaMambaMixer",
        "constant",
        _SELECTIVE,
        operator="Split",
        outputs=(0, 1, 2),
        of=3,
    ),
    Hint(
        "Mamba2Mixer BambaMixer FalconH1Mixer GraniteMoeHybridMambaLayer NemotronHMamba2Mixer "
        "Zamba2MambaMixer",
        "constant",
        _SELECTIVE,
        operator="Split after Convolution",
        outputs=(1, 2),
        of=3,
    ),
    Hint(
        "*GatedDeltaNet *DeltaAttention Glm5NextTextLinearAttention",
        "constant",
        _DELTA,
        operator="Split after Convolution",
        outputs=(0, 1),
        of=3,
    ),
    Hint(
        "MiniMaxLightningAttention",
        "constant",
        "lightning attention is linear attention (Qin et al. 2024, arXiv 2405.17381): queries and "
        "keys address the values",
        operator="Split",
        outputs=(0, 1),
        of=3,
    ),
    *(
        Hint(
            "xLSTMLayer",
            "constant",
            "an mLSTM stores values under keys and reads them with queries (Beck et al. 2024, "
            "arXiv 2405.04517, equations 19 to 27)",
            child=child,
        )
        for child in ("q", "k")
    ),
    Hint(
        "Lfm2ShortConv Lfm2MoeShortConv Lfm3ShortConv Lfm3VlVisionShortConv",
        "activated",
        _SHORT_CONVOLUTION,
        operator="Split",
        outputs=(0, 1),
        of=3,
    ),
    *(
        Hint(
            "Gemma3nTextAltUp",
            "constant",
            "coefficients of a router mix the parallel streams (Baykal et al. 2023, arXiv "
            "2301.13310, section 3)",
            child=child,
        )
        for child in ("prediction_coefs", "correction_coefs")
    ),
    Hint(
        "FocalNetModulation",
        "activated",
        "a judgement: modulation replaces self-attention (Yang et al. 2022, arXiv 2203.11926, "
        "equations 1 to 4); the aggregated context carries the content, and the query "
        "modulates it, although the paper calls the query the modulated one",
        operator="SplitWithSizes",
        outputs=(0,),
        of=3,
    ),
    Hint(
        "FocalNetModulation",
        "gate",
        "gates weight the levels of the context (Yang et al. 2022, arXiv 2203.11926, equation 6)",
        operator="SplitWithSizes",
        outputs=(2,),
        of=3,
    ),
    Hint(
        "SwiftFormerEfficientAdditiveAttention",
        "activated",
        "the pooled query modulates each key, which carries the content of its place: keys and a "
        "linear layer replace keys and values (Wu et al. 2021, arXiv 2108.09084, section 3.2; "
        "Shaker et al. 2023, arXiv 2303.15446, equation 4)",
        operator="Repeat",
    ),
    *(
        Hint(
            "MobileViTV2LinearSelfAttention",
            nature,
            "the context vector, one for all places, replaces the attention matrix, and "
            "it multiplies the values (Mehta and Rastegari 2022, arXiv 2206.02680, section 3.2)",
            operator=operator,
        )
        for operator, nature in _SEPARABLE.items()
    ),
    Hint(
        "Inkling2SoftcappedSwiGLU",
        "signal",
        "the soft cap of the second branch limits the signal: the branch with the sigmoid is "
        "the gate",
        child="up_softcap",
    ),
    Hint(
        "NeoMMEExclusiveSelfAttention",
        "constant",
        "exclusive self-attention removes the component along the token's own value (Zhai 2026, "
        "arXiv 2603.09078): linear in the attention output once that direction, a normalized "
        "vector, is held constant like the scale of a norm",
        operator="Div",
    ),
)


def natures_of(
    graph: Graph,
    places: Mapping[int, tuple[str, str, str]],
    modules: Mapping[str, nn.Module],
) -> dict[Edge, Nature]:
    """Natures of the results that hints are for.

    Args:
        graph: A graph.
        places: For its nodes: path and class of the module, function.
        modules: The modules of the model, by path.
    """
    hints = {path: found for path, module in modules.items() if (found := _hints_for(type(module)))}
    if not hints:
        return {}
    natures: dict[Edge, Nature] = {}
    for number in range(len(graph.nodes)):
        path = places[number][0]
        parent, _, child = path.rpartition(".")
        for hint in hints.get(path, ()):
            if hint.operator and _is_meant(graph, number, path, places, hint):
                natures.update((Edge(number, output), hint.nature) for output in hint.outputs)
        for hint in hints.get(parent, ()):
            if hint.child == child:
                natures[Edge(number, 0)] = hint.nature
    return natures


def has_hints(model: nn.Module) -> bool:
    """Whether there are hints for some module of a model."""
    return any(_hints_for(type(module)) for module in modules_of(model))


def _hints_for(kind: type) -> tuple[Hint, ...]:
    if kind not in _known:
        _known[kind] = tuple(_named(kind))
    return _known[kind]


_known: dict[type, tuple[Hint, ...]] = {}


def _named(kind: type) -> Iterator[Hint]:
    classes = [each.__name__ for each in kind.__mro__]
    return (
        hint
        for hint in HINTS
        if any(fnmatchcase(name, pattern) for name in classes for pattern in hint.modules.split())
    )


def _is_meant(
    graph: Graph,
    number: int,
    path: str,
    places: Mapping[int, tuple[str, str, str]],
    hint: Hint,
) -> bool:
    operator, _, before = hint.operator.partition(" after ")
    if not graph.names[number].startswith(operator) or graph.results(number) != hint.of:
        return False
    return not before or before in _names_before(graph, number, path, places)


def _names_before(
    graph: Graph, number: int, path: str, places: Mapping[int, tuple[str, str, str]]
) -> Iterator[str]:
    """Operators within a module that a node depends on."""
    entered, stack = set(), [number]
    while stack:
        for edge in graph.operands[stack.pop()]:
            inside = edge is not None and places[edge.node][0].startswith(path)
            if edge is not None and inside and edge.node not in entered:
                entered.add(edge.node)
                stack.append(edge.node)
                yield graph.names[edge.node]
