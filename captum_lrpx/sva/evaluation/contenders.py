"""Contenders: methods with their options, each under one name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from captum_lrpx.methods import attribute, check_options, options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from captum_lrpx.methods import Attributed, Option
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.targets import Query

__all__ = [
    "DEFAULT_METHODS",
    "PAPER_METHODS",
    "PAPER_ROWS",
    "RANDOM_DRAWS",
    "Contender",
    "contenders",
]

DEFAULT_METHODS = (
    "lrpx",
    "attnlrpx",
    "altilogit",
    "saliency_l1",
    "saliency_l2_squared",
    "input_x_gradient",
    "integrated_gradients",
    "feature_ablation",
    "attention_rollout",
    "random",
)
"""The paper's methods, and baselines of Captum and of the literature."""

PAPER_ROWS = {
    "ALTI-Logit": ("altilogit",),
    "LRP": ("lrpx",),
    "AttnLRP": ("attnlrpx",),
    "Gradient": ("saliency_l1", "saliency_l2_squared"),
    "Gradient x Input": ("input_x_gradient",),
    "Random": ("random",),
}
"""Rows of the paper's Table 2, and our methods; the gradient's is the better one of two norms."""

PAPER_METHODS = tuple(method for methods in PAPER_ROWS.values() for method in methods)
"""Methods of the paper's Table 2."""

RANDOM_DRAWS = 10
"""Number of draws of random attributions, as in the paper."""

_ROWS_AT_ONCE: Final[Mapping[str, Callable[[Query, int], int]]] = {
    "internal_batch_size": lambda query, budget: max(len(query.ids), budget // query.ids.shape[1]),
    "perturbations_per_eval": lambda query, budget: max(1, budget // query.ids.numel()),
}
"""Options for the batch size, which change no result, computed from a number of tokens."""

_MAGNITUDES = ("saliency_l1", "saliency_l2_squared", "attention_rollout", "information_flow")


@dataclass(frozen=True)
class Contender:
    """One row of a table of results.

    Attributes:
        name: Its name in tables.
        method: A name in :data:`captum_lrpx.methods.METHODS`.
        options: Options of the method.
        recipe: Rules other than the method's own.
        draws: Number of draws, with the seeds ``0 .. draws - 1``; 1 for a deterministic method.
    """

    name: str
    method: str
    options: Mapping[str, Option] = field(default_factory=dict)
    recipe: Recipe | None = None
    draws: int = 1

    @property
    def is_magnitude(self) -> bool:
        """Whether its attributions have no sign."""
        return self.method in _MAGNITUDES

    def attribute(self, query: Query, draw: int, token_budget: int) -> Attributed:
        """Run the method.

        Args:
            query: The question.
            draw: Index of the draw.
            token_budget: Tokens per batch, for methods that make their own batches.

        Returns:
            Relevances and values.
        """
        known = options_of(self.method)
        rows = {name: of(query, token_budget) for name, of in _ROWS_AT_ONCE.items()}
        options = {name: count for name, count in rows.items() if name in known} | dict(
            self.options
        )
        if self.draws > 1:
            options["seed"] = draw
        return attribute(self.method, query, self.recipe, options)

    def record(self) -> dict[str, Any]:
        """Convert to values that JSON can store, with all options that affect results."""
        defaults = {
            name: value
            for name, value in options_of(self.method).items()
            if name not in _ROWS_AT_ONCE
        }
        return {
            "name": self.name,
            "method": self.method,
            "options": defaults | dict(self.options),
            "recipe": None if self.recipe is None else repr(self.recipe),
            "draws": self.draws,
        }


def contenders(
    methods: Sequence[str] = DEFAULT_METHODS,
    options: Mapping[str, Mapping[str, Option]] | None = None,
) -> tuple[Contender, ...]:
    """Make contenders of methods, under their own names.

    Args:
        methods: Names in :data:`captum_lrpx.methods.METHODS`.
        options: Options by method.

    Returns:
        The contenders; random attributions are drawn :data:`RANDOM_DRAWS` times.

    Raises:
        ValueError: If there is none, one is named twice, or a method or an option is unknown.
    """
    if not methods or len(set(methods)) < len(methods):
        raise ValueError(f"Give at least one method, each once, not {list(methods)}.")
    found = []
    for method in methods:
        chosen = dict((options or {}).get(method, {}))
        check_options(method, chosen)
        draws = RANDOM_DRAWS if method == "random" and "seed" not in chosen else 1
        found.append(Contender(method, method, chosen, draws=draws))
    return tuple(found)
