"""Several texts, each with its own target, as one padded batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx.models import find_model
from captum_lrpx.targets.encoding import encode
from captum_lrpx.targets.place import Token
from captum_lrpx.targets.query import query_of
from captum_lrpx.targets.target import Choice, Target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from captum_lrpx.targets.inputs import Given
    from captum_lrpx.targets.query import Query


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
