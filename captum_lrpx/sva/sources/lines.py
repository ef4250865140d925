"""Numbered lines of a text file, for error messages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["broken", "byte_lines", "decoded", "numbered_lines"]


def numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Read a UTF-8 file line by line.

    Args:
        path: The file.

    Yields:
        The number of each line, counted from 1, and its text without the line break.

    Raises:
        ValueError: If a line is not UTF-8; the message names the file and the line.
    """
    number = 0
    try:
        for number, line in byte_lines(path):
            yield number, decoded(number, line)
    except UnicodeDecodeError as error:
        raise broken(path, number, f"not UTF-8: {error}") from error


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
        UnicodeDecodeError: If it is not UTF-8.
    """
    return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")


def broken(path: str | os.PathLike[str], number: int, message: str) -> ValueError:
    """An error that names the file and the line."""
    return ValueError(f"{os.fspath(path)}, line {number}: {message}")
