"""A prompt and what a causal language model says behind it, as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import TextTokenInput
from torch import Tensor

from captum_lrpx.targets.encoding import check_length, context_length, encode
from captum_lrpx.targets.task import task_of

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "Prompt",
    "Spans",
    "TokenIds",
    "check_predicts_text",
    "continuation_ids",
    "foil_ids",
    "generated_ids",
    "prompt_of",
    "span_rows",
    "token_texts",
]

TokenIds = Sequence[int] | Tensor
Spans = Sequence[tuple[int, int]]

DEFAULT_GEN_ARGS: dict[str, Any] = {
    "max_new_tokens": 25,
    "do_sample": False,
    "temperature": None,
    "top_p": None,
}
"""Those of Captum's ``LLMAttribution``."""


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    Attributes:
        ids: ``[P]``.
        tokens: The tokens as the tokenizer shows them.
        shown: Which of them the result is about ``[P]``; Captum's ``skip_tokens`` leaves some out.
    """

    ids: Tensor
    tokens: list[str]
    shown: Tensor


def check_predicts_text(model: nn.Module) -> None:
    """Refuse a model that is no causal language model.

    Raises:
        ValueError: If it is none.
    """
    if task_of(model) != "causal-lm":
        raise ValueError(
            f"{type(model).__name__} does not predict a text token by token, so it has no "
            "continuation to explain: use explain(), or a forward module, at its mask token."
        )


def prompt_of(model: nn.Module, tokenizer: Any, prompt: str | TokenIds | TextTokenInput) -> Prompt:
    """Read a prompt.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: A text, encoded with the special tokens that the tokenizer puts in front; ids
            ``[P]`` or ``[1, P]``; or Captum's ``TextTokenInput``.

    Returns:
        The prompt.

    Raises:
        ValueError: If the model predicts no continuation, or the prompt is empty, too long or from
            another tokenizer.
        TypeError: If the prompt is none of these.
    """
    check_predicts_text(model)
    shown = None
    if isinstance(prompt, str):
        ids = torch.tensor(encode(model, tokenizer, prompt).ids, device="cpu")
    elif isinstance(prompt, TextTokenInput):
        ids = prompt.inp_tensor[0]
        shown = None if prompt.itp_mask is None else prompt.itp_mask[0]
    else:
        ids = _as_ids("prompt", prompt)
    _check_ids(model, "prompt", ids)
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    shown = torch.ones_like(ids, dtype=torch.bool) if shown is None else shown
    return Prompt(ids, tokens, shown)


def continuation_ids(
    model: nn.Module, tokenizer: Any, prompt: Prompt, continuation: str | TokenIds
) -> Tensor:
    """Read a continuation.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        prompt: What it stands behind.
        continuation: A text, encoded without special tokens as Captum does (with its blank in front
            where the tokenizer keeps blanks); or ids ``[K]``.

    Returns:
        Ids ``[K]``.

    Raises:
        ValueError: If the continuation is empty, unknown to the tokenizer, or too long.
        TypeError: If it is neither text nor ids.
    """
    ids = _text_or_ids(model, tokenizer, "continuation", continuation)
    check_length(model, len(prompt.ids) + len(ids) - 1)  # the last token is predicted, not read
    return ids


def generated_ids(model: nn.Module, prompt: Prompt, gen_args: dict[str, Any] | None) -> Tensor:
    """Let the model generate a continuation.

    Args:
        model: A causal language model.
        prompt: What it stands behind.
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
            f"The prompt has {length} tokens and {asked or 'some'} are to be generated behind it, "
            f"but {type(model).__name__} takes at most {limit}: shorten the prompt or give a "
            "smaller `max_new_tokens`."
        )
    device = next(model.parameters()).device
    ids = prompt.ids.unsqueeze(0).to(device)
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), **gen_args)  # type: ignore[operator]
    sequences = getattr(generated, "sequences", generated)
    if sequences.shape[0] != 1:
        raise ValueError(
            f"The model generated {sequences.shape[0]} continuations, but one is explained at a "
            "time: choose one of them and give it as `target`."
        )
    continuation: Tensor = sequences[0, length:].cpu()
    if not len(continuation):
        raise ValueError("The model generated nothing behind the prompt: change `gen_args`.")
    return continuation


def foil_ids(
    model: nn.Module, tokenizer: Any, continuation: Tensor, foil: int | str | TokenIds
) -> Tensor:
    """Read what is subtracted at each step.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        continuation: Ids ``[K]``.
        foil: One token (an id, or a text of one token) for all steps, or one for each step.

    Returns:
        Ids ``[K]``.

    Raises:
        ValueError: If there are neither one nor ``K`` tokens.
    """
    ids = _text_or_ids(model, tokenizer, "foil", [foil] if isinstance(foil, int) else foil)
    if len(ids) not in (1, len(continuation)):
        pieces = " + ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(ids.tolist()))
        raise ValueError(
            f"The foil {foil!r} is {len(ids)} tokens ({pieces}), and the continuation is "
            f"{len(continuation)}: give one token for all steps, or one for each."
        )
    return ids.expand(len(continuation))


def span_rows(spans: Spans, length: int) -> Tensor:
    """Which tokens of a continuation each span covers.

    Args:
        spans: Pairs ``(first, behind the last)`` of indices into the continuation.
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
        first, stop = (index + length if index < 0 else index for index in span)
        if not 0 <= first < stop <= length:
            raise IndexError(
                f"The span {tuple(span)} is empty or out of range for a continuation of {length} "
                "tokens."
            )
        row[first:stop] = 1
    return rows


def token_texts(tokenizer: Any, ids: Tensor) -> list[str]:
    """The tokens as text without the tokenizer's marks, as in Captum's results."""
    texts = []
    for number in ids.tolist():
        text = tokenizer.decode([number]).replace("\n", "\\n").strip()
        texts.append(text or tokenizer.convert_ids_to_tokens(number))
    return texts


def _text_or_ids(model: nn.Module, tokenizer: Any, name: str, given: str | TokenIds) -> Tensor:
    if not isinstance(given, str):
        ids = _as_ids(name, given)
    else:
        found = tokenizer.encode(given, add_special_tokens=False)
        ids = torch.tensor(found, dtype=torch.long, device="cpu")
        unknown = tokenizer.unk_token_id
        if unknown is not None and unknown in ids and tokenizer.unk_token not in given:
            raise ValueError(f"The tokenizer does not know a part of the {name} {given!r}.")
    _check_ids(model, name, ids)
    return ids


def _as_ids(name: str, given: Any) -> Tensor:
    if not isinstance(given, Tensor) and not _is_integers(given):
        raise TypeError(
            f"The {name} must be a text or token ids (a tensor, or a list of int), one at a time"
            f"{', or a TextTokenInput' if name == 'prompt' else ''}, not {_shown(given)}."
        )
    ids = torch.as_tensor(given, device="cpu").detach()
    if ids.ndim == 2 and ids.shape[0] == 1:
        ids = ids[0]
    if ids.ndim != 1 or (len(ids) and (ids.is_floating_point() or ids.dtype == torch.bool)):
        raise ValueError(
            f"The token ids of the {name} must be integers [T], not {tuple(ids.shape)} of "
            f"{ids.dtype}: one text is explained at a time."
        )
    return ids.long()


def _is_integers(given: Any) -> bool:
    """Whether something is a list of numbers, or a list of these; which ones, tensors tell."""
    if not isinstance(given, Sequence) or isinstance(given, (str, bytes)):
        return False
    return all(isinstance(each, (int, float, Tensor)) or _is_integers(each) for each in given)


def _shown(given: Any) -> str:
    if isinstance(given, Sequence) and not isinstance(given, (str, bytes)):
        kinds = sorted({type(each).__name__ for each in given})
        return f"a {type(given).__name__} of {', '.join(kinds)}"
    hint = ": give its `.input_ids`" if hasattr(given, "keys") else ""
    return f"{type(given).__name__}{hint}"


def _check_ids(model: nn.Module, name: str, ids: Tensor) -> None:
    if not len(ids):
        raise ValueError(f"The {name} is empty: there is nothing to explain.")
    size = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    wrong = ids[(ids < 0) | (ids >= size)]
    if len(wrong):
        raise ValueError(
            f"The {name} has token ids that {type(model).__name__} with its vocabulary of {size} "
            f"does not know ({wrong.tolist()[0]}): use the tokenizer that belongs to the model."
        )
