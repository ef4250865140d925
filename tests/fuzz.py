"""Readers and the command line, given what nobody would give them.

Inputs are mutations of valid ones (bytes flipped, cut, repeated, spliced; values of JSON replaced)
and bytes without any sense. A reader may refuse what it is given with an error that says so, or
read it; it may not fail otherwise, nor change the file.

``python tests/fuzz.py --inputs 200000`` runs all of it and prints what was found.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from fuzz_readers import READERS, TEXT, Reader, model_and_tokenizer
from mutation import inputs

from captum_lrpx import cli, loading
from captum_lrpx.methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSALS = (ValueError, OSError, ImportError)
"""What a reader raises for a file that it cannot read."""

# The command line ---------------------------------------------------------------------------------

WORDS = [
    *("explain", "methods", "--target", "--contrast", "--model", "--method", "--compare"),
    *("--option", "--words", "--fold-special", "--first-token", "--html", "--json", "--help", "--"),
    *(TEXT, "are", "is", "sva-gpt2", "lrpx", "magic", "n_steps=3", "seed=x", "=", "seed=1e999"),
    *("", " ", "-", "--x", "\x1b[31m", "<b>", "\0", "\udcff", "a" * 300, "[MASK]", "\u202e", "9"),
    *("../../etc/passwd", "/dev/null", "http://x", "n_steps=[[[", "seed=null", "-1", "\n\n"),
]
SOUND = ["explain", TEXT, "--target", "are"]


def command(draw: random.Random) -> list[str]:
    """Words of a command line: a sound one with some added or replaced, or any."""
    some = draw.choices(WORDS, k=draw.randint(0, 5))
    if draw.random() < 0.1:
        return some
    words = [*SOUND, *some]
    if draw.random() < 0.3:
        words[draw.randrange(len(words))] = draw.choice([*WORDS, *METHODS])
    return words


class _NoModelError(ValueError):
    """In place of a model: what comes before it is asked for has been tested then."""


def run_command(words: list[str], *, with_model: bool) -> str | None:
    """Run a command line in this process.

    Returns:
        What was wrong, if anything was.
    """
    loaded = loading.LoadedModel(*model_and_tokenizer(), "sva-gpt2")
    effect = None if with_model else _NoModelError("no model")
    load = mock.Mock(return_value=loaded, side_effect=effect)
    out, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch("captum_lrpx.loading.load_model", load),
        mock.patch("captum_lrpx.files.write_text"),
        mock.patch("captum_lrpx.explanation.record.write_text"),
        mock.patch("captum_lrpx.explanation.storage.write_text"),
        mock.patch("captum_lrpx.compare.write_text"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            status = cli.main(words)
        except SystemExit as stop:
            status = stop.code
    said = errors.getvalue()
    if status not in (0, 2):
        return f"exit status {status}"
    if status == 2 and (said.count("\n") != 1 or "error: " not in said):
        return f"not one line: {said!r}"
    raw = [char for char in out.getvalue() + said if not char.isprintable() and char != "\n"]
    return f"raw characters {raw}" if raw else None


# Running ------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What came of it.

    Attributes:
        inputs: How many each reader was given, and how many of them it read.
        wrong: What must not happen, with the input that it happened for.
    """

    inputs: Counter[str]
    read: Counter[str]
    wrong: list[tuple[str, object, str]]


def fuzz(count: int, seed: int = 0) -> Found:
    """Give all readers and the command line so many inputs."""
    found = Found(Counter(), Counter(), [])
    draw = random.Random(seed)  # noqa: S311 - not for secrets
    shares = {name: reader.share for name, reader in READERS.items()} | COMMANDS
    names = draw.choices(list(shares), list(shares.values()), k=count)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli.explain_command.silence_transformers()
        for name, number in sorted(Counter(names).items()):
            seeds = READERS[name].seeds() if name in READERS else []
            for _ in range(number):
                found.inputs[name] += 1
                if name in COMMANDS:
                    words = command(draw)
                    wrong = _try(run_command, words, with_model=name == "explain with a model")
                    content: object = words
                else:
                    content = inputs(seeds, draw, of_json=READERS[name].json)
                    path = Path(folder) / f"input{READERS[name].suffix}"
                    wrong = _read(READERS[name], path, content, found.read, name)
                if wrong:
                    found.wrong.append((name, content, wrong))
    return found


COMMANDS = {"command line": 5.0, "explain with a model": 0.1}


def _try(function: Callable[..., str | None], *args: Any, **keywords: Any) -> str | None:
    try:
        return function(*args, **keywords)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return _where(error)


def _where(error: BaseException) -> str:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = "" if last is None else f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
    return f"{type(error).__name__}: {error} ({place})"


def _read(reader: Reader, path: Path, content: bytes, read: Counter[str], name: str) -> str | None:
    path.write_bytes(content)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            reader.read(path)
        read[name] += 1
    except REFUSALS as error:
        return None if str(error) else f"{type(error).__name__} without a message"
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return _where(error)
    return None if path.read_bytes() == content else "the file was changed"


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    found = fuzz(options.inputs, options.seed)
    for name, number in found.inputs.items():
        read = f", {found.read[name]} of them read" if name in READERS else ""
        print(f"{name}: {number} inputs{read}")  # noqa: T201
    for name, content, wrong in found.wrong[:20]:
        print(f"{name}: {wrong}\n    {str(content)[:300]}")  # noqa: T201
    seconds = time.perf_counter() - start
    print(  # noqa: T201
        f"{sum(found.inputs.values())} inputs, {len(found.wrong)} failures, {seconds:.0f} s"
    )
    return 1 if found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
