"""Words for the rule at an operation, or for the reason why it has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from captum_lrpx.graph_rules import Why
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.trace.graph import Graph
    from captum_lrpx.trace.roles import Roles


_REASONS: Final[dict[Why, str]] = {
    "undecided": "it multiplies two factors that depend on the input, without a rule",
    "unknown": "it is not linear and has no rule",
    "detached": "it adds a value that depends on the input through something without a gradient",
    "overwritten": "its result is overwritten later without a gradient",
    "hidden": "it hides the input of an activation inside of it",
    "in place": "it works in place on a view of another tensor, which hides what it does",
    "unwatched": "the forward pass took a path that had not been seen before",
    "again": "it is inside of torch.utils.checkpoint, which recomputes its operands",
}

_REMEDIES: Final[dict[Why, str]] = {
    "undecided": (
        "Which factor is the signal and which the gate does not follow from the operations: "
        "detach() the gate in the module, as a constant factor needs no rule, or add a hint for "
        "its class (captum_lrpx.hints)."
    ),
    "detached": (
        "Without a gradient it may be a factor, an index or a mask; what is added needs one (no "
        "detach(), no torch.no_grad)."
    ),
    "overwritten": (
        "Write into a copy and return that, in a hook as in a module (`x = x.clone(); x[:, 2] = 0; "
        "return x`), without torch.no_grad(), `.data` and detach()."
    ),
    "hidden": (
        "Use a module that calls its functions one by one instead of one that is a single function "
        "(a recurrent layer written out in steps, say)."
    ),
    "in place": "Let it return a new tensor (inplace=False, or without the underscore).",
    "unwatched": "Call it again: the next pass is watched.",
    "again": "Take torch.utils.checkpoint out and pass checkpointing=True, which saves as much.",
}

_WAY_OUT: Final = (
    "Or pass strict=False: the ordinary gradient is then used there, the relevances no longer "
    "decompose the value, and a warning says so."
)

_RECIPE_ROLES: Final = {
    "activation": "activation",
    "composite": "activation",
    "norm": "norm",
    "attention": "attention",
    "scores": "attention",
    "softmax": "attention",
    "kernel": "attention",
    "gated product": "gate",
    "router": "router",
    "rule": "linear",
}


def reason_and_remedy(why: Why) -> tuple[str, str]:
    """Reason why an operation has no rule, and a remedy, in words."""
    return _REASONS[why], f"{_REMEDIES.get(why, '')} {_WAY_OUT}".strip()


def rule_in_words(graph: Graph, roles: Roles, number: int, recipe: Recipe, path: str) -> str:
    """Name of the rule that an operation gets from a recipe.

    Args:
        graph: The graph.
        roles: Its operations.
        number: Index of the operation.
        recipe: The rules.
        path: Path of its module.
    """
    operation, edges = roles[number], graph.operands[number]
    role = _RECIPE_ROLES.get(operation.role)
    if operation.role == "constant factor" and any(
        edge is not None and roles[edge.node].nature == "scale"
        for edge in (edges[place] for place in operation.constant)
    ):
        role = "norm"
    if role is not None:
        return repr(recipe.rule_for(role, path)).removesuffix("()")
    if recipe.is_gradient_at(path):
        return "its own gradient"
    one_constant = operation.role in ("constant factor", "linear")
    return "one factor constant" if one_constant else "shared equally"
