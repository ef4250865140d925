"""Leaves out of the graph what the rules hold constant.

Queries and keys under LRP, and gates, get no gradient. PyTorch nevertheless makes a node for each
of their operations, and visits it in the backward pass. Once a pass has shown that nothing a module
computes gets any relevance, its results are detached in later passes, so that these operations and
all that only depend on them have no node. Values stay the same. A shorter graph is only accepted if
it is the known one without these nodes.

Code that looks at gradients while the model runs would notice, and a shorter graph does not show
what was detached. So this is done only where nothing but classes of PyTorch and transformers, as
they are, runs: no hooks, no modules or attention functions from elsewhere.

Measured on 16 blocks of Llama of width 32 with 8 tokens, on one core: 12 % of LRPx.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from torch import Tensor

from captum_lrpx.onlookers import hooked, is_plain, looks_only
from captum_lrpx.rules.node_rules import is_checkpointed
from captum_lrpx.trace.graph import Graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager

    from torch import nn
    from torch.autograd.graph import Node

    from captum_lrpx.graph_rules import Plan
    from captum_lrpx.trace.watch import Call


def without_graph(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Detach the results of modules in this thread, for a forward pass inside a ``with`` block."""
    return hooked(modules, after=_detached)


@looks_only
def _detached(_module: nn.Module, _args: object, output: object) -> object:
    if type(output) is tuple:
        return tuple(each.detach() if isinstance(each, Tensor) else each for each in output)
    return output.detach() if isinstance(output, Tensor) else None


def constant_modules(
    graph: Graph, plan: Plan, calls: Mapping[Node, Call], modules: Iterable[nn.Module]
) -> set[nn.Module]:
    """The first module on each path into a part of a graph that gets no relevance.

    Args:
        graph: The graph.
        plan: The actions of the rules.
        calls: The call that made each node.
        modules: All modules of the model.

    Returns:
        The modules; none if the model may run other code than that of PyTorch and transformers.
    """
    if not all(map(_is_known, modules)):
        return set()
    alive = {call.module for number in plan.alive if (call := calls.get(graph.nodes[number]))}
    found: set[nn.Module] = set()
    constant = [False] * len(graph.nodes)
    for number, edges in enumerate(graph.operands):
        operands = [edge.node for edge in edges if edge is not None]
        call = calls.get(graph.nodes[number])
        if number in plan.alive or call is None or not operands:
            continue
        module = call.module
        if all(constant[operand] for operand in operands):
            constant[number] = True
        elif module is not None and alive.isdisjoint(module.modules()):
            constant[number] = True
            found.add(module)
    return found


_ATTENTION: Final = frozenset(
    {None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"}
)
"""Attention functions of transformers; users may add their own."""


def _is_known(module: nn.Module) -> bool:
    """Whether a module runs code of PyTorch or transformers and nothing else."""
    attention = getattr(vars(module).get("config"), "_attn_implementation", None)
    from_there = type(module).__module__.startswith(("torch.nn.", "transformers."))
    return from_there and attention in _ATTENTION and is_plain(module)


def graph_without(
    modules: set[nn.Module],
    graph: Graph,
    outputs: Iterable[Tensor],
    plan: Plan,
    calls: Mapping[Node, Call],
) -> Graph | None:
    """The graph of a pass in which the results of some modules are detached.

    Args:
        modules: The modules.
        graph: The whole graph.
        outputs: Its tensors.
        plan: The actions of the rules.
        calls: The call that made each node.

    Returns:
        The graph; None if it would lack a node that gets relevance, or if a part of the
        model is in a checkpoint, which PyTorch runs again and expects to have its whole graph.
    """
    shorter = Graph(outputs, {node for node, call in calls.items() if call.module in modules})
    gone = [number for number, node in enumerate(graph.nodes) if node not in shorter.index]
    if not plan.alive.isdisjoint(gone):
        return None
    again = any(is_checkpointed(graph.nodes[number]) for number in gone)
    return None if again else shorter
