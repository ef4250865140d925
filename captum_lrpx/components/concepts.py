"""Concepts: relevance of neurons and of directions of a layer, and steering by them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_lrpx.attr.keywords import entry_point
from captum_lrpx.attr.protocol import require_gradients, tensors_of
from captum_lrpx.components.changes import changed, of_first
from captum_lrpx.components.layers import LayerRules
from captum_lrpx.metrics.replacement import check_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from captum_lrpx._captum import TargetType
    from captum_lrpx.recipes import Recipe


class Concept(NamedTuple):
    """A neuron or direction of a layer in an explanation.

    Attributes:
        number: Its index.
        relevance: Its relevance, summed over positions.
        position: The position that contributes most to it.
    """

    number: int
    relevance: float
    position: int


class ConceptRelevance(LayerRules, LayerAttribution):
    r"""Relevance of the neurons of a layer, or of directions in it, for a prediction.

    The relevance of a neuron is its activation times its coefficient, as for
    :class:`~captum_lrpx.LayerAttnLRPx`. A direction takes the place of a neuron: its activation is
    the component of the layer's tensor along it, or the output of ``encoder``, and its coefficient
    the product with the direction. This gives the features of a sparse autoencoder relevances: the
    rows of its decoder are the directions.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        layer: nn.Module,
        *,
        directions: Tensor | None = None,
        encoder: Callable[[Tensor], Tensor] | None = None,
        at_input: bool = False,
        model: nn.Module | None = None,
        recipe: Recipe | None = None,
        strict: bool = True,
    ) -> None:
        r"""Find the model.

        Args:
            forward_func (Callable): The forward function of the model or any modification of it,
                as for :class:`LRPx`.
            layer (torch.nn.Module): The layer.
            directions (Tensor, optional): Directions ``[F, D]``. Default: the neurons themselves
            encoder (Callable, optional): Maps tensors ``[..., D]`` of the layer to activations
                ``[..., F]`` of the directions. Default: components along the directions
            at_input (bool, optional): Whether to use the layer's input instead of its
                output. Default: False
            model (torch.nn.Module, optional): The model that ``forward_func`` runs.
                Default: found in ``forward_func``.
            recipe (Recipe, optional): The rules. Default: AttnLRP's
            strict (bool, optional): Whether ``attribute`` refuses a non-linear operation without a
                rule on the way from the layer to the output. Default: True

        Raises:
            ValueError: If no model is found, or directions are no matrix or have a zero row.
            TypeError: If the layer is no module.
        """
        LayerAttribution.__init__(self, forward_func, layer)
        self.set_layers(forward_func, layer, model, recipe, strict=strict)
        if encoder is not None and directions is None:
            raise ValueError("An encoder needs `directions`, the rows of its decoder [F, D].")
        self.directions = None if directions is None else _checked(directions)
        self.encoder = encoder
        self.at_input = at_input

    @entry_point
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
    ) -> Tensor:
        r"""Compute relevances of the neurons or directions.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): Inputs of ``forward_func``. The first dimension
                is the batch.
            target (int, tuple, Tensor, or list, optional): Output indices that are explained, in
                every form that Captum takes. Default: None
            additional_forward_args (Any, optional): Arguments of ``forward_func`` after the inputs,
                given by position. Default: None

        Returns:
            *Tensor* of **attributions**:

            - **attributions** (*Tensor*):
                ``[B, T, D]``, or ``[B, T, F]`` for directions.

        Raises:
            AssertionError: Captum's errors for inputs and targets that do not fit.
            ValueError: If the layer does not run, or directions do not fit it.
            RuntimeError: Under ``torch.inference_mode``.

        Examples::

            >>> neurons = ConceptRelevance(model, block.mlp.down_proj, at_input=True)
            >>> neurons.attribute(ids, target=(-1, are)).sum(1).topk(5)
        """
        require_gradients()
        (values,), (slopes,) = self.coefficients(
            tensors_of(inputs), target, additional_forward_args, at_input=self.at_input
        )
        if self.directions is None:
            relevances = values * slopes
        else:
            directions = self.directions.to(slopes)
            relevances = self.encoded(values) * (slopes @ directions.T)
        self.finite(tensors_of(inputs), additional_forward_args).warn((relevances,))
        return relevances

    def activations(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: object | None = None
    ) -> Tensor:
        """Compute activations of the neurons or directions, in the shape of :meth:`attribute`.

        Args:
            inputs: As for :meth:`attribute`.
            additional_forward_args: The same.
        """
        (values,) = self.values(tensors_of(inputs), additional_forward_args, at_input=self.at_input)
        return self.encoded(values)

    def encoded(self, values: Tensor) -> Tensor:
        """Compute activations ``[..., F]`` for a tensor ``[..., D]`` of the layer.

        Raises:
            ValueError: If directions or encoder do not fit the tensor.
        """
        if self.directions is None:
            return values
        directions = self.directions.to(values)
        count, width = directions.shape
        if values.shape[-1] != width:
            raise ValueError(
                f"{type(self.layer).__name__} has {values.shape[-1]} features, but the directions "
                f"are {[count, width]}: give a matrix [F, {values.shape[-1]}], a row for each."
            )
        if self.encoder is None:
            return _components(values, directions)
        with torch.no_grad():
            found = self.encoder(values)
        if found.shape != (*values.shape[:-1], count):
            raise ValueError(
                f"The encoder gives {list(found.shape)} for {list(values.shape)}: it must give an "
                f"activation for each of {count} directions."
            )
        return found

    def most_relevant(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: TargetType = None,
        additional_forward_args: object | None = None,
        *,
        k: int = 10,
    ) -> list[list[Concept]]:
        """Return the neurons or directions of largest relevance, in absolute value, for each row.

        Args:
            inputs: As for :meth:`attribute`.
            target: The same.
            additional_forward_args: The same.
            k: Number of neurons or directions.

        Raises:
            ValueError: As :meth:`attribute`, or if ``k`` is not positive.
        """
        check_count(k, "k")
        attributed = self.attribute(inputs, target, additional_forward_args)
        found = attributed.reshape(len(attributed), -1, attributed.shape[-1])
        best = found.sum(1).abs().topk(min(k, found.shape[2]), dim=1).indices
        return [
            [
                Concept(number, float(row[:, number].sum()), int(row[:, number].abs().argmax()))
                for number in chosen.tolist()
            ]
            for row, chosen in zip(found, best, strict=True)
        ]


@contextmanager
def steer(
    layer: nn.Module,
    numbers: int | Sequence[int],
    *,
    scale: float | None = None,
    value: float | None = None,
    directions: Tensor | None = None,
    positions: int | slice | Sequence[int] | None = None,
    at_input: bool = False,
) -> Iterator[None]:
    """Scale or set neurons of a layer, or its components along directions, in a ``with`` block.

    Args:
        layer: The layer; other threads use it as it is.
        numbers: Indices of neurons or directions.
        scale: Factor of their activations: 0 switches off, 1 changes nothing.
        value: Instead, the new value of their activations.
        directions: Directions ``[F, D]``; activations are then components along them. The
            chosen ones are changed at once, and all have their new values afterwards, also if
            directions overlap. Default: the neurons themselves
        positions: Positions in the second dimension of the tensor. Default: all
        at_input: Whether the layer's input is changed instead of its output.

    Raises:
        ValueError: If not exactly one of ``scale`` and ``value`` is given, or directions do not
            fit.
        IndexError: If a number or position is out of range, in the first forward pass.
        TypeError: If the layer is no module, or the numbers are no integers.

    Examples::

        >>> with steer(block.mlp.down_proj, [17, 42], scale=0.0, at_input=True):
        ...     logits = model(ids).logits
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"A layer is a torch.nn.Module, not {type(layer).__name__}.")
    if (scale is None) == (value is None):
        raise ValueError("Give either `scale`, a factor, or `value`, the new activation.")
    matrix = None if directions is None else _checked(directions)
    chosen = _indices(numbers)
    if matrix is not None:
        _check_range(chosen, len(matrix), "directions")

    def steered(values: Tensor) -> Tensor:
        new = values.clone()
        where: Any = (...,) if positions is None else (slice(None), positions)
        part = new[where]
        index = chosen.to(new.device)
        if matrix is None:
            _check_range(chosen, part.shape[-1], "neurons")
            part[..., index] = _changed(part[..., index], scale, value)
        else:
            rows = matrix.to(new)[index]
            if rows.shape[1] != part.shape[-1]:
                raise ValueError(
                    f"{type(layer).__name__} has {part.shape[-1]} features, but directions have "
                    f"{rows.shape[1]}."
                )
            now = _components(part, rows)
            part = part + _along(_changed(now, scale, value) - now, rows)
        new[where] = part
        return new

    with changed([(layer, of_first(steered))], at_input=at_input):
        yield


def _changed(values: Tensor, scale: float | None, value: float | None) -> Tensor:
    return values * scale if scale is not None else torch.full_like(values, value or 0.0)


def _indices(numbers: Any) -> Tensor:
    """Indices of neurons or directions, as a vector.

    Raises:
        TypeError: If they are no integers, as a mask is not.
    """
    given = numbers if isinstance(numbers, (int, Tensor)) else list(numbers)
    chosen = torch.as_tensor(given).reshape(-1)
    kind = chosen.dtype
    if chosen.numel() and (kind == torch.bool or kind.is_floating_point or kind.is_complex):
        way_out = ", `mask.nonzero().squeeze(1)` of a mask" if kind == torch.bool else ""
        raise TypeError(f"`numbers` are indices, not {kind}: give integers{way_out}.")
    return chosen.long()


def _along(changes: Tensor, directions: Tensor) -> Tensor:
    """The smallest tensor ``[..., D]`` with given components ``[..., F]`` along directions."""
    exact = directions.to(torch.promote_types(directions.dtype, torch.float32))
    dual = torch.linalg.pinv(exact.T).to(changes)  # of orthonormal directions, themselves
    moved: Tensor = (changes * directions.square().sum(1)) @ dual
    return moved


def _components(values: Tensor, directions: Tensor) -> Tensor:
    """Components ``[..., F]`` along directions: projections over squared lengths."""
    return values @ directions.T / directions.square().sum(1)


def _check_range(numbers: Tensor, count: int, what: str) -> None:
    if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < count:
        raise IndexError(f"There are {count} {what}, from 0 to {count - 1}: {numbers.tolist()}.")


def _checked(directions: Any) -> Tensor:
    """Check that directions are a matrix without a zero row."""
    if not isinstance(directions, Tensor) or directions.ndim != 2:
        shape = list(directions.shape) if isinstance(directions, Tensor) else type(directions)
        raise ValueError(f"`directions` is a matrix [F, D], a row for each, not {shape}.")
    if bool((directions.square().sum(1) == 0).any()):
        raise ValueError("A row of `directions` is zero, and has no direction.")
    return directions.detach()
