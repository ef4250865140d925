"""A log of finished work that survives a kill at any moment.

A folder holds ``manifest.json``, which identifies the run, and a log for each process. A log is
only ever appended to, a whole line at a time, and a line is one finished unit of work with its
checksum. A kill can only tear the last line of a log, which then has no newline; it is dropped and
done again. A line that was edited or damaged does not fit its checksum, and is refused.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from captum_lrpx.files import write_text
from captum_lrpx.sva.evaluation.processes import Processes
from captum_lrpx.sva.lines import json_object

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from typing_extensions import Self


Key = tuple[str | int, ...]
"""Key of a unit of work: its kind, and further parts."""

_MANIFEST = "manifest.json"


class Journal:
    """Records of finished units of work, by key; kept in a folder, or in memory only.

    Args:
        folder: Folder of the records. Default: memory only.
        manifest: Identifies the run: JSON that is the same for the same run.
        resume: Whether to continue a run in the folder.
        processes: The processes of the run; each share of the work has its own log.

    Raises:
        ValueError: If there is a run in the folder that is another one, may not be resumed, or
            cannot be read.
        OSError: If the folder cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        manifest: Mapping[str, Any],
        *,
        resume: bool = False,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ) -> None:
        self.records: dict[Key, dict[str, Any]] = {}
        self.folder = None if folder is None else Path(folder)
        self._log: BinaryIO | None = None
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        _check(self.folder, json.loads(json.dumps(manifest)), resume=resume)
        processes.wait()  # all have checked the folder before one writes
        if processes.is_main:
            text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
            write_text(self.folder / _MANIFEST, text)
        path = self.folder / f"log-{processes.share:05d}.jsonl"
        if processes.writes:
            _drop_torn_line(path)
        self.refresh()
        processes.wait()  # processes that share work have read the same
        if processes.writes:
            self._log = path.open("ab")

    def refresh(self) -> None:
        """Read the logs of all processes.

        Raises:
            ValueError: If a line is not as a run wrote it; the message names the line.
        """
        for path in sorted(self.folder.glob("log-*.jsonl")) if self.folder else ():
            for record in _complete_lines(path):
                self.records[tuple(record["key"])] = record

    def append(self, key: Key, content: Mapping[str, Any]) -> None:
        """Keep the record of a finished unit.

        Args:
            key: Key of the unit.
            content: Its results, as JSON values.
        """
        record = {"key": list(key), **content}
        if self._log is not None:
            line = _text({**record, "crc32": _checksum(record)}) + "\n"
            self._log.write(line.encode())
            self._log.flush()
            os.fsync(self._log.fileno())
        self.records[key] = record

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()
            self._log = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _check(folder: Path, manifest: dict[str, Any], *, resume: bool) -> None:
    path = folder / _MANIFEST
    if not path.exists():
        return
    if not resume:
        raise ValueError(
            f"The folder {str(folder)!r} already holds a run: resume it, or choose another folder."
        )
    there = _manifest_of(path)
    different = [
        f"{name} was {_shown(there.get(name))} and is {_shown(manifest.get(name))}"
        for name in sorted(there.keys() | manifest.keys())
        if there.get(name) != manifest.get(name)
    ]
    if different:
        raise ValueError(
            f"The folder {str(folder)!r} holds another run, which cannot be resumed: "
            f"{'; '.join(different)}. Choose another folder."
        )


def _manifest_of(path: Path) -> dict[str, Any]:
    try:
        return json_object(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} does not identify the run in the folder: {error}. Choose another folder."
        ) from error


def _shown(value: object, limit: int = 300) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[:limit]}..."


def _drop_torn_line(path: Path) -> None:
    """Cut a log after its last complete line."""
    if path.exists():
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def _complete_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # torn, or being written by another process
                return
            try:
                record = json_object(line)
                if record.pop("crc32", None) != _checksum(record):
                    raise ValueError("it was edited or damaged, and does not fit its checksum")  # noqa: TRY301
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is not a record as a run writes it: {error}. Remove "
                    "the line, and its work is done again."
                ) from error
            yield record


def _checksum(record: Mapping[str, Any]) -> int:
    return zlib.crc32(_text(record).encode())


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"))
