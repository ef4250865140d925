"""``captum-lrpx methods``: the methods and their options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.cli.output import print_all

if TYPE_CHECKING:
    import argparse


HELP = "list the methods and their options"
DESCRIPTION = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


def run(options: argparse.Namespace) -> None:  # noqa: ARG001 - as all commands
    """Run the command."""
    from rich.table import Table  # noqa: PLC0415

    from captum_lrpx.methods import METHODS, description, options_of  # noqa: PLC0415

    table = Table("method", "options", "what it is", box=None, pad_edge=False)
    for method in METHODS:
        defaults = ", ".join(f"{name}={value}" for name, value in options_of(method).items())
        table.add_row(method, defaults, description(method))
    print_all(table)
