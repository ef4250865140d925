"""Choosing the explained output: Captum's targets, with errors that name the fitting form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_lrpx import _captum

if TYPE_CHECKING:
    from collections.abc import Iterator

    from captum_lrpx._captum import TargetType


_SEVERAL = (
    "Target not provided when necessary, cannot take gradient with respect to multiple outputs."
)


def check_target(output: Tensor, target: TargetType) -> None:
    """Check that a target chooses one number per row.

    The types of the errors and their first sentences are Captum's; then follow the targets that
    an output of this shape has. Out of range is an IndexError in every form.

    Args:
        output: Output of the forward function, ``[B, ...]``.
        target: A target in one of Captum's forms.

    Raises:
        AssertionError: If the form is wrong, or a target is missing.
        IndexError: If an index is out of range.
    """
    try:
        _check_numbers(target)
        _check_one_per_row(output, target)
        selected = _captum.select_targets(output, target)
    except (AssertionError, IndexError) as error:
        raise type(error)(_with_way_out(str(error), output, target)) from None
    except TypeError as error:  # an index of some other type
        raise AssertionError(_with_way_out(str(error), output, target)) from None
    if selected[0].numel() != 1:
        raise AssertionError(_with_way_out(_SEVERAL, output, target))


def check_targets(targets: Any) -> Sequence[TargetType]:
    """A non-empty sequence of targets; of a tensor, its rows.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is empty.
    """
    if isinstance(targets, Tensor) and targets.ndim:
        targets = list(targets)
    if not isinstance(targets, Sequence) or isinstance(targets, str):
        raise TypeError(
            "`targets` is a list of targets, each as `attribute` takes one: for a single one give "
            f"`[{_shown(targets)}]`."
        )
    if not targets:
        raise ValueError("Give at least one target.")
    return targets


def select_neuron(values: tuple[Tensor, ...], selector: Any) -> Tensor:
    """Neurons that a selector chooses, one number per example; slices are summed.

    Args:
        values: Tensors of the layer, ``[B, ...]``.
        selector: As Captum's ``neuron_selector``.

    Returns:
        ``[B]``, or the output of a callable selector.

    Raises:
        AssertionError: If the selector has another form, or chooses several numbers per example.
        IndexError: If an index is out of range.
    """
    given = _shown(selector)
    shapes = ", ".join(str(list(value.shape)) for value in values)
    forms = (
        f"The layer has {shapes} here: after the first dimension a neuron has one index for each, "
        "a tuple (position, feature) for hidden states, in which slices are summed; or it is a "
        f"function from the layer's tensors to one number per example. Given was {given}."
    )
    try:
        if not callable(selector):
            _check_numbers(selector)
        selected: Tensor = _captum.select_neuron(values, selector)
    except (AssertionError, IndexError) as error:
        raise type(error)(f"{_sentence(str(error))} {forms}") from None
    except TypeError as error:
        if callable(selector):
            raise
        raise AssertionError(f"{_sentence(str(error))} {forms}") from None
    if selected.ndim and selected[0].numel() != 1:  # one number for all is their sum, as in Captum
        raise AssertionError(f"The selector chooses {selected[0].numel()} neurons. {forms}")
    return selected


def _check_numbers(target: Any) -> None:
    """Refuse indices that are no integers: Python takes True for 1, and tensors may hold floats."""
    for each in _leaves(target):
        dtype = each.dtype if isinstance(each, Tensor) else None
        if isinstance(each, (bool, float)) or (
            dtype is not None
            and (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
        ):
            kind = dtype or type(each).__name__
            raise AssertionError(f"Target type {kind} is not valid: an index is an integer.")


def _leaves(target: Any) -> Iterator[Any]:
    if isinstance(target, (tuple, list)):
        for each in target:
            yield from _leaves(each)
    else:
        yield target


def _check_one_per_row(output: Tensor, target: Any) -> None:
    """Check the range of a list or tensor ``[B]``; an accelerator would abort the process."""
    if isinstance(target, Tensor) and target.numel() > 1:
        target = target.flatten().tolist() if target.ndim == 1 else []
    if output.ndim != 2 or not isinstance(target, list) or len(target) != len(output):
        return
    for each in target:
        if isinstance(each, int) and not 0 <= each < output.shape[1]:
            raise IndexError(
                f"index {each} is out of bounds for dimension 1 with size {output.shape[1]}"
            )


def _with_way_out(message: str, output: Tensor, target: Any) -> str:
    shape, given = list(output.shape), _shown(target)
    count = output.ndim - 1
    if count == 0:
        forms = "there is one number for each row, and no target"
    elif count == 1:
        forms = (
            f"a target is an index below {shape[1]}, or a list or tensor of {shape[0]}, one for "
            "each row"
        )
    else:
        names = "(position, token)" if count == 2 else f"of {count} indices"
        example = f", as in (-1, {target})" if count == 2 and type(target) is int else ""
        forms = f"a target is a tuple {names}{example}, or a list of them, one for each row"
    return f"{_sentence(message)} The output has the shape {shape}: {forms}. Given was {given}."


def _sentence(message: str) -> str:
    return message if message.endswith((".", "!")) else f"{message}."


def _shown(target: Any) -> str:
    if isinstance(target, Tensor) and target.numel() > 1:
        return f"a tensor {list(target.shape)} of {target.dtype}"
    text = repr(target)
    return text if len(text) <= 60 else f"{text[:57]}..."
