"""Rank and probability of an explained output among all outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.models import find_model
from captum_lrpx.targets.forward import AnswerLogits, ClassLogits, TokenLogits
from captum_lrpx.targets.quantity import in_quantity
from captum_lrpx.targets.query import inputs_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.query import Terms


_NAMED = 4


@dataclass(frozen=True)
class Standing:
    """One output of a model compared with all others at its place.

    Attributes:
        name: The token, the class, or the token at the position of an answer.
        index: Its number among the outputs: token id, class, position.
        rank: 1 for the largest output.
        probability: Its probability: by softmax over the outputs, or by sigmoid for a classifier of
            several labels at once.
    """

    name: str
    index: int
    rank: int
    probability: float


def standings(
    model: nn.Module, outputs: nn.Module, encoding: Encoding, terms: Terms
) -> tuple[Standing, ...]:
    """Rank and probability of each term of a question, from one forward pass.

    Args:
        model: A Hugging Face model with a head, or a module around one.
        outputs: The forward module that computes all outputs.
        encoding: The text.
        terms: The explained outputs.

    Returns:
        One for each term; none for a model with a single output, which has nothing to compare.
    """
    rows = all_outputs(model, outputs, encoding, terms.positions)
    if rows.shape[1] == 1:
        return ()
    config: Any = find_model(model).config
    several = getattr(config, "problem_type", None) == "multi_label_classification"
    classes = isinstance(outputs, ClassLogits)
    shares = rows.float().sigmoid() if several and classes else in_quantity(rows, "prob")
    return ranked(terms, rows, shares)


def ranked(terms: Terms, rows: Tensor, shares: Tensor) -> tuple[Standing, ...]:
    """Rank and probability of each term.

    Args:
        terms: The explained outputs.
        rows: All outputs ``[P, C]``, in one row or a row for each term.
        shares: Their probabilities ``[P, C]``.
    """
    found = []
    for number, (name, index) in enumerate(zip(terms.names, terms.choices, strict=True)):
        row = number if len(rows) > 1 else 0
        rank = 1 + int((rows[row] > rows[row, index]).sum())
        found.append(Standing(name, index, rank, float(shares[row, index])))
    return tuple(found)


def all_outputs(
    model: nn.Module, outputs: nn.Module, encoding: Encoding, positions: tuple[int, ...] | None
) -> Tensor:
    """All outputs at one or several places.

    Args:
        model: A Hugging Face model with a head, or a module around one.
        outputs: The forward module that computes them.
        encoding: The text.
        positions: Positions at which they are read, for models with outputs per position.

    Returns:
        ``[P, C]``; one row if all positions are the same, or there are none.
    """
    ids, _, types = inputs_of(model, [encoding])
    with torch.no_grad():
        if isinstance(outputs, (ClassLogits, AnswerLogits)):
            rows: Tensor = outputs(ids, None, types)
            return rows
        assert isinstance(outputs, TokenLogits)  # noqa: S101 - for the type checker
        places = positions or ()
        at = torch.tensor([places if len(set(places)) > 1 else places[:1]], device=ids.device)
        return outputs.logits(ids, None, at, types=types)[0]


def in_words(found: Sequence[Standing]) -> str:
    """Describe ranks and probabilities of outputs in one line.

    Args:
        found: The outputs.

    Returns:
        The first four of them, and the number of the others.
    """
    named = [
        f"{each.name!r} has rank {each.rank}, probability {each.probability:.4g}"
        for each in found[:_NAMED]
    ]
    more = [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return "; ".join([*named, *more])
