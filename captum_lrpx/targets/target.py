"""A person's description of what to explain, and what Captum needs for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from captum_lrpx.targets.encoding import vocabulary_size, word_id
from captum_lrpx.targets.forward import AnswerLogits, ClassLogits, LogitDifference, TokenLogits
from captum_lrpx.targets.task import task_of

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.targets.encoding import Encoding

__all__ = ["Question", "Target"]


@dataclass(frozen=True)
class Question:
    """What Captum needs to explain a :class:`Target`.

    Attributes:
        forward: Forward function.
        target: Captum's ``target``.
        additional_forward_args: Captum's ``additional_forward_args``.
        position: Position of the logits in the input, for outputs that have one.
        description: The question in words.
    """

    forward: nn.Module
    target: int | None
    additional_forward_args: tuple[Any, ...]
    position: int | None
    description: str


@dataclass(frozen=True)
class Target:
    """What to explain: the logit of a token or of a class, or the difference of two.

    Attributes:
        token: A word (or token id) that a language model predicts; a class name (or number) of a
            classifier; a position of a question answering model.
        contrast: The same kind of thing, whose logit is subtracted: why ``token`` rather than this.
        position: Where the logit is read. ``None``: the end of the text for a causal model, the
            mask token for a masked one. A number is an index into the tokens.
        end: For question answering, which end of the answer.

    Examples:
        >>> Target("are", contrast="is")
        >>> Target("POSITIVE")
    """

    token: str | int
    contrast: str | int | None = None
    position: int | None = None
    end: Literal["start", "end"] = "start"

    def ask(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> Question:
        """Turn the description into a forward function and its arguments, for one text.

        Args:
            model: A Hugging Face model with a head.
            tokenizer: Its tokenizer.
            encoding: The text.

        Returns:
            What Captum needs, for a batch of one row.

        Raises:
            ValueError: If a word is unknown or of several tokens, or a class does not exist.
            IndexError: If a position or token id is out of range.
        """
        task = task_of(model)
        if task == "sequence-classification":
            return self._of_class(model, ClassLogits(model), (None,), None)
        if task == "token-classification":
            position = _index(self.position, len(encoding.ids), default=len(encoding.ids) - 1)
            return self._of_class(model, TokenLogits(model), (None, position), position)
        if task == "question-answering":
            return self._of_answer(model, encoding)
        position = self._place(model, tokenizer, encoding)
        token = _token_id(model, tokenizer, encoding, self.token)
        if self.contrast is None:
            return Question(
                TokenLogits(model), token, (None, position), position, f"logit of {self.token!r}"
            )
        other = _token_id(model, tokenizer, encoding, self.contrast)
        args = (None, torch.tensor([token]), torch.tensor([other]), torch.tensor([position]))
        description = f"logit of {self.token!r} minus logit of {self.contrast!r}"
        return Question(LogitDifference(model), None, args, position, description)

    def _place(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> int:
        default = len(encoding.ids) - 1
        if task_of(model) == "masked-lm":
            default = encoding.ids.index(tokenizer.mask_token_id)
        return _index(self.position, len(encoding.ids), default)

    def _of_class(
        self, model: nn.Module, forward: nn.Module, args: tuple[Any, ...], position: int | None
    ) -> Question:
        if self.contrast is not None:
            raise ValueError(
                "A contrast of two classes is not a forward module: explain both classes and "
                "subtract, relevance is additive in the target."
            )
        label = _class_id(model, self.token)
        return Question(forward, label, args, position, f"logit of class {self.token!r}")

    def _of_answer(self, model: nn.Module, encoding: Encoding) -> Question:
        if not isinstance(self.token, int) or self.contrast is not None:
            raise ValueError("The target of a question answering model is one position, a number.")
        position = _index(self.token, len(encoding.ids), default=0)
        forward = AnswerLogits(model, self.end)
        return Question(forward, position, (None,), None, f"{self.end} logit at {position}")


def _index(position: int | None, length: int, default: int) -> int:
    if position is None:
        return default
    if not -length <= position < length:
        raise IndexError(f"position {position} is out of range for a text of {length} tokens.")
    return position % length


def _token_id(model: nn.Module, tokenizer: Any, encoding: Encoding, token: str | int) -> int:
    if isinstance(token, str):
        return word_id(model, tokenizer, encoding, token)
    size = vocabulary_size(model)
    if not 0 <= token < size:
        raise IndexError(f"token id {token} is out of range for a vocabulary of {size}.")
    return token


def _class_id(model: nn.Module, label: str | int) -> int:
    config: Any = model.config
    if isinstance(label, str):
        names = {str(name): int(index) for name, index in config.label2id.items()}
        if label not in names:
            raise ValueError(f"There is no class {label!r}; the classes are {', '.join(names)}.")
        return names[label]
    if not 0 <= label < config.num_labels:
        raise IndexError(f"class {label} is out of range for {config.num_labels} classes.")
    return label
