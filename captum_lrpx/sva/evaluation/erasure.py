"""Faithfulness: the model's output without the tokens of high relevance."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch.nn.utils.rnn import pad_sequence

from captum_lrpx.metrics import abpc, leave_one_out, pearson, spearman

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from captum_lrpx.sva.evaluation.contenders import Contender
    from captum_lrpx.targets import Query


_POINTS_AT_ONCE = 8


class Effects:
    """The faithfulness of any attribution of one batch.

    Tokens are replaced by the zero embedding.

    Args:
        query: The batch.
        replaceable: Which tokens of each row may be replaced.
    """

    def __init__(self, query: Query, replaceable: Sequence[Sequence[bool]]) -> None:
        self.query = query
        rows = [torch.tensor(row, dtype=torch.bool, device="cpu") for row in replaceable]
        self.mask = pad_sequence(rows, batch_first=True).to(query.ids.device)

    @cached_property
    def _left_out(self) -> Tensor:
        """Drop of the explained value without each token, ``[B, T]``."""
        return self._erased(leave_one_out)

    def measure(self, relevances: Tensor, contender: Contender) -> dict[str, list[float]]:
        """Measure attributions.

        Args:
            relevances: ``[B, T]``.
            contender: Their method: magnitudes are compared with the size of effects.

        Returns:
            The correlation with leaving one token out (Pearson, Spearman), and the area between
            the perturbation curves as a share of the explained value; a number for each row.
        """
        effects = self._left_out.abs() if contender.is_magnitude else self._left_out
        columns = {
            "LOO-r": pearson(relevances, effects, mask=self.mask),
            "LOO-rho": spearman(relevances, effects, mask=self.mask),
            "ABPC": self._erased(abpc, relevances) / self.query.values,
        }
        return {name: column.double().tolist() for name, column in columns.items()}

    def _erased(self, measure: Callable[..., Tensor], *relevances: Tensor) -> Tensor:
        """Call a metric that erases tokens of the batch."""
        return measure(
            self.query.forward,
            self.query.embeddings().detach(),
            *relevances,
            mask=self.mask,
            perturbations_per_eval=_POINTS_AT_ONCE,
            **self.query.arguments,
        )
