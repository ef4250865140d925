"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["write_bytes", "write_text"]


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file atomically: either the whole text is there, or what was before.

    Args:
        path: The file; an existing one is replaced.
        text: Its content, written as UTF-8 with the newlines that it has.

    Raises:
        OSError: If the folder does not exist or cannot be written.
        UnicodeEncodeError: If the text has a surrogate, which UTF-8 has no bytes for.
    """
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file atomically: either the whole content is there, or what was before.

    Args:
        path: The file; an existing one is replaced.
        content: Its content.

    Raises:
        OSError: If the folder does not exist or cannot be written.
    """
    target = Path(path)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
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
