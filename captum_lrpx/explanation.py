"""An explanation that one can keep: relevances with everything needed to read them later."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_lrpx.files import write_text

if TYPE_CHECKING:
    import os

__all__ = ["Explanation"]

_FORMAT = "captum_lrpx.explanation/1"


@dataclass(frozen=True)
class Explanation:
    """The relevance of each token for one explained value.

    Attributes:
        text: The text, as it was encoded.
        tokens: Its tokens, as the tokenizer shows them.
        ids: Token ids.
        offsets: ``(start, end)`` characters of each token in the text; empty for added tokens.
        special: Whether each token is a special one that the tokenizer added.
        relevances: Relevance of each token, in units of the explained value.
        value: The explained value, usually a logit or a difference of two.
        target: What is explained, in words.
        position: Position of the explained logit, if it has one.
        method: Name of the method.
        recipe: Name of the rules.
        model: Name of the model.
        dtype: Precision that the model computed in.
        versions: Versions of this package, torch, transformers and captum.
    """

    text: str
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[bool, ...]
    relevances: tuple[float, ...]
    value: float
    target: str
    position: int | None
    method: str
    recipe: str
    model: str
    dtype: str
    versions: dict[str, str]

    def __post_init__(self) -> None:
        lengths = {
            name: len(getattr(self, name))
            for name in ("tokens", "ids", "offsets", "special", "relevances")
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"The parts of an explanation differ in length: {lengths}.")

    @property
    def sum(self) -> float:
        """Sum of the relevances."""
        return math.fsum(self.relevances)

    @property
    def delta(self) -> float:
        """Convergence delta: the explained value minus the sum of the relevances."""
        return self.value - self.sum

    @property
    def labels(self) -> tuple[str, ...]:
        """The tokens as they stand in the text; special ones by their name."""
        return tuple(
            self.text[start:end] if end > start else token
            for token, (start, end) in zip(self.tokens, self.offsets, strict=True)
        )

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The explanation as JSON; floats keep every digit.

        Args:
            path: File to write it to as well, atomically.

        Returns:
            The JSON text.
        """
        text = json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        if path is not None:
            write_text(path, text + "\n")
        return text

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Explanation:
        """Read what :meth:`to_json` wrote.

        Args:
            source: JSON text, or the path of a file (a ``Path``).

        Raises:
            ValueError: If it is not an explanation.
        """
        text = source if isinstance(source, str) else Path(source).read_text(encoding="utf-8")
        try:
            record: dict[str, Any] = json.loads(text)
            if record.pop("format", None) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT!r}")  # noqa: TRY301 - as below
            for name in ("tokens", "ids", "special", "relevances"):
                record[name] = tuple(record[name])
            record["offsets"] = tuple((int(start), int(end)) for start, end in record["offsets"])
            return cls(**record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"This is not a stored explanation: {error}.") from error
