"""What a call costs beside the model's arithmetic: models so narrow that only Python counts.

    OMP_NUM_THREADS=1 python benchmarks/fixed_cost.py [--repetitions 25] [--tokens 8]

16 layers of width 32, 8 tokens, process time, warm, as a ratio to Captum's InputXGradient on the
same forward module. "by hand" are rules written into the forward functions of the modules of one
model, without a dispatcher or a check: the floor of what rules on modules could cost. Its
relevances are compared with those of the package.
"""

from __future__ import annotations

import argparse
import copy
from typing import TYPE_CHECKING, Any

import torch
import transformers
from captum.attr import InputXGradient
from harness import interleaved, machine
from torch import Tensor, nn

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, TokenLogits

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 16, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "bert": {
        "hidden_size": 32,
        "num_hidden_layers": 16,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    },
}
CLASSES = {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel", "bert": "BertForMaskedLM"}


def build(shape: str) -> Any:
    """A model with random weights."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(shape, vocab_size=256, **SIZES[shape])
    return getattr(transformers, CLASSES[shape])(config).eval()


# By hand ------------------------------------------------------------------------------------------


def by_hand(model: Any, *, uniform: bool) -> Any:
    """A copy of a model with the rules of AttnLRP (``uniform``) or LRP in its own functions."""
    model = copy.deepcopy(model).requires_grad_(requires_grad=False)
    for module in model.modules():
        kind = type(module).__name__
        if kind == "LlamaRMSNorm":
            module.forward = _rms_norm(module)
        elif isinstance(module, nn.LayerNorm):
            module.forward = _layer_norm(module)
        elif kind in ("GELUActivation", "NewGELUActivation"):
            module.forward = _secant(module.forward)
        elif kind == "LlamaMLP":
            module.forward = _gated(module, uniform=uniform)
        elif kind in ("LlamaAttention", "BertSelfAttention"):
            _scale_projections(module, uniform=uniform)
        elif kind == "GPT2Attention":
            width = module.embed_dim
            shares = [0.25, 0.25, 0.5] if uniform else [0.0, 0.0, 1.0]
            factors = torch.tensor(shares).repeat_interleave(width)
            module.c_attn.forward = _scaled(module.c_attn.forward, factors)
    return model


def _rms_norm(norm: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.detach().pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        return norm.weight * (x * scale)

    return forward


def _layer_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        variance = centered.detach().pow(2).mean(-1, keepdim=True)
        return centered * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias

    return forward


def _secant(own: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(z: Tensor) -> Tensor:
        value = z.detach()
        return z * (own(value) / value)

    return forward


def _gated(mlp: Any, *, uniform: bool) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        if not uniform:
            gate = mlp.act_fn(mlp.gate_proj(x.detach()))
            return mlp.down_proj(gate * mlp.up_proj(x))
        z = mlp.gate_proj(x)
        value = z.detach()
        product = z * (mlp.act_fn(value) / value) * mlp.up_proj(x)
        product.register_hook(lambda gradient: gradient * 0.5)
        return mlp.down_proj(product)

    return forward


def _scale_projections(attention: Any, *, uniform: bool) -> None:
    names = (
        ("q_proj", "k_proj", "v_proj")
        if hasattr(attention, "q_proj")
        else ("query", "key", "value")
    )
    for name, share in zip(names, (0.25, 0.25, 0.5) if uniform else (0.0, 0.0, 1.0), strict=True):
        layer = getattr(attention, name)
        if share == 0:
            layer.forward = torch.no_grad()(layer.forward)
        elif share != 1:
            layer.forward = _scaled(layer.forward, share)


def _scaled(own: Callable[[Tensor], Tensor], factor: float | Tensor) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        output = own(x)
        output.register_hook(lambda gradient: gradient * factor)
        return output

    return forward


# Measuring ----------------------------------------------------------------------------------------


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ["AttnLRPx", "LRPx", "ALTILogit", "AttnLRP by hand", "LRP by hand"]
    print(f"{machine()}, {options.repetitions} repetitions, process time\n")
    print(f"| | {' | '.join(names)} |\n|---|{'---:|' * len(names)}")
    for shape in SIZES:
        contenders, check = runs(shape, options.tokens)
        check()
        times = interleaved(contenders, options.repetitions, shape, "cpu")
        base = times["InputXGradient"]
        cells = (
            f"{times[name].ratio(base):.2f} ± {times[name].spread(base):.2f}" for name in names
        )
        print(f"| {shape} | {' | '.join(cells)} |", flush=True)


def runs(shape: str, tokens: int) -> tuple[dict[str, Callable[[], object]], Callable[[], None]]:
    """What is timed, and a check that both ways find the same."""
    model = build(shape)
    ids = torch.randint(5, 250, (1, tokens), generator=torch.Generator().manual_seed(0))
    embeds = model.get_input_embeddings()(ids).detach()
    arguments: dict[str, Any] = {"target": 7, "additional_forward_args": (None, tokens - 1)}
    forward = TokenLogits(model)
    ours = {"AttnLRPx": AttnLRPx(forward), "LRPx": LRPx(forward), "ALTILogit": ALTILogit(forward)}
    hands = {
        f"{name} by hand": InputXGradient(TokenLogits(by_hand(model, uniform=name == "AttnLRP")))
        for name in ("AttnLRP", "LRP")
    }

    def leaf() -> Tensor:
        return embeds.clone().requires_grad_()

    contenders: dict[str, Callable[[], object]] = {
        "InputXGradient": lambda: InputXGradient(forward).attribute(leaf(), **arguments)
    }
    for name, method in ours.items():
        contenders[name] = lambda method=method: method.attribute(embeds, **arguments)  # type: ignore[misc]
    for name, hand in hands.items():
        contenders[name] = lambda hand=hand: hand.attribute(leaf(), **arguments)  # type: ignore[misc]

    def check() -> None:
        for name, hand in hands.items():
            found = ours[f"{name.split()[0]}x"].attribute(embeds, **arguments)
            torch.testing.assert_close(
                hand.attribute(leaf(), **arguments), found, rtol=1e-3, atol=1e-5
            )

    return contenders, check


if __name__ == "__main__":
    main()
