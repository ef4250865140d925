"""Atomic writing of files: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_text(path: str | os.PathLike[str] | None, text: str) -> None:
    """Write a text file atomically: either all of the text, or the previous content.

    Args:
        path: The file; an existing one is replaced. None is ignored.
        text: Its content, written as UTF-8 with its own newlines.

    Raises:
        OSError: If the folder does not exist or cannot be written.
        UnicodeEncodeError: If the text has a surrogate, which UTF-8 cannot encode.
    """
    if path is not None:
        write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically: either all of the content, or the previous content.

    Args:
        path: The file; an existing one is replaced.
        content: Its content.

    Raises:
        OSError: If the folder does not exist or cannot be written.
    """
    target = Path(path)
    check_writable(target)
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: cannot be replaced
        target.write_bytes(content)
        return
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files private
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def check_writable(*paths: str | os.PathLike[str] | None) -> None:
    """Check that files can be written, before there is anything to write.

    Args:
        *paths: The files; an existing one may be replaced. None is ignored.

    Raises:
        OSError: If the folder does not exist or cannot be written, or the path is no file, or
            read-only; the message has the path as given.
    """
    for path in paths:
        if path is not None:
            _check_writable(Path(path))


def _check_writable(path: Path) -> None:
    folder = path.parent
    if path.is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder: give the name of a file in it.")
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {str(folder)!r} for {str(path)!r}.")
    if path.exists():
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{str(path)!r} is read-only: give another file.")
        if not path.is_file():
            return
    try:
        with tempfile.TemporaryFile(dir=folder, prefix="."):
            pass  # more reliable than permissions, which a file system may overrule
    except OSError as error:
        raise type(error)(
            f"{str(path)!r} cannot be written: {error.strerror or error} in its folder."
        ) from error


def check_folder(path: str | os.PathLike[str] | None) -> None:
    """Check that a folder can be made or written, before there is anything to write.

    Args:
        path: The folder, which need not exist yet. None is ignored.

    Raises:
        OSError: If there is a file of that name, or the folder cannot be written.
    """
    if path is None:
        return
    place = Path(path)
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"{str(path)!r} is a file: give the name of a folder.")
    there = next(each for each in (place, *place.absolute().parents) if each.is_dir())
    try:
        with tempfile.TemporaryFile(dir=there, prefix="."):
            pass
    except OSError as error:
        raise type(error)(
            f"The folder {str(path)!r} cannot be written: {error.strerror or error}."
        ) from error
