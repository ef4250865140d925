"""Explains tiny models of every type that transformers has, and checks each in several ways.

As a script it goes over all of them and writes the table of the documentation::

    python tests/breadth.py --write docs/supported-models.md [MAPPING ...] [TYPE ...]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from questions import Asked, NotBuilt, asked, pairs, plain_logits
from tiny_models import MAPPINGS

from captum_lrpx import AttnLRPx, LRPx, ledger

METHODS = {"LRPx": LRPx, "AttnLRPx": AttnLRPx}
TITLES = {
    "CAUSAL_LM": "causal language models",
    "MASKED_LM": "masked language models",
    "SEQ_TO_SEQ_CAUSAL_LM": "sequence to sequence",
    "SEQUENCE_CLASSIFICATION": "sequence classification",
    "IMAGE_CLASSIFICATION": "image classification",
    "IMAGE_TEXT_TO_TEXT": "image and text to text",
}
REFUSED = (
    "A refusal is an error that names the operation. [Any module](any_module.md) says what to do "
    "about one."
)
CLOSED = {torch.float32: 1e-4, torch.float64: 1e-10}
"""What a ledger may leave open, of its largest entry; in bfloat16 nothing is said of it."""
EQUAL = {torch.float32: 1e-4, torch.float64: 1e-9}
"""How far values and relevances from two ways to compute the same may differ, of the largest."""
PRECISIONS = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}
SECOND_WAYS = ("embeddings for ids", "eager and SDPA attention")
CHECKS = (*PRECISIONS, *SECOND_WAYS)
UNCHECKED = Path(__file__).parent / "unchecked.json"
"""For each check the pairs that it cannot be made for, by reason; they may only become fewer."""


@dataclass
class Found:
    """What became of one model under one method.

    Attributes:
        refusal: The message of the refusal; empty if it was explained.
        wrong: What does not hold, in words.
    """

    refusal: str = ""
    wrong: list[str] = field(default_factory=list)


def examine(question: Asked, method: str) -> Found:
    """Explain a model and check everything that can be checked on it alone."""
    found = Found()
    seen: list[torch.Tensor] = []

    def forward(*inputs: torch.Tensor) -> torch.Tensor:
        seen.append(question.logits(*inputs))
        return seen[-1]

    attribution = METHODS[method](forward, question.model)
    before = question.state()
    try:
        first = attribution.attribute(question.inputs, target=question.target)
    except ValueError as error:
        found.refusal = str(error)
        if question.state() != before:
            found.wrong.append("something is left behind")
        return found
    again = attribution.attribute(question.inputs, target=question.target)
    if not all(map(torch.equal, first, again)):  # the first was watched, the second perhaps not
        found.wrong.append("a second pass gives other relevances")
    if not all(bool(each.isfinite().all()) for each in first):
        found.wrong.append("relevances are not finite")
    if question.state() != before:
        found.wrong.append("something is left behind")
    plain = plain_logits(question)
    if not all(torch.equal(each, plain) for each in seen):
        found.wrong.append("the forward pass is another one")
    if question.dtype in CLOSED:
        book = ledger(attribution, question.inputs, target=question.target)
        if not book.closes(CLOSED[question.dtype], to="largest"):
            residual = float(book.relative_residual("largest").max())
            found.wrong.append(f"the ledger is open by {residual:.1e}")
    return found


# The same in two ways -----------------------------------------------------------------------------


def exactly(kind: str, mapping: str, **options: Any) -> Asked:
    """A question in float64, or in float32 if the model does not run in it."""
    try:
        return asked(kind, mapping, dtype=torch.float64, **options)
    except NotBuilt:
        return asked(kind, mapping, **options)


def two_ways(mapping: str, kind: str, ways: str) -> tuple[Asked, Asked]:
    """Two questions that compute the same value from the same parameters.

    Raises:
        NotBuilt: If there is one way only, or the values are not the same.
    """
    if ways == "embeddings for ids":
        one = exactly(kind, mapping)
        other = one.given_as_embeddings()
    else:
        try:
            one, other = (exactly(kind, mapping, attention=way) for way in ("eager", "sdpa"))
        except NotBuilt as reason:
            single = "does not support an attention" in str(reason)
            raise NotBuilt("has one attention" if single else str(reason)) from reason
        other.target = one.target
    if difference(one.value(), other.value()) > EQUAL[one.dtype]:
        raise NotBuilt("computes another value")
    return one, other


def compare(one: Asked, other: Asked, method: str) -> Found:
    """Whether relevances are the same in two ways."""
    try:
        pairs_of = zip(
            one.relevances(METHODS[method]), other.relevances(METHODS[method]), strict=True
        )
    except ValueError as error:
        return Found(str(error))
    largest = max(difference(*both) for both in pairs_of)
    return Found("", [f"differ by {largest:.1e}"] if largest > EQUAL[one.dtype] else [])


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference as a part of the largest number."""
    largest = float(torch.maximum(one.abs().max(), other.abs().max()))
    return float((one - other).abs().max()) / max(largest, 1e-12)


def answers(mapping: str, kind: str, check: str) -> dict[str, Found]:
    """What a check finds, for each method.

    Raises:
        NotBuilt: If it cannot be made.
    """
    if check in PRECISIONS:
        question = asked(kind, mapping, dtype=PRECISIONS[check])
        return {method: examine(question, method) for method in METHODS}
    one, other = two_ways(mapping, kind, check)
    return {method: compare(one, other, method) for method in METHODS}


def answers_or_reason(mapping: str, kind: str, check: str) -> dict[str, Found] | str:
    """What a check finds, or why it cannot be made."""
    try:
        return answers(mapping, kind, check)
    except NotBuilt as reason:
        return str(reason)


# Script -------------------------------------------------------------------------------------------


def main() -> None:
    """Go over the models, print what is refused or wrong, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wanted", nargs="*", help="mappings and model types")
    parser.add_argument("--write", type=Path, help="file of the table")
    options = parser.parse_args()
    mappings = [each for each in options.wanted if each in MAPPINGS] or MAPPINGS
    types = [each for each in options.wanted if each not in MAPPINGS]
    table: Table = {}
    unchecked: dict[str, dict[str, list[str]]] = {check: {} for check in CHECKS[1:]}
    for mapping, kind in pairs():
        if mapping in mappings and (not types or kind in types):
            rows = table[mapping, kind] = {}
            for check in CHECKS:
                found = answers_or_reason(mapping, kind, check)
                if not isinstance(found, str):
                    rows[check] = found
                elif check == "float32":
                    break
                else:
                    unchecked[check].setdefault(found, []).append(f"{mapping} {kind}")
            report(mapping, kind, rows)
    built = {pair: rows for pair, rows in table.items() if rows}
    wrong = sum(any(all_wrong(rows)) for rows in built.values())
    print(f"{len(built)} run, {wrong} wrong, {len(table) - len(built)} do not run by themselves")
    if options.write is not None:
        options.write.write_text(page(built), encoding="utf-8")
        UNCHECKED.write_text(json.dumps(unchecked, indent=2) + "\n", encoding="utf-8")
    sys.exit(bool(wrong))


Rows = dict[str, dict[str, Found]]
Table = dict[tuple[str, str], Rows]
"""Mapping and model type -> check -> method -> what it found."""


def all_wrong(rows: Rows) -> list[list[str]]:
    """What does not hold, of all checks and methods."""
    return [found.wrong for row in rows.values() for found in row.values()]


def report(mapping: str, kind: str, rows: Rows) -> None:
    """Print what is refused or wrong with a model."""
    for check, row in rows.items():
        for method, found in row.items():
            if found.wrong or (found.refusal and check == "float32"):
                print(mapping, kind, check, method, found.wrong or found.refusal[:160], flush=True)


def page(table: Table) -> str:
    """The table as Markdown."""
    import transformers

    by_mapping: dict[str, list[str]] = defaultdict(list)
    refusals: list[str] = []
    for (mapping, kind), rows in table.items():
        found_in_row = rows["float32"].items()
        refused = {method: found.refusal for method, found in found_in_row if found.refusal}
        if refused:
            message = next(iter(refused.values()))
            refusals.append(f"| `{kind}` | {TITLES[mapping]} | {reason(message)} |")
        else:
            by_mapping[mapping].append(kind)
    explained = sum(map(len, by_mapping.values()))
    version = transformers.__version__
    checked = (
        "For each of them the forward pass under the rules was bit-identical to the model's own, "
        "a second pass gave the same relevances, the model was restored, and the ledger closed "
        "to 1e-4 of its largest entry in float32."
    )
    made = {
        check: sum(
            check in rows and not any(found.refusal for found in rows[check].values())
            for rows in table.values()
        )
        for check in CHECKS
    }
    more = (
        f"In float64, with every cast to float32 lifted, {made['float64']} of them run and their "
        f"ledgers close to 1e-10; {made['bfloat16']} run in bfloat16, with a forward pass that is "
        "the model's own. The relevances are the same from ids and from the embeddings of these "
        f"ids ({made['embeddings for ids']} pairs), and with eager attention and "
        f"`scaled_dot_product_attention` ({made['eager and SDPA attention']} pairs), wherever the "
        "model itself computes the same value in both ways: to 1e-9 in float64, 1e-4 where it runs "
        "in float32 only. Pairs for which a check is impossible are listed with reasons in "
        "`tests/unchecked.json`."
    )
    counted = (
        f"`LRPx` and `AttnLRPx` explain {explained} of the {len(table)} pairs of a task and a "
        f"model type that transformers {version} can build and run at a small size."
    )
    lines = [
        "# Supported models",
        "",
        f"{counted} {checked}",
        "",
        f"{more} This page is written by",
        "`python tests/breadth.py --write docs/supported-models.md`.",
        "",
    ]
    for mapping, kinds in by_mapping.items():
        shown = ", ".join(f"`{kind}`" for kind in sorted(kinds))
        lines += [f"## {TITLES[mapping].capitalize()} ({len(kinds)})", "", shown, ""]
    lines += [
        f"## Refused ({len(refusals)})",
        "",
        REFUSED,
        "",
        "| model type | task | operation |",
        "|---|---|---|",
        *refusals,
        "",
    ]
    return "\n".join(lines)


def reason(message: str) -> str:
    """The operation that a refusal names."""
    _, _, rest = message.partition("covers: ")
    return (rest or message).split(". ")[0].replace("|", "\\|")[:200]


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
