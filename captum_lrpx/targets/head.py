"""Reading a model: its states, the position that is explained, the rows of its output matrix."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx.binding import architecture_of, find_model
from captum_lrpx.narrowing import only_positions
from captum_lrpx.propagation import is_plain, sites_of
from captum_lrpx.targets.task import task_of

__all__ = ["HeadForward", "LanguageModelHead", "ModelForward", "last_token"]


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
    """The way from what a model computes at each position to its logits, in two steps.

    The expensive part of a language model's head is the product with the output matrix, one row per
    token of the vocabulary. Between the two steps a caller chooses the positions that it needs, and
    in the second one the tokens.

    Args:
        model: A Hugging Face model with logits per position.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.chain = sites_of(model).language_model_head

    def states(self, x: Tensor, mask: Tensor | None = None, types: Tensor | None = None) -> Tensor:
        """Run the model as far as its head.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            mask: ``[B, T]`` or None.
            types: Token types ``[B, T]`` or None.

        Returns:
            The last hidden states ``[B, T, D]``; the logits ``[B, T, V]`` of a model with a head
            that the declaration of its architecture does not spell out.
        """
        extra = {} if types is None else {"token_type_ids": types}
        if not self.chain:
            logits: Tensor = run_model(self.model, self.model, x, mask, **extra).logits
            return logits
        base = getattr(self.model, str(type(self.model).base_model_prefix))  # type: ignore[attr-defined]
        hidden: Tensor = run_model(self.model, base, x, mask, **extra).last_hidden_state
        return hidden

    def logits(self, states: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Run the head at chosen positions.

        Args:
            states: ``[..., D]``, some of what :meth:`states` gave.
            tokens: Ids ``[..., K]`` of the tokens that are needed; all if not given.

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
    """A forward module around one Hugging Face model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def hugging_face(self) -> nn.Module:
        """The Hugging Face model, looked up anew because it may have got a wrapper meanwhile."""
        return find_model(self.model)


class HeadForward(ModelForward):
    """A forward module that reads logits at chosen positions."""

    def positions(
        self, x: Tensor, mask: Tensor | None, position: int | Tensor | None, count: int = 1
    ) -> Tensor:
        """The positions to read, ``[B, 1]`` or ``[B, count]``.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            mask: ``[B, T]`` or None.
            position: Index, one per row ``[B]``, or ``count`` per row ``[B, count]``; None for the
                last real token.
            count: Number of tokens that may have a position of their own.

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
            if task_of(self.hugging_face()) == "masked-lm":
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
        """Logits at positions ``[B, P]``.

        Args:
            x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
            mask: ``[B, T]`` or None.
            at: Positions ``[B, P]``.
            tokens: Ids ``[B, P, K]`` of the tokens that are needed; all if not given.
            types: Token types ``[B, T]`` or None.

        Returns:
            ``[B, P, V]``, or ``[B, P, K]`` of the tokens ``[B, P, K]``.
        """
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        head = LanguageModelHead(self.hugging_face())
        with only_positions(head.model, at, x.shape[1]) if head.chain else nullcontext():
            states = head.states(x, mask, types)[rows, at].flatten(0, 1)
        logits = head.logits(states, None if tokens is None else tokens.flatten(0, 1))
        return logits.view(*at.shape, -1)


def run_model(
    model: nn.Module, module: nn.Module, x: Tensor, mask: Tensor | None, **keywords: Any
) -> Any:
    """Run a Hugging Face model, or its base, on ids or embeddings, with the positions of a mask.

    Args:
        model: The model.
        module: The model, or the part of it to run.
        x: Token ids ``[B, T]`` or embeddings ``[B, T, D]``.
        mask: ``[B, T]`` or None.
        **keywords: Other arguments of the module.

    Returns:
        The model output.
    """
    accepted = inspect.signature(module.forward).parameters
    keywords["inputs_embeds" if x.is_floating_point() else "input_ids"] = x
    if mask is not None:
        keywords["attention_mask"] = mask
        by_argument = architecture_of(model).position_ids
        if by_argument and "position_ids" in accepted and not bool(mask[:, 0].all()):
            keywords["position_ids"] = (mask.long().cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in accepted:
        keywords["use_cache"] = False
    return module(**keywords)


def _chosen(logits: Tensor, tokens: Tensor) -> Tensor:
    size = logits.shape[-1]
    if bool(((tokens < 0) | (tokens >= size)).any()):
        raise IndexError(f"A token id is out of range for {size} outputs: {tokens.tolist()}.")
    return logits.gather(-1, tokens)


def _output_rows(output: nn.Module, hidden: Tensor, tokens: Tensor | None) -> Tensor:
    """Logits ``[..., V]``, or those ``[..., K]`` of the tokens ``[..., K]``, from ``[..., D]``."""
    if tokens is None or type(output) is not nn.Linear or not is_plain(output):
        logits: Tensor = output(hidden)
        return logits if tokens is None else _chosen(logits, tokens)
    weight = F.embedding(tokens, output.weight)  # [..., K, D]; refuses ids that do not exist
    rows = torch.matmul(weight, hidden.unsqueeze(-1)).squeeze(-1)
    return rows if output.bias is None else rows + output.bias[tokens]
