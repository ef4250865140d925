"""``captum-lrpx samples``: published agreement data as samples with their evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx.cli.output import print_all
from captum_lrpx.files import check_writable

if TYPE_CHECKING:
    import argparse

    from captum_lrpx.sva.sources import Collected


HELP = "turn agreement data into samples with their evidence"
DESCRIPTION = "Read subject-verb agreement data and write samples, one JSON object per line."

SOURCES = ("goldberg", "linzen", "blimp", "ud")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--source", required=True, choices=SOURCES, help="format of the input")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="FILE", help="one or more files to read"
    )
    parser.add_argument(
        "--forms",
        nargs="+",
        metavar="FILE",
        help="further files of a `ud` treebank, to look up verb forms",
    )
    parser.add_argument(
        "--filters",
        choices=("paper", "strict"),
        help="`paper`: any subject that is an nsubj, of a verb tagged VBZ or VBP; `strict`: nouns "
        "that agree with the verb in number (default: `strict` for `ud`, else `paper`)",
    )
    parser.add_argument("--gold", metavar="FILE", help="gold file of a `linzen` text")
    parser.add_argument("--output", required=True, metavar="FILE", help="samples to write")
    parser.add_argument(
        "--pipeline",
        metavar="NAME",
        help="spaCy pipeline that finds the subjects of `goldberg` and `linzen` sentences "
        "(default: en_core_web_trf)",
    )
    parser.add_argument(
        "--check-attractors",
        action="store_true",
        help="drop sentences where pipeline and file disagree on the attractors",
    )
    parser.add_argument(
        "--min-attractors", type=int, default=0, metavar="N", help="keep samples with at least N"
    )
    parser.add_argument("--licence", help="licence of the sentences (default: the source's)")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from rich.text import Text  # noqa: PLC0415

    from captum_lrpx.sva import write_jsonl  # noqa: PLC0415

    if (options.gold is not None) != (options.source == "linzen"):
        raise ValueError("--gold is the gold file of --source linzen, which requires it.")
    if options.source not in ("goldberg", "linzen") and (
        options.pipeline is not None or options.check_attractors
    ):
        raise ValueError(
            f"--source {options.source} knows its subjects: no --pipeline or --check-attractors."
        )
    if options.source == "blimp" and options.filters is not None:
        raise ValueError("--source blimp knows its subjects from templates: no --filters.")
    if options.source != "ud" and (len(options.input) > 1 or options.forms):
        raise ValueError(
            f"--source {options.source} is one file; only `ud` takes several, and --forms."
        )
    check_writable(options.output)  # fails now, not after an hour
    collected = _collect(options)
    chosen = [each for each in collected.samples if each.n_attractors >= options.min_attractors]
    write_jsonl(options.output, chosen)
    lines = [str(collected.report())]
    if options.min_attractors:
        lines.append(f"of them with {options.min_attractors} or more attractors: {len(chosen)}")
    lines.append(f"wrote {options.output}")
    print_all(Text("\n".join(lines)))


def _collect(options: argparse.Namespace) -> Collected:
    from captum_lrpx.sva import sources  # noqa: PLC0415
    from captum_lrpx.sva.sources.spacy_pipeline import DEFAULT_PIPELINE  # noqa: PLC0415

    given = {"licence": options.licence, "filters": options.filters}
    keywords: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if options.source == "ud":
        return sources.read_conllu(*options.input, forms=options.forms or (), **keywords)
    path = options.input[0]
    if options.source == "blimp":
        return sources.read_blimp(path, **keywords)
    keywords["check_attractors"] = options.check_attractors
    parser = sources.spacy_parser(options.pipeline or DEFAULT_PIPELINE)
    if options.source == "goldberg":
        return sources.read_goldberg(path, parser, **keywords)
    return sources.read_linzen(path, options.gold, parser, **keywords)
