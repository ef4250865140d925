"""Command lines in processes of their own, which can be killed and need not import all again.

They are forked from a process that has imported what they need and has run nothing yet, where the
system forks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess
    from pathlib import Path

_METHODS = multiprocessing.get_all_start_methods()
_CONTEXT = multiprocessing.get_context("forkserver" if "forkserver" in _METHODS else "spawn")
_CONTEXT.set_forkserver_preload(
    [
        "captum_lrpx.sva.evaluation",
        "captum_lrpx.loading",
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.models.llama.modeling_llama",
    ]
)


def start(arguments: list[str], shown: Path, environment: dict[str, str]) -> BaseProcess:
    """Start ``captum-lrpx`` with these arguments.

    Args:
        arguments: Words of the command line.
        shown: File for what it prints; errors go to one beside it, ``.err``.
        environment: What to add to the environment.
    """
    process = _CONTEXT.Process(target=_run, args=(arguments, shown, environment), daemon=True)
    process.start()
    return process


def _run(arguments: list[str], shown: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    from captum_lrpx.cli import main

    with (
        shown.open("w", encoding="utf-8") as out,
        shown.with_suffix(".err").open("w", encoding="utf-8") as errors,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        status = main(arguments)
    sys.exit(status)
