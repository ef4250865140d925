"""Forward functions: the model inside, and their outputs in the form that Captum expects."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx.models import model_in, not_a_model
from captum_lrpx.onlookers import is_plain
from captum_lrpx.targets.forward import (
    LogProbabilities,
    OutputFunction,
    OutputSum,
    Probabilities,
)
from captum_lrpx.targets.head import ModelForward
from captum_lrpx.wrappers import called_module

if TYPE_CHECKING:
    from collections.abc import Callable


_OF_TENSORS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds"}
)
"""Arguments that are tensors; some models take a mapping of masks, one per kind of layer."""

_OF_OUTPUTS = (LogProbabilities, OutputFunction, OutputSum, Probabilities)


def model_of(forward_func: Callable[..., Any], model: nn.Module | None) -> nn.Module:
    """Find the transformers model that a forward function runs.

    Args:
        forward_func: A module, or a function.
        model: The model, where ``forward_func`` is a function.

    Returns:
        The model.

    Raises:
        ValueError: If ``forward_func`` is a function and ``model`` is not given, or no transformers
            model is found, or it runs on several devices at once.
        TypeError: If ``model`` is not a module, or ``forward_func`` cannot be called.
    """
    if model is None:
        owner = getattr(forward_func, "__self__", forward_func)  # model.forward means the model
        if not isinstance(owner, nn.Module) and isinstance(
            getattr(owner, "model", None), nn.Module
        ):
            raise ValueError(
                f"{type(owner).__name__} is not a forward function of tensors, but its model can "
                "be explained: give its `.model`."
            )
        a_tokenizer = hasattr(owner, "convert_ids_to_tokens")
        if not callable(owner) or isinstance(owner, type) or a_tokenizer:
            raise not_a_model(forward_func)
        if not isinstance(owner, nn.Module):
            raise ValueError(
                "The forward function is not a module, so the model that it runs is unknown: give "
                "it as `model=`. Without it no rule could be attached, and the result would be a "
                "plain gradient."
            )
        model = owner
    if not isinstance(model, nn.Module):
        raise not_a_model(model)
    for part in (forward_func, model):
        if isinstance(part, nn.DataParallel) and len(part.device_ids) > 1:
            raise ValueError(
                "DataParallel runs copies of the model in threads of their own, without the rules "
                "that are attached to the model: explain its `.module`."
            )
    return model_in(model)


def aliases_with_gradients(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Aliases of floating inputs that require a gradient; the caller's tensors are not changed."""
    return tuple(
        _usable(tensor).detach().requires_grad_() if tensor.is_floating_point() else tensor
        for tensor in inputs
    )


def _usable(value: Any) -> Any:
    """A tensor that autograd can save, also if made under ``torch.inference_mode``."""
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def model_given(forward_func: Callable[..., Any], model: nn.Module) -> bool:
    """Whether a forward function passes its first input unchanged to the model.

    The model itself does, a wrapper around it, or a forward module of this package; for functions
    and foreign modules it is unknown.
    """
    inner: Any = forward_func
    while isinstance(inner, (RecordedForward, *_OF_OUTPUTS)):
        inner = inner.forward_func if isinstance(inner, RecordedForward) else inner.inner
    if getattr(inner, "__name__", "") == "forward":  # model.forward stands for the model
        inner = getattr(inner, "__self__", inner)
    if not isinstance(inner, nn.Module):
        return False
    return isinstance(inner, ModelForward) or called_module(inner) is model


def runs_nothing_else(forward_func: Callable[..., Any], model: nn.Module) -> bool:
    """Whether a forward function is a model, or a forward module of this package around it.

    Other functions may look at the gradients of what they compute, or call the model again.
    """
    inner: Any = forward_func
    while isinstance(inner, (RecordedForward, LogProbabilities, OutputSum, Probabilities)):
        if isinstance(inner, nn.Module) and not is_plain(inner):
            return False
        inner = inner.forward_func if isinstance(inner, RecordedForward) else inner.inner
    if isinstance(inner, ModelForward) and type(inner).__module__.startswith("captum_lrpx."):
        return inner.model is model and is_plain(inner)
    return inner is model


class RecordedForward:
    """A forward function in the form that Captum expects, keeping its last output.

    A transformers model passed directly takes token ids as they are and embeddings as
    ``inputs_embeds``; the ``logits`` of a model output are used.

    Attributes:
        output: Output of the last call, detached; ``[B, ...]``.

    Args:
        forward_func: The forward function.
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func
        self.output: Tensor | None = None
        self._parameters: tuple[str, ...] = ()
        if isinstance(forward_func, nn.Module):
            called = called_module(forward_func)
            self._parameters = tuple(inspect.signature(called.forward).parameters)

    def __call__(self, *args: Any) -> Any:
        """Run the forward function and keep its output."""
        output = self._logits(*map(_usable, args))
        if isinstance(output, Tensor):
            self.output = output.detach()
        return output

    def _logits(self, *args: Any) -> Any:
        output = self._run(*args)
        logits = getattr(output, "logits", None)
        return logits if not isinstance(output, Tensor) and isinstance(logits, Tensor) else output

    def _run(self, *args: Any) -> Any:
        keywords: dict[str, Any] = {}
        self._check(args)
        if "use_cache" in self._parameters:
            keywords["use_cache"] = False
        embeds = args and isinstance(args[0], Tensor) and torch.is_floating_point(args[0])
        if embeds and "inputs_embeds" in self._parameters[1:]:
            return self.forward_func(None, *args[1:], inputs_embeds=args[0], **keywords)
        return self.forward_func(*args, **keywords)

    def _check(self, args: tuple[Any, ...]) -> None:
        """Check positional arguments: a model's second one is not always the mask."""
        kind = type(self.forward_func).__name__
        for place, (name, value) in enumerate(zip(self._parameters, args, strict=False), start=1):
            if name == "past_key_values" and not (
                value is None or hasattr(value, "get_seq_length")
            ):
                raise ValueError(
                    f"Argument {place} of {kind} is `past_key_values`, but a "
                    f"{type(value).__name__} was given for it. For an attention mask give None "
                    "before it, or explain a forward module that takes the mask second "
                    "(TokenLogits, ClassLogits, ...)."
                )
            if name in _OF_TENSORS and not isinstance(value, (Tensor, Mapping, type(None))):
                raise TypeError(
                    f"Argument {place} of {kind} is `{name}`, a tensor or None, but "
                    f"{type(value).__name__} was given."
                )
