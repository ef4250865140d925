"""An explanation to keep: relevances with everything needed to read them later."""

from __future__ import annotations

import heapq
import html
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from captum.attr import visualization as captum_visualization

from captum_lrpx.explanation import arithmetic, grouping, page, pictures, storage, terminal
from captum_lrpx.explanation.arithmetic import total
from captum_lrpx.explanation.certificate import Certificate, verified
from captum_lrpx.explanation.segment_sums import Segments, segments_of
from captum_lrpx.files import write_bytes, write_text
from captum_lrpx.targets.standing import Standing, in_words
from captum_lrpx.words import Span, token_runs, word_spans

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import pandas as pd
    from rich.console import Group

    from captum_lrpx.segments import By, Region
    from captum_lrpx.targets.scene import Part


_RANKINGS: dict[str, Callable[[float], float]] = {
    "absolute": abs,
    "positive": float,
    "negative": lambda relevance: -relevance,
}


class TokenRelevance(NamedTuple):
    """One token (or word) of an explanation.

    Attributes:
        position: Its index among the entries.
        label: The token as in the text; a special one by its name.
        relevance: Its relevance.
    """

    position: int
    label: str
    relevance: float


@dataclass(frozen=True)
class Explanation:
    """The relevance of each token for one explained value.

    It prints itself in a terminal, shows itself in a notebook, and can be stored and read back
    without losing a digit. Explanations of the same tokens can be subtracted, added and scaled.

    Attributes:
        text: The text, as it was encoded.
        tokens: Its tokens, as the tokenizer writes them; its words in the result of :meth:`words`.
        ids: Token ids; empty if an entry may be more than one token.
        offsets: ``(start, end)`` characters of each token in the text; empty for added tokens.
        special: Whether each token is a special one (a mask is not).
        relevances: Relevance of each token, in units of the explained value where the method
            decomposes it.
        value: The explained value, usually a logit or a difference of two.
        target: The explained value, in words.
        position: Index of the token whose logit is explained, if there is one.
        method: Name of the method.
        recipe: Name of the rules, None for a method without rules.
        model: Name of the model.
        dtype: Precision that the model computed in.
        versions: Versions of this package, torch, transformers and captum.
        revision: The commit of the model on the hub, if it came from there.
        options: Options of the method.
        convergence_delta: Convergence delta as the method itself reports it, in its own
            convention (Integrated Gradients: sum minus difference to the baseline); None if it has
            none. :attr:`delta` means the same for every method.
        certificate: Checks made by :func:`captum_lrpx.explain`, and the digest that
            seals them; None for derived explanations (words, differences), and for methods without
            rules.
        template: Whether each token was written by the chat template and is not part of the
            contents of the messages; None without a template.
        standings: Rank and probability of each explained output, of the target first and then of
            its contrast; empty for a function of the outputs. None in a record of an older version,
            and for sums and differences of explanations.
        parts: Assignment of entries to several inputs; None for a single text.
        regions: Parts of the text known from its construction: the turns of a chat with
            their roles, the documents of :func:`captum_lrpx.explain_chat`, the answer. None if
            there are none.

    Explanations are equal if all their fields are. Their hash leaves out ``versions`` and
    ``options``, which are dictionaries.
    """

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    offsets: tuple[Span, ...]
    special: tuple[bool, ...]
    relevances: tuple[float, ...]
    value: float
    target: str
    position: int | None
    method: str
    recipe: str | None
    model: str
    dtype: str
    versions: dict[str, str] = field(hash=False)
    revision: str | None = None
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    convergence_delta: float | None = None
    certificate: Certificate | None = None
    template: tuple[bool, ...] | None = None
    standings: tuple[Standing, ...] | None = None
    parts: tuple[Part, ...] | None = None
    regions: tuple[Region, ...] | None = None

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("tokens", "ids", "offsets", "special", "relevances", "template")
            if getattr(self, name) or name not in ("ids", "template")
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"The parts of an explanation differ in length: {lengths}.")

    @property
    def sum(self) -> float:
        """Sum of the relevances."""
        return total(self.relevances)

    @property
    def delta(self) -> float:
        """Convergence delta, the explained value minus the sum of the relevances."""
        return self.value - self.sum

    @property
    def sums(self) -> dict[str, float]:
        """The sum of the relevances of each input, by its name; empty for a single text."""
        return {
            part.name: total(self.relevances[part.first : part.stop]) for part in self.parts or ()
        }

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens as in the text; special ones by their name."""
        return tuple(
            self.text[start:end] if end > start else token
            for token, (start, end) in zip(self.tokens, self.offsets, strict=True)
        )

    @property
    def rank(self) -> int | None:
        """Rank of the explained output among all, 1 for the largest; of the first, if several."""
        return self.standings[0].rank if self.standings else None

    @property
    def probability(self) -> float | None:
        """Probability of the explained output; of the first, if several."""
        return self.standings[0].probability if self.standings else None

    @property
    def standing(self) -> str:
        """Ranks and probabilities in one line; empty without them."""
        return in_words(self.standings or ())

    @property
    def certification(self) -> str:
        """The certificate in one line; empty without one."""
        return "" if self.certificate is None else str(self.certificate)

    # Views ------------------------------------------------------------------------------------

    def words(self, spans: Sequence[Span] | None = None) -> Explanation:
        """Sum the relevances of tokens to relevances of words.

        Tokens are grouped by their offsets, see :mod:`captum_lrpx.words`. Every token is in
        exactly one word, so that sum and delta do not change. Special tokens stay separate,
        and so do tokens that a chat template wrote, from the contents of the messages.

        Args:
            spans: ``(start, end)`` characters of the words, in order: a segmentation of your own,
                for languages without blanks, or for phrases and sentences. Default: runs of letters
                and digits, and runs of other marks.

        Returns:
            An explanation whose tokens are words.

        Raises:
            ValueError: If the spans overlap, are not in order, or do not lie in the text.
        """
        spans = word_spans(self.text) if spans is None else spans
        alone = tuple(map(bool.__or__, self.special, grouping.patches(self)))
        runs = token_runs(self.text, self.offsets, alone, spans, self.template)
        return grouping.grouped(self, [list(range(*run)) for run in runs])

    def fold_special(self) -> Explanation:
        """Fold all special tokens and the chat template into one entry, the last.

        Its relevance is their sum: nothing is spread over the words, since no method defines how,
        and nothing is dropped, so that sum and delta do not change.

        Returns:
            An explanation with no other special entry; the same one without special tokens.
        """
        return grouping.folded(self)

    def segments(
        self, by: By | Sequence[By], *, language: str = "en", fold_special: bool = True
    ) -> Segments:
        r"""Sum the relevances of tokens to relevances of turns, documents, sentences, ...

        Every token is in exactly one segment of a level. Text outside of all segments (around the
        documents, between the matches of a regular expression) is one, ``"elsewhere"``.

        Args:
            by: One level, or several, outermost first: ``"turn"``, ``"document"``, ``"answer"``
                (where the text was made with them); ``"paragraph"`` (between blank lines),
                ``"example"`` (few-shot examples that start with the same label, as ``Q:``),
                ``"line"``, ``"sentence"`` (by sentencex, extra ``sentences``), ``"word"``,
                ``"token"``; a compiled regular expression, whose matches are segments; or
                ``(start, end)`` characters. A segment without parts of a level is split by the
                next one.
            language: Language of the sentences.
            fold_special: Whether special tokens and chat template form one segment, the last,
                instead of a segment wherever they occur.

        Returns:
            The segments, and the ledger's account of the rest of the value.

        Raises:
            ValueError: If a level is unknown, or the text has none of its segments.
            ImportError: If sentencex is needed and not installed.

        Examples:
            >>> print(explanation.segments("sentence"))
            >>> explanation.segments(["document", "sentence", "word"]).top(3, "sentence")
            >>> explanation.segments(re.compile(r"\d+"))
        """
        return segments_of(self, by, language=language, fold_special=fold_special)

    def top(
        self, k: int = 5, by: Literal["absolute", "positive", "negative"] = "absolute"
    ) -> tuple[TokenRelevance, ...]:
        """Return the tokens with the most relevance.

        Args:
            k: Largest number of tokens.
            by: The order: by the largest absolute value, or by evidence for
                (``"positive"``) or against (``"negative"``) the target.

        Returns:
            At most ``k`` tokens, most relevant first; ties keep their order.

        Raises:
            ValueError: If ``k`` is negative or ``by`` is unknown.
        """
        if k < 0:
            raise ValueError(f"k is a number of tokens, not {k}.")
        if by not in _RANKINGS:
            raise ValueError(f"`by` must be one of {', '.join(_RANKINGS)}, not {by!r}.")
        entries = map(TokenRelevance, range(len(self.tokens)), self.labels, self.relevances)
        return tuple(heapq.nlargest(k, entries, key=lambda each: _RANKINGS[by](each.relevance)))

    # Arithmetic -------------------------------------------------------------------------------

    def __sub__(self, other: Explanation) -> Explanation:
        """The difference of two explanations of the same tokens, values and deltas included."""
        if not isinstance(other, Explanation):
            return NotImplemented
        return arithmetic.combined(self, other, -1.0, "minus")

    def __add__(self, other: Explanation) -> Explanation:
        """The sum of two explanations of the same tokens, values and deltas included."""
        if not isinstance(other, Explanation):
            return NotImplemented
        return arithmetic.combined(self, other, 1.0, "plus")

    def __mul__(self, factor: float) -> Explanation:
        """The explanation of a multiple of the explained value."""
        if not isinstance(factor, (int, float)):
            return NotImplemented
        return arithmetic.scaled(self, factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Explanation:
        """The explanation of a fraction of the explained value."""
        if not isinstance(divisor, (int, float)):
            return NotImplemented
        return arithmetic.scaled(self, 1.0, divisor)

    def __neg__(self) -> Explanation:
        """The explanation of the negated value."""
        return arithmetic.scaled(self, -1.0)

    # Storage ----------------------------------------------------------------------------------

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Convert the explanation to JSON; floats keep every digit.

        Args:
            path: File to write as well, atomically.

        Returns:
            The JSON text.
        """
        return storage.save("explanation", storage.record_of(self), path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Explanation:
        """Read an explanation written by :meth:`to_json`, also by an older version of this package.

        Args:
            source: JSON text, or the path of a file (a ``Path``).

        Returns:
            The explanation.

        Raises:
            ValueError: If it is not an explanation, one of a newer version, or one that was changed
                after certification.
        """
        return verified(
            storage.load("explanation", source, lambda record: cls(**storage.fields_of(record)))
        )

    # Other forms ------------------------------------------------------------------------------

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Convert the explanation to one HTML page without scripts or links; all text is escaped.

        Args:
            path: File to write as well, atomically.

        Returns:
            A complete document.
        """
        text = page.to_html(self)
        write_text(path, text)
        return text

    def to_png(self, path: str | os.PathLike[str], *, overlay: bool = True) -> None:
        """Write the heat map of the first image or audio input, over it or by itself.

        Raises:
            ValueError: If there is none.
            ImportError: If Pillow is not installed.
        """
        found = pictures.regions(self)
        if not found:
            raise ValueError("The explanation has no image or audio: to_html() draws a text.")
        write_bytes(path, pictures.picture_png(self, found[0], overlay=overlay))

    def to_pandas(self) -> pd.DataFrame:
        """Convert the explanation to a data frame with one row per token.

        Returns:
            Columns ``token`` (as in the text), ``relevance``, ``start``, ``end``,
            ``special``, with a chat template ``template`` and, for tokens, ``id``. Everything else
            is in ``attrs``.

        Raises:
            ImportError: If pandas is not installed.
        """
        return storage.frame_of(self)

    def to_captum(
        self,
        *,
        predicted_class: str = "",
        predicted_probability: float = math.nan,
        true_class: str = "",
    ) -> captum_visualization.VisualizationDataRecord:
        """Convert the explanation to a record for Captum's ``visualize_text``.

        See :func:`captum.attr.visualization.visualize_text`. Captum writes a record into HTML
        unescaped, so all text is escaped here. The
        relevances are divided by the largest absolute one, as Captum draws values between -1 and 1;
        the score is their sum before that.

        Args:
            predicted_class: The model's prediction, which an explanation does not record.
            predicted_probability: Its probability.
            true_class: The correct class.

        Returns:
            The record.
        """
        most = max(map(abs, self.relevances), default=0.0)
        scale = most if 0 < most < math.inf else 1.0
        return captum_visualization.VisualizationDataRecord(
            word_attributions=torch.tensor(self.relevances, dtype=torch.float64, device="cpu")
            / scale,
            pred_prob=predicted_probability,
            pred_class=html.escape(predicted_class),
            true_class=html.escape(true_class),
            attr_class=html.escape(self.target),
            attr_score=self.sum,
            raw_input_ids=[html.escape(label) for label in self.labels],
            convergence_score=self.delta,
        )

    def __str__(self) -> str:
        """A table of the relevances, as plain text."""
        return terminal.plain(self)

    def __rich__(self) -> Group:
        """The heat map, for a terminal."""
        return terminal.terminal(self)

    def _repr_html_(self) -> str:
        """The heat map, for a notebook."""
        return page.fragment(self)
