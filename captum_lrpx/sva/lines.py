"""Lines of a text file; errors about a line name the file and the line."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


T = TypeVar("T")


def read_each(path: str | os.PathLike[str], read: Callable[[str, str], T]) -> list[T]:
    """Read each line of a UTF-8 file that is not blank.

    Args:
        path: The file.
        read: Maps a line, and its origin in words (``"lgd_dataset.tsv, line 3"``).

    Returns:
        The results, in order.

    Raises:
        ValueError: If a line is not UTF-8 or cannot be read; the message names the file and the
            line.
    """
    found = []
    for number, line in numbered_lines(path):
        if line.strip():
            with named(path, number):
                found.append(read(line, f"{Path(path).name}, line {number}"))
    return found


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Read a UTF-8 file line by line.

    Args:
        path: The file.

    Yields:
        The number of each line, counted from 1, and its text without the line break.

    Raises:
        ValueError: If a line is not UTF-8; the message names the file and the line.
    """
    for number, line in byte_lines(path):
        with named(path, number):
            text = decoded(number, line)
        yield number, text


def byte_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    """Read a file line by line, so that a bad byte can be reported with its line.

    Yields:
        The number of each line, counted from 1, and its bytes. A line ends with a newline only; the
        other line breaks of Unicode occur inside sentences.
    """
    with Path(path).open("rb") as file:
        yield from enumerate(file, start=1)


def decoded(number: int, line: bytes) -> str:
    """Decode a line, without its line break and without a byte order mark.

    Args:
        number: Number of the line, counted from 1.
        line: Its bytes.

    Raises:
        ValueError: If it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error


def json_object(text: str | bytes) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: If the text is not JSON, or another value than an object.
        RecursionError: If it is nested too deeply.
    """
    found = json.loads(text)
    if not isinstance(found, dict):
        # A ValueError, since the text is wrong.
        raise ValueError(f"expected a JSON object, got {type(found).__name__}")  # noqa: TRY004
    return found


@contextmanager
def named(path: str | os.PathLike[str], number: int) -> Iterator[None]:
    """Name the file and the line in errors about the line.

    Raises:
        ValueError: For a ValueError, or brackets nested too deeply.
    """
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from error
