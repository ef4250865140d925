"""Header of a GGUF file: the kind of the model, read before any conversion.

A GGUF file starts with a magic number, a version and two counts, followed by metadata, a table
of tensors, and their data (specification: ``docs/gguf.md`` of ggml). Only the part before the data
is read here, so that an unusable file is refused at once instead of after its conversion.
"""

from __future__ import annotations

import mmap
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_ALIGNMENT = 32
"""Alignment of the data, unless the metadata declare another one."""
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
"""Types of fixed size, and their letters in :mod:`struct`."""
_STRING, _ARRAY = 8, 9
_TABLES = {
    "modeling_gguf_pytorch_utils": "GGUF_SUPPORTED_ARCHITECTURES",
    "integrations.gguf": "GGUF_CONFIG_ARCHS",  # newer: architectures that are read faster
}
"""Modules of transformers, and their tables of architectures."""


@dataclass(frozen=True)
class StoredTensor:
    """Entry of the table of tensors.

    Attributes:
        name: Its name in the file (``blk.0.attn_q.weight``).
        shape: Fastest dimension first.
        kind: Index of its type in ggml.
        offset: Bytes from the start of the data.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int

    def end(self, numbers: int, size: int) -> int:
        """Offset of its end, given the numbers and bytes per block."""
        return self.offset + prod(self.shape) // numbers * size


@dataclass(frozen=True)
class Header:
    """The part of a file before the data.

    Attributes:
        values: Metadata by key; of an array, its length.
        tensors: The table of tensors.
        data: Start of the data, in bytes.
    """

    values: dict[str, Any]
    tensors: tuple[StoredTensor, ...]
    data: int


class _Bytes:
    """Reader of the bytes of a file, from its start."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self.place = 0

    def numbers(self, letters: str) -> tuple[Any, ...]:
        """Read numbers, one type letter each; struct.error at the end of the file."""
        found = struct.unpack_from(f"<{letters}", self._content, self.place)
        self.place += struct.calcsize(f"<{letters}")
        return found

    def text(self) -> str:
        """Read a string."""
        (length,) = self.numbers("Q")
        (found,) = self.numbers(f"{length}s")
        return str(found, "utf-8")

    def value(self, kind: int) -> Any:
        """Read a value of the metadata; of an array, its length."""
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"its metadata have a value of the unknown type {kind}")
        member, count = self.numbers("IQ")
        if member in _NUMBERS:
            self.place += count * struct.calcsize(f"<{_NUMBERS[member]}")
        elif member == _STRING:
            for _ in range(count):
                (length,) = self.numbers("Q")
                self.place += length
        else:
            raise ValueError(f"its metadata have an array of the unknown type {member}")
        return count

    def tensor(self) -> StoredTensor:
        """Read an entry of the table of tensors."""
        name = self.text()
        (dimensions,) = self.numbers("I")
        if dimensions > _MAX_DIMENSIONS:
            raise ValueError(f"its tensor {name!r} has {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")
        kind, offset = self.numbers("IQ")
        return StoredTensor(name, shape, kind, offset)


def read_header(path: Path) -> Header:
    """Read the part of a GGUF file before the data.

    Args:
        path: The file.

    Returns:
        Its metadata and its table of tensors.

    Raises:
        ValueError: If it is no GGUF file, or not a complete one.
    """
    if not path.stat().st_size:  # an empty file cannot be mapped
        raise _cut_off("it is empty")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[:4] != b"GGUF"[: len(content)]:
            raise ValueError("it does not start like a GGUF file")
        try:
            return _header(_Bytes(content))
        except (struct.error, OverflowError) as error:
            raise _cut_off("it ends within its header") from error
        except UnicodeDecodeError as error:
            raise ValueError("its header has text that is not UTF-8") from error


def _header(source: _Bytes) -> Header:
    _, version, tensors, values = source.numbers("4sIQQ")
    if version not in _VERSIONS:
        raise ValueError(f"it is a GGUF file of version {version}, not {_VERSIONS[-1]}")
    found: dict[str, Any] = {}
    for _ in range(values):
        key = source.text()
        (kind,) = source.numbers("I")
        found[key] = source.value(kind)
    table = tuple(source.tensor() for _ in range(tensors))
    alignment = found.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"its data are aligned to {alignment!r} bytes")
    return Header(found, table, -(-source.place // alignment) * alignment)


def check_gguf(path: Path) -> None:
    """Check that a GGUF file can be loaded, without converting anything.

    Args:
        path: The file. The package ``gguf`` must be installed.

    Raises:
        ValueError: If it is no complete GGUF file, does not hold a whole model, or a
            model that transformers does not convert; the message tells which.
    """
    try:
        header = read_header(path)
        _check_contents(header.values, header.tensors)
        blocks = {kind: _block(kind) for kind in {each.kind for each in header.tensors}}
        end = header.data + max(each.end(*blocks[each.kind]) for each in header.tensors)
        if end > path.stat().st_size:
            raise _cut_off(f"it has {path.stat().st_size:,} bytes of {end:,}")
    except ValueError as error:
        raise ValueError(f"The model {str(path)!r} cannot be loaded: {error}") from error


def _check_contents(values: dict[str, Any], tensors: tuple[StoredTensor, ...]) -> None:
    kind = values.get("general.type", "model")
    if kind != "model":
        raise ValueError(f"it holds no model, but is of the type {kind!r}")
    parts = values.get("split.count", 1)
    if parts != 1:
        part = values.get("split.no", 0) + 1
        raise ValueError(
            f"it is part {part} of {parts} of a model; `llama-gguf-split --merge` joins them"
        )
    name = values.get("general.architecture")
    known = _architectures()
    if known and not any(_plain(str(name)) == _plain(each) for each in known):
        raise ValueError(
            f"transformers does not convert the architecture {name!r} from GGUF files, but "
            f"{', '.join(known)}"
        )
    if not tensors:
        raise ValueError("it has no weights, as a vocabulary alone has none")


def _architectures() -> list[str]:
    """Architectures that transformers converts; empty if it has no such table any more."""
    found: set[str] = set()
    for module, name in _TABLES.items():
        with suppress(ImportError):
            found.update(getattr(import_module(f"transformers.{module}"), name, ()))
    return sorted(found - {"general", "tokenizer"})


def _plain(architecture: str) -> str:
    """A name without spelling differences of llama.cpp and transformers (qwen2moe, qwen2_moe)."""
    return re.sub(r"[_-]|(?<=t5)encoder", "", architecture)


def _block(kind: int) -> tuple[int, int]:
    """Numbers and bytes per block of a type.

    Raises:
        ValueError: If nothing can convert it.
    """
    import gguf  # noqa: PLC0415 - an extra
    import numpy as np  # noqa: PLC0415

    try:
        known = gguf.GGMLQuantizationType(kind)
        numbers, size = gguf.GGML_QUANT_SIZES[known]
        gguf.dequantize(np.zeros((1, size), dtype=np.uint8), known)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(f"weights of its type {kind} cannot be converted ({error})") from error
    return numbers, size


def _cut_off(reason: str) -> ValueError:
    return ValueError(f"{reason}; is the file complete?")
