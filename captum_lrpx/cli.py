"""The command line: ``captum-lrpx explain "the keys to the cabinet" --target are``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from captum_lrpx._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from captum_lrpx.compare import Comparison
    from captum_lrpx.explanation import Explanation

__all__ = ["main"]

DEFAULT_METHOD = "attnlrpx"
_WIDEST = 10_000
"""Characters of the longest line that a file gets before a table wraps."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words of the command line. Default: those of the process.

    Returns:
        Exit status: 0, or 2 for bad input, after one line that says what was wrong.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
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
    method = explain.add_mutually_exclusive_group()
    method.add_argument(
        "--method", default=DEFAULT_METHOD, help="see `captum-lrpx methods` (default: %(default)s)"
    )
    method.add_argument(
        "--compare", nargs="+", metavar="METHOD", help="several methods, shown side by side"
    )
    explain.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of a method, as in n_steps=100; may be repeated",
    )
    explain.add_argument("--words", action="store_true", help="show words instead of tokens")
    explain.add_argument(
        "--fold-special", action="store_true", help="one entry for all special tokens"
    )
    explain.add_argument("--first-token", help="special token to put in front of the text")
    explain.add_argument("--html", metavar="FILE", help="write a heat map as one HTML file")
    explain.add_argument("--json", metavar="FILE", help="write everything as JSON")
    explain.set_defaults(run=_explain)
    methods = commands.add_parser(
        "methods", help="list the methods and their options", allow_abbrev=False
    )
    methods.set_defaults(run=_methods)
    return parser


def _explain(options: argparse.Namespace) -> None:
    # Late: `--help` and errors of usage need neither torch nor transformers.
    from captum_lrpx import zoo  # noqa: PLC0415
    from captum_lrpx.compare import compare  # noqa: PLC0415
    from captum_lrpx.explainer import explain  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.targets import Target  # noqa: PLC0415

    methods = options.compare or [options.method]
    chosen = _options_by_method(methods, options.option)
    _silence_transformers()
    loaded = load_model(options.model or zoo.DEFAULT)
    explanations = [
        explain(
            loaded.model,
            loaded.tokenizer,
            options.text,
            Target(options.target, contrast=options.contrast),
            method=method,
            first_token=options.first_token,
            model_name=loaded.name,
            **chosen[method],
        )
        for method in methods
    ]
    shown: Explanation | Comparison = compare(explanations) if options.compare else explanations[0]
    if options.words:
        shown = shown.words()
    if options.fold_special:
        shown = shown.fold_special()
    _show(shown)
    if options.html:
        shown.to_html(options.html)
    if options.json:
        shown.to_json(options.json)


def _options_by_method(methods: Sequence[str], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of the command line, for each method those that it has."""
    from captum_lrpx.methods import options_of  # noqa: PLC0415

    known = {method: options_of(method) for method in methods}
    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"An option is NAME=VALUE, not {text!r}.")
        if not any(name in options for options in known.values()):
            raise ValueError(f"There is no option {name!r} of {', '.join(methods)}.")
        given[name] = _value(value)
    return {
        method: {name: value for name, value in given.items() if name in options}
        for method, options in known.items()
    }


def _value(text: str) -> Any:
    """A number or truth value as JSON writes it; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _methods(options: argparse.Namespace) -> None:  # noqa: ARG001 - as all commands
    from rich.table import Table  # noqa: PLC0415

    from captum_lrpx.methods import METHODS, description, options_of  # noqa: PLC0415

    table = Table("method", "options", "what it is", box=None, pad_edge=False)
    for method in METHODS:
        defaults = ", ".join(f"{name}={value}" for name, value in options_of(method).items())
        table.add_row(method, defaults, description(method))
    _print(table)


def _silence_transformers() -> None:
    """Keep its progress bars and advice out of the output of this command."""
    from transformers.utils import logging  # noqa: PLC0415

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _show(shown: Explanation | Comparison) -> None:
    from rich.text import Text  # noqa: PLC0415

    from captum_lrpx.explanation import Explanation  # noqa: PLC0415
    from captum_lrpx.visualization import heat_map, relevance_table, source, summary  # noqa: PLC0415

    if isinstance(shown, Explanation):
        lines = (Text(summary(shown)), Text(source(shown)))
        _print(heat_map(shown), Text(), relevance_table(shown), Text(), *lines)
    else:
        _print(shown)


def _print(*renderables: RenderableType) -> None:
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a file or a pipe is as wide as what is written to it
        wide = console.options.update(max_width=_WIDEST)
        console.width = max(console.measure(each, options=wide).maximum for each in renderables)
    for each in renderables:
        console.print(each, markup=False)
