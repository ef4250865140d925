"""ALTI-Logit as the published algorithm is written down, for GPT-2: altilogit.py's yardstick.

Ferrando et al. 2023 (https://arxiv.org/abs/2305.12535): a forward pass for the prediction and a
second one that returns attention weights and hidden states; then, in each layer, the transformed
vector of each head, query and token ``[H, T, T, D]``, their projection on the direction of the
logit, the ALTI matrix from the distances to the layer's output, and the product of all matrices
below. Nothing is recomputed, and no vector goes through a ``[D, D]`` product more than once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["StraightforwardALTILogit"]


class StraightforwardALTILogit:
    """Token contributions to a logit at the last position, one text at a time.

    Attributes:
        model: ``GPT2LMHeadModel`` with eager attention, which returns its weights.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def attribute(self, ids: Tensor, token: int) -> Tensor:
        """Contributions of the tokens to the logit of ``token``.

        Args:
            ids: ``[1, T]``.
            token: Id of the explained token.

        Returns:
            ``[T]``, the start term included.
        """
        transformer = self.model.transformer
        self.model(ids, use_cache=False, logits_to_keep=1)
        hidden, middles, attentions, last = self._collect(ids)
        direction = self._direction(last[-1], token)
        tokens = ids.shape[1]
        below = torch.eye(tokens)
        total = torch.zeros(tokens)
        for block, x, y, weights in zip(transformer.h, hidden, middles, attentions, strict=True):
            vectors = self._transformed(block.attn, block.ln_1(x), weights)  # [T, T, D]
            total += (vectors[-1] @ direction) @ below
            own = torch.arange(tokens)
            vectors[own, own] += x
            distance = (vectors - y.unsqueeze(1)).abs().sum(-1)
            mass = (y.abs().sum(-1, keepdim=True) - distance).clamp(min=0)
            below = mass / mass.sum(-1, keepdim=True) @ below
        total[-1] += hidden[0][-1] @ direction
        return total

    def _collect(self, ids: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor], Tensor]:
        """The second pass: residual stream before, between and behind the branches, attention."""
        middles: list[Tensor] = []
        final: list[Tensor] = []
        transformer = self.model.transformer

        def keep(store: list[Tensor]) -> Any:
            def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
                store.append(args[0][0])

            return hook

        hooks = [block.ln_2.register_forward_pre_hook(keep(middles)) for block in transformer.h]
        hooks.append(transformer.ln_f.register_forward_pre_hook(keep(final)))
        try:
            output = transformer(
                ids, use_cache=False, output_attentions=True, output_hidden_states=True
            )
        finally:
            for hook in hooks:
                hook.remove()
        hidden = [state[0] for state in output.hidden_states[: len(transformer.h)]]
        return hidden, middles, [weights[0] for weights in output.attentions], final[0]

    def _direction(self, last: Tensor, token: int) -> Tensor:
        """The final norm with frozen scale, applied to the row of the unembedding ``[D]``."""
        norm = self.model.transformer.ln_f
        row = norm.weight * self.model.lm_head.weight[token]
        scale = torch.rsqrt(last.var(unbiased=False) + norm.eps)
        return (row - row.mean()) * scale

    def _transformed(self, attention: Any, x: Tensor, weights: Tensor) -> Tensor:
        """Transformed vectors of the layer ``[T, T, D]``, summed over those of its heads."""
        heads, tokens, _ = weights.shape
        hidden = x.shape[-1]
        values = attention.c_attn(x)[:, 2 * hidden :].view(tokens, heads, -1).transpose(0, 1)
        output_weight = attention.c_proj.weight.view(heads, -1, hidden)
        sent = values @ output_weight  # [H, T, D]
        per_head = weights.unsqueeze(-1) * sent.unsqueeze(1)  # [H, T, T, D]
        return per_head.sum(0)
