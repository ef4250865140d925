"""Interactions: how the tokens of a text influence each other's attributions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from torch import Tensor

from captum_lrpx.extras import imported
from captum_lrpx.metrics.replacement import Replacement, check_count, relevances_of

if TYPE_CHECKING:
    from captum.attr import Attribution

    from captum_lrpx._captum import TargetType


Approximator = Literal["kernel", "permutation"]
"""Estimator of Shapley values."""

_CLASSES: Final = {"kernel": "KernelSHAP", "permutation": "PermutationSamplingSV"}
_EXACT_UP_TO: Final = 10
"""Number of players up to which all coalitions are evaluated by default."""


@dataclass(frozen=True)
class MetaAttributions:
    """How much each token influences the attribution of each token.

    Attributes:
        values: ``[T, T]``: entry ``[i, j]`` is the contribution of token j to the attribution of
            token i. Columns of tokens that always stay are 0.
        attributions: Attribution of each token of the whole text ``[T]``.
        baseline: The same with every replaceable token replaced ``[T]``.
        explanations: Number of explained texts.
        exact: Whether all coalitions were among them.
    """

    values: Tensor
    attributions: Tensor
    baseline: Tensor
    explanations: int
    exact: bool

    @property
    def error(self) -> Tensor:
        """``attributions - baseline``, which rows sum to by efficiency, minus their sum ``[T]``."""
        return self.attributions - self.baseline - self.values.sum(1)


def meta_attributions(
    method: Attribution,
    inputs: Tensor | tuple[Tensor, ...],
    baselines: Tensor | float | None = None,
    target: TargetType = None,
    additional_forward_args: object | None = None,
    *,
    mask: Tensor | None = None,
    budget: int | None = None,
    approximator: Approximator = "kernel",
    seed: int = 0,
    examples_per_eval: int = 16,
) -> MetaAttributions:
    """Influence of every token on the attribution of every token, as Shapley values.

    For each token i there is a game (Fumagalli et al. 2026, "The Metagame of Interpretability",
    https://arxiv.org/abs/2605.06295): players are the tokens, and the worth of a coalition is the
    attribution of i with all other tokens replaced by a baseline. The Shapley value of player
    j is the influence of j on the attribution of i. All games share the same texts. Needs the
    package ``shapiq``.

    Args:
        method: An attribution of inputs, as :class:`~captum_lrpx.LRPx`, or any of Captum's.
        inputs: Token ids ``[1, T]`` or embeddings ``[1, T, D]`` of one text.
        baselines: Replacement of a token: an id, an embedding ``[D]``, or a tensor that can be
            broadcast to the inputs. Default: zero for embeddings; ids have no default
        target: As for the method.
        additional_forward_args: As for the method; tensors with a dimension have one row.
        mask: ``[1, T]``, False for tokens that always stay, and are no players.
        budget: Largest number of coalitions. Default: all for up to 10 players,
            else 1024
        approximator: ``"kernel"``, weighted regression on coalitions drawn with their complements;
            or ``"permutation"``, means over random orders.
        seed: Seed of the draws.
        examples_per_eval: Number of texts explained at once.

    Returns:
        The influences, with the number of explanations computed.

    Raises:
        ImportError: If shapiq is not installed.
        AssertionError: If a shape or type does not fit.
        ValueError: If there are several texts, ids have no baseline, or an option is out of range.

    Examples::

        >>> meta = meta_attributions(AttnLRPx(forward), embeddings, additional_forward_args=args)
        >>> meta.values[subject, attractor], meta.explanations
    """
    shapiq = imported(
        "shapiq",
        "Meta-attributions are Shapley values by the package shapiq, which is not installed: "
        "`pip install captum-lrpx[shapiq]`.",
    )
    if approximator not in get_args(Approximator):
        raise ValueError(f"`approximator` is 'kernel' or 'permutation', not {approximator!r}.")
    check_count(examples_per_eval, "examples_per_eval")
    forward = method.forward_func
    given = Replacement(
        "meta_attributions", forward, inputs, baselines, additional_forward_args, target, mask
    )
    game = _Game(method, given, examples_per_eval)
    players = len(game.players)
    budget = _budget(budget, players)
    exact = budget >= 2**players
    values = torch.zeros(game.tokens, game.tokens, dtype=torch.float64)
    # Both extremes come first, for comparison with all others.
    ends = game.ask(torch.tensor([[True] * players, [False] * players]))
    for token in range(game.tokens if players else 0):

        def worth(coalitions: Any, token: int = token) -> Any:
            found = game.ask(torch.from_numpy(coalitions).reshape(-1, players).bool())
            return found[:, token].numpy()

        if exact:
            shapley = shapiq.ExactComputer(worth, players)("SV", 1)
        else:
            cls = getattr(shapiq, _CLASSES[approximator])
            options = {"pairing_trick": True} if approximator == "kernel" else {}
            shapley = cls(players, random_state=seed, **options).approximate(budget, worth)
        for place, player in enumerate(game.players):
            values[token, player] = float(shapley[(place,)])
    return MetaAttributions(values, ends[0], ends[1], len(game.known), exact)


def _budget(budget: int | None, players: int) -> int:
    """Number of coalitions, by default all of a few players."""
    if budget is None:
        return int(2 ** min(players, _EXACT_UP_TO))
    check_count(budget, "budget")
    if budget < players + 2 and budget < 2**players:
        raise ValueError(
            f"`budget` is {budget}, but {players} tokens need {players + 2} coalitions at least."
        )
    return budget


class _Game:
    """Attributions of all tokens under coalitions, each computed once."""

    def __init__(self, method: Attribution, given: Replacement, at_once: int) -> None:
        if len(given.inputs) != 1:
            raise ValueError(
                f"Meta-attributions are of one text, [1, T], but there are {len(given.inputs)}: "
                "call it for each."
            )
        self._method = method
        self._given = given
        self._at_once = at_once
        self.tokens = given.inputs.shape[1]
        self.players = given.counted[0].nonzero().squeeze(1).tolist()
        self.known: dict[bytes, Tensor] = {}

    def ask(self, coalitions: Tensor) -> Tensor:
        """Attributions ``[N, T]`` for coalitions ``[N, players]``."""
        keys = [bytes(row) for row in coalitions.to(torch.uint8).tolist()]
        new = {key: row for key, row in zip(keys, coalitions, strict=True) if key not in self.known}
        for start in range(0, len(new), self._at_once):
            some = list(new)[start : start + self._at_once]
            found = self._attributions(torch.stack([new[key] for key in some]))
            self.known.update(zip(some, found, strict=True))
        return torch.stack([self.known[key] for key in keys])

    def _attributions(self, coalitions: Tensor) -> Tensor:
        gone = torch.zeros(len(coalitions), 1, self.tokens, dtype=torch.bool)
        gone[:, 0, self.players] = ~coalitions
        texts, target, args = self._given.replaced(gone.to(self._given.inputs.device))
        keywords: dict[str, Any] = {"target": target}
        if args is not None:
            keywords["additional_forward_args"] = args
        found = self._method.attribute(texts, **keywords)
        return relevances_of(found, texts).detach().double().cpu()
