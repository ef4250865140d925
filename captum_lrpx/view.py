"""``view()``: explanations as one interactive page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.attr.generation_result import LLMRelevanceResult
from captum_lrpx.explanation import Explanation
from captum_lrpx.files import write_text
from captum_lrpx.segments import Part, Tokens, split
from captum_lrpx.visualization.characters import readable
from captum_lrpx.visualization.interactive_page import ViewedMethod, view_page
from captum_lrpx.visualization.page import origin
from captum_lrpx.visualization.pieces import pieces

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from captum_lrpx.segments import By

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
    shown: Sequence[Viewed] = [explanations] if single else explanations  # type: ignore[list-item, assignment]
    if not shown:
        raise ValueError("There are no explanations to view.")
    if not by:
        raise ValueError("`by` is empty: give at least one kind of segments.")
    records = [_record(each) for each in shown]
    first = records[0]
    for each, record in zip(shown, records, strict=True):
        same = (record.text, record.tokens, record.offsets) == (
            first.text,
            first.tokens,
            first.offsets,
        )
        if not same or _spans(each) != _spans(shown[0]):
            raise ValueError(
                "The explanations are not of the same tokens and rows of one text: view them one "
                "by one."
            )
    if names is None:
        names = _names(records)
    if len(names) != len(shown):
        raise ValueError(f"There are {len(shown)} explanations, but {len(names)} names.")
    page = view_page(
        first.target,
        pieces(first),
        [a or b for a, b in zip(first.special, first.template or first.special, strict=True)],
        _spans(shown[0]),
        _start(shown[0]),
        [(_name(level), _groups(first, level, language)) for level in by],
        [_method(each, name) for each, name in zip(shown, names, strict=True)],
        list(dict.fromkeys(origin(record) for record in records)),
    )
    if path is not None:
        write_text(path, page)
    return page


def _record(viewed: Viewed) -> Explanation:
    return viewed if isinstance(viewed, Explanation) else viewed.record


def _spans(viewed: Viewed) -> tuple[tuple[int, int], ...]:
    """The explained tokens of each row; of an explanation, the answer or none."""
    if isinstance(viewed, LLMRelevanceResult):
        return viewed.spans
    start = _start(viewed)
    return ((start, len(viewed.tokens)),)


def _start(viewed: Viewed) -> int:
    if isinstance(viewed, LLMRelevanceResult):
        return len(viewed.shown)
    answers = [region.start for region in viewed.regions or () if region.kind == "answer"]
    inside = (index for index, place in enumerate(viewed.offsets) if place[0] >= answers[0])
    return next(inside, len(viewed.tokens)) if answers else len(viewed.tokens)


def _names(records: Sequence[Explanation]) -> list[str]:
    methods = [record.method for record in records]
    if len(set(methods)) == len(methods):
        return methods
    return [f"{record.method} ({record.recipe or record.model})" for record in records]


def _name(level: By) -> str:
    if isinstance(level, str):
        return f"{level}s"
    return "spans" if not hasattr(level, "pattern") else f"/{level.pattern}/"


def _groups(record: Explanation, level: By, language: str) -> list[tuple[int, ...]]:
    tokens = Tokens(
        record.text, record.offsets, record.special, record.template, record.regions or ()
    )
    return list(_pieces_of(split(tokens, level, language=language, fold_special=False)))


def _pieces_of(parts: Sequence[Part]) -> Iterator[tuple[int, ...]]:
    for part in parts:
        if part.kind == "special":  # each token at its place
            yield from ((token,) for token in part.tokens)
        else:
            yield part.tokens


def _method(viewed: Viewed, name: str) -> ViewedMethod:
    if isinstance(viewed, LLMRelevanceResult):
        return ViewedMethod(
            name=name,
            relevances=viewed.context_attr.double().tolist(),
            values=viewed.values.double().tolist(),
            decomposed=viewed.decomposed.double().tolist(),
            targets=[readable(target) for target in viewed.targets],
            target=readable(viewed.record.target),
            ledger=(),
        )
    certificate = viewed.certificate
    rest = () if certificate is None else certificate.ledger_delta or ()
    return ViewedMethod(
        name=name,
        relevances=[viewed.relevances],
        values=[viewed.value],
        decomposed=[viewed.value],
        targets=[readable(viewed.target)],
        target=readable(viewed.target),
        ledger=[(kind, amount) for kind, amount in rest if amount],
    )
