"""Short description of the value to explain, for one text or a batch of texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from captum_lrpx.models import find_model
from captum_lrpx.targets.encoding import encode
from captum_lrpx.targets.forward import AnswerLogits, ClassLogits, TokenLogits
from captum_lrpx.targets.outputs import Choice, Outputs, index_of, outputs_of
from captum_lrpx.targets.place import Token, span_of, token_names
from captum_lrpx.targets.quantity import NAMES, Quantity, check_quantity
from captum_lrpx.targets.query import Terms, query_of
from captum_lrpx.targets.standing import all_outputs
from captum_lrpx.targets.task import Task, task_of

if TYPE_CHECKING:
    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.inputs import Given
    from captum_lrpx.targets.query import Query


Function = Callable[[Tensor], Tensor]
"""Maps the outputs ``[B, C]`` at the explained place to one value per row ``[B]``."""

_PER_POSITION = ("causal-lm", "masked-lm", "token-classification")


@dataclass(frozen=True)
class Target:
    """The value to explain: outputs of a model for one text.

    Attributes:
        token: A word that a language model predicts, as a token at its place in the text (see
            :mod:`captum_lrpx.targets.place`), a token id, or a ``Token``; a class name (or number)
            of a classifier; for question answering a position, or a word of the context that
            occurs there once. Several of them are summed. A function of the outputs ``[B, C]``
            at the explained place keeps its ordinary gradient. ``None`` without a ``span``: the
            largest output, which the model predicts.
        contrast: Like ``token``, one or several, which are subtracted: why ``token`` rather
            than this.
        position: Position at which the logit is read. ``None``: the end of the text for a
            causal model, the mask token for a masked one. A number is an index into the tokens.
        end: For question answering, the explained end of the answer.
        quantity: Explained quantity of each output: its logit, its log-probability, or its
            probability. The latter two are functions of the logits with their ordinary
            gradient, so that relevances decompose the gradient times the logits.
        span: Instead of ``token``, a part of the text of a causal model, whose tokens are
            explained where they were predicted, in sum: the part itself (its last occurrence),
            or the indices ``(first, stop)`` of its tokens.

    Raises:
        ValueError: If there is nothing to explain, too much, or an unknown quantity.

    Examples:
        >>> Target("are", contrast="is")
        >>> Target(contrast="is")
        >>> Target(Token("Ġare"))
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
        if self.token is not None and self.span is not None:
            raise ValueError("A target is either a `token` (word, class, ...) or a `span`.")
        alone = self.span is not None or callable(self.token)
        if alone and self.contrast is not None:
            raise ValueError(
                "A span or a function has no contrast: subtract inside of the function, or explain "
                "a continuation against another one with LLMRelevance(...).attribute(foil=...)."
            )
        if self.span is not None and self.position is not None:
            raise ValueError("A span has positions of its own: leave `position` out.")
        if callable(self.token) and self.quantity != "logit":
            raise ValueError("A function gets logits: apply softmax inside of it.")

    def ask(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> Query:
        """Turn the description into a forward function and its arguments, for one text.

        Args:
            model: A Hugging Face model with a head, or a module around one, whose own outputs are
                then explained.
            tokenizer: Its tokenizer.
            encoding: The text.

        Returns:
            Captum's arguments, for a batch of one row without a mask; if a single output is
            explained, it is the ``target``.

        Raises:
            ValueError: If a word is unknown or of several tokens, or a class does not exist.
            IndexError: If a position or token id is out of range.
        """
        return query_of(model, tokenizer, [self], [encoding], alone=True)

    def outputs(self, model: nn.Module) -> nn.Module:
        """The forward module that computes all outputs ``[B, C]``."""
        task = task_of(model)
        if task == "sequence-classification":
            return ClassLogits(model)
        return AnswerLogits(model, self.end) if task == "question-answering" else TokenLogits(model)

    def place(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> int | None:
        """Position at which outputs are read, for models with outputs per position.

        Raises:
            IndexError: If it is out of range.
            ValueError: If the ids for a masked language model do not have exactly one mask.
        """
        task, length = task_of(model), len(encoding.ids)
        if task not in _PER_POSITION:
            return None
        if self.position is not None:
            return index_of(self.position, length)
        if task != "masked-lm":
            return length - 1
        count = encoding.ids.count(tokenizer.mask_token_id)
        if count != 1:
            raise ValueError(
                f"The token ids have {count} mask tokens, and a masked language model is explained "
                "at one: leave one, or choose a `position`."
            )
        return encoding.ids.index(tokenizer.mask_token_id)

    def terms(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> Terms:
        """The summed outputs.

        Args:
            model: A Hugging Face model with a head.
            tokenizer: Its tokenizer.
            encoding: The text.

        Raises:
            ValueError: If a word is unknown or of several tokens, or a class does not exist.
            IndexError: If a position or token id is out of range.
        """
        if self.span is not None:
            return self._of_span(model, tokenizer, encoding)
        place = self.place(model, tokenizer, encoding)
        known = outputs_of(model, tokenizer, encoding, place, self.end)
        return self.chosen(known, lambda: self._predicted(model, encoding, place), place)

    def chosen(
        self, known: Outputs, predicted: Callable[[], int], place: int | None = None
    ) -> Terms:
        """The summed outputs, without a span.

        Args:
            known: Outputs to choose from.
            predicted: Finds the largest output.
            place: Position at which they are read, for models with outputs per position.

        Raises:
            ValueError: If a word is unknown or of several tokens, or a class does not exist.
            IndexError: If a position or token id is out of range.
        """
        good = [known.index(each) for each in _several(self.token)] or [predicted()]
        bad = [known.index(each) for each in _several(self.contrast)]
        choices = (*good, *bad)
        return Terms(
            choices,
            (1.0,) * len(good) + (-1.0,) * len(bad),
            known.names(choices),
            None if place is None else (place,) * len(choices),
        )

    def describe(self, model: nn.Module, terms: Terms | None) -> str:
        """Describe the question in words, with actual tokens instead of the given words.

        Args:
            model: A Hugging Face model with a head.
            terms: The result of :meth:`terms`; None for a function of the outputs.
        """
        return self.in_words(task_of(model), terms)

    def in_words(self, task: Task, terms: Terms | None) -> str:
        """Like :meth:`describe`, for a model of a task."""
        name = NAMES[self.quantity]
        if callable(self.token) or terms is None:
            return f"{getattr(self.token, '__name__', 'function')} of the logits"
        if self.span is not None:
            shown = repr(self.span) if isinstance(self.span, str) else f"tokens {self.span}"
            return f"sum of the {_plural(name)} of {shown}"
        sides = {1.0: "", -1.0: ""}
        for weight in sides:
            of_side = [at for at, each in enumerate(terms.weights) if each == weight]
            shown = ", ".join(_shown(task, terms, at) for at in of_side)
            predicted = self.token is None and weight > 0
            noun = f"sum of the {_plural(name)}" if len(of_side) > 1 else name
            sides[weight] = _in_words(shown, noun, task, self.end, len(of_side), predicted)
        return sides[1.0] if self.contrast is None else f"{sides[1.0]} minus {sides[-1.0]}"

    def _predicted(self, model: nn.Module, encoding: Encoding, place: int | None) -> int:
        """Index of the largest output."""
        positions = None if place is None else (place,)
        return int(all_outputs(model, self.outputs(model), encoding, positions)[0].argmax())

    def _of_span(self, model: nn.Module, tokenizer: Any, encoding: Encoding) -> Terms:
        if task_of(model) != "causal-lm":
            raise ValueError(
                f"{type(model).__name__} does not predict a text token by token: a span can be "
                "explained for a causal language model only."
            )
        assert self.span is not None  # noqa: S101 - for the type checker
        first, stop = span_of(encoding, self.span)
        choices = encoding.ids[first:stop]
        names = token_names(tokenizer, choices)
        return Terms(choices, (1.0,) * len(choices), names, tuple(range(first - 1, stop - 1)))


def ask_batch(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[Given],
    targets: Target | Choice | Sequence[Target | Choice | None] | None = None,
    first_token: str | None = None,
    *,
    truncate: bool | int = False,
) -> Query:
    """Turn texts and their targets into tensors, for any Captum method.

    Args:
        model: A Hugging Face model with a head, or a module around one, whose own outputs are
            then explained.
        tokenizer: Its (fast) tokenizer.
        texts: The texts, or whatever :func:`~captum_lrpx.explain` takes for one.
        targets: Targets, one for each text or one for all. Default: the model's prediction.
        first_token: As in :func:`~captum_lrpx.targets.encode`.
        truncate: As in :func:`~captum_lrpx.targets.encode`.

    Returns:
        Inputs, forward module and arguments, with the attention mask. The output has one value per
        row, so there is no ``target``.

    Raises:
        ValueError: If there are no texts, not as many targets, targets that need different forward
            modules, or texts and targets that cannot be used.
        IndexError: If a position or token id is out of range.

    Examples:
        >>> batch = ask_batch(model, tokenizer, texts, ["are", Target("is", contrast="are")])
        >>> relevance = AttnLRPx(batch.forward).attribute(
        ...     batch.inputs, additional_forward_args=batch.additional_forward_args
        ... )
    """
    inner = find_model(model)
    if isinstance(texts, str) or not texts:
        raise ValueError("Give a sequence of at least one text.")
    encodings = [encode(inner, tokenizer, text, first_token, truncate=truncate) for text in texts]
    return query_of(model, tokenizer, _one_per_text(targets, len(texts)), encodings)


def _one_per_text(
    targets: Target | Choice | Sequence[Target | Choice | None] | None, count: int
) -> list[Target]:
    single = targets is None or isinstance(targets, (Target, Token, str, int))
    given: list[Target | Choice | None] = [targets] * count if single else list(targets)  # type: ignore[list-item, arg-type]
    if len(given) != count:
        raise ValueError(f"There are {count} texts, but {len(given)} targets: give one for each.")
    asked = [item if isinstance(item, Target) else Target(item) for item in given]
    if len({_kind(target) for target in asked}) > 1:
        raise ValueError(
            "The targets of a batch are explained by one forward module: give all of them the same "
            "quantity, end and function, or explain them in several batches."
        )
    return asked


def _kind(target: Target) -> tuple[Any, ...]:
    """Properties that targets of one forward module share."""
    return target.quantity, target.end, target.token if callable(target.token) else None


def _several(choices: Choice | Sequence[Choice] | Function | None) -> Sequence[Choice]:
    """One choice or several, as a sequence; none for a function."""
    if choices is None or callable(choices):
        return ()
    return (choices,) if isinstance(choices, (str, int, Token)) else choices


# In words -----------------------------------------------------------------------------------------


def _shown(task: Task, terms: Terms, at: int) -> str:
    name = repr(terms.names[at])
    return f"{terms.choices[at]} ({name})" if task == "question-answering" else name


def _in_words(shown: str, noun: str, task: Task, end: str, count: int, predicted: bool) -> str:
    if task == "question-answering":
        return f"{end} {noun} at {'the predicted position ' if predicted else ''}{shown}"
    known = "the predicted " if predicted else ""
    if task in ("sequence-classification", "token-classification"):
        return f"{noun} of {known}{'classes' if count > 1 else 'class'} {shown}"
    return f"{noun} of {known}{'token ' if predicted else ''}{shown}"


def _plural(name: str) -> str:
    return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
