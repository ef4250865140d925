"""``captum-lrpx localise``: compare recipes at finding important components."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from captum_lrpx.cli.options import add_model, add_run, add_sampling
from captum_lrpx.cli.output import print_all, silence_transformers

if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Iterable

    from captum_lrpx.components.localise import Localisation


HELP = "measure which recipe finds the heads and layers that decide a prediction"
DESCRIPTION = (
    "Estimate the effect of every node of a model (head, position of a layer) on a "
    "prediction, patch each node to measure it, and correlate the two, for pairs of "
    "texts in both directions."
)

DEFAULT_RECIPES = ("gradient", "lrp", "lrp-uniform-gate", "lrp-mirrored-gate", "attnlrp")
DEFAULT_NODES = ("heads", "attention", "mlp", "residual")
FORMATS = ("table", "markdown")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("pairs", nargs="+", metavar="FILE", help="pairs of texts, as JSON lines")
    add_model(parser, required=True)
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=list(DEFAULT_RECIPES),
        metavar="RECIPE",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--nodes",
        nargs="+",
        default=list(DEFAULT_NODES),
        metavar="KIND[=PATTERN]",
        help="heads, attention, mlp, residual, experts, neurons; with a regular expression of the "
        "paths of their layers if these have unusual names (default: %(default)s)",
    )
    _add_samples(parser)
    _add_running(parser)
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )


def _add_samples(parser: argparse.ArgumentParser) -> None:
    samples = parser.add_argument_group("pairs and nodes that are measured")
    samples.add_argument(
        "--number", type=int, metavar="N", help="pairs of each file, a random choice (default: all)"
    )
    add_sampling(samples)
    samples.add_argument(
        "--neurons",
        type=int,
        default=4,
        metavar="N",
        help="neurons measured in each layer, a random choice (default: %(default)s)",
    )
    samples.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the other nodes to measure, a random choice for each pair "
        "(default: %(default)s)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("running")
    running.add_argument(
        "--per-run",
        type=int,
        default=16,
        metavar="N",
        help="nodes patched in one forward pass (default: %(default)s)",
    )
    add_run(running)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    # Imported late: `--help` and usage errors need neither torch nor transformers.
    from captum_lrpx.components.localise import KINDS, RECIPES, localise  # noqa: PLC0415
    from captum_lrpx.components.pairs import read_pairs, tokenized  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415

    named = (each.partition("=") for each in options.nodes)
    kinds: dict[str, str | None] = {name: pattern or None for name, _, pattern in named}
    _check_names(kinds, KINDS, "kind of node")
    _check_names(options.recipes, RECIPES, "recipe")
    files = {Path(path).stem: read_pairs(path) for path in options.pairs}
    silence_transformers()
    loaded = load_model(options.model)
    if options.device:
        loaded.model.to(options.device)
    pairs, lines = [], []
    for task, given in files.items():
        fitting = tokenized(
            given,
            loaded.tokenizer,
            number=options.number,
            first_token=options.first_token,
            seed=options.seed,
        )
        pairs += fitting
        lines.append(f"{task}: {len(fitting)} pairs")
        if not fitting:
            raise ValueError(
                f"No pair of {task} fits {loaded.name}: both texts need the same number of tokens, "
                "and continuations that are one token."
            )
    found = localise(
        loaded.model,
        pairs,
        {name: RECIPES[name] for name in options.recipes},
        kinds,
        perturbations_per_eval=options.per_run,
        neurons=options.neurons,
        share=options.share,
        output=options.output,
        manifest={
            "model": loaded.name,
            "files": {task: len(given) for task, given in files.items()},
            "number": options.number,
            "seed": options.seed,
            "first_token": options.first_token,
        },
        resume=options.resume,
        show_progress=True,
    )
    _show(found, list(files) if len(files) > 1 else [], lines, options.format)


def _check_names(names: Iterable[str], known: Collection[str], what: str) -> None:
    from captum_lrpx.names import suggestion  # noqa: PLC0415

    for name in names:
        if name not in known:
            raise ValueError(
                f"There is no {what} {name!r}{suggestion(name, known)}: choose from "
                f"{', '.join(known)}."
            )


def _show(found: Localisation, tasks: list[str], lines: list[str], form: str) -> None:
    from rich.text import Text  # noqa: PLC0415

    right = (found.explained[:, 0] > 0) & (found.explained[:, 1] < 0)
    lines.append(
        f"explained value: {found.explained[:, 0].mean():+.2f} for the clean texts, "
        f"{found.explained[:, 1].mean():+.2f} for the corrupted ones; right both times in "
        f"{int(right.sum())} of {len(right)} pairs"
    )
    tables: list[Any] = [_table(found, "all tasks" if tasks else "", form)]
    tables += [_table(found.of_task(task), task, form) for task in tasks]
    print_all(Text("\n".join(lines)), *tables)


def _table(found: Localisation, title: str, form: str) -> Any:
    """Table of recipes by kinds of nodes: correlations and overlap, with intervals."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    from captum_lrpx.metrics.agreement import Measure  # noqa: PLC0415

    header = ["nodes", "recipe", "Pearson", "Spearman", "top 10"]
    rows = []
    for (kind, recipe), each in found.found.items():
        groups = found.groups[kind]
        columns = [each.interval(name, groups=groups) for name in get_args(Measure)]
        rows.append([kind, recipe, *map(str, columns)])
    if form == "markdown":
        lines = [header, ["---"] * len(header), *rows]
        body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return Text(f"\n{title}\n\n{body}" if title else f"\n{body}")
    table = Table(*header, title=title or None, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
