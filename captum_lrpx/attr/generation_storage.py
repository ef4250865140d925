"""JSON form of explained continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrpx.explanation import Explanation, storage

if TYPE_CHECKING:
    from captum_lrpx.attr.generation_result import LLMRelevanceResult


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
_STRINGS = ("targets", "context_tokens", "output_tokens")
_TENSORS = ("context_attr", "values", "decomposed")
_IDS = ("prompt_ids", "continuation_ids")
_FIELDS = ("record", "spans", "shown", *_STRINGS, *_TENSORS, *_IDS)
"""Arguments of a result."""


def changed(result: LLMRelevanceResult, **changes: Any) -> LLMRelevanceResult:
    """A result with some of its fields changed."""
    return type(result)(**{name: getattr(result, name) for name in _FIELDS} | changes)


def content_of(result: LLMRelevanceResult) -> dict[str, Any]:
    """Convert a result to values that JSON can store."""
    return {
        "record": storage.record_of(result.record),
        "spans": [list(span) for span in result.spans],
        "shown": list(result.shown),
        **{name: list(getattr(result, name)) for name in _STRINGS},
        **{name: _stored(getattr(result, name)) for name in _TENSORS},
        **{name: getattr(result, name).tolist() for name in _IDS},
    }


def fields_of(content: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a result, restored from its JSON form.

    Raises:
        KeyError: If something is missing or malformed.
        TypeError: The same.
        ValueError: The same.
    """
    if content.keys() != {*_FIELDS}:
        raise ValueError(f"its parts are not {', '.join(sorted(_FIELDS))}")
    fields: dict[str, Any] = {
        "record": Explanation(**storage.fields_of(content["record"])),
        "spans": tuple((int(first), int(stop)) for first, stop in content["spans"]),
        "shown": tuple(bool(show) for show in content["shown"]),
        **{name: list(storage.strings_of(content, name)) for name in _STRINGS},
        **{name: _restored(name, content[name]) for name in _TENSORS},
        **{name: _tensor(name, content[name], torch.long) for name in _IDS},
    }
    _check(fields)
    return fields


def _check(fields: dict[str, Any]) -> None:
    rows, length = len(fields["spans"]), len(fields["record"].tokens)
    right = (
        fields["context_attr"].shape == (rows, length)
        and fields["values"].shape == fields["decomposed"].shape == (rows,)
        and len(fields["targets"]) == len(fields["output_tokens"]) == rows
        and len(fields["context_tokens"]) == length >= len(fields["shown"])
        and all(fields[name].ndim == 1 for name in _IDS)
        and all(0 <= first < stop <= length for first, stop in fields["spans"])
    )
    if not right:
        raise ValueError("its parts do not fit each other")


def _stored(values: Tensor) -> dict[str, Any]:
    return {
        "dtype": str(values.dtype).removeprefix("torch."),
        "numbers": values.double().tolist(),
    }


def _restored(name: str, stored: dict[str, Any]) -> Tensor:
    dtype = _DTYPES.get(stored["dtype"])
    if dtype is None:
        raise ValueError(f"its {name} are numbers of {stored['dtype']!r}")
    return _tensor(name, stored["numbers"], torch.float64).to(dtype)


def _tensor(name: str, numbers: Any, dtype: torch.dtype) -> Tensor:
    try:
        return torch.tensor(numbers, dtype=dtype, device="cpu")
    except RuntimeError as error:
        raise ValueError(f"its {name} are no numbers of this kind: {error}") from error
