"""A batch of samples as the subject of a method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.methods import Subject
from captum_lrpx.targets import LogitDifference, Question

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from captum_lrpx.sva.tokenized import TokenizedSample

__all__ = ["subject_of"]


def subject_of(model: nn.Module, tokenizer: Any, samples: Sequence[TokenizedSample]) -> Subject:
    """The question about each sample: the logit of the verb minus that of the other number's form.

    Args:
        model: The language model that the samples were made tokens for.
        tokenizer: Its tokenizer.
        samples: At least one.

    Returns:
        The samples as one batch, padded on the right.
    """
    device = next(model.parameters()).device
    lengths = torch.tensor([len(sample.ids) for sample in samples], device=device)
    mask = (torch.arange(int(lengths.max()), device=device) < lengths.unsqueeze(1)).long()
    padding = tokenizer.pad_token_id or 0
    ids = torch.full_like(mask, padding)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = torch.tensor(sample.ids, device=device)
    columns = [
        torch.tensor([getattr(sample, name) for sample in samples], device=device)
        for name in ("verb_id", "foil_id", "position")
    ]
    question = Question(
        LogitDifference(model), None, (mask, *columns), None, "logit of the verb minus the foil's"
    )
    return Subject(model, tokenizer, question, ids, mask)
