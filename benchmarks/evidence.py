"""Which sentence has the answer, which word the fact is about: methods against known evidence.

    OMP_NUM_THREADS=1 python benchmarks/evidence.py squad --data squad.jsonl --model FILE.gguf \
        --journal squad-found.jsonl [--rows 300] [--most-tokens 130]
    OMP_NUM_THREADS=1 python benchmarks/evidence.py facts --data known_1000.jsonl ... [--rows 600]
    python benchmarks/evidence.py table --journal squad-found.jsonl

``squad``: a question and its context as a chat, the given answer teacher-forced, its logits (or
log-probabilities) explained in sum; the context is split into sentences, one of which has the
answer. ``facts``: a prompt about a subject, the first token of the attribute explained; some of the
words are the subject. Leaving out is measured by the log-probability in any case.

Rows are drawn by a seed; each that is done is a line of the journal, from which a later run goes
on. Every row has the segments' sums and the ledger's rest, and what is left of the explained value.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum.attr import Saliency

from captum_lrpx import LRP_UNIFORM_GATE, ALTILogit, AttnLRPx, LRPx, Target, ledger
from captum_lrpx.chat import ask_chat
from captum_lrpx.leave_one_out import left_out
from captum_lrpx.loading import load_model
from captum_lrpx.segments import Tokens, split
from captum_lrpx.targets import encode
from captum_lrpx.targets.continuation import continuation_ids, prompt_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from captum_lrpx.loading import LoadedModel
    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.quantity import Quantity

_RULES: dict[str, Callable[[Any, Any], Any]] = {
    "AttnLRPx": AttnLRPx,
    "LRPx": LRPx,
    "LRPx, uniform gate": partial(LRPx, recipe=LRP_UNIFORM_GATE),
    "ALTILogit": ALTILogit,
}


def squad_row(
    loaded: LoadedModel, row: dict[str, Any], quantity: Quantity
) -> tuple[Encoding, Target, str, tuple[int, int]]:
    """Text, target, level of the segments, and the characters of the evidence."""
    messages = [{"role": "user", "content": row["question"]}]
    encoding, target = ask_chat(
        loaded.model,
        loaded.tokenizer,
        messages,
        [row["context"]],
        row["answer"],
        None,
        quantity,
        None,
    )
    (document,) = (region for region in encoding.regions if region.kind == "document")
    first, stop = row["answer_span"]
    lead = len(row["context"]) - len(row["context"].lstrip())
    evidence = document.start + first - lead, document.start + stop - lead
    if encoding.text[slice(*evidence)].lower() != row["answer"].lower():
        raise ValueError("the answer does not stand at its place")
    return encoding, target, "sentence", evidence


def facts_row(
    loaded: LoadedModel, row: dict[str, Any], quantity: Quantity
) -> tuple[Encoding, Target, str, tuple[int, int]]:
    """The same for a prompt about a subject."""
    args = loaded.model, loaded.tokenizer, row["prompt"], "<|endoftext|>"
    ids = continuation_ids(loaded.model, loaded.tokenizer, prompt_of(*args), row["attribute"])
    encoding = encode(*args)
    start = encoding.text.index(row["subject"])
    return (
        encoding,
        Target(int(ids[0]), quantity=quantity),
        "word",
        (
            start,
            start + len(row["subject"]),
        ),
    )


def groups_of(
    encoding: Encoding, level: str, evidence: tuple[int, int]
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Tokens of each segment, and which segments are the evidence: one sentence, or some words."""
    tokens = Tokens(
        encoding.text, encoding.offsets, encoding.special, encoding.template, encoding.regions
    )
    if level == "sentence":
        (document,) = (
            part for part in split(tokens, ["document", level]) if part.kind == "document"
        )
        groups = [part.tokens for part in document.parts]
    else:
        groups = [part.tokens for part in split(tokens, level) if part.kind == level]
    shares = [
        sum(_within(encoding.offsets[index], evidence) for index in group) for group in groups
    ]
    if level == "sentence":
        return groups, [shares.index(max(shares))]
    return groups, [index for index, share in enumerate(shares) if share]


def _within(place: tuple[int, int], evidence: tuple[int, int]) -> bool:
    return place[0] < evidence[1] and evidence[0] < place[1]


def found_in(
    loaded: LoadedModel, kind: str, row: dict[str, Any], quantity: Quantity
) -> dict[str, Any]:
    """Relevances of the segments of a row by every method, and what the ledgers leave open."""
    read = squad_row if kind == "squad" else facts_row
    encoding, target, level, evidence = read(loaded, row, quantity)
    groups, right = groups_of(encoding, level, evidence)
    if len(groups) == len(right):
        raise ValueError("there is nothing but the evidence")
    model = loaded.model
    query = target.ask(model, loaded.tokenizer, encoding)
    ids, arguments = query.ids, query.arguments
    relevances: dict[str, list[float]] = {}
    open_: dict[str, float] = {}
    for name, method in _RULES.items():
        book = ledger(method(query.forward, model), ids, **arguments)
        tokens = book.attributions[0].double()
        rest = sum(float(amount) for kind, amount in book.by_kind().items() if kind != "tokens")
        covered = [index for group in groups for index in group]
        others = float(tokens.sum() - tokens[covered].sum())
        sums = [float(tokens[list(group)].sum()) for group in groups]
        relevances[name] = sums
        left = abs(math.fsum([*sums, others, rest]) - float(book.value))
        open_[name] = left / float(book.largest)
    embeddings = model.get_input_embeddings()(ids).detach().requires_grad_()
    gradient = Saliency(query.forward).attribute(embeddings, abs=False, **arguments)[0]
    product = (gradient * embeddings[0]).sum(-1).detach()
    for name, values in (("gradient x input", product), ("gradient, L1", gradient.abs().sum(-1))):
        relevances[name] = [float(values[list(group)].sum()) for group in groups]
    spans = sorted(_extent(encoding, group) for group in groups)
    without = left_out(
        model,
        loaded.tokenizer,
        encoding,
        replace(target, quantity="log_prob"),
        spans,
        language="en",
        batch_size=8,
        model_name=None,
    )
    drops = {segment.tokens[-1]: segment.relevance for segment in without.of("span")}
    relevances["leave one out"] = [drops[group[-1]] for group in groups]
    relevances["longest"] = [float(len(group)) for group in groups]
    return {"right": right, "relevances": relevances, "open": open_, "tokens": len(encoding.ids)}


def _extent(encoding: Encoding, group: Any) -> tuple[int, int]:
    places = [encoding.offsets[index] for index in group]
    return min(start for start, _ in places), max(end for _, end in places)


def done_in(journal: Path) -> list[dict[str, Any]]:
    """The rows of a journal."""
    if not journal.exists():
        return []
    return [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]


def wilson(successes: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    z, share = 1.959964, successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + (z / 2 / count) ** 2)
    return middle - half, middle + half


def resampled(values: list[int], draws: int = 2000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean."""
    draw, count = random.Random(0), len(values)  # noqa: S311 - a draw, no secret
    means = sorted(sum(draw.choices(values, k=count)) / count for _ in range(draws))
    return means[draws // 40], means[-1 - draws // 40]


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Share of rows in which the evidence has the most relevance, in Markdown.

    The first method is what the others are compared with, row by row.
    """
    kept = [row for row in rows if "right" in row]
    shares = [len(row["right"]) / len(row["relevances"]["LRPx"]) for row in kept]
    chance = sum(shares) / len(kept)
    skipped = len(rows) - len(kept)
    yield f"{len(kept)} rows ({skipped} skipped), chance {chance:.1%}\n"
    yield (
        "| method | evidence first | 95 % | less than AttnLRPx, 95 % of the paired difference "
        "| mean reciprocal rank | ledger leaves open, at most |"
    )
    yield "|---|---|---|---|---|---|"
    reference: list[int] = []
    for method in kept[0]["relevances"]:
        ranks = []
        for row in kept:
            values = row["relevances"][method]
            mine = max(values[index] for index in row["right"])
            ranks.append(1 + sum(value > mine for value in values))
        first = sum(rank == 1 for rank in ranks)
        low, high = wilson(first, len(kept))
        worst = max((row["open"].get(method, -1.0) for row in kept), default=-1.0)
        shown = f"{worst:.0e}" if worst >= 0 else ""
        mean = sum(1 / rank for rank in ranks) / len(ranks)
        hits = [int(rank == 1) for rank in ranks]
        reference = reference or hits
        less = resampled([one - other for one, other in zip(reference, hits, strict=True)])
        yield (
            f"| {method} | {first / len(kept):.1%} | {low:.1%} to {high:.1%} "
            f"| {less[0]:+.1%} to {less[1]:+.1%} | {mean:.3f} | {shown} |"
        )


def main() -> None:
    """Explain rows that are not in the journal yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("squad", "facts", "table"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--most-tokens", type=int, help="leave out rows with longer texts")
    parser.add_argument("--quantity", choices=("logit", "log_prob"), default="logit")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    done = done_in(options.journal)
    if options.kind != "table":
        loaded = load_model(options.model)
        rows = [json.loads(line) for line in options.data.read_text("utf-8").splitlines()]
        random.Random(options.seed).shuffle(rows)  # noqa: S311 - a draw, no secret
        seen = {row["id"] for row in done}
        for row in rows:
            if sum("right" in each for each in done) >= options.rows:
                break
            name = row.get("id", row.get("known_id"))
            text = row.get("context", "") + row.get("question", row.get("prompt", ""))
            length = len(loaded.tokenizer(text).input_ids)
            if name in seen or (options.most_tokens and length > options.most_tokens):
                continue
            try:
                found = found_in(loaded, options.kind, row, options.quantity)
            except ValueError as error:
                found = {"skipped": str(error)[:200]}
            done.append({"id": name, **found})
            with options.journal.open("a", encoding="utf-8") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print("\n".join(table(done)))


if __name__ == "__main__":
    main()
