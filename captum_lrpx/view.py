"""``view()``: explanations as one interactive page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from captum_lrpx.attr.generation_result import LLMRelevanceResult
from captum_lrpx.characters import readable
from captum_lrpx.explanation import Explanation
from captum_lrpx.explanation.page import origin
from captum_lrpx.explanation.pieces import pieces
from captum_lrpx.files import write_text
from captum_lrpx.visualization.interactive_page import packed, view_page
from captum_lrpx.words import added

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from captum_lrpx.segments import By
    from captum_lrpx.words import Span

__all__ = ["view"]

Viewed = Explanation | LLMRelevanceResult


def view(
    explanations: Viewed | Sequence[Viewed],
    path: str | os.PathLike[str] | None = None,
    *,
    by: Sequence[By] = ("token", "word"),
    names: Sequence[str] | None = None,
    language: str = "en",
) -> str:
    """Build one interactive HTML page of explanations: hover, click, choose.

    Pointing at a generated token shows its sources, a click pins them. Methods, segments and
    special tokens are chosen on the page, which loads nothing and can be shared as it is. All of it
    works with the keyboard; negative relevance is blue and underlined.

    Args:
        explanations: An explanation, or the result of :class:`captum_lrpx.LLMRelevance`; or several
            of the same tokens and rows, by different methods.
        path: File to write the page to as well, atomically.
        by: The segments to choose from, each as for :meth:`captum_lrpx.Explanation.segments`.
        names: Names of the explanations. Default: their methods.
        language: Language of the sentences.

    Returns:
        The page.

    Raises:
        ValueError: If there are no explanations, they differ in tokens or rows, the number of names
            is wrong, or the text has no such segments.
        ImportError: If sentencex is needed and not installed.

    Examples:
        >>> llm = LLMRelevance(AttnLRPx(model), tokenizer)
        >>> view(llm.attribute("the keys to the cabinet"), "map.html", by=("token", "sentence"))
    """
    single = isinstance(explanations, (Explanation, LLMRelevanceResult))
    given: Sequence[Viewed] = [explanations] if single else explanations  # type: ignore[list-item, assignment]
    if not given:
        raise ValueError("There are no explanations to view.")
    if not by:
        raise ValueError("`by` is empty: give at least one kind of segments.")
    shown = [_shown(each) for each in given]
    first, spans, start, _ = shown[0]
    for record, others, _, _ in shown:
        if spans != others or any(
            getattr(record, name) != getattr(first, name) for name in ("text", "tokens", "offsets")
        ):
            raise ValueError(
                "The explanations are not of the same tokens and rows of one text: view them one "
                "by one."
            )
    if names is None:
        names = _names([each.record for each in shown])
    if len(names) != len(shown):
        raise ValueError(f"There are {len(shown)} explanations, but {len(names)} names.")
    data = {
        "pieces": [
            {"drawn": each.drawn, "gap": each.gap, "first": each.first, "stop": each.stop}
            for each in pieces(first)
        ],
        "special": [int(each) for each in added(first.special, first.template)],
        "spans": spans,
        "start": start,
        "levels": [
            {"name": _name(level), "groups": list(_groups(first, level, language))} for level in by
        ],
        "methods": [{"name": name, **each.rows} for each, name in zip(shown, names, strict=True)],
    }
    footer = list(dict.fromkeys(origin(each.record) for each in shown))
    page = view_page(first.target, data, footer)
    write_text(path, page)
    return page


class _Shown(NamedTuple):
    """One explanation of each row of a page, by one method.

    Attributes:
        record: The explanation of all rows together.
        spans: The explained tokens of each row ``[R]``.
        start: The first generated token; ``T`` if there is none.
        rows: Relevances ``[R, T]``; for each row its explained value, the sum of its relevances and
            delta, and its target in words; the target of all rows, and the share of no token in
            their sum, by name.
    """

    record: Explanation
    spans: tuple[Span, ...]
    start: int
    rows: dict[str, Any]


def _shown(viewed: Viewed) -> _Shown:
    if isinstance(viewed, LLMRelevanceResult):
        rows = {
            "relevances": packed(viewed.context_attr.double().tolist()),
            "values": viewed.values.double().tolist(),
            "decomposed": viewed.decomposed.double().tolist(),
            "targets": [readable(target) for target in viewed.targets],
            "target": readable(viewed.record.target),
            "ledger": [],
        }
        return _Shown(viewed.record, viewed.spans, len(viewed.shown), rows)
    certificate, target = viewed.certificate, readable(viewed.target)
    rest = () if certificate is None else certificate.ledger_delta or ()
    rows = {
        "relevances": packed([viewed.relevances]),
        "values": [viewed.value],
        "decomposed": [viewed.value],
        "targets": [target],
        "target": target,
        "ledger": [(kind, amount) for kind, amount in rest if amount],
    }
    start = _start_of_answer(viewed)
    return _Shown(viewed, ((start, len(viewed.tokens)),), start, rows)


def _start_of_answer(record: Explanation) -> int:
    """Index of the first token of the answer; the number of tokens if there is none."""
    answers = [region.start for region in record.regions or () if region.kind == "answer"]
    inside = (index for index, place in enumerate(record.offsets) if place[0] >= answers[0])
    return next(inside, len(record.tokens)) if answers else len(record.tokens)


def _names(records: Sequence[Explanation]) -> list[str]:
    methods = [record.method for record in records]
    if len(set(methods)) == len(methods):
        return methods
    return [f"{record.method} ({record.recipe or record.model})" for record in records]


def _name(level: By) -> str:
    if isinstance(level, str):
        return f"{level}s"
    return "spans" if not hasattr(level, "pattern") else f"/{level.pattern}/"


def _groups(record: Explanation, level: By, language: str) -> Iterator[tuple[int, ...]]:
    """The tokens of each segment; special tokens each at its place."""
    for segment in record.segments(level, language=language, fold_special=False).parts:
        if segment.kind == "special":
            yield from ((token,) for token in segment.tokens)
        else:
            yield segment.tokens
