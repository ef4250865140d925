"""A person's description of what to explain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from captum_lrpx.binding import find_model
from captum_lrpx.targets.classes import AnswerLogits, ClassDifference, ClassLogits
from captum_lrpx.targets.encoding import span_of, vocabulary_size, word_id
from captum_lrpx.targets.forward import LogitDifference, TokenLogits, TokenSum
from captum_lrpx.targets.outputs import LogProbabilities, OutputFunction, OutputSum, Probabilities
from captum_lrpx.targets.quantity import NAMES, Quantity, check_quantity
from captum_lrpx.targets.question import Question, Terms
from captum_lrpx.targets.task import Task, task_of

if TYPE_CHECKING:
    from captum_lrpx.targets.encoding import Encoding

__all__ = ["Choice", "Function", "Target"]

Choice = str | int
"""A word, class or position: by name or by number."""

Function = Callable[[Tensor], Tensor]
"""From the outputs ``[B, C]`` at the explained place to one value per row ``[B]``."""

_PER_POSITION = ("causal-lm", "masked-lm", "token-classification")


@dataclass(frozen=True)
class Target:
    """What to explain: outputs of a model for one text.

    Attributes:
        token: A word (or token id) that a language model predicts; a class name (or number) of a
            classifier; a position of a question answering model. Several of them are summed. A
            function of the outputs ``[B, C]`` at the explained place is taken as it is.
        contrast: The same kind of thing, one or several, which is subtracted: why ``token`` rather
            than this.
        position: Where the logit is read. ``None``: the end of the text for a causal model, the
            mask token for a masked one. A number is an index into the tokens.
        end: For question answering, which end of the answer.
        quantity: What is explained of each output: its logit, its log-probability, or its
            probability. The latter two are functions of the logits whose gradient is taken as it
            is, so that relevances decompose the gradient times the logits.
        span: Instead of ``token``, a part of the text of a causal model, whose tokens are explained
            where they were predicted, in sum: the part itself (where it last occurs), or the
            indices ``(first, behind the last)`` of its tokens.

    Raises:
        ValueError: If nothing, too much, or an unknown quantity is asked for.

    Examples:
        >>> Target("are", contrast="is")
        >>> Target(("are", "were"), contrast=("is", "was"), quantity="log_prob")
        >>> Target(span="are old", quantity="log_prob")
        >>> Target("POSITIVE")
        >>> Target(lambda logits: logits.logsumexp(-1))
    """

    token: Choice | Sequence[Choice] | Function | None = None
    contrast: Choice | Sequence[Choice] | None = None
    position: int | None = None
    end: Literal["start", "end"] = "start"
    quantity: Quantity = "logit"
    span: str | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_quantity(self.quantity)
        for name in ("token", "contrast"):  # sequences as tuples, so that targets can be compared
            value = getattr(self, name)
            if isinstance(value, Sequence) and not isinstance(value, str):
                if not value:
                    raise ValueError(f"`{name}` is an empty sequence: give at least one.")
                object.__setattr__(self, name, tuple(value))
        if (self.token is None) == (self.span is None):
            raise ValueError("A target is either a `token` (word, class, ...) or a `span`.")
        alone = self.span is not None or callable(self.token)
        if alone and self.contrast is not None:
            raise ValueError(
                "A span or a function has no contrast: subtract inside of the function, or explain "
                "a continuation against another one with LLMRelevance(...).attribute(foil=...)."
            )
        if self.span is not None and self.position is not None:
            raise ValueError("A span says by itself at which positions it is explained.")
        if callable(self.token) and self.quantity != "logit":
            raise ValueError("A function is given logits: apply softmax inside of it.")

    def ask(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> Question:
        """Turn the description into a forward function and its arguments, for one text.

        Args:
            model: A Hugging Face model with a head, or a module around one: its own outputs are
                asked for.
            tokenizer: Its tokenizer.
            encoding: The text.

        Returns:
            What Captum needs, for a batch of one row.

        Raises:
            ValueError: If a word is unknown or of several tokens, or a class does not exist.
            IndexError: If a position or token id is out of range.
        """
        outputs = self.outputs(model)
        if callable(self.token):
            place = self.place(model, tokenizer, encoding)
            arguments = (None,) if place is None else (None, place)
            forward = OutputFunction(outputs, self.token)
            return Question(forward, None, arguments, place, self.describe(model))
        terms = self.terms(model, tokenizer, encoding)
        if terms.positions is None:
            return self._of_outputs(model, outputs, terms)
        return self._of_tokens(model, outputs, terms)

    def outputs(self, model: nn.Module) -> nn.Module:
        """The forward module that gives all outputs ``[B, C]``."""
        task = task_of(model)
        if task == "sequence-classification":
            return ClassLogits(model)
        return AnswerLogits(model, self.end) if task == "question-answering" else TokenLogits(model)

    def place(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> int | None:
        """The position at which outputs are read, for models with outputs per position.

        Raises:
            IndexError: If it is out of range.
        """
        task, length = task_of(model), len(encoding.ids)
        if task not in _PER_POSITION:
            return None
        if self.position is not None:
            return _index(self.position, length)
        return encoding.ids.index(tokenizer.mask_token_id) if task == "masked-lm" else length - 1

    def terms(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> Terms:
        """The outputs that are summed.

        Args:
            model: A Hugging Face model with a head.
            tokenizer: Its tokenizer.
            encoding: The text.

        Raises:
            ValueError: If a word is unknown or of several tokens, or a class does not exist.
            IndexError: If a position or token id is out of range.
        """
        if self.span is not None:
            return self._of_span(model, encoding)
        place = self.place(model, tokenizer, encoding)
        find = _finder(model, tokenizer, encoding)
        good = [find(choice) for choice in _several(self.token)]
        bad = [find(choice) for choice in _several(self.contrast)]
        positions = None if place is None else (place,) * (len(good) + len(bad))
        return Terms((*good, *bad), (1.0,) * len(good) + (-1.0,) * len(bad), positions)

    def describe(self, model: nn.Module) -> str:
        """The question in words.

        Args:
            model: A Hugging Face model with a head.
        """
        task, name = task_of(model), NAMES[self.quantity]
        if callable(self.token):
            return f"{getattr(self.token, '__name__', 'function')} of the logits"
        if self.span is not None:
            shown = repr(self.span) if isinstance(self.span, str) else f"tokens {self.span}"
            return f"sum of the {_plural(name)} of {shown}"
        good = _in_words(_several(self.token), name, task, self.end)
        if self.contrast is None:
            return good
        return f"{good} minus {_in_words(_several(self.contrast), name, task, self.end)}"

    def _of_outputs(self, model: nn.Module, outputs: nn.Module, terms: Terms) -> Question:
        """Outputs of the text as a whole: classes, positions of an answer."""
        description = self.describe(model)
        if terms.is_one:
            forward = in_quantity_of(outputs, self.quantity)
            return Question(forward, terms.choices[0], (None,), None, description)
        if terms.is_pair and self.quantity == "logit" and isinstance(outputs, ClassLogits):
            arguments = (None, *(torch.tensor([choice]) for choice in terms.choices))
            return Question(ClassDifference(model), None, arguments, None, description)
        forward = OutputSum(in_quantity_of(outputs, self.quantity))
        arguments = (torch.tensor([terms.choices]), torch.tensor([terms.weights]), None)
        return Question(forward, None, arguments, None, description)

    def _of_tokens(self, model: nn.Module, outputs: nn.Module, terms: Terms) -> Question:
        """Outputs at positions: tokens, classes of tokens."""
        description, position = self.describe(model), terms.position
        if terms.is_one:
            forward = in_quantity_of(outputs, self.quantity)
            return Question(forward, terms.choices[0], (None, position), position, description)
        if terms.is_pair and self.quantity == "logit":
            arguments = (None, *(torch.tensor([number]) for number in (*terms.choices, position)))
            return Question(LogitDifference(model), None, arguments, position, description)
        summed = (None, *(torch.tensor([row]) for row in (terms.choices, terms.positions)))
        arguments = (*summed, torch.tensor([terms.weights]))
        return Question(TokenSum(model, self.quantity), None, arguments, position, description)

    def _of_span(self, model: nn.Module, encoding: Encoding) -> Terms:
        if task_of(model) != "causal-lm":
            raise ValueError(
                f"{type(model).__name__} does not predict a text token by token: a span can be "
                "explained for a causal language model only."
            )
        assert self.span is not None  # noqa: S101 - for the type checker
        first, stop = span_of(encoding, self.span)
        choices = encoding.ids[first:stop]
        return Terms(choices, (1.0,) * len(choices), tuple(range(first - 1, stop - 1)))


def in_quantity_of(outputs: nn.Module, quantity: Quantity) -> nn.Module:
    """A forward module whose outputs are logits, in another quantity."""
    if quantity == "logit":
        return outputs
    return LogProbabilities(outputs) if quantity == "log_prob" else Probabilities(outputs)


def _several(choices: Choice | Sequence[Choice] | Function | None) -> Sequence[Choice]:
    if choices is None or callable(choices):
        return ()
    return (choices,) if isinstance(choices, (str, int)) else choices


def _finder(model: nn.Module, tokenizer: Any, encoding: Encoding) -> Callable[[Choice], int]:
    """From a word, class or position to its number."""
    model = find_model(model)
    task = task_of(model)
    if task in ("sequence-classification", "token-classification"):
        return lambda choice: _class_id(model, choice)
    if task == "question-answering":
        return lambda choice: _answer(choice, len(encoding.ids))
    return lambda choice: _token_id(model, tokenizer, encoding, choice)


def _index(position: int, length: int) -> int:
    if not -length <= position < length:
        raise IndexError(f"position {position} is out of range for a text of {length} tokens.")
    return position % length


def _answer(position: Choice, length: int) -> int:
    if not isinstance(position, int):
        raise ValueError(  # noqa: TRY004 - the value is wrong for this model, not for a target
            "The target of a question answering model is one position, a number (or several)."
        )
    return _index(position, length)


def _token_id(model: nn.Module, tokenizer: Any, encoding: Encoding, token: Choice) -> int:
    if isinstance(token, str):
        return word_id(model, tokenizer, encoding, token)
    size = vocabulary_size(model)
    if not 0 <= token < size:
        raise IndexError(f"token id {token} is out of range for a vocabulary of {size}.")
    return token


def _class_id(model: nn.Module, label: Choice) -> int:
    config: Any = model.config
    if isinstance(label, str):
        names = {str(name): int(index) for name, index in config.label2id.items()}
        if label not in names:
            raise ValueError(f"There is no class {label!r}; the classes are {', '.join(names)}.")
        return names[label]
    if not 0 <= label < config.num_labels:
        raise IndexError(f"class {label} is out of range for {config.num_labels} classes.")
    return label


def _in_words(choices: Sequence[Choice], name: str, task: Task, end: str) -> str:
    shown = ", ".join(map(repr, choices))
    several = len(choices) > 1
    noun = f"sum of the {_plural(name)}" if several else name
    if task == "question-answering":
        return f"{end} {noun} at {shown}"
    if task in ("sequence-classification", "token-classification"):
        return f"{noun} of {'classes' if several else 'class'} {shown}"
    return f"{noun} of {shown}"


def _plural(name: str) -> str:
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
