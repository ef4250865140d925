"""Reads a model: its states, the explained position, and rows of its output matrix."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx.architectures import needs_position_ids
from captum_lrpx.models import find_model
from captum_lrpx.onlookers import is_plain
from captum_lrpx.structure import position_table_of, positions_after_padding
from captum_lrpx.targets.chain import chain_to_logits, head_of
from captum_lrpx.targets.task import task_of
from captum_lrpx.wrappers import called_module, has_virtual_tokens, is_untouched, unwrapped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager


def last_token(attention_mask: Tensor) -> Tensor:
    """Position of the last real token of each row, for padding on either side.

    Args:
        attention_mask: ``[B, T]``, 1 for real tokens and 0 for padding.

    Returns:
        ``[B]`` positions.

    Raises:
        ValueError: If a row has no real token.
    """
    real = attention_mask != 0
    if not bool(real.any(-1).all()):
        raise ValueError("A row of the attention mask has no real token, so there is no last one.")
    positions = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
    return torch.where(real, positions, -1).amax(-1)


class LanguageModelHead:
    """A language model in two steps: the states at each position, then their logits.

    The expensive part of the head is the product with the output matrix, one row per
    token of the vocabulary. Between the two steps a caller chooses the positions that it needs, and
    in the second step the tokens. If a model, or a module around it, may do something else to
    its logits, the first step is the whole model.

    Args:
        model: A Hugging Face model with logits per position, or a module around one.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = None if getattr(_reading, "whole", False) else unwrapped(model)
        self.model = model if inner is None else inner
        self.chain = () if inner is None else chain_to_logits(inner)

    def states(self, x: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Run the model as far as its head.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            mask: ``[B, T]`` or None.
            types: Token types ``[B, T]`` or None.

        Returns:
            The last hidden states ``[B, T, D]``; the logits ``[B, T, V]`` if the head is no chain
            of modules, or for a module around a model.

        Raises:
            ValueError: If a module around the model has no logits for each token.
        """

        def run() -> Tensor:
            if not self.chain:
                output = run_model(self.model, self.model, x, mask, types)
                return _of_given_tokens(self.model, output, x)
            base = getattr(self.model, str(type(self.model).base_model_prefix))  # type: ignore[attr-defined]
            hidden: Tensor = run_model(self.model, base, x, mask, types).last_hidden_state
            return hidden

        return _once(run, self.model, x, mask, types)

    def logits(self, states: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Run the head at chosen positions.

        Args:
            states: ``[..., D]``, a selection of the result of :meth:`states`.
            tokens: Ids ``[..., K]`` of the tokens needed; all by default.

        Returns:
            ``[..., K]``, or ``[..., V]``.

        Raises:
            IndexError: If a token id is out of range.
        """
        if not self.chain:
            return states if tokens is None else _chosen(states, tokens)
        for module in self.chain[:-1]:
            states = module(states)
        return _output_rows(self.chain[-1], states, tokens)


class ModelForward(nn.Module):
    """Base class of forward modules of a Hugging Face model, or of a module that contains one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class HeadForward(ModelForward):
    """Base class of forward modules that read logits at chosen positions."""

    def positions(
        self, x: Tensor, mask: Tensor | None, position: int | Tensor | None, count: int = 1
    ) -> Tensor:
        """Positions to read, ``[B, 1]`` or ``[B, count]``.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            mask: ``[B, T]`` or None.
            position: Index, one per row ``[B]``, or ``count`` per row ``[B, count]``; None for the
                last real token.
            count: Number of tokens that may have separate positions.

        Raises:
            ValueError: If shapes do not fit, or a masked model gets no position.
            IndexError: If a position is out of range.
        """
        if x.ndim != 3 and (x.is_floating_point() or x.ndim != 2):
            raise ValueError(
                f"Inputs must be token ids [B, T] or embeddings [B, T, D], not {tuple(x.shape)}."
            )
        rows, length = x.shape[:2]
        if position is None:
            if task_of(self.model) == "masked-lm":
                raise ValueError(
                    "A masked language model predicts at its mask token: give `position`, an index "
                    "or a tensor with one index per row."
                )
            mask = torch.ones(rows, length, device=x.device) if mask is None else mask
            return last_token(mask).unsqueeze(1)
        at = torch.as_tensor(position, device=x.device)
        shape = tuple(at.shape)
        single = at.ndim == 0 or shape in ((1,), (rows,))
        several = count > 1 and shape in ((1, count), (rows, count))
        if at.is_floating_point() or not (single or several or shape in ((1, 1), (rows, 1))):
            raise ValueError(
                f"`position` must be an integer or an integer tensor of shape [{rows}] (one per "
                f"row), not {position!r}."
            )
        if bool(((at < -length) | (at >= length)).any()):
            raise IndexError(f"position {position} is out of range for inputs of {length} tokens.")
        at = at % length
        return at.reshape(-1, 1).expand(rows, 1) if at.ndim < 2 else at.expand(rows, -1)

    def logits(
        self,
        x: Tensor,
        mask: Tensor | None,
        at: Tensor,
        tokens: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """Compute logits at positions ``[B, P]``.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            mask: ``[B, T]`` or None.
            at: Positions ``[B, P]``.
            tokens: Ids ``[B, P, K]`` of the tokens needed; all by default.
            types: Token types ``[B, T]`` or None.

        Returns:
            ``[B, P, V]``, or ``[B, P, K]`` of the tokens ``[B, P, K]``.
        """
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        head = LanguageModelHead(self.model)
        if not head.chain and _keeps_positions(head.model, at):

            def run() -> Tensor:
                output = run_model(head.model, head.model, x, mask, types, logits_to_keep=at[0])
                return output_of(output, "logits")

            kept = _once(run, head.model, x, mask, types, at)
            return kept if tokens is None else _chosen(kept, tokens)
        states = head.states(x, mask, types)[rows, at].flatten(0, 1)
        logits = head.logits(states, None if tokens is None else tokens.flatten(0, 1))
        return logits.view(*at.shape, -1)


def _keeps_positions(model: nn.Module, at: Tensor) -> bool:
    """Whether a model can compute logits at chosen positions, and all rows choose the same."""
    if getattr(_reading, "whole", False) or unwrapped(model) is not model:
        return False
    if not all(map(is_untouched, head_of(model))):
        return False
    accepted = inspect.signature(model.forward).parameters
    return "logits_to_keep" in accepted and bool((at == at[0]).all())


_reading = threading.local()


@contextmanager
def read_whole() -> Iterator[None]:
    """Let forward modules read the outputs of the given object itself.

    Within the ``with`` block no wrapper is skipped and no step of a head is left out.
    """
    before = getattr(_reading, "whole", False)
    _reading.whole = True
    try:
        yield
    finally:
        _reading.whole = before


class ReadOnce:
    """Caches a model's results by input, within ``with`` blocks.

    Results have no graph: the blocks are for values, not for explanations.

    Args:
        around: Returns a context in which the model runs.
    """

    def __init__(self, around: Callable[[], AbstractContextManager[object]]) -> None:
        self._around = around
        self._found: list[tuple[tuple[object, ...], Tensor]] = []

    def __enter__(self) -> None:
        """Start caching."""
        _reading.once = self

    def __exit__(self, *_: object) -> None:
        """Stop caching."""
        _reading.once = None

    def result(self, run: Callable[[], Tensor], given: tuple[object, ...]) -> Tensor:
        """Cached result of a function, which runs if its arguments are new."""
        for known, found in self._found:
            if len(known) == len(given) and all(map(_is_same, known, given)):
                return found
        with self._around():
            found = run().detach()
        self._found.append((given, found))
        return found


def _once(run: Callable[[], Tensor], *given: object) -> Tensor:
    once: ReadOnce | None = getattr(_reading, "once", None)
    whole = getattr(_reading, "whole", False)
    return run() if once is None or whole else once.result(run, given)


def _is_same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
    return one is other


def run_model(
    model: nn.Module,
    module: nn.Module,
    x: Tensor,
    mask: Tensor | None,
    types: Tensor | None = None,
    **keywords: Any,
) -> Any:
    """Run a Hugging Face model, or its base, on ids or embeddings; a mask sets the positions.

    Args:
        model: The model, or a module around it.
        module: The model, or the part of it to run.
        x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
        mask: ``[B, T]`` or None.
        types: Token types ``[B, T]`` or None.
        **keywords: Other arguments of the module.

    Returns:
        The model output.

    Raises:
        ValueError: If a module around the model takes no mask, and there is padding.
    """
    if types is not None:
        keywords["token_type_ids"] = types
    accepted = inspect.signature(called_module(module).forward).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in accepted.values())
    args = _place_input(x, accepted, keywords, takes_any=takes_any)
    if mask is not None:
        if "attention_mask" in accepted or takes_any:
            keywords["attention_mask"] = mask
        elif not bool(mask.all()):
            raise ValueError(
                f"{type(module).__name__} takes no `attention_mask`, and so would read the "
                "padding: let its forward pass one on, or explain one row at a time."
            )
        by_argument = _counts_by_argument(find_model(model))
        counted = "position_ids" in accepted or takes_any
        if by_argument and counted and not bool(mask[:, 0].all()):
            keywords["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        keywords["use_cache"] = False
    return module(*args, **keywords)


def _counts_by_argument(model: nn.Module) -> bool:
    """Whether padding on the left requires explicit positions."""
    declared = needs_position_ids(getattr(getattr(model, "config", None), "model_type", ""))
    if declared is not None:
        return declared
    counts = task_of(model) == "causal-lm" or position_table_of(model) is not None
    return counts and not positions_after_padding(model)


def _place_input(
    x: Tensor,
    accepted: Mapping[str, inspect.Parameter],
    keywords: dict[str, Any],
    *,
    takes_any: bool,
) -> tuple[Any, ...]:
    """Pass ids or embeddings by name, if a module accepts it; else by position."""
    name = "inputs_embeds" if x.is_floating_point() else "input_ids"
    first = next(iter(accepted.values()), None)
    if name not in accepted and not (takes_any and (x.is_floating_point() or first is None)):
        return (x,)
    keywords[name] = x
    if first is None or first.name == name or first.kind is not first.POSITIONAL_OR_KEYWORD:
        return ()
    return (None,) if first.default is first.empty else ()


def output_of(output: Any, name: str) -> Tensor:
    """Extract logits from the output of a model, or of a module around it.

    Args:
        output: Output of the module: a tensor, or an object with the logits under a name.
        name: Its name.

    Raises:
        ValueError: If there is none.
    """
    found = output
    if not isinstance(output, Tensor):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    elif name != "logits":
        found = None
    if not isinstance(found, Tensor):
        raise ValueError(  # noqa: TRY004 - the output is wrong for this question
            f"The module around the model returned {type(output).__name__} without `{name}`, so it "
            f"is unknown what to explain: let it return its {name}, or give LRPx a forward "
            "function of your own."
        )
    return found


def _of_given_tokens(module: nn.Module, output: Any, x: Tensor) -> Tensor:
    """Logits ``[B, T, V]`` at the tokens given to a module."""
    logits = output_of(output, "logits")
    if logits.ndim == 3 and has_virtual_tokens(module):
        logits = logits[:, logits.shape[1] - x.shape[1] :]  # PEFT prepends virtual tokens
    if logits.ndim != 3 or logits.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"{type(module).__name__} returned logits of the shape {tuple(logits.shape)} for "
            f"{tuple(x.shape[:2])} tokens, so it is unknown which of them belong to which token: "
            "give LRPx a forward function of your own that returns the explained values."
        )
    return logits


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    size = logits.shape[-1]
    if bool(((tokens < 0) | (tokens >= size)).any()):
        raise IndexError(f"A token id is out of range for {size} outputs: {tokens.tolist()}.")
    return logits.gather(-1, tokens)


def _output_rows(output: nn.Module, hidden: Tensor, tokens: Tensor | None) -> Tensor:
    """Logits ``[..., V]`` from states ``[..., D]``, or ``[..., K]`` of given tokens."""
    if tokens is None or type(output) is not nn.Linear or not is_plain(output):
        logits: Tensor = output(hidden)
        return logits if tokens is None else _chosen(logits, tokens)
    weight = F.embedding(tokens, output.weight)  # [..., K, D]; refuses unknown ids
    rows = torch.matmul(weight, hidden.unsqueeze(-1)).squeeze(-1)
    return rows if output.bias is None else rows + output.bias[tokens]
