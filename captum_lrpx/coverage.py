"""Operations between the embeddings and the explained value, as a table."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import torch
from rich.table import Table
from rich.text import Text

from captum_lrpx.notices import warn

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from torch import nn


Kind = Literal["linear", "ruled", "explained function", "unruled"]

_STYLES: dict[Kind, str] = {
    "linear": "",
    "ruled": "green",
    "explained function": "cyan",
    "unruled": "bold red",
}
FORWARD_FUNCTION: Final = "the forward function"
"""Replaces a module's class, for operations outside of all modules."""

_NUMBER = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Operation:
    """One operation of the forward pass that the explained value depends on.

    Attributes:
        module: Path of the module that computes it, in the Hugging Face model; empty for operations
            of the forward function around the model.
        module_type: Class of that module; "the forward function" outside of the model.
        function: Name of the function (``"torch.nn.functional.gelu"``).
        kind: ``"linear"`` (its own gradient is the rule), ``"ruled"``, ``"explained function"``
            (non-linear, but after the model: part of the explained value), or
            ``"unruled"`` (non-linear without a rule: relevances upstream would be wrong).
        rule: The rule of a ruled operation.
        reason: Why an operation is unruled, in words.
        remedy: A remedy, in words.
    """

    module: str
    module_type: str
    function: str
    kind: Kind
    rule: str = ""
    reason: str = ""
    remedy: str = ""

    @property
    def place(self) -> str:
        """Description of the module, for messages."""
        if not self.module:
            return self.module_type
        return f"{self.module!r} ({self.module_type})"


class Row(NamedTuple):
    """Operations of the same kind at the same place of repeated blocks.

    Attributes:
        operation: The first of them; block numbers in its path are replaced by ``*``.
        functions: Their functions, in order of appearance.
        places: Number of modules that they are in.
        times: Number of operations.
    """

    operation: Operation
    functions: tuple[str, ...]
    places: int
    times: int


@dataclass(frozen=True)
class Coverage:
    """Completeness of a recipe: all operations between the embeddings and the explained value.

    Attributes:
        model: Class of the model.
        recipe: Name of the recipe; None if no rules were attached.
        operations: The operations, in the order of the forward pass.
    """

    model: str
    recipe: str | None
    operations: tuple[Operation, ...]

    @property
    def unruled(self) -> tuple[Operation, ...]:
        """The non-linear operations without a rule."""
        return tuple(each for each in self.operations if each.kind == "unruled")

    @property
    def complete(self) -> bool:
        """Whether every non-linear operation has a rule."""
        return not self.unruled

    def rows(self) -> tuple[Row, ...]:
        """Group the operations by place and kind, repeated blocks folded into one."""
        return fold(self.operations)

    def require(self, *, strict: bool) -> None:
        """Refuse operations without a rule, or warn of them.

        Args:
            strict: Whether to refuse them.

        Raises:
            ValueError: If a non-linear operation has no rule and ``strict`` is set.
        """
        if self.complete:
            return
        if strict:
            raise ValueError(self.problem())
        warn(self.problem())

    def problem(self) -> str:
        """Describe operations without a rule and remedies; empty if there are none."""
        if self.complete:
            return ""
        rows = fold(self.unruled)
        places = "; ".join(_sentence(row) for row in rows[:_MOST])
        more = f"; and {len(rows) - _MOST} more places" if len(rows) > _MOST else ""
        remedies = " ".join(dict.fromkeys(row.operation.remedy for row in rows[:_MOST]))
        return (
            f"{self.model} does something on the way from its embeddings to the explained value "
            f"that no rule of {self.recipe!r} covers: {places}{more}. {remedies}"
        )

    def __str__(self) -> str:
        """The table, as plain text."""
        from captum_lrpx.visualization.console import plain_text  # noqa: PLC0415

        return plain_text(self._table())

    def __rich__(self) -> Table:
        """The table, for a terminal."""
        return self._table()

    def _table(self) -> Table:
        table = Table("module", "operations", "kind", "rule", "times", box=None, pad_edge=False)
        table.columns[4].justify = "right"
        table.caption = self._verdict()
        table.caption_justify = "left"
        for row in self.rows():
            first = row.operation
            table.add_row(
                Text(first.module or f"({first.module_type})"),
                Text(", ".join(_short(name) for name in row.functions)),
                Text(first.kind, style=_STYLES[first.kind]),
                Text(first.rule or first.reason),
                str(row.times),
            )
        return table

    def _verdict(self) -> str:
        number = len(self.operations)
        if self.complete:
            return f"complete: each of {number} operations is linear or has a rule"
        return f"INCOMPLETE: {len(self.unruled)} of {number} operations have no rule"


_MOST = 6
"""Number of places named in a message."""


def fold(operations: Iterable[Operation]) -> tuple[Row, ...]:
    """Group operations by place, kind and rule, with block numbers replaced by ``*``."""
    grouped: dict[tuple[str, ...], list[Operation]] = {}
    for each in operations:
        place = _NUMBER.sub(".*", each.module)
        key = (place, each.module_type, each.kind, each.rule, each.reason)
        grouped.setdefault(key, []).append(each)
    return tuple(
        Row(
            operation=_at(key[0], members),
            functions=tuple(dict.fromkeys(member.function for member in members)),
            places=len({member.module for member in members}),
            times=len(members),
        )
        for key, members in grouped.items()
    )


def _at(place: str, members: list[Operation]) -> Operation:
    first = members[0]
    if all(member.module == first.module for member in members):
        return first
    return replace(first, module=place)


def _sentence(row: Row) -> str:
    functions = ", ".join(dict.fromkeys(map(_short, row.functions)))
    times = f" (in {row.places} blocks)" if row.places > 1 else ""
    return f"{functions} in {row.operation.place}{times}: {row.operation.reason}"


def _short(function: str) -> str:
    """Name of a function without a well-known module."""
    return function.removeprefix("torch.nn.functional.").removeprefix("torch.")


@contextmanager
def without_a_trace(modules: Collection[nn.Module]) -> Iterator[None]:
    """Restore random states and buffers after a forward pass made only for observation."""
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]  # noqa: SLF001
    tensors = {each for _, named in buffers for each in named.values() if each is not None}
    kept = [
        (each, each._version, each.clone())  # noqa: SLF001 - no public name
        for each in tensors
        if not each.is_inference()
    ]
    parameters = (each for module in modules for each in module.parameters(recurse=False))
    devices = {each.device for each in parameters if each.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for own, named in buffers:
            own.update(named)
        for tensor, version, values in kept:
            if tensor._version != version:  # noqa: SLF001
                with torch.no_grad():
                    tensor.copy_(values)
