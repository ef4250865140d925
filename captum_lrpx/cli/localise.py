"""``captum-lrpx localise``: which recipe finds the components that matter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from captum_lrpx.cli.output import print_all, silence_transformers

if TYPE_CHECKING:
    import argparse

    from captum_lrpx.cli.output import Commands
    from captum_lrpx.components.localise import Localisation

__all__ = ["add_to", "run"]

DEFAULT_RECIPES = ("gradient", "lrp", "lrp-uniform-gate", "lrp-mirrored-gate", "attnlrp")
DEFAULT_NODES = ("heads", "attention", "mlp", "residual")
FORMATS = ("table", "markdown")


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "localise",
        help="measure which recipe finds the heads and layers that decide a prediction",
        description="Estimate the effect of every node of a model (head, position of a layer) on a "
        "prediction, patch each node to measure it, and correlate the two, for pairs of texts in "
        "both directions.",
        allow_abbrev=False,
    )
    parser.add_argument("pairs", nargs="+", metavar="FILE", help="pairs of texts, as JSON lines")
    parser.add_argument(
        "--model",
        required=True,
        help="embedded model, directory, .gguf file, or name of the Hugging Face hub",
    )
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
        "paths of their layers where these have unusual names (default: %(default)s)",
    )
    parser.add_argument(
        "--number", type=int, metavar="N", help="pairs of each file, a random choice (default: all)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the choice (default: %(default)s)"
    )
    parser.add_argument("--first-token", help="special token to put in front of each text")
    parser.add_argument(
        "--neurons",
        type=int,
        default=4,
        metavar="N",
        help="neurons measured in each layer, a random choice (default: %(default)s)",
    )
    parser.add_argument(
        "--share",
        type=float,
        default=1.0,
        help="share of the other nodes that is measured, a random choice for each pair "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--per-run",
        type=int,
        default=16,
        metavar="N",
        help="nodes patched in one forward pass (default: %(default)s)",
    )
    parser.add_argument("--output", metavar="DIR", help="folder that keeps finished work")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in the folder, if there is one"
    )
    parser.add_argument("--device", help="device (default: CPU)")
    parser.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    # Late: `--help` and errors of usage need neither torch nor transformers.
    from captum_lrpx.components.localise import KINDS, RECIPES, localise  # noqa: PLC0415
    from captum_lrpx.components.pairs import read_pairs, tokenized  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.names import suggestion  # noqa: PLC0415

    kinds: dict[str, str | None] = {}
    for each in options.nodes:
        name, _, pattern = each.partition("=")
        kinds[name] = pattern or None
    for names, known, what in ((kinds, KINDS, "nodes"), (options.recipes, RECIPES, "recipe")):
        for name in names:
            if name not in known:
                raise ValueError(
                    f"There is no {what} {name!r}{suggestion(name, known)}: choose from "
                    f"{', '.join(known)}."
                )
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
    tasks = list(files)
    _show(found, tasks if len(tasks) > 1 else [], lines, options.format)


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
    """Recipes by kinds of nodes: Pearson, Spearman, overlap of the largest, with intervals."""
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
