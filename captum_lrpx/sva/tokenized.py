"""Samples as the tokens that one model sees, with evidence marked token by token.

A causal language model sees the sentence up to the verb and predicts the verb after its last
token; a masked one sees the whole sentence with its mask token in the verb's place. Ambiguous
samples are dropped; each reason has a name and a count (:data:`FILTERS`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

from captum_lrpx.sva.counting import Lengths, Report, drop_if, keep
from captum_lrpx.targets.encoding import encode_for
from captum_lrpx.targets.place import word_ids

if TYPE_CHECKING:
    from collections.abc import Iterable

    from captum_lrpx.sva.samples import Sample, Span
    from captum_lrpx.targets.encoding import Encoding

__all__ = ["FILTERS", "LanguageModelling", "TokenizedSample", "TokenizedSamples", "tokenize"]

LanguageModelling: TypeAlias = Literal["causal-lm", "masked-lm"]
"""Task of a model that can predict a verb."""

FILTERS: dict[str, str] = {
    "mask token in text": "the sentence contains the text of the mask token (masked models)",
    "no blank before verb": "the verb opens the sentence or follows a mark without a blank: its "
    "tokens differ there from those after a blank (causal models)",
    "evidence after verb": "the model never sees a part of the evidence (causal models)",
    "too long": "the input does not fit the model; truncation might remove the mask or the "
    "evidence",
    "verb not one token": "the correct form is not one token; a model predicts one at a time",
    "foil not one token": "the other form is not one token",
    "unknown verb": "the tokenizer does not know one of the forms",
    "same token": "both forms are the same token",
    "evidence not found": "no token overlaps a part of the evidence",
    "evidence not whole tokens": "a token of the evidence has letters of another word as well",
    "unknown evidence": "the tokenizer does not know a part of the evidence",
    "text of one token": "without special tokens and the mask, the text is one token: any method "
    "finds it",
    "evidence is the whole text": "the evidence is not shorter than the text: no token is wrong",
}
"""Reasons for dropping samples, in the order of the checks; the first reason counts.

Four filters are from the paper's appendix B (Arras et al., 2025): both forms of the verb are one
token each, no evidence comes after the verb (causal models), the evidence is shorter than the
text, and the text is longer than one token. The paper does not filter by length; its sentences
are short enough. The other filters are this package's: they extend these conditions to
tokenizers and sentences outside of the paper.
"""

_UNLIMITED = 10**9
"""Tokenizers without a limit report a larger one than this."""


@dataclass(frozen=True)
class TokenizedSample:
    """A sample as one model sees it.

    Attributes:
        sample: The sample.
        ids: Token ids ``[T]``, special tokens included.
        evidence: Whether each token is evidence ``[T]``.
        special: Whether each token is a special one outside of the text ``[T]``; the mask
            token is part of the text.
        position: Position at which the verb's logits are read: the last token, or the mask token.
        verb_id: Token of the correct form there.
        foil_id: Token of the other form there.
    """

    sample: Sample
    ids: tuple[int, ...]
    evidence: tuple[bool, ...]
    special: tuple[bool, ...]
    position: int
    verb_id: int
    foil_id: int

    def with_forms_exchanged(self) -> TokenizedSample:
        """The same tokens with correct and other form exchanged."""
        return replace(self, verb_id=self.foil_id, foil_id=self.verb_id)


@dataclass(frozen=True)
class TokenizedSamples(Sequence[TokenizedSample]):
    """The usable samples of one model, and counts of the others.

    Attributes:
        samples: The samples kept, in their original order.
        counts: ``"given"``, the number dropped by each filter, and ``"kept"``.
    """

    samples: tuple[TokenizedSample, ...]
    counts: dict[str, int]

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> TokenizedSample: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TokenizedSample, ...]: ...
    def __getitem__(self, index: int | slice) -> TokenizedSample | tuple[TokenizedSample, ...]:
        return self.samples[index]

    def report(self) -> Report:
        """Report the number of samples kept, and lengths of inputs and evidence in tokens."""
        return Report(
            counts=dict(self.counts),
            input_tokens=Lengths.of([len(each.ids) for each in self.samples]),
            evidence_tokens=Lengths.of([sum(each.evidence) for each in self.samples]),
        )


def tokenize(
    samples: Iterable[Sample],
    tokenizer: Any,
    task: LanguageModelling,
    *,
    first_token: str | None = None,
    max_length: int | None = None,
) -> TokenizedSamples:
    """Tokenize samples for a model, with the evidence marked.

    A token is evidence if any of its characters is.

    Args:
        samples: The samples.
        tokenizer: The model's tokenizer, a fast one (with offsets).
        task: Task of the model; see :func:`captum_lrpx.targets.task_of`.
        first_token: A special token to prepend (``"<|endoftext|>"``), for models trained with one
            that their tokenizer does not add.
        max_length: Largest number of tokens that the model takes; see
            :func:`captum_lrpx.targets.encoding.context_length`. Default: the tokenizer's limit, if
            it has one.

    Returns:
        The samples that pass all :data:`FILTERS`, and the count of each.

    Raises:
        ValueError: If the task is another one, or if the tokenizer has no offsets, no mask token
            where one is needed, or no ``first_token``.
    """
    if task not in ("causal-lm", "masked-lm"):
        raise ValueError(
            f"Only models for 'causal-lm' or 'masked-lm' can predict a verb, not {task!r}."
        )
    if task == "masked-lm" and tokenizer.mask_token is None:
        raise ValueError("The tokenizer of this masked language model has no mask token.")
    if max_length is None and tokenizer.model_max_length < _UNLIMITED:
        max_length = int(tokenizer.model_max_length)

    def one(sample: Sample) -> TokenizedSample:
        return _tokenized(sample, tokenizer, task, first_token, max_length)

    return TokenizedSamples(*keep(one, samples, FILTERS))


def _tokenized(
    sample: Sample,
    tokenizer: Any,
    task: LanguageModelling,
    first_token: str | None,
    max_length: int | None,
) -> TokenizedSample:
    if task == "causal-lm":
        text, evidence = _prefix(sample)
    else:
        text, evidence = _masked(sample, tokenizer.mask_token)
    encoding = encode_for(task, tokenizer, text, first_token)
    drop_if(max_length is not None and len(encoding.ids) > max_length, "too long")
    verb_id, foil_id = _forms(sample, tokenizer, task, encoding)
    marked = _evidence(encoding, evidence, tokenizer.unk_token_id)
    masked_at = encoding.ids.index(tokenizer.mask_token_id) if task == "masked-lm" else None
    _require_a_choice(encoding, marked, masked_at)
    return TokenizedSample(
        sample=sample,
        ids=encoding.ids,
        evidence=marked,
        special=encoding.special,
        position=len(encoding.ids) - 1 if masked_at is None else masked_at,
        verb_id=verb_id,
        foil_id=foil_id,
    )


def _prefix(sample: Sample) -> tuple[str, tuple[Span, ...]]:
    """Text that a causal model sees, and the places of the evidence in it."""
    start = sample.verb_span[0]
    drop_if(start == 0 or sample.sentence[start - 1] != " ", "no blank before verb")
    drop_if(any(end > start for _, end in sample.evidence), "evidence after verb")
    return sample.prefix, sample.evidence


def _masked(sample: Sample, mask_token: str) -> tuple[str, tuple[Span, ...]]:
    """Text that a masked model sees, and the places of the evidence in it."""
    drop_if(mask_token in sample.sentence, "mask token in text")
    shift = len(mask_token) - len(sample.verb)
    return sample.masked(mask_token), tuple(
        (start, end) if start < sample.verb_span[0] else (start + shift, end + shift)
        for start, end in sample.evidence
    )


def _forms(
    sample: Sample, tokenizer: Any, task: LanguageModelling, encoding: Encoding
) -> tuple[int, int]:
    verb = word_ids(task, tokenizer, encoding, sample.verb)
    drop_if(len(verb) != 1, "verb not one token")
    foil = word_ids(task, tokenizer, encoding, sample.foil)
    drop_if(len(foil) != 1, "foil not one token")
    drop_if(tokenizer.unk_token_id in (verb[0], foil[0]), "unknown verb")
    drop_if(verb == foil, "same token")
    return verb[0], foil[0]


def _evidence(encoding: Encoding, spans: Sequence[Span], unknown: int | None) -> tuple[bool, ...]:
    """Mark tokens that overlap one of the spans; drops the sample if they are ambiguous."""
    marked = [False] * len(encoding.ids)
    for first, last in spans:
        over = [
            index
            for index, (start, end) in enumerate(encoding.offsets)
            if start < last and first < end
        ]
        drop_if(not over, "evidence not found")
        for index in over:
            start, end = encoding.offsets[index]
            around = encoding.text[start:first] + encoding.text[last:end]
            drop_if(any(map(str.isalnum, around)), "evidence not whole tokens")
            drop_if(encoding.ids[index] == unknown, "unknown evidence")
            marked[index] = True
    return tuple(marked)


def _require_a_choice(encoding: Encoding, evidence: Sequence[bool], masked_at: int | None) -> None:
    """Drop a sample in which every token of the text is evidence (Arras et al., 2025, appendix B).

    A token of nothing but blanks is not text.

    Args:
        encoding: The tokens.
        evidence: Whether each token is evidence.
        masked_at: Position of the mask token, which is not text; None for causal models.
    """
    text = [
        is_evidence
        for place, (is_evidence, special, (start, end)) in enumerate(
            zip(evidence, encoding.special, encoding.offsets, strict=True)
        )
        if not special and place != masked_at and encoding.text[start:end].strip()
    ]
    drop_if(len(text) <= 1, "text of one token")
    drop_if(all(text), "evidence is the whole text")
