"""A prompt and its continuation by a causal language model, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import TextTokenInput
from torch import Tensor

from captum_lrpx.decoding import decoded
from captum_lrpx.models import device_of
from captum_lrpx.targets.encoding import check_length, context_length, encode
from captum_lrpx.targets.inputs import TokenIds, check_known, of_row
from captum_lrpx.targets.place import Token, token_id, token_names
from captum_lrpx.targets.place import continuation as continuation_of
from captum_lrpx.targets.task import task_of

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.inputs import Given


Spans = Sequence[tuple[int, int | None]]
"""``(first, stop)`` indices; None for the end."""

DEFAULT_GEN_ARGS: dict[str, Any] = {
    "max_new_tokens": 25,
    "do_sample": False,
    "temperature": None,
    "top_p": None,
}
"""The defaults of Captum's ``LLMAttribution``."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids.

    Attributes:
        encoding: The text, and the place of each token in it.
        shown: Which tokens the result includes ``[P]``; Captum's ``skip_tokens`` excludes some.
    """

    encoding: Encoding
    shown: list[bool]

    @property
    def ids(self) -> Tensor:
        """Token ids ``[P]``."""
        return torch.tensor(self.encoding.ids, device="cpu")


def check_predicts_text(model: nn.Module) -> None:
    """Refuse a model that is not a causal language model.

    Raises:
        ValueError: If it is none.
    """
    if task_of(model) != "causal-lm":
        raise ValueError(
            f"{type(model).__name__} does not predict a text token by token, so it has no "
            "continuation to explain: use explain(), or a forward module, at its mask token."
        )


def prompt_of(
    model: nn.Module,
    tokenizer: Any,
    prompt: Given | TextTokenInput,
    first_token: str | None = None,
) -> Prompt:
    """Read a prompt.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: Whatever :func:`~captum_lrpx.targets.encode` takes, or Captum's ``TextTokenInput``.
        first_token: As in :func:`~captum_lrpx.targets.encode`.

    Returns:
        The prompt.

    Raises:
        ValueError: If the model predicts no continuation, or the prompt is empty, too long or from
            another tokenizer, or has several token types.
        TypeError: If the prompt is none of these.
    """
    check_predicts_text(model)
    captums = isinstance(prompt, TextTokenInput)
    given: Any = prompt.inp_tensor[0] if isinstance(prompt, TextTokenInput) else prompt
    encoding = encode(model, tokenizer, given, first_token)
    if encoding.token_types is not None:
        raise ValueError(
            "The prompt has several token types, and a continuation has none: give a prompt "
            "without them."
        )
    shown = [True] * len(encoding.ids)
    if captums and prompt.itp_mask is not None:  # type: ignore[union-attr]
        here = prompt.itp_mask[0].bool().tolist()  # type: ignore[union-attr]
        shown[len(shown) - len(here) :] = here
    return Prompt(encoding, shown)


def continuation_ids(
    model: nn.Module, tokenizer: Any, prompt: Prompt, continuation: str | Token | TokenIds
) -> Tensor:
    """Read a continuation.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: The prompt before it.
        continuation: A text, encoded in its place after the prompt like a word (see
            :mod:`captum_lrpx.targets.place`); a token by its exact string; or ids ``[K]``.

    Returns:
        Ids ``[K]``.

    Raises:
        ValueError: If the continuation is empty, unknown to the tokenizer, or too long, or if its
            place leaves open whether a blank comes first.
        TypeError: If it is neither text nor ids.
    """
    ids = _text_or_ids(model, tokenizer, prompt, "continuation", continuation)
    check_length(model, len(prompt.ids) + len(ids) - 1)  # the last token is only predicted
    return ids


def generated_ids(model: nn.Module, prompt: Prompt, gen_args: dict[str, Any] | None) -> Tensor:
    """Let the model generate a continuation.

    Args:
        model: A causal language model.
        prompt: The prompt before it.
        gen_args: Arguments of ``model.generate``. Default: :data:`DEFAULT_GEN_ARGS`, within the
            model's context.

    Returns:
        Ids ``[K]``.

    Raises:
        ValueError: If there is no room for the continuation, it is empty, or several are generated.
    """
    limit, length = context_length(model), len(prompt.ids)
    room = None if limit is None else limit - length + 1
    if gen_args is None:
        gen_args = dict(DEFAULT_GEN_ARGS)
        if room is not None:
            gen_args["max_new_tokens"] = min(gen_args["max_new_tokens"], max(room, 1))
    asked = gen_args.get("max_new_tokens")
    if room is not None and (room < 1 or (asked is not None and asked > room)):
        raise ValueError(
            f"The prompt has {length} tokens and {asked or 'some'} are to be generated after it, "
            f"but {type(model).__name__} takes at most {limit}: shorten the prompt or give a "
            "smaller `max_new_tokens`."
        )
    device = device_of(model)
    ids = prompt.ids.unsqueeze(0).to(device)
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), **gen_args)  # type: ignore[operator]
    sequences = getattr(generated, "sequences", generated)
    if sequences.shape[0] != 1:
        raise ValueError(
            f"The model generated {sequences.shape[0]} continuations, but one is explained at a "
            "time: choose one of them and pass it as `target`."
        )
    continuation: Tensor = sequences[0, length:].cpu()
    if not len(continuation):
        raise ValueError("The model generated nothing after the prompt: change `gen_args`.")
    return continuation


def continued(tokenizer: Any, prompt: Prompt, continuation: Tensor) -> Encoding:
    """A prompt and its continuation as one text.

    Args:
        tokenizer: The tokenizer.
        prompt: The prompt.
        continuation: Token ids ``[K]``.

    Returns:
        The encoding of both. The text of the prompt is unchanged; no token of the continuation
        belongs to its chat template.
    """
    before, new = prompt.encoding, continuation.tolist()
    ids = before.ids
    both = decoded(tokenizer, [*ids, *new], cut=len(ids))
    cut = len(decoded(tokenizer, ids).text)
    shift = len(before.text) - cut
    return replace(
        before,
        text=before.text + both.text[cut:],
        ids=(*ids, *new),
        tokens=(*before.tokens, *both.tokens[len(ids) :]),
        offsets=(
            *before.offsets,
            *((start + shift, end + shift) for start, end in both.offsets[len(ids) :]),
        ),
        special=(*before.special, *both.special[len(ids) :]),
        template=before.template and (*before.template, *(False for _ in new)),
    )


def foil_ids(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    continuation: Tensor,
    foil: int | str | Token | TokenIds,
) -> Tensor:
    """Read the tokens to subtract at each step.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: The prompt before the continuation.
        continuation: Ids ``[K]``.
        foil: One token (an id, a ``Token``, or a text of one token after the prompt) for all steps,
            or one for each step.

    Returns:
        Ids ``[K]``.

    Raises:
        ValueError: If there are neither one nor ``K`` tokens.
    """
    given: str | Token | TokenIds = [foil] if isinstance(foil, int) else foil
    ids = _text_or_ids(model, tokenizer, prompt, "foil", given)
    if len(ids) not in (1, len(continuation)):
        pieces = " + ".join(map(repr, token_names(tokenizer, ids.tolist())))
        raise ValueError(
            f"The foil {foil!r} is {len(ids)} tokens ({pieces}), and the continuation is "
            f"{len(continuation)}: give one token for all steps, or one for each."
        )
    return ids.expand(len(continuation))


def span_rows(spans: Spans, length: int) -> Tensor:
    """Mark the tokens of a continuation that each span covers.

    Args:
        spans: Pairs ``(first, stop)`` of indices into the continuation.
        length: Number ``K`` of its tokens.

    Returns:
        ``[S, K]``, 1 within the span.

    Raises:
        ValueError: If there are no spans.
        IndexError: If one is empty or out of range.
    """
    if not len(spans):
        raise ValueError("`spans` is empty: give at least one pair of indices, or leave it out.")
    rows = torch.zeros(len(spans), length, device="cpu")
    for row, span in zip(rows, spans, strict=True):
        first, last = span
        first, stop = (
            index + length if index < 0 else index
            for index in (first, length if last is None else last)
        )
        if not 0 <= first < stop <= length:
            raise IndexError(
                f"The span {tuple(span)} is empty or out of range for a continuation of {length} "
                "tokens."
            )
        row[first:stop] = 1
    return rows


def token_texts(tokenizer: Any, ids: Tensor) -> list[str]:
    """Tokens as text without the tokenizer's marks, as in Captum's results."""
    texts = []
    for number in ids.tolist():
        text = tokenizer.decode([number]).replace("\n", "\\n").strip()
        texts.append(text or tokenizer.convert_ids_to_tokens(number))
    return texts


def _text_or_ids(
    model: nn.Module, tokenizer: Any, prompt: Prompt, name: str, given: str | Token | TokenIds
) -> Tensor:
    if isinstance(given, Token):
        ids = [token_id(tokenizer, given)]
    elif isinstance(given, str):
        ids = continuation_of(tokenizer, prompt.encoding.text, given) if given else []
        unknown = tokenizer.unk_token_id
        if unknown is not None and unknown in ids and tokenizer.unk_token not in given:
            raise ValueError(f"The tokenizer does not know a part of the {name} {given!r}.")
    else:
        try:
            ids = of_row(given, name)[0]
        except TypeError as error:
            raise TypeError(
                f"The {name} must be a text or token ids [K], not {type(given).__name__}."
            ) from error
    if not ids:
        raise ValueError(f"The {name} is empty: there is nothing to explain.")
    check_known(model, ids, name)
    return torch.tensor(ids, device="cpu")
