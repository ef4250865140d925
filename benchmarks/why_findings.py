"""The numbers in the findings of ``docs/benchmark.md``, in their order, from ``why.py``'s journals.

python benchmarks/why_findings.py SmolLM2-135M=smollm2.jsonl Gemma-3-270M=gemma3.jsonl
"""

from __future__ import annotations

import argparse
from pathlib import Path

from why_scores import Scores, difference, mean

ALTI, ATTN, LRP, UNIFORM = "ALTI-Logit", "AttnLRP", "LRP", "LRP, uniform gate"
ZERO = "right zero values"


def findings(of: Scores) -> list[tuple[str, list[object]]]:
    """Each finding in short, and its numbers."""

    def level(method: str, measure: str = "MRR", *, first: bool = False, at: str = "right") -> str:
        found = of.measure(method, measure, first=first, setting=at)
        return f"{method} {_shown(mean(found))} (n = {len(found)})" if found else f"{method} -"

    def gain(one: str, other: str, measure: str = "MRR", *, first: bool, at: str = "right") -> str:
        pair = [of.measure(name, measure, first=first, setting=at) for name in (one, other)]
        both = len(pair[0].keys() & pair[1].keys())
        return f"{one} - {other} {_shown(difference(*pair), '+.2f')} (n = {both})" if both else "-"

    def right(at: str) -> str:
        change = _shown(difference(of.accuracy(at), of.accuracy()), "+.2f")
        return f"{at} {_shown(mean(of.accuracy(at)))}, {change}"

    late = [each for each in of.methods() if "weights constant from layer" in each]
    rules = [(UNIFORM, LRP), (ATTN, UNIFORM), ("LRP, mirrored gate", LRP)]
    return [
        ("words", [level(each) for each in (ALTI, ATTN, UNIFORM, LRP, "IFR")]),
        ("all tokens", [gain(ATTN, ALTI, first=True)]),
        (
            "start term",
            [gain("ALTI-Logit, no start", ALTI, first=first) for first in (True, False)],
        ),
        ("share of the first", [level(each, "first") for each in (LRP, ALTI, ATTN)]),
        ("of another first", [f"{at}: {level(LRP, 'first', at=at)}" for at in ("none", "other")]),
        ("rules, words", [gain(*pair, first=False) for pair in rules]),
        ("rules, all tokens", [gain(*pair, first=True) for pair in rules]),
        ("right", [right(at) for at in of.settings("samples")]),
        (
            "rules without the sink",
            [
                f"{at}: {gain(*pair, first=True, at=at)}"
                for at in (ZERO, "none")
                for pair in rules[:2]
            ],
        ),
        (
            "sink rule",
            [level("LRP, sink rule", first=True), gain("LRP, sink rule", ATTN, first=True)],
        ),
        (
            "sink rule, faithful",
            [
                gain("LRP, sink rule", other, measure, first=False)
                for measure, other in (("LOO-r", ATTN), ("LOO-r", UNIFORM), ("ABPC", UNIFORM))
            ],
        ),
        ("leaving out", [level(each, "LOO-r") for each in (ATTN, ALTI, UNIFORM, LRP)]),
        ("AttnLRP", [gain(ATTN, UNIFORM, each, first=False) for each in ("LOO-r", "ABPC")]),
        (
            "without the softmax, leaving out",
            [gain(each, ATTN, "LOO-r", first=False) for each in late],
        ),
        ("without the softmax, words", [gain(each, ATTN, first=False) for each in late]),
        ("without the softmax, all tokens", [gain(each, ATTN, first=True) for each in late]),
        (
            "ledger of AttnLRP",
            [
                f"{kind} {_shown(mean(each))} ({len(each)})"
                for kind, each in of.account(ATTN).items()
            ],
        ),
    ]


def _shown(estimate: object, form: str = ".2f") -> str:
    mean_, low, high = (getattr(estimate, name) for name in ("mean", "low", "high"))
    return f"{mean_:{form}} [{low:{form}}, {high:{form}}]"


def main() -> None:
    """Print the numbers of each model."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("journals", nargs="+", metavar="NAME=FILE")
    for given in parser.parse_args().journals:
        name, _, file = given.partition("=")
        print(f"\n{name}")
        for finding, numbers in findings(Scores(Path(file))):
            print(f"  {finding}:", *(f"\n    {each}" for each in numbers))


if __name__ == "__main__":
    main()
