"""The command line: ``captum-lrpx explain "the keys to the cabinet" --target are``.

Each command is a module with its ``HELP``, ``DESCRIPTION``, ``add_options(parser)`` and
``run(options)``.
"""

from __future__ import annotations

import argparse
import io
import sys
from typing import TYPE_CHECKING, NoReturn

from captum_lrpx._version import __version__
from captum_lrpx.cli import (
    chat_command,
    coverage_command,
    evaluate_command,
    explain_command,
    generate_command,
    localise_command,
    methods_command,
    samples_command,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

COMMANDS = {
    "explain": explain_command,
    "chat": chat_command,
    "generate": generate_command,
    "coverage": coverage_command,
    "evaluate": evaluate_command,
    "localise": localise_command,
    "methods": methods_command,
    "samples": samples_command,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words of the command line. Default: the process's own.

    Returns:
        Exit status: 0, or 2 for bad input, after one line with the error; 1 if a command reports a
        problem.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a pipe may not encode the characters of a token
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        status: int | None = options.run(options)
    except _BAD_INPUT as error:
        print(f"captum-lrpx: error: {_in_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return 2
    return status or 0


_BAD_INPUT = (
    ArithmeticError,
    AssertionError,
    ImportError,
    IndexError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""Errors of this package, Captum and PyTorch for invalid input."""


def _in_one_line(message: str) -> str:
    """A message without line breaks and without terminal control characters."""
    from captum_lrpx.characters import readable  # noqa: PLC0415

    return readable(" ".join(message.split()))


class _Parser(argparse.ArgumentParser):
    """Prints usage errors in one line, like all others."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_in_one_line(message)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="captum-lrpx",
        description="Decompose the predictions of transformer language models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name, help=module.HELP, description=module.DESCRIPTION, allow_abbrev=False
        )
        module.add_options(command)
        command.set_defaults(run=module.run)
    return parser
