"""Outputs of a model to choose from by name: tokens, classes, or positions of an answer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from captum_lrpx.models import find_model
from captum_lrpx.targets.encoding import vocabulary_size
from captum_lrpx.targets.place import Token, places_of, token_id, token_names, word_id
from captum_lrpx.targets.task import Task, task_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from captum_lrpx.targets.encoding import Encoding

Choice = str | int | Token
"""A word, class or position, by name or index; a token by its exact string."""


@dataclass(frozen=True)
class Outputs:
    """Outputs of a model at one place.

    Attributes:
        task: The task of the model.
        index: Maps a word, token, class or position to the index of an output.
        names: Names of outputs, by index.
    """

    task: Task
    index: Callable[[Choice], int]
    names: Callable[[Sequence[int]], tuple[str, ...]]


def outputs_of(
    model: nn.Module,
    tokenizer: Any,
    encoding: Encoding,
    place: int | None,
    end: Literal["start", "end"],
) -> Outputs:
    """Outputs of a model for a text.

    Args:
        model: A Hugging Face model with a head, or a module around one.
        tokenizer: Its tokenizer.
        encoding: The text.
        place: Position at which outputs are read, for models with outputs per position.
        end: For question answering, the explained end of the answer.
    """
    model = find_model(model)
    task = task_of(model)
    if task in ("sequence-classification", "token-classification"):
        return classes_of(model, task)
    if task == "question-answering":
        return Outputs(
            task,
            lambda choice: _answer(encoding, choice, end),
            lambda choices: tuple(encoding.tokens[choice] for choice in choices),
        )
    return tokens_of(model, tokenizer, encoding, place, task)


def tokens_of(
    model: nn.Module,
    tokenizer: Any,
    encoding: Encoding,
    place: int | None = None,
    task: Task = "causal-lm",
) -> Outputs:
    """Tokens that a language model predicts; arguments as of :func:`outputs_of`."""
    return Outputs(
        task,
        partial(_token, task, model, tokenizer, encoding, place),
        partial(token_names, tokenizer),
    )


def classes_of(model: nn.Module, task: Task = "sequence-classification") -> Outputs:
    """Classes of a classifier."""
    config: Any = model.config
    return Outputs(
        task,
        partial(_class, model),
        lambda choices: tuple(str(config.id2label.get(choice, choice)) for choice in choices),
    )


def _token(
    task: Task,
    model: nn.Module,
    tokenizer: Any,
    encoding: Encoding,
    place: int | None,
    token: Choice,
) -> int:
    if isinstance(token, str):
        token = word_id(task, tokenizer, encoding, token, place)
    elif isinstance(token, Token):
        token = token_id(tokenizer, token)
    size = vocabulary_size(model)
    if not 0 <= token < size:
        raise IndexError(f"token id {token} is out of range for a vocabulary of {size}.")
    return token


def _class(model: nn.Module, label: Choice) -> int:
    config: Any = model.config
    if isinstance(label, Token):
        raise ValueError(  # noqa: TRY004 - the value is wrong for this model, not for a target
            f"{type(model).__name__} has classes and predicts no {label}: give a class."
        )
    if isinstance(label, str):
        names = {str(name): int(index) for name, index in config.label2id.items()}
        if label not in names:
            raise ValueError(f"There is no class {label!r}; the classes are {', '.join(names)}.")
        return names[label]
    if not 0 <= label < config.num_labels:
        raise IndexError(f"class {label} is out of range for {config.num_labels} classes.")
    return label


def _answer(encoding: Encoding, choice: Choice, end: Literal["start", "end"]) -> int:
    """A position, or the position where a part of the context starts or ends."""
    if isinstance(choice, int):
        return index_of(choice, len(encoding.ids))
    if isinstance(choice, Token):
        places = [index for index, token in enumerate(encoding.tokens) if token == choice.text]
    else:
        places = places_of(encoding, choice, end)
    shown = repr(choice.text if isinstance(choice, Token) else choice)
    if not places:
        raise ValueError(
            f"{shown} does not occur in the context: give a part of it exactly, or a "
            "position, a number."
        )
    if len(places) > 1:
        raise ValueError(
            f"{shown} occurs {len(places)} times in the context, at the positions "
            f"{', '.join(map(str, places))}: give one of these numbers."
        )
    return places[0]


def index_of(position: int, length: int) -> int:
    """A position, counted from the front.

    Raises:
        IndexError: If it is out of range.
    """
    if not -length <= position < length:
        raise IndexError(f"position {position} is out of range for a text of {length} tokens.")
    return position % length
