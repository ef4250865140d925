"""Tables and figures of ``benchmarks/why.py``, put into the documentation.

    python benchmarks/why_page.py SmolLM2-135M=smollm2.jsonl Gemma-3-270M=gemma3.jsonl \
        [--short SmolLM2-135M=ud.jsonl]

Each table replaces what stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` in
``docs/benchmark-tables.md``; the figures are ``docs/images/benchmark-*.svg`` (extra ``plot``).
Nothing is computed but means and intervals: 95 % bootstrap intervals over sentences, those of
differences paired.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

import why_figures
from why_scores import MEASURES, Scores, difference, mean

from captum_lrpx.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from captum_lrpx.sva.evaluation.statistics import Estimate

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "benchmark-tables.md"
VIEWS = {"all tokens": True, "without the first token": False}
METHODS = (
    "LRP",
    "LRP, mirrored gate",
    "LRP, uniform gate",
    "LRP, sink rule",
    "AttnLRP, signal gate",
    "AttnLRP, mirrored gate",
    "AttnLRP",
    "ALTI-Logit",
    "ALTI-Logit, no start",
    "IFR",
    "Gradient, L1",
    "Gradient, L2 squared",
    "Gradient x Input",
)
CHANGES = (
    ("gate: mirrored for signal, attention constant", "LRP, mirrored gate", "LRP"),
    ("gate: uniform for signal, attention constant", "LRP, uniform gate", "LRP"),
    (
        "gate: mirrored for signal, attention uniform",
        "AttnLRP, mirrored gate",
        "AttnLRP, signal gate",
    ),
    ("gate: uniform for signal, attention uniform", "AttnLRP", "AttnLRP, signal gate"),
    ("attention: uniform for constant, gate signal", "AttnLRP, signal gate", "LRP"),
    (
        "attention: uniform for constant, gate mirrored",
        "AttnLRP, mirrored gate",
        "LRP, mirrored gate",
    ),
    ("attention: uniform for constant, gate uniform", "AttnLRP", "LRP, uniform gate"),
    ("AttnLRP for LRP", "AttnLRP", "LRP"),
    ("sink rule for constant attention, gate uniform", "LRP, sink rule", "LRP, uniform gate"),
    ("sink rule for AttnLRP", "LRP, sink rule", "AttnLRP"),
    ("start term of ALTI-Logit left out", "ALTI-Logit, no start", "ALTI-Logit"),
)
"""What is changed, the method with the change, and the one without."""
SETTINGS = {
    "right": "the right first token",
    "none": "no first token",
    "other": "a full stop as first token",
    "right zero values": "the first token's values zero",
    "right zero weight": "the first token's value read by no other token",
    "right mean weight": "the first token's value read with the mean weight",
}


def cell(each: Estimate, *, signed: bool = False) -> str:
    """A mean with its interval."""
    form = "+.3f" if signed else ".3f"
    return f"{each.mean:{form}} [{each.low:{form}}, {each.high:{form}}]"


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table with a title."""
    head = list(head)
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |"]
    lines.append("| --- " + "| ---: " * (len(head) - 1) + "|")
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def bypassed(scores: Scores) -> list[str]:
    """AttnLRP without the softmax from a layer on, by that layer."""
    return [method for method in scores.methods() if "weights constant from layer" in method]


def known(scores: Scores, setting: str = "right") -> list[str]:
    """The methods of a setting, in the order of the tables."""
    there = scores.methods(setting)
    return [method for method in METHODS if method in there]


def counted(scores: Scores, setting: str, methods: Iterable[str]) -> str:
    """Of how many sentences a table is."""
    counts = {method: len(scores.relevance(setting, method)) for method in methods}
    usual = max(counts.values())
    fewer = [f"{name}: {count}" for name, count in counts.items() if count != usual]
    return f"{usual} sentences" + (f"; {', '.join(fewer)}" if fewer else "")


# Tables -----------------------------------------------------------------------------------------


def methods(name: str, scores: Scores, setting: str = "right") -> Iterator[str]:
    """All measures of all methods, and the share of the first token."""
    rows = known(scores, setting)
    if not rows:
        return
    where = f"{name}, {SETTINGS[setting]} ({counted(scores, setting, rows)})"
    for view, first in VIEWS.items():
        if setting == "none" and not first:
            continue  # there is none to leave out
        title = f"{where}, all tokens" if setting == "none" else f"{where}, {view}"
        yield table(
            title,
            ("method", *MEASURES, "share of the first position"),
            (
                (
                    method,
                    *(
                        cell(mean(scores.measure(method, each, first=first, setting=setting)))
                        for each in MEASURES
                    ),
                    cell(mean(scores.measure(method, "first", setting=setting))),
                )
                for method in rows
            ),
        )


def rules(name: str, scores: Scores, setting: str = "right") -> Iterator[str]:
    """What each change of a rule does, paired."""
    there = known(scores, setting)
    changes = [each for each in CHANGES if each[1] in there and each[2] in there]
    where = f"{name}, {SETTINGS[setting]} ({counted(scores, setting, ['LRP'])})"
    for view, first in VIEWS.items():
        if setting == "none" and not first:
            continue  # there is none to leave out
        yield table(
            f"{where}, all tokens" if setting == "none" else f"{where}, {view}",
            ("change", *MEASURES),
            (
                (
                    change,
                    *(
                        cell(
                            difference(
                                scores.measure(one, each, first=first, setting=setting),
                                scores.measure(other, each, first=first, setting=setting),
                            ),
                            signed=True,
                        )
                        for each in MEASURES
                    ),
                )
                for change, one, other in changes
            ),
        )


def settings(name: str, scores: Scores) -> Iterator[str]:
    """Accuracy and value in each setting, and each method's MRR beside that of the usual one."""
    predicted = [each for each in SETTINGS if each in scores.settings("samples")]
    there = [each for each in SETTINGS if each in scores.settings()]
    yield table(
        f"{name}, of {len(scores.values())} sentences",
        ("setting", "right", "difference", "explained value", "difference"),
        (
            (
                SETTINGS[each],
                cell(mean(scores.accuracy(each))),
                cell(difference(scores.accuracy(each), scores.accuracy()), signed=True),
                cell(mean(scores.values(each))),
                cell(difference(scores.values(each), scores.values()), signed=True),
            )
            for each in predicted
        ),
    )
    for view, first in VIEWS.items():
        yield table(
            f"{name}, change of MRR against the right first token, sentences that are right in "
            f"both, {view}",
            ("method", *(f"{SETTINGS[each]} ({_shared(scores, each)})" for each in there[1:])),
            (
                (
                    method,
                    *(
                        cell(
                            difference(
                                scores.measure(method, "MRR", first=first, setting=each),
                                scores.measure(method, "MRR", first=first),
                            ),
                            signed=True,
                        )
                        for each in there[1:]
                    ),
                )
                for method in known(scores, there[-1])
            ),
        )
    for each in there[1:]:
        yield from methods(name, scores, each)
        yield from rules(name, scores, each)


def _shared(scores: Scores, setting: str) -> int:
    return len(scores.relevance(setting, "LRP").keys() & scores.relevance("right", "LRP").keys())


def account(name: str, scores: Scores) -> Iterator[str]:
    """Shares of the explained value by kind of line in the ledger."""
    books = {
        method: scores.account(method)
        for method in ("LRP", "LRP, uniform gate", "AttnLRP", "ALTI-Logit")
    }
    kinds = list(dict.fromkeys(kind for book in books.values() for kind in book))
    if kinds:
        (count,) = {len(each) for book in books.values() for each in book.values()}
        yield table(
            f"{name}, share of the explained value ({count} sentences)",
            ("method", *kinds),
            (
                (method, *(cell(mean(book[kind])) if kind in book else "-" for kind in kinds))
                for method, book in books.items()
            ),
        )


def faithful(name: str, scores: Scores) -> Iterator[str]:
    """Agreement with leaving one token out, and the area between the perturbation curves."""
    count = len(scores.relevance("right", "leave one out"))
    if count:
        yield table(
            f"{name} ({count} sentences)",
            (
                "method",
                "Pearson",
                "Pearson, less LRP's",
                "Pearson, less AttnLRP's",
                "Spearman",
                "Pearson with the first token",
                "ABPC, in logits",
            ),
            (
                (
                    method,
                    cell(mean(scores.measure(method, "LOO-r"))),
                    cell(
                        difference(scores.measure(method, "LOO-r"), scores.measure("LRP", "LOO-r")),
                        signed=True,
                    ),
                    cell(
                        difference(
                            scores.measure(method, "LOO-r"), scores.measure("AttnLRP", "LOO-r")
                        ),
                        signed=True,
                    ),
                    cell(mean(scores.measure(method, "LOO-rho"))),
                    cell(mean(scores.measure(method, "LOO-r", first=True))),
                    cell(mean(area)) if (area := scores.measure(method, "ABPC")) else "-",
                )
                for method in [*known(scores), *bypassed(scores)]
            ),
        )


TABLES = {
    "why-methods": methods,
    "why-rules": rules,
    "why-settings": settings,
    "why-account": account,
    "why-faithful": faithful,
}


def sections(models: dict[str, Scores], short: dict[str, Scores]) -> dict[str, str]:
    """The text of each section."""
    found = {
        section: "\n\n".join(text for name, scores in models.items() for text in of(name, scores))
        for section, of in TABLES.items()
    }
    texts = (text for name, scores in short.items() for text in methods(name, scores))
    return found | ({"why-short": "\n\n".join(texts)} if short else {})


def put(page: str, section: str, body: str) -> str:
    """A page with another body of a section."""
    pattern = rf"(<!-- begin {section} -->\n).*?(<!-- end {section} -->)"
    if not re.search(pattern, page, re.DOTALL):
        raise ValueError(f"The page has no section {section!r}.")
    return re.sub(pattern, lambda at: f"{at[1]}\n{body}\n\n{at[2]}", page, flags=re.DOTALL)


def main() -> None:
    """Write the tables and draw the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("journals", nargs="+", metavar="NAME=FILE")
    parser.add_argument("--short", nargs="*", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    models, short = (
        {name: Scores(Path(file)) for name, _, file in (each.partition("=") for each in given)}
        for given in (options.journals, options.short)
    )
    page = PAGE.read_text(encoding="utf-8")
    for section, body in sections(models, short).items():
        page = put(page, section, body)
    write_text(PAGE, page)
    why_figures.draw(models, DOCS / "images")
    for name, scores in models.items():
        print(name, "process time:", round(sum(scores.seconds.values()) / 60), "minutes")


if __name__ == "__main__":
    main()
