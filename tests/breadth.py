"""Explains tiny models of every type that transformers has, and checks each in several ways.

As a script it goes over all of them and writes the table of the documentation::

    python tests/breadth.py --write docs/supported-models.md [MAPPING ...] [TYPE ...]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_models import MAPPINGS, build, example, limit, names

from captum_lrpx import AttnLRPx, LRPx, ledger
from captum_lrpx.attr.embedded import embedded_ids

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
CLOSED = 1e-4
"""What a ledger in float32 may leave open, of its largest entry."""


class NotBuilt(Exception):  # noqa: N818 - it is no error of this package
    """The model does not run by itself: nothing to explain."""


@dataclass
class Found:
    """What became of one model under one method.

    Attributes:
        refusal: The message of the refusal; empty if it was explained.
        wrong: What does not hold, in words.
    """

    refusal: str = ""
    wrong: list[str] = field(default_factory=list)


class Asked:
    """A tiny model as a forward function of the inputs that relevance is attributed to."""

    def __init__(self, model_type: str, mapping: str, **options: Any) -> None:
        with quiet(), limit(60):
            self.model = build(model_type, mapping, **options)
            given = example(self.model)
            self.keywords = given.keywords
            self.names = given.relevant
            dtype = options.get("dtype", torch.float32)
            for name, value in self.keywords.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    self.keywords[name] = value.to(dtype)
            self.inputs = tuple(self.keywords[name] for name in self.names)
            logits = self.logits(*self.inputs)
        if not isinstance(logits, torch.Tensor) or logits.ndim < 2:
            raise NotBuilt("no logits")
        self.place = tuple(size - 1 for size in logits.shape[1:-1])
        at = logits[(0, *self.place)]
        if not bool(torch.isfinite(at).all()):
            raise NotBuilt("its logits are not finite")
        self.target: Any = (*self.place, int(at.argmax())) if self.place else int(at.argmax())

    def logits(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The logits, for inputs in the order of ``names``."""
        keywords = self.keywords | dict(zip(self.names, inputs, strict=True))
        with quiet():
            found: torch.Tensor = self.model(**keywords).logits
        return found

    def state(self) -> list[Any]:
        """Everything about the model that an explanation must leave as it was."""
        return [
            (
                sorted(vars(module)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                module.training,
                [parameter.requires_grad for parameter in module.parameters(recurse=False)],
            )
            for module in self.model.modules()
        ]


def asked(model_type: str, mapping: str, **options: Any) -> Asked:
    """A tiny model that runs.

    Raises:
        NotBuilt: If it does not.
    """
    try:
        return Asked(model_type, mapping, **options)
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {str(error)[:200]}") from error


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
    if not all(map(close, first, again)):
        found.wrong.append("a second pass gives other relevances")
    if question.state() != before:
        found.wrong.append("something is left behind")
    plain = plain_logits(question)
    if not all(torch.equal(each, plain) for each in seen):
        found.wrong.append("the forward pass is another one")
    book = ledger(attribution, question.inputs, target=question.target)
    if not book.closes(CLOSED, to="largest"):
        residual = float(book.relative_residual("largest").max())
        found.wrong.append(f"the ledger is open by {residual:.1e}")
    return found


def plain_logits(question: Asked) -> torch.Tensor:
    """The model's own logits, of the same call with gradients enabled and inputs that need one."""
    for parameter in question.model.parameters():
        parameter.requires_grad_(False)
    try:
        inputs = tuple(
            each.detach().requires_grad_() if each.is_floating_point() else each
            for each in question.inputs
        )
        ids = [each for each in inputs if not each.is_floating_point()]
        with embedded_ids(question.model, ids), torch.enable_grad():
            return question.logits(*inputs).detach()
    finally:
        for parameter in question.model.parameters():
            parameter.requires_grad_(True)


def close(one: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-5) -> bool:
    """Whether relevances are equal up to rounding."""
    largest = float(torch.maximum(one.abs().max(), other.abs().max()))
    return float((one - other).abs().max()) <= tolerance * max(largest, 1e-12)


@contextlib.contextmanager
def quiet() -> Any:
    """No warnings, and none of transformers' messages."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """All pairs of a mapping and a model type."""
    return tuple((mapping, kind) for mapping in MAPPINGS for kind in names(mapping))


# Script -------------------------------------------------------------------------------------------


def main() -> None:
    """Go over the models, print what is refused or wrong, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wanted", nargs="*", help="mappings and model types")
    parser.add_argument("--write", type=Path, help="file of the table")
    options = parser.parse_args()
    mappings = [each for each in options.wanted if each in MAPPINGS] or MAPPINGS
    types = [each for each in options.wanted if each not in MAPPINGS]
    table: dict[tuple[str, str], dict[str, Found]] = {}
    missing = 0
    for mapping, kind in pairs():
        if mapping not in mappings or (types and kind not in types):
            continue
        try:
            question = asked(kind, mapping)
        except NotBuilt:
            missing += 1
            continue
        row = table[mapping, kind] = {method: examine(question, method) for method in METHODS}
        for method, found in row.items():
            if found.refusal or found.wrong:
                print(mapping, kind, method, found.wrong or found.refusal[:160], flush=True)
    refused = sum(any(found.refusal for found in row.values()) for row in table.values())
    wrong = sum(any(found.wrong for found in row.values()) for row in table.values())
    print(f"{len(table)} run, {refused} refused, {wrong} wrong, {missing} do not run by themselves")
    if options.write is not None:
        options.write.write_text(page(table), encoding="utf-8")
    sys.exit(bool(wrong))


def page(table: dict[tuple[str, str], dict[str, Found]]) -> str:
    """The table as Markdown."""
    import transformers

    by_mapping: dict[str, list[str]] = defaultdict(list)
    refusals: list[str] = []
    for (mapping, kind), row in table.items():
        refused = {method: found.refusal for method, found in row.items() if found.refusal}
        if refused:
            message = next(iter(refused.values()))
            refusals.append(f"| `{kind}` | {TITLES[mapping]} | {reason(message)} |")
        else:
            by_mapping[mapping].append(kind)
    explained = sum(map(len, by_mapping.values()))
    version = transformers.__version__
    checked = (
        "For each of them the forward pass under the rules was the model's own bit by bit, "
        "a second pass gave the same relevances, nothing was left behind, and the ledger closed "
        "to 1e-4 of its largest entry in float32."
    )
    counted = (
        f"`LRPx` and `AttnLRPx` explain {explained} of the {len(table)} pairs of a task and a "
        f"model type that transformers {version} can build and run at a small size."
    )
    lines = [
        "# Supported models",
        "",
        f"{counted} {checked} This page is written by",
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
