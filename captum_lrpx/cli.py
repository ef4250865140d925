"""The command line: ``captum-lrpx explain "the keys to the cabinet" --target are``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from captum_lrpx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from captum_lrpx.explanation import Explanation

__all__ = ["main"]

DEFAULT_METHOD = "attnlrpx"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words of the command line. Default: those of the process.

    Returns:
        Exit status: 0, or 2 for bad input, after one line that says what was wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        _explain(options)
    except (ValueError, TypeError, IndexError, ImportError, OSError) as error:
        print(f"captum-lrpx: error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="captum-lrpx",
        description="Decompose the predictions of transformer language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        help="explain one prediction for a text",
        description="Show how much each token of a text contributes to a logit of a model.",
        allow_abbrev=False,
    )
    explain.add_argument("text", help="the text; a masked model gets a mask token if it has none")
    explain.add_argument(
        "--target", required=True, help="word (of one token) or class that is explained"
    )
    explain.add_argument("--contrast", help="word whose logit is subtracted: why this, not that")
    explain.add_argument(
        "--model",
        help="embedded model, directory, .gguf file, or name of the Hugging Face hub "
        "(default: an embedded model)",
    )
    explain.add_argument(
        "--method", default=DEFAULT_METHOD, help="lrpx or attnlrpx (default: %(default)s)"
    )
    explain.add_argument("--first-token", help="special token to put in front of the text")
    explain.add_argument("--html", metavar="FILE", help="write a heat map as one HTML file")
    explain.add_argument("--json", metavar="FILE", help="write everything as JSON")
    return parser


def _explain(options: argparse.Namespace) -> None:
    # Late: `--help` and errors of usage need neither torch nor transformers.
    from captum_lrpx import zoo  # noqa: PLC0415
    from captum_lrpx.explainer import explain  # noqa: PLC0415
    from captum_lrpx.files import write_text  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.methods import METHODS  # noqa: PLC0415
    from captum_lrpx.targets import Target  # noqa: PLC0415
    from captum_lrpx.visualization import to_html  # noqa: PLC0415

    if options.method not in METHODS:
        raise ValueError(f"Unknown method {options.method!r}; known are {', '.join(METHODS)}.")
    _silence_transformers()
    loaded = load_model(options.model or zoo.DEFAULT)
    explanation = explain(
        loaded.model,
        loaded.tokenizer,
        options.text,
        Target(options.target, contrast=options.contrast),
        method=options.method,
        first_token=options.first_token,
        model_name=loaded.name,
    )
    _show(explanation)
    if options.html:
        write_text(options.html, to_html(explanation))
    if options.json:
        explanation.to_json(options.json)


def _silence_transformers() -> None:
    """Keep its progress bars and advice out of the output of this command."""
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _show(explanation: Explanation) -> None:
    from rich.console import Console  # noqa: PLC0415

    from captum_lrpx.visualization import heat_map, relevance_table, summary  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    console.print(heat_map(explanation))
    console.print()
    console.print(relevance_table(explanation))
    console.print()
    console.print(f"{summary(explanation)}", markup=False)
    console.print(f"{explanation.method} on {explanation.model}", markup=False)
