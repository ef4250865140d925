"""Options that several commands share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


DEFAULT_METHOD = "attnlrpx"


def add_model(
    parser: argparse._ActionsContainer, default: str | None = None, *, required: bool = False
) -> None:
    """Add ``--model``, by default an embedded one unless it is required."""
    note = "" if required else f" (default: {default or 'an embedded model'})"
    parser.add_argument(
        "--model",
        default=default,
        required=required,
        help=f"embedded model, directory, .gguf file, or name of the Hugging Face hub{note}",
    )


def add_method(parser: argparse._ActionsContainer) -> None:
    """Add ``--method``."""
    parser.add_argument(
        "--method", default=DEFAULT_METHOD, help="see `captum-lrpx methods` (default: %(default)s)"
    )


def add_method_options(parser: argparse._ActionsContainer) -> None:
    """Add ``--option``, see :func:`options_by_method`."""
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of a method, as in n_steps=100; may be repeated",
    )


def add_sampling(parser: argparse._ActionsContainer) -> None:
    """Add the options of a draw of texts."""
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the choice (default: %(default)s)"
    )
    parser.add_argument("--first-token", help="special token to put in front of each text")


def add_run(parser: argparse._ActionsContainer) -> None:
    """Add the options of long work that can be interrupted."""
    parser.add_argument(
        "--output", metavar="DIR", help="folder that keeps finished work and the results"
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in the folder, if there is one"
    )
    parser.add_argument("--device", help="device (default: CPU)")


def add_entries(parser: argparse._ActionsContainer) -> None:
    """Add the choice of the entries that are shown: tokens, words, special tokens in one."""
    parser.add_argument("--words", action="store_true", help="show words instead of tokens")
    parser.add_argument(
        "--fold-special", action="store_true", help="one entry for all special tokens of the text"
    )


def options_by_method(methods: Sequence[str], texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Command-line options, filtered to those each method accepts."""
    from captum_lrpx.methods import options_of  # noqa: PLC0415

    known = {method: options_of(method) for method in methods}
    given = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"An option is NAME=VALUE, not {text!r}.")
        if not any(name in options for options in known.values()):
            meant = suggestion(name, {each for options in known.values() for each in options})
            raise ValueError(f"There is no option {name!r} of {', '.join(methods)}{meant}.")
        given[name] = _value(value)
    return {
        method: {name: value for name, value in given.items() if name in options}
        for method, options in known.items()
    }


def _value(text: str) -> Any:
    """Parse a number or truth value as JSON; anything else is a string."""
    try:
        return json.loads(text)
    except ValueError:
        return text
