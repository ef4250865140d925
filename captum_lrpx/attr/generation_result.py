"""The explanation of a continuation, as a result of Captum's language model attributions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from captum.attr import LLMAttributionResult

from captum_lrpx.attr import generation_view
from captum_lrpx.attr.generation_grouping import grouped_columns, grouped_rows, rows_of, text_of
from captum_lrpx.attr.generation_storage import changed, content_of, fields_of
from captum_lrpx.explanation import Explanation, storage
from captum_lrpx.explanation.grouping import FOLDED
from captum_lrpx.files import write_text
from captum_lrpx.words import token_runs, word_spans

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from rich.console import Console, ConsoleOptions, RenderResult
    from torch import Tensor

    from captum_lrpx.words import Span


class LLMRelevanceResult(LLMAttributionResult):
    """Relevances of a prompt, and of the continuation itself, for a continuation of a model.

    It is Captum's result (``seq_attr``, ``token_attr``, ``input_tokens``, ``output_tokens``, the
    plots) and a record like :class:`captum_lrpx.Explanation`: it prints itself, shows itself in a
    notebook, and can be stored and read back without losing a digit. Each *row* explains a token of
    the continuation, or a span; :meth:`explanation` returns it as a separate explanation.

    Captum's fields have the tokens in Captum's notation. The views show the text: ``keys`` for
    ``▁keys`` or ``Ġkeys``, and a character that takes several tokens once.

    Attributes:
        record: The explanation of all rows together; text and tokens are prompt and continuation.
        spans: ``(first, last + 1)`` entries of the text that each row explains ``[R]``.
        targets: The explained value of each row, in words ``[R]``.
        shown: Which entries of the prompt are in ``token_attr`` ``[P]``; Captum's ``skip_tokens``
            leaves some out.
        context_attr: ``[R, P + K]``: relevance of each token of prompt and continuation for each
            row; 0 for later tokens, which the model had not seen.
        context_tokens: The ``P + K`` tokens, in Captum's notation.
        values: ``[R]``: the explained values, for instance log-probabilities.
        decomposed: ``[R]``: the sum of relevances and delta. For logits and their differences this
            is ``values``. For the log-probability of ``t`` it is ``z_t - sum_v p_v z_v``, the logit
            minus the expected logit: the gradient towards the logits, times the logits.
        prompt_ids: Token ids of the prompt.
        continuation_ids: Token ids of the continuation.
    """

    def __init__(
        self,
        *,
        record: Explanation,
        spans: Sequence[Span],
        targets: Sequence[str],
        shown: Sequence[bool],
        context_tokens: Sequence[str],
        output_tokens: Sequence[str],
        context_attr: Tensor,
        values: Tensor,
        decomposed: Tensor,
        prompt_ids: Tensor,
        continuation_ids: Tensor,
    ) -> None:
        places = [place for place, show in enumerate(shown) if show]
        token_attr = context_attr[:, places]
        super().__init__(
            input_tokens=[context_tokens[place] for place in places],
            output_tokens=list(output_tokens),
            seq_attr=token_attr.sum(0),
            token_attr=token_attr,
        )
        self.record = record
        self.spans = tuple(spans)
        self.targets = tuple(targets)
        self.shown = tuple(shown)
        self.context_tokens = list(context_tokens)
        self.context_attr = context_attr
        self.values = values
        self.decomposed = decomposed
        self.prompt_ids = prompt_ids
        self.continuation_ids = continuation_ids

    @property
    def delta(self) -> Tensor:
        """``[R]``: the share of no token: ``decomposed`` minus the sum of relevances."""
        return self.decomposed - self.context_attr.sum(1)

    @property
    def labels(self) -> tuple[str, ...]:
        """The ``P + K`` tokens as in the text; special ones by their name."""
        return self.record.labels

    @property
    def row_labels(self) -> tuple[str, ...]:
        """The text that each row explains ``[R]``."""
        return tuple(text_of(self.record, span) for span in self.spans)

    def __eq__(self, other: object) -> bool:
        """Whether all fields are equal."""
        if not isinstance(other, LLMRelevanceResult):
            return NotImplemented
        return content_of(self) == content_of(other)

    __hash__ = None  # type: ignore[assignment]

    def with_continuation(self) -> LLMAttributionResult:
        """This result with the continuation among the inputs, for Captum's plots.

        Returns:
            A result whose ``token_attr`` is ``context_attr``.
        """
        return LLMAttributionResult(
            input_tokens=self.context_tokens,
            output_tokens=self.output_tokens,
            seq_attr=self.context_attr.sum(0),
            token_attr=self.context_attr,
        )

    # Views ------------------------------------------------------------------------------------

    def explanation(self, row: int | None = None) -> Explanation:
        """One row, or the sum of all rows, as an explanation: to rank, subtract, compare, store.

        Args:
            row: Index of the row. Default: the sum of all rows.

        Returns:
            An explanation of prompt and continuation, whose ``convergence_delta`` is the row's
            :attr:`delta`.

        Raises:
            IndexError: If there is no such row.
        """
        if row is None:
            return self.record
        if not -len(self.spans) <= row < len(self.spans):
            raise IndexError(f"There is no row {row}: the result has {len(self.spans)}.")
        first, stop = self.spans[row]
        return replace(
            self.record,
            relevances=tuple(self.context_attr[row].double().tolist()),
            value=float(self.values[row]),
            target=self.targets[row],
            position=first - 1 if stop - first == 1 and self.record.ids else None,
            convergence_delta=float(self.delta[row]),
        )

    def words(self, spans: Sequence[Span] | None = None) -> LLMRelevanceResult:
        """Sum the relevances of tokens to relevances of words.

        If each token has a row, each word gets a row, with the sum of their values; rows of
        spans stay. No word has tokens of both prompt and continuation.

        Args:
            spans: As for :meth:`captum_lrpx.Explanation.words`.

        Returns:
            A result whose entries are words.

        Raises:
            ValueError: If the spans overlap, are not in order, or do not lie in the text.
        """
        found = word_spans(self.record.text) if spans is None else spans
        length, record = len(self.shown), self.record
        parts = (slice(0, length), 0), (slice(length, None), length)
        groups = [
            range(first + shift, stop + shift)
            for part, shift in parts
            for first, stop in token_runs(
                record.text,
                record.offsets[part],
                record.special[part],
                found,
                record.template and record.template[part],
            )
        ]
        return grouped_rows(grouped_columns(self, groups), rows_of(self, groups))

    def fold_special(self) -> LLMRelevanceResult:
        """Fold special tokens and chat template of the prompt into one entry, the first.

        Special tokens of the continuation stay, as each has a row.
        """
        length = len(self.shown)
        template = self.record.template or (False,) * length
        special = [at for at in range(length) if self.record.special[at] or template[at]]
        if not special:
            return self
        others = [[place] for place in range(len(self.labels)) if place not in special]
        found = grouped_columns(self, [special, *others])
        record = replace(
            found.record,
            tokens=(FOLDED, *found.record.tokens[1:]),
            offsets=((0, 0), *found.record.offsets[1:]),
            special=(True, *found.record.special[1:]),
        )
        return changed(found, record=record, context_tokens=[FOLDED, *found.context_tokens[1:]])

    # Storage and other forms ------------------------------------------------------------------

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """Convert the result to JSON; floats keep every digit.

        Args:
            path: File to write as well, atomically.

        Returns:
            The JSON text.
        """
        return storage.save("generation", content_of(self), path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> LLMRelevanceResult:
        """Read a result written by :meth:`to_json`; its tensors are on the CPU.

        Args:
            source: JSON text, or the path of a file.

        Returns:
            The result.

        Raises:
            ValueError: If it is not such a result, or one of a newer version.
        """
        return storage.load("generation", source, lambda content: cls(**fields_of(content)))

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """Convert the result to one HTML page without scripts or links; all text is escaped.

        Args:
            path: File to write as well, atomically.

        Returns:
            A complete document: heat maps of the continuation as a whole and of each row, and a
            table of all relevances.
        """
        page = generation_view.page(self)
        write_text(path, page)
        return page

    def to_pandas(self) -> pd.DataFrame:
        """Convert the relevances to a data frame, with one line per row and token.

        Returns:
            Columns ``row``, ``explained`` (the text of the row), ``value``, ``position``, ``token``
            (as in the text), ``generated`` (whether it belongs to the continuation) and
            ``relevance``. Everything else is in ``attrs``.

        Raises:
            ImportError: If pandas is not installed.
        """
        pandas = storage.import_pandas()
        relevances = self.context_attr.double().tolist()
        length, labels = len(self.shown), self.labels
        lines = [
            (row, explained, value, place, label, place >= length, relevances[row][place])
            for row, (explained, value) in enumerate(
                zip(self.row_labels, self.values.tolist(), strict=True)
            )
            for place, label in enumerate(labels)
        ]
        columns = ["row", "explained", "value", "position", "token", "generated", "relevance"]
        frame: pd.DataFrame = pandas.DataFrame(lines, columns=columns)
        record = storage.record_of(self.record)
        kept = ("text", "target", "method", "recipe", "model", "revision", "dtype", "versions")
        frame.attrs = {name: record[name] for name in (*kept, "options")}
        return frame

    def __str__(self) -> str:
        """Tables of the relevances, as plain text."""
        return generation_view.plain(self)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Tables of the relevances in color, as wide as the terminal."""
        yield from generation_view.terminal(self, options.max_width)

    def _repr_html_(self) -> str:
        """The heat maps, for a notebook."""
        return f"<div>{generation_view.body(self)}</div>"
