"""Why do the methods differ? Rules, first token and attention sink, on the same sentences.

    OMP_NUM_THREADS=1 python benchmarks/why.py linzen.jsonl --model FILE.gguf --journal F.jsonl \
        --first-token '<|endoftext|>' [--parts grid firsts ...] [--sentences 600] [--minutes 45]
    python benchmarks/why_page.py NAME=F.jsonl ...

Samples are those of ``captum-lrpx samples``, of which ``--sentences`` are drawn as ``captum-lrpx
evaluate --sentences`` draws them. Explained is the logit of the right verb form minus the other's,
of the sentences that the model gets right. A part is a list of settings and methods:

- ``grid``: the right first token, all methods: attention rule x gate rule, gradients, ALTI-Logit
  with and without its start term;
- ``firsts``: the methods that matter with no first token, and with a full stop as first token;
- ``sink``: the model changed, its first token giving the value zero to all that attend to it, and
  the sink rule (``benchmarks/sinks.py``) on the model as it is;
- ``effects``: what the explained value loses without each token, for ``--some`` of the sentences;
- ``area``: the area between the perturbation curves, for ``--few`` of the sentences;
- ``ledger``: the account of the explained value by kind, for ``--few`` of the sentences;
- ``bypass``: AttnLRP without the softmax from a layer on;
- ``flow``: information flow routes, for ``--some`` of the sentences;
- ``short``, not by default: the methods that matter with the right first token, for other samples.

Each batch (sentences of one length, so nothing is padded) of a method is a line of the journal,
from which a later run goes on. The token relevances themselves are kept: tables, intervals and
figures are made of them without the model.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sinks
import torch
from why_methods import GROUPS, MAIN, RULES, area

from captum_lrpx.loading import load_model
from captum_lrpx.models import device_of
from captum_lrpx.sva import read_jsonl
from captum_lrpx.sva.tokenized import tokenize
from captum_lrpx.targets import LogitDifference, Query

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor
    from why_methods import Found

    from captum_lrpx.sva.tokenized import TokenizedSample

OTHER_FIRST = "."


@dataclass(frozen=True)
class Setting:
    """What the model is given, and what is done to it.

    Attributes:
        first: The first token: ``"right"``, ``"none"`` or ``"other"``.
        change: ``""``; ``"zero values"``: those of the first token, in all layers; ``"mean
            weight"``, ``"zero weight"``: with which others read the first token's value, the same
            in every sentence.
    """

    first: str = "right"
    change: str = ""

    @property
    def name(self) -> str:
        """As the journal has it."""
        return f"{self.first} {self.change}".strip()


SOME = ("LRP", "LRP, uniform gate", "AttnLRP", "gradients", "ALTI-Logit")
PARTS: dict[str, tuple[str, list[tuple[Setting, tuple[str, ...]]]]] = {
    "grid": ("all", [(Setting(), (*RULES, "gradients", "ALTI-Logit"))]),
    "rule": ("all", [(Setting(), ("sink rule",))]),
    "sink": (
        "some",
        [
            (Setting("right", "mean weight"), ()),
            (Setting("right", "zero weight"), ()),
            (Setting("right", "zero values"), SOME),
        ],
    ),
    "firsts": ("some", [(Setting("none"), SOME), (Setting("other"), SOME)]),
    "effects": ("some", [(Setting(), ("leave one out",))]),
    "area": ("few", [(Setting(), ("area",))]),
    "ledger": ("few", [(Setting(), ("ledger",))]),
    "bypass": ("some", [(Setting(), ("bypass",))]),
    "flow": ("some", [(Setting(), ("IFR",))]),
    "short": ("all", [(Setting(), SOME)]),
}
"""For each part how many of the sentences (an option), settings, and methods."""


# Work -------------------------------------------------------------------------------------------


class Journal:
    """Lines of finished work; a torn last line is done again.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]

    def add(self, setting: Setting, group: str, rows: Sequence[int], **content: Any) -> None:
        """Append a line."""
        line = {"setting": setting.name, "group": group, "rows": list(rows), **content}
        with self.path.open("a", encoding="utf-8") as file:
            print(json.dumps(line, separators=(",", ":")), file=file)
        self.lines.append(line)

    def of(self, setting: Setting, group: str) -> dict[int, Any]:
        """What is known of each row: of ``samples`` the tokens, else relevances by method."""
        found: dict[int, Any] = defaultdict(dict)
        for line in self.lines:
            if (line["setting"], line["group"]) == (setting.name, group):
                for name, values in line["found"].items():
                    for row, value in zip(line["rows"], values, strict=True):
                        found[row][name] = value
        return found


class Work:
    """One model and its journal.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        samples: The sentences.
        first_token: The right first token.
        journal: What is finished.
        batch_tokens: Tokens of a batch.
        counts: How many sentences a part may have, by the name in :data:`PARTS`.
        minutes: After how long to stop.
    """

    def __init__(self, model: Any, tokenizer: Any, samples: Sequence[Any], **options: Any) -> None:
        self.model, self.tokenizer, self.samples = model, tokenizer, samples
        self.first_token: str = options["first_token"]
        self.journal: Journal = options["journal"]
        self.batch_tokens: int = options["batch_tokens"]
        self.counts: dict[str, int] = options["counts"]
        self.end = time.monotonic() + 60 * options["minutes"]

    def run(self, setting: Setting, groups: Sequence[str], count: int) -> None:
        """Explain sentences that the model gets right in a setting.

        Args:
            setting: The setting.
            groups: The methods.
            count: How many sentences at most; fewer are the first of more in a drawn order.
        """
        tokenized = dict(self._tokenized(setting))
        order = random.Random(1).sample(range(len(self.samples)), len(self.samples))  # noqa: S311
        with self._changed(setting, tokenized):
            right = set(self._right(setting, tokenized))
            chosen = [row for row in order if row in right][:count]
            for group in groups:
                known = self.journal.of(setting, group)
                left = sorted(row for row in chosen if row not in known)
                for rows in self._batches(tokenized, left):
                    if time.monotonic() > self.end:
                        return
                    query = self._query([tokenized[row] for row in rows])
                    start = time.process_time()
                    found = self._found(setting, group, rows, query)
                    took = round(time.process_time() - start, 2)
                    self.journal.add(setting, group, rows, found=found, seconds=took)

    @contextmanager
    def _changed(self, setting: Setting, tokenized: dict[int, TokenizedSample]) -> Iterator[None]:
        """The model as a setting wants it, in a ``with`` block."""
        if not setting.change:
            yield
        elif setting.change == "zero values":
            with sinks.zero_values(self.model):
                yield
        else:
            noted: dict[int, list[Tensor]] = {}
            with sinks.weights_noted(self.model, noted), torch.no_grad():
                for rows in self._batches(tokenized, list(tokenized)):
                    query = self._query([tokenized[row] for row in rows])
                    query.forward(query.ids, *query.additional_forward_args)
            weights = {
                layer: torch.cat([each.transpose(1, 2).flatten(0, 1) for each in found]).mean(0)
                for layer, found in noted.items()
            }
            if setting.change == "zero weight":
                weights = {layer: torch.zeros_like(each) for layer, each in weights.items()}
            with sinks.constant_weight(self.model, weights):
                yield

    def _found(self, setting: Setting, group: str, rows: Sequence[int], query: Query) -> Found:
        if group != "area":
            return {name: _rounded(values) for name, values in GROUPS[group](query).items()}
        found: Found = {}
        for name in (*SOME, "sink rule"):
            for method, by_row in _by_method(self.journal.of(setting, name)).items():
                if method in MAIN:
                    relevances = torch.tensor([by_row[row] for row in rows])
                    found[method] = area(query, relevances)
        return found

    def _tokenized(self, setting: Setting) -> Iterator[tuple[int, TokenizedSample]]:
        """The sentences with the first token of a setting, with their places in the draw."""
        given = tokenize(self.samples, self.tokenizer, "causal-lm", first_token=self.first_token)
        place = {id(sample): index for index, sample in enumerate(self.samples)}
        other = self.tokenizer(OTHER_FIRST, add_special_tokens=False).input_ids[0]
        for each in given:
            assert each.special[0]  # noqa: S101 - one special token in front
            assert not any(each.special[1:])  # noqa: S101
            if setting.first == "none":
                shorter = replace(
                    each,
                    ids=each.ids[1:],
                    evidence=each.evidence[1:],
                    special=each.special[1:],
                    position=each.position - 1,
                )
                yield place[id(each.sample)], shorter
            elif setting.first == "other":
                yield place[id(each.sample)], replace(each, ids=(other, *each.ids[1:]))
            else:
                yield place[id(each.sample)], each

    def _right(self, setting: Setting, tokenized: dict[int, TokenizedSample]) -> list[int]:
        """The rows that the model gets right; noted with what tables need of each row."""
        known = self.journal.of(setting, "samples")
        for rows in self._batches(tokenized, [row for row in tokenized if row not in known]):
            of_rows = [tokenized[row] for row in rows]
            query = self._query(of_rows)
            with torch.no_grad():
                values = query.forward(query.ids, *query.additional_forward_args).tolist()
            found = {
                "value": values,
                "evidence": [[int(one) for one in each.evidence] for each in of_rows],
                "special": [[int(one) for one in each.special] for each in of_rows],
                "number": [each.sample.number for each in of_rows],
            }
            self.journal.add(setting, "samples", rows, found=found)
        known = self.journal.of(setting, "samples")
        return sorted(row for row, each in known.items() if each["value"] > 0)

    def _batches(
        self, tokenized: dict[int, TokenizedSample], rows: Sequence[int]
    ) -> Iterator[list[int]]:
        """Rows of one length each."""
        by_length = defaultdict(list)
        for row in rows:
            by_length[len(tokenized[row].ids)].append(row)
        for length, those in sorted(by_length.items()):
            size = max(1, self.batch_tokens // length)
            for start in range(0, len(those), size):
                yield those[start : start + size]

    def _query(self, samples: Sequence[TokenizedSample]) -> Query:
        device = device_of(self.model)
        ids = torch.tensor([each.ids for each in samples], device=device)
        asked = torch.tensor(
            [(each.verb_id, each.foil_id, each.position) for each in samples], device=device
        )
        arguments = (None, *asked.unbind(1))
        return Query(LogitDifference(self.model), ids, arguments, tokenizer=self.tokenizer)


def _by_method(found: dict[int, Any]) -> dict[str, dict[int, Any]]:
    turned: dict[str, dict[int, Any]] = defaultdict(dict)
    for row, methods in found.items():
        for method, values in methods.items():
            turned[method][row] = values
    return turned


def _rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [_rounded(each) for each in values]
    return float(f"{values:.6g}")


def draw(path: Path, count: int, seed: int) -> list[Any]:
    """The samples that ``captum-lrpx evaluate --sentences COUNT --seed SEED`` takes of a file."""
    samples = read_jsonl(path)
    if count >= len(samples):
        return samples
    chosen = random.Random(seed).sample(range(len(samples)), count)  # noqa: S311 - a sample
    return [samples[index] for index in sorted(chosen)]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("samples", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--journal", required=True, type=Path)
    parser.add_argument("--first-token", required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS)[:-1])
    parser.add_argument("--sentences", type=int, default=600)
    parser.add_argument("--some", type=int, default=600, help="sentences of costly settings")
    parser.add_argument("--few", type=int, default=100, help="sentences of costly measures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-tokens", type=int, default=256)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long")
    options = parser.parse_args()
    loaded = load_model(options.model)
    for parameter in loaded.model.parameters():
        parameter.requires_grad_(False)
    work = Work(
        loaded.model,
        loaded.tokenizer,
        draw(options.samples, options.sentences, options.seed),
        first_token=options.first_token,
        journal=Journal(options.journal),
        batch_tokens=options.batch_tokens,
        counts={"all": options.sentences, "some": options.some, "few": options.few},
        minutes=options.minutes,
    )
    for part in options.parts:
        count, runs = PARTS[part]
        for setting, groups in runs:
            work.run(setting, groups, work.counts[count])


if __name__ == "__main__":
    main()
