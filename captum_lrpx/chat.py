"""``explain_chat()``: an answer in a chat, down to the documents it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from captum_lrpx.attr.checks import check_model_and_tokenizer
from captum_lrpx.explainer import explain_encoding
from captum_lrpx.leave_one_out import left_out
from captum_lrpx.methods import options_of
from captum_lrpx.models import find_model
from captum_lrpx.segments import Region
from captum_lrpx.targets import Target
from captum_lrpx.targets.continuation import (
    check_predicts_text,
    continuation_ids,
    continued,
    generated_ids,
    prompt_of,
)

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.certification import Certify
    from captum_lrpx.explanation import Explanation, Segments
    from captum_lrpx.methods import Option
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.segments import By
    from captum_lrpx.targets.continuation import Prompt
    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.inputs import Messages, TokenIds
    from captum_lrpx.targets.quantity import Quantity

__all__ = ["Document", "ask_chat", "explain_chat", "leave_one_out_of_chat"]

Document: TypeAlias = "str | Mapping[str, str]"
"""A text, or ``{"title": ..., "text": ...}``."""

_PLACE = "{documents}"
_GAP = "\n\n"


def explain_chat(
    model: nn.Module,
    tokenizer: Any,
    messages: Messages,
    documents: Sequence[Document] = (),
    *,
    answer: str | TokenIds | None = None,
    span: str | tuple[int, int] | None = None,
    quantity: Quantity = "logit",
    method: str = "attnlrpx",
    recipe: Recipe | None = None,
    gen_args: dict[str, Any] | None = None,
    model_name: str | None = None,
    certify: Certify = "full",
    **options: Option,
) -> Explanation:
    """Explain an answer, or a part of it, in one backward pass.

    The turns, documents and the answer are known to the explanation:
    ``explain_chat(...).segments(["document", "sentence"])`` has the relevance of each, which sum to
    the explained value with what the ledger has for the rest.

    Args:
        model: A Hugging Face causal language model.
        tokenizer: Its (fast) tokenizer, with a chat template.
        messages: ``{"role": ..., "content": ...}`` each, up to where the answer begins.
        documents: What the answer is to rest on: texts, or ``{"title": ..., "text": ...}``. They
            are written in place of ``{documents}`` in a message, or before the last message, with
            a blank line after each title and each document.
        answer: The answer, as a text or token ids. Default: what the model generates.
        span: A part of the answer, where it last occurs, or the indices ``(first, behind the
            last)`` of its tokens. Default: all of it but special tokens at its end.
        quantity: What is summed over the explained tokens: ``"logit"``, ``"log_prob"`` or
            ``"prob"``.
        method: A name in :data:`captum_lrpx.methods.METHODS`.
        recipe: Rules other than the method's own.
        gen_args: Arguments of ``model.generate``, if there is no ``answer``.
        model_name: Name for the record. Default: where the model was loaded from.
        certify: As for :func:`captum_lrpx.explain`. Default: each is audited, as the ledger says
            what the segments leave.
        **options: Options of the method.

    Returns:
        The explanation of prompt and answer as one text.

    Raises:
        ValueError: If the messages, a document, the answer, the method or an option cannot be used,
            or the template rewrites the message with the documents.
        IndexError: If the span is out of range.
        TypeError: If model, tokenizer, messages or documents are something else.

    Examples:
        >>> question = [{"role": "user", "content": "Which animals purr?"}]
        >>> explanation = explain_chat(model, tokenizer, question, ["Cats purr.", "Dogs bark."])
        >>> explanation.segments(["document", "sentence"]).top(3, "sentence")
    """
    options_of(method)  # refuses an unknown method before anything is generated
    encoding, target = ask_chat(
        model, tokenizer, messages, documents, answer, span, quantity, gen_args
    )
    return explain_encoding(
        model,
        tokenizer,
        encoding,
        target,
        method=method,
        recipe=recipe,
        model_name=model_name,
        certify=certify,
        options=options,
    )


def leave_one_out_of_chat(
    model: nn.Module,
    tokenizer: Any,
    messages: Messages,
    documents: Sequence[Document] = (),
    *,
    answer: str | TokenIds | None = None,
    span: str | tuple[int, int] | None = None,
    quantity: Quantity = "logit",
    by: By | Sequence[By] = "document",
    language: str = "en",
    gen_args: dict[str, Any] | None = None,
    batch_size: int = 8,
    model_name: str | None = None,
) -> Segments:
    """How much an answer loses without each document, sentence or turn: exact, and batched.

    Args:
        model: As for :func:`explain_chat`, likewise the others.
        tokenizer: Its tokenizer.
        messages: The messages.
        documents: What the answer is to rest on.
        answer: The answer.
        span: A part of it.
        quantity: What is summed over the explained tokens.
        by: The segments that are left out, as for :func:`captum_lrpx.leave_one_out`.
        language: Language of the sentences.
        gen_args: Arguments of ``model.generate``, if there is no ``answer``.
        batch_size: Number of texts of a forward pass.
        model_name: Name for the record.

    Returns:
        The segments, as :func:`captum_lrpx.leave_one_out` has them; of the same tokens as those of
        :func:`explain_chat`.

    Raises:
        ValueError: As :func:`explain_chat`, and if there are no such segments.
        IndexError: If the span is out of range.
        TypeError: If model, tokenizer, messages or documents are something else.
    """
    encoding, target = ask_chat(
        model, tokenizer, messages, documents, answer, span, quantity, gen_args
    )
    return left_out(
        model,
        tokenizer,
        encoding,
        target,
        by,
        language=language,
        batch_size=batch_size,
        model_name=model_name,
    )


class _Written(NamedTuple):
    """Messages with documents in one of them.

    Attributes:
        messages: The messages.
        place: Index of the message with the documents.
        documents: Title, and characters in the content of that message, of each document.
    """

    messages: list[dict[str, Any]]
    place: int
    documents: list[tuple[str, int, int]]


def ask_chat(
    model: nn.Module,
    tokenizer: Any,
    messages: Messages,
    documents: Sequence[Document],
    answer: str | TokenIds | None,
    span: str | tuple[int, int] | None,
    quantity: Quantity,
    gen_args: dict[str, Any] | None,
) -> tuple[Encoding, Target]:
    """Prompt and answer as one text, and what of it is explained.

    Args:
        model: As for :func:`explain_chat`, likewise the others.
        tokenizer: Its tokenizer.
        messages: The messages.
        documents: What the answer is to rest on.
        answer: The answer; None for one that is generated.
        span: A part of it; None for all of it.
        quantity: What is summed.
        gen_args: Arguments of ``model.generate``.

    Raises:
        ValueError: As :func:`explain_chat`, likewise the others.
        IndexError: If the span is out of range.
        TypeError: If something is of another type.
    """
    check_model_and_tokenizer(model, tokenizer)
    inner = find_model(model)
    check_predicts_text(inner)
    if answer is not None and gen_args is not None:
        raise ValueError("gen_args are for generating an answer, but `answer` gives one.")
    written = _with_documents(messages, documents)
    prompt = prompt_of(inner, tokenizer, written.messages)
    found = _document_regions(prompt, written)
    if answer is None:
        ids = generated_ids(inner, prompt, gen_args)
    else:
        ids = continuation_ids(inner, tokenizer, prompt, answer)
    encoding = continued(tokenizer, prompt, ids)
    length, last = len(prompt.ids), len(encoding.ids)
    while last > length + 1 and encoding.special[last - 1]:
        last -= 1
    start, end = encoding.offsets[length][0], encoding.offsets[last - 1][1]
    turns = [region for region in encoding.regions if region.start < region.end]
    turns += [Region("turn", "assistant", start, end)] if turns else []
    regions = (*turns, *found, Region("answer", "assistant", start, end))
    explained = _span(encoding, length, last, span)
    return replace(encoding, regions=regions), Target(span=explained, quantity=quantity)


def _with_documents(messages: Messages, documents: Sequence[Document]) -> _Written:
    """Write documents into a message."""
    if isinstance(messages, (str, Mapping)) or not all(
        isinstance(message, Mapping) and "role" in message for message in messages
    ):
        raise TypeError('Messages are a list of {"role": ..., "content": ...}.')
    if isinstance(documents, (str, Mapping)):
        raise TypeError("`documents` is a sequence of documents: put a single one in a list.")
    copies = [dict(message) for message in messages]
    if not copies:
        raise ValueError("There are no messages, so there is nothing to answer.")
    if not documents:
        return _Written(copies, 0, [])
    marked = [index for index, each in enumerate(copies) if _PLACE in str(each.get("content", ""))]
    place = marked[0] if marked else len(copies) - 1
    content = copies[place].get("content")
    if not isinstance(content, str):
        raise TypeError("Documents are written into a message whose content is a text.")
    before, _, after = content.partition(_PLACE) if marked else ("", "", _GAP + content)
    spans: list[tuple[str, int, int]] = []
    for number, document in enumerate(documents, start=1):
        title, text = _title_and_text(document, number)
        before += _GAP if spans else ""
        heading = f"{title}{_GAP}" if title else ""
        spans.append(
            (title or f"document {number}", len(before), len(before) + len(heading) + len(text))
        )
        before += heading + text
    copies[place]["content"] = before + after
    return _Written(copies, place, spans)


def _title_and_text(document: Document, number: int) -> tuple[str, str]:
    if isinstance(document, str):
        title, text = "", document
    elif isinstance(document, Mapping) and isinstance(document.get("text"), str):
        title, text = str(document.get("title") or ""), document["text"]
    else:
        raise TypeError(
            f'Document {number} is neither a text nor {{"title": ..., "text": ...}}: {document!r}.'
        )
    if not text.strip():
        raise ValueError(f"Document {number} is empty.")
    return title.strip(), text.strip()


def _document_regions(prompt: Prompt, written: _Written) -> list[Region]:
    """Where the documents stand in what the template made of the messages."""
    if not written.documents:
        return []
    content = written.messages[written.place]["content"]
    turns = prompt.encoding.regions
    text = prompt.encoding.text
    starts = [
        turn.start for turn in turns if content.strip() == text[turn.start : turn.end].strip()
    ]
    if not starts:
        raise ValueError(
            "The chat template rewrites the message with the documents, so it is unknown where "
            "they stand: write the messages as a text, and give explain() the characters of each "
            "document by segments()."
        )
    shift = starts[-1]
    if not text.startswith(content, shift):  # the template took the blanks around it away
        shift -= len(content) - len(content.lstrip())
    return [
        Region("document", title, shift + start, shift + end)
        for title, start, end in written.documents
    ]


def _span(
    encoding: Encoding, length: int, last: int, span: str | tuple[int, int] | None
) -> tuple[int, int]:
    """The explained tokens of an answer, as indices of the whole text."""
    if span is None:
        return length, last
    if isinstance(span, str):
        start, words = encoding.text.rfind(span.strip()), span.strip()
        if not words or start < encoding.offsets[length][0]:
            answer = encoding.text[encoding.offsets[length][0] :]
            raise ValueError(f"The span {span!r} does not occur in the answer {answer!r}.")
        inside = [
            index
            for index, (a, b) in enumerate(encoding.offsets)
            if index >= length and a < start + len(words) and b > start
        ]
        return inside[0], inside[-1] + 1
    count = len(encoding.ids) - length
    first, stop = (index + count if index < 0 else index for index in span)
    if not 0 <= first < stop <= count:
        raise IndexError(f"The span {span} is empty or out of range for {count} tokens of answer.")
    return length + first, length + stop
