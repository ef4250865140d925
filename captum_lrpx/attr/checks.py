"""Early checks of models, inputs, layers and outputs that cannot be explained."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from captum_lrpx.attr.forward_function import RecordedForward, model_given
from captum_lrpx.attr.selection import check_target
from captum_lrpx.models import is_pretrained, not_a_model
from captum_lrpx.module_tree import modules_of
from captum_lrpx.structure import (
    position_table_of,
    positions_after_padding,
    token_embedding_of,
)
from captum_lrpx.targets.encoding import context_length

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx._captum import TargetType


NO_GRADIENT: Final = "does not depend on the model by a gradient"
"""Part of the message for an explained value without a gradient."""


# Models and tokenizers ----------------------------------------------------------------------------


def check_model_and_tokenizer(model: Any, tokenizer: Any) -> None:
    """Check that a model and a tokenizer are such, in this order, and that the model has weights.

    Raises:
        TypeError: If one of them is something else, or they are swapped.
        ValueError: If the model is on the device "meta".
    """
    if isinstance(tokenizer, nn.Module) and not isinstance(model, nn.Module):
        raise TypeError(
            f"The tokenizer is {type(tokenizer).__name__}, a model: the model comes first, then "
            "its tokenizer."
        )
    check_model(model)
    if isinstance(tokenizer, type) or not callable(
        getattr(tokenizer, "convert_ids_to_tokens", None)
    ):
        raise TypeError(
            f"The tokenizer must be a loaded one, not {_named(tokenizer)}: "
            "`AutoTokenizer.from_pretrained(name)` of transformers loads it."
        )


def check_model(model: Any) -> None:
    """Check that a value is a model, and that its weights have values.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is on the device "meta".
    """
    if not isinstance(model, nn.Module):
        raise not_a_model(model)
    check_values(model)


def check_values(model: nn.Module) -> None:
    """Refuse a model with weights on the device "meta"; offloaded weights have values.

    Raises:
        ValueError: If there is such a weight.
    """
    if "_hf_hook" in vars(model):  # accelerate loads offloaded weights when they are needed
        return
    for module in modules_of(model):
        own = vars(module)
        for tensors in (own["_parameters"], own["_buffers"]):
            if tensors and "_hf_hook" not in own:
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_meta:
                        raise _without_values(model, module, name)


def _without_values(model: nn.Module, module: nn.Module, name: str) -> ValueError:
    path = next(path for path, each in model.named_modules() if each is module)
    return ValueError(
        f'{type(model).__name__} is on the device "meta", at least its {path}.{name}: it has a '
        "shape and no values. Load the model with `from_pretrained`, outside of "
        '`torch.device("meta")` and `init_empty_weights()`.'
    )


def _named(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, str):
        return f"the string {value!r}"
    return type(value).__name__


# Inputs -------------------------------------------------------------------------------------------


def not_an_input(value: Any) -> str:
    """Advice for an input that is no tensor, appended to an error message."""
    if isinstance(value, Mapping) or hasattr(value, "input_ids"):
        return " Give its token ids: `.input_ids`, of `tokenizer(text, return_tensors='pt')`."
    if isinstance(value, str):
        return " Encode the text: `tokenizer(text, return_tensors='pt').input_ids`."
    if isinstance(value, list) or hasattr(value, "__array__"):
        return " Make a tensor of it: `torch.as_tensor(ids)`, of shape [B, T]."
    return ""


def check_inputs(
    model: nn.Module, forward_func: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> None:
    """Refuse inputs that a model cannot read, before it runs.

    How a function or a foreign module treats its ids is only known after it has run: see
    :class:`CheckedForward`.


    Args:
        model: The Hugging Face model.
        forward_func: The forward function, which runs the model.
        inputs: The inputs of the forward function.

    Raises:
        ValueError: If model or inputs have no values, or shape or number do not fit.
        TypeError: If the ids are of a type that no embedding takes.
        IndexError: If there is an id that the model has no embedding for.
    """
    check_values(model)
    for tensor in inputs:
        if tensor.is_meta:
            raise ValueError(
                'An input is on the device "meta" and has no values: give it on the device of the '
                "model."
            )
    if model_given(forward_func, model):
        _check_read(model, inputs[0])


def _check_read(model: nn.Module, x: Tensor) -> None:
    """Refuse token ids or embeddings that a model cannot read."""
    if not _reads_text(model):
        return
    choices = ["B", "choices"] if type(model).__name__.endswith("ForMultipleChoice") else ["B"]
    floating = x.is_floating_point()
    if x.ndim != len(choices) + (2 if floating else 1):
        _refuse_shape(model, x, choices)
    if not x.numel():
        raise ValueError(f"The inputs {list(x.shape)} have no token: there is nothing to explain.")
    if not floating:
        _check_ids(model, x)
    _check_positions(model, x)


def _reads_text(model: nn.Module) -> bool:
    """Whether a model's first input is token ids or their embeddings."""
    return is_pretrained(model) and getattr(model, "main_input_name", "input_ids") == "input_ids"


def _refuse_shape(model: nn.Module, x: Tensor, choices: list[str]) -> None:
    ids, embeddings = (f"[{', '.join([*choices, *more])}]" for more in (["T"], ["T", "D"]))
    way_out = ""
    if x.ndim == len(choices) and not x.is_floating_point():
        way_out = ": add the first dimension, `ids.unsqueeze(0)`"
    elif x.ndim == len(choices) + 1 and x.is_floating_point():
        way_out = ": ids are integers, `ids.long()`"
    raise ValueError(
        f"{type(model).__name__} takes token ids {ids} or embeddings {embeddings}, not "
        f"{list(x.shape)} of {x.dtype}{way_out}."
    )


def _check_ids(model: nn.Module, ids: Tensor) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"Token ids must be of torch.long, not {ids.dtype}: give `ids.long()`.")
    size = getattr(token_embedding_of(model), "num_embeddings", None)
    if size is None:
        return
    least, most = (int(each) for each in ids.aminmax())
    if least < 0 or most >= size:
        raise IndexError(
            f"The token id {least if least < 0 else most} is out of range for the {size} "
            f"embeddings of {type(model).__name__}: use the tokenizer that belongs to the model, "
            "and after adding tokens to it call `model.resize_token_embeddings(len(tokenizer))`."
        )


def _check_positions(model: nn.Module, x: Tensor) -> None:
    """Refuse more tokens than a table of positions has; other position codes have no limit."""
    limit, length = context_length(model), x.shape[-2 if x.is_floating_point() else -1]
    if limit is None or length <= limit or position_table_of(model) is None:
        return
    config: Any = model.config
    if not x.is_floating_point() and positions_after_padding(model):
        length = int((x != config.pad_token_id).sum(-1).max())
    if length > limit:
        raise ValueError(
            f"The inputs have {length} tokens, but {type(model).__name__} has positions for at "
            f"most {limit}: cut the text, as `tokenizer(text, truncation=True, "
            f"max_length={limit})` does."
        )


# Layers -------------------------------------------------------------------------------------------


def check_layers(model: nn.Module, layer: Any) -> None:
    """Check that a value is a layer or a non-empty list of layers.

    Raises:
        TypeError: If something is no module; for a path the message says how to get the module.
        ValueError: If the list is empty.
    """
    layers = layer if isinstance(layer, (list, tuple)) else [layer]
    if not layers:
        raise ValueError("The list of layers is empty: give at least one.")
    for each in layers:
        if isinstance(each, nn.Module):
            continue
        way_out = "give a module, as `model.named_modules()` lists them"
        if isinstance(each, str):
            paths = dict(model.named_modules())
            alike = [each] if each in paths else difflib.get_close_matches(each, paths, n=1)
            if alike:
                way_out = f"give `model.get_submodule({alike[0]!r})`"
        raise TypeError(f"A layer is a torch.nn.Module, not {_named(each)}: {way_out}.")


def did_not_run(model: nn.Module, layer: nn.Module) -> ValueError:
    """Error for a layer that captured nothing."""
    kind = type(layer).__name__
    cause = ""
    if isinstance(layer, (nn.ModuleList, nn.ModuleDict)):
        cause = f" A {kind} only holds layers: give them, `list(layers)`."
    elif layer not in modules_of(model):
        cause = f" It is no module of the {type(model).__name__} that is explained: of a copy?"
    return ValueError(
        f"The layer {kind} did not run in the forward pass, or has no floating-point tensor there."
        f"{cause}"
    )


# Outputs ------------------------------------------------------------------------------------------


class CheckedForward(RecordedForward):
    """A forward function whose output is checked immediately.

    If the model cannot run, the cause is diagnosed afterwards, where it is known: see
    :func:`check_inputs`.

    Args:
        forward_func: The forward function.
        model: The Hugging Face model that it runs.
        targets: Targets within the output; None if the output does not matter.
        around: See :class:`RecordedForward`.

    A call raises a TypeError if the output is no tensor, a ValueError if it has no gradient or no
    row for each example, and an AssertionError or IndexError if a target does not fit.
    """

    def __init__(
        self,
        forward_func: Callable[..., Any],
        model: nn.Module,
        targets: Sequence[TargetType] | None = None,
        around: Callable[[Callable[[], Any]], Any] | None = None,
    ) -> None:
        super().__init__(forward_func, around)
        self.model = model
        self.targets = targets

    def _logits(self, *args: Any) -> Any:
        """Run the forward function and check its output."""
        try:
            output = super()._logits(*args)
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            self._explain(error, args)
            raise
        if self.targets is not None:
            _check_output(self.forward_func, output)
            for target in self.targets:
                check_target(output, target)
        return output

    def _explain(self, error: Exception, args: tuple[Any, ...]) -> None:
        """Raise a clearer error for a failed run of the model, if the cause is found."""
        tensors = [each for each in args if isinstance(each, Tensor)]
        if not tensors:
            return
        config: Any = getattr(self.model, "config", None)
        if (
            type(self.model).__name__.endswith("ForSequenceClassification")
            and len(tensors[0]) > 1
            and getattr(config, "pad_token_id", None) is None
            and isinstance(error, ValueError)
        ):
            raise ValueError(
                f"{type(self.model).__name__} finds the end of each row of a batch by its padding "
                "token, and has none: set `model.config.pad_token_id = tokenizer.pad_token_id` "
                "(and `tokenizer.pad_token = tokenizer.eos_token`, if the tokenizer has none "
                "either), or explain one row at a time."
            ) from error
        if not model_given(self.forward_func, self.model):
            try:
                _check_read(self.model, tensors[0])
            except (IndexError, TypeError, ValueError) as cause:
                raise cause from error


def _check_output(forward_func: Callable[..., Any], output: Any) -> None:
    """Check that an output is a tensor ``[B, ...]`` with a gradient."""
    if not isinstance(output, Tensor):
        raise TypeError(_not_a_tensor(forward_func, output))
    if not output.ndim:
        raise ValueError(
            "The forward function returns one number for the whole batch (a loss?): return a "
            "tensor with a row for each example, [B] or [B, ...]."
        )
    if not output.requires_grad:
        cause = (
            "It runs the model under torch.no_grad, or returns a detached tensor."
            if output.is_floating_point()
            else f"It is of {output.dtype}, and argmax and comparisons have no gradient."
        )
        raise ValueError(
            f"The explained value {NO_GRADIENT}: the forward function "
            f"returns nothing that has a gradient. {cause} Return the model's own logits, "
            "without `torch.no_grad()`, `.detach()` and `.argmax()`."
        )


def _not_a_tensor(forward_func: Callable[..., Any], output: Any) -> str:
    kind = type(output).__name__
    if output is None:
        return "The forward function returns None, not a tensor: is a `return` missing?"
    if isinstance(output, (tuple, list)):
        return f"The forward function returns a {kind}, not a tensor: return one element of it."
    if not isinstance(output, Mapping):
        return f"The forward function returns {_named(output)}, not a tensor of logits [B, ...]."
    fields = [name for name, value in output.items() if isinstance(value, Tensor)]
    if "logits" in fields:
        return f"The forward function returns a {kind}, not a tensor: return its `['logits']`."
    which = [name for name in fields if "logits" in name] or fields or ["..."]
    who = type(forward_func).__name__ if isinstance(forward_func, nn.Module) else "The function"
    head = "" if "logits" in which[0] else ", or load the model with a head (AutoModelFor...)"
    return (
        f"{who} returns {kind}, which has no `logits` but {', '.join(fields)}: explain one of them "
        f"by a forward function, `LRPx(lambda ids: model(ids).{which[0]}, model=model)`{head}."
    )
