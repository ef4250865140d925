"""Tasks of Hugging Face models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from captum_lrpx.models import find_model

if TYPE_CHECKING:
    from torch import nn


Task = Literal[
    "causal-lm",
    "masked-lm",
    "sequence-classification",
    "token-classification",
    "question-answering",
]

_TASK_BY_SUFFIX: dict[str, Task] = {
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
    "DoubleHeadsModel": "causal-lm",
    "ForMaskedLM": "masked-lm",
    "ForPreTraining": "masked-lm",
    "ForSequenceClassification": "sequence-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
}


def task_of(model: nn.Module) -> Task:
    """Find the task of a Hugging Face model by the name of its class.

    Args:
        model: The model, or a module around it.

    Raises:
        ValueError: If the model has no known head.
    """
    model = find_model(model)
    for kind in type(model).__mro__:
        for suffix, task in _TASK_BY_SUFFIX.items():
            if kind.__name__.endswith(suffix):
                return task
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(model).__name__} is an encoder-decoder, whose next token follows from a source "
            "and from what has been written so far: use explain(..., written=...), or Captum's "
            "classes with DecoderLogits(model)."
        )
    raise ValueError(
        f"{type(model).__name__} has no prediction head that is known here (known are "
        f"{', '.join(_TASK_BY_SUFFIX)}): load the model with its head, or give LRPx a forward "
        "function of your own."
    )
