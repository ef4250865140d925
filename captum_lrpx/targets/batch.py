"""Several texts, each with its own target, as one padded batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx.models import find_model
from captum_lrpx.targets.classes import AnswerLogits
from captum_lrpx.targets.encoding import encode
from captum_lrpx.targets.forward import TokenSum
from captum_lrpx.targets.outputs import OutputFunction, OutputSum
from captum_lrpx.targets.place import Token
from captum_lrpx.targets.target import Choice, Target, in_quantity_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.inputs import Given
    from captum_lrpx.targets.question import Terms

__all__ = ["BatchQuestion", "ask_batch", "batch_of"]


@dataclass(frozen=True)
class BatchQuestion:
    """What Captum needs to explain one :class:`~captum_lrpx.targets.Target` per text.

    Attributes:
        inputs: Token ids ``[B, T]``, padded on the right.
        forward: Forward function; its output has one value per row, so there is no ``target``.
        additional_forward_args: Captum's ``additional_forward_args``, with the attention mask.
        encodings: The texts; row ``b`` of a result is about the tokens of ``encodings[b]``.
        descriptions: The question of each row in words.
    """

    inputs: Tensor
    forward: nn.Module
    additional_forward_args: tuple[Any, ...]
    encodings: tuple[Encoding, ...]
    descriptions: tuple[str, ...]


def ask_batch(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[Given],
    targets: Target | Choice | Sequence[Target | Choice | None] | None = None,
    first_token: str | None = None,
    *,
    truncate: bool | int = False,
) -> BatchQuestion:
    """Turn texts and what to explain of each into tensors, for any Captum method.

    Args:
        model: A Hugging Face model with a head, or a module around one, whose own outputs are
            explained.
        tokenizer: Its (fast) tokenizer.
        texts: The texts, or whatever :func:`~captum_lrpx.explain` takes for one.
        targets: What is explained, one for each text or one for all. Default: what the model
            predicts.
        first_token: As in :func:`~captum_lrpx.targets.encode`.
        truncate: As in :func:`~captum_lrpx.targets.encode`.

    Returns:
        Inputs, forward module and arguments.

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
    given, model = model, find_model(model)
    if isinstance(texts, str) or not texts:
        raise ValueError("Give a sequence of at least one text.")
    encodings = tuple(
        encode(model, tokenizer, text, first_token, truncate=truncate) for text in texts
    )
    asked = _one_per_text(targets, len(texts))
    terms = [
        None if callable(target.token) else target.terms(given, tokenizer, encoding)
        for target, encoding in zip(asked, encodings, strict=True)
    ]
    ids, forward, arguments = batch_of(given, tokenizer, asked, encodings, terms)
    descriptions = tuple(
        target.describe(model, term) for target, term in zip(asked, terms, strict=True)
    )
    return BatchQuestion(ids, forward, arguments, encodings, descriptions)


def batch_of(
    model: nn.Module,
    tokenizer: Any,
    targets: Sequence[Target],
    encodings: Sequence[Encoding],
    terms: Sequence[Terms | None],
) -> tuple[Tensor, nn.Module, tuple[Any, ...]]:
    """Texts with the outputs that are explained of each, as one padded batch.

    Args:
        model: A Hugging Face model with a head, or a module around one.
        tokenizer: Its tokenizer.
        targets: A target for each text, all of one quantity and end.
        encodings: The texts.
        terms: The outputs of each text that are summed; None for a function of the outputs.

    Returns:
        Token ids ``[B, T]``, forward module, and its other arguments.
    """
    inner = find_model(model)
    device = next(inner.parameters()).device
    ids, mask, types = _padded(inner, tokenizer, encodings, device)
    forward, arguments = _forward(model, tokenizer, targets, encodings, terms, mask)
    return ids, forward, arguments if types is None else (*arguments, types)


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
    """What the targets of one forward module have in common."""
    return target.quantity, target.end, target.token if callable(target.token) else None


def _padded(
    model: nn.Module, tokenizer: Any, encodings: Sequence[Encoding], device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask, and token types if there are any ``[B, T]``."""
    config: Any = model.config
    padding = getattr(config, "pad_token_id", None)  # a classifier finds its last token by this one
    if padding is None:
        padding = tokenizer.pad_token_id or 0
    length = max(len(encoding.ids) for encoding in encodings)
    ids = torch.full((len(encodings), length), padding, device="cpu")
    mask, types = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids, device="cpu")
        mask[row, : len(encoding.ids)] = 1
        if encoding.token_types is not None:
            types[row, : len(encoding.ids)] = torch.tensor(encoding.token_types, device="cpu")
    typed = any(encoding.token_types is not None for encoding in encodings)
    return ids.to(device), mask.to(device), types.to(device) if typed else None


def _forward(
    model: nn.Module,
    tokenizer: Any,
    targets: Sequence[Target],
    encodings: Sequence[Encoding],
    terms: Sequence[Terms | None],
    mask: Tensor,
) -> tuple[nn.Module, tuple[Any, ...]]:
    outputs, function = targets[0].outputs(model), targets[0].token
    among_positions = callable(function) or targets[0].quantity != "logit"
    if isinstance(outputs, AnswerLogits) and among_positions and not bool(mask.all()):
        raise ValueError(
            "A probability or function of the positions of an answer would count the padding in: "
            "explain texts of one length in a batch, or each by itself."
        )
    rows = [each for each in terms if each is not None]
    if callable(function):
        places = [
            target.place(model, tokenizer, encoding)
            for target, encoding in zip(targets, encodings, strict=True)
        ]
        at = () if places[0] is None else (torch.tensor(places, device=mask.device),)
        return OutputFunction(outputs, function), (mask, *at)
    width = max(len(row.choices) for row in rows)
    choices, weights, positions = (table.to(mask.device) for table in _tables(rows, width))
    quantity = targets[0].quantity
    if rows[0].positions is None:
        return OutputSum(in_quantity_of(outputs, quantity)), (choices, weights, mask)
    return TokenSum(model, quantity), (mask, choices, positions, weights)


def _tables(terms: Sequence[Terms], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choices, weights and positions ``[B, K]``; a row of fewer terms is filled with weight 0."""
    choices = torch.zeros(len(terms), width, dtype=torch.long, device="cpu")
    weights, positions = torch.zeros_like(choices, dtype=torch.float32), torch.zeros_like(choices)
    for row, term in enumerate(terms):
        count = len(term.choices)
        choices[row, :count] = torch.tensor(term.choices, device="cpu")
        weights[row, :count] = torch.tensor(term.weights, device="cpu")
        if term.positions is not None:
            positions[row, :count] = torch.tensor(term.positions, device="cpu")
    return choices, weights, positions
