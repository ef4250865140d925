"""What operations without modules cost: Mixtral and Gemma 2 shapes beside the same shape with none.

    OMP_NUM_THREADS=1 python benchmarks/inline_operations.py [--width 32 576] [--tokens 32 128]

Each figure is the time of an attribution as a ratio to Captum's InputXGradient on the same model.
``plain`` is a Llama of that shape; ``plain, fast=False`` is the same with nothing left out of its
backward pass. ``mixtral`` has experts and a router,
``gemma2`` soft caps, sandwich norms and scaled embeddings.
"""

from __future__ import annotations

import argparse
import itertools
from typing import TYPE_CHECKING, Any

import torch
import transformers
from captum.attr import InputXGradient
from harness import Clock, interleaved, machine

from captum_lrpx import AttnLRPx, LRPx, TokenLogits

if TYPE_CHECKING:
    from collections.abc import Callable

METHODS: dict[str, type[LRPx]] = {"LRPx": LRPx, "AttnLRPx": AttnLRPx}


def sizes(width: int) -> dict[str, Any]:
    """The fields of a config that the shapes have in common."""
    return {
        "vocab_size": 8192,
        "hidden_size": width,
        "num_hidden_layers": 12,
        "num_attention_heads": max(1, width // 64),
        "num_key_value_heads": max(1, width // 192),
        "head_dim": 64 if width >= 64 else 8,
    }


def plain(width: int) -> Any:
    """A Llama."""
    config = transformers.LlamaConfig(intermediate_size=width * 8 // 3, **sizes(width))
    return transformers.LlamaForCausalLM(config)


def mixtral(width: int) -> Any:
    """Eight experts of half the size, two of which take each token."""
    inner = width * 4 // 3 // 8 * 8  # grouped products want rows of full vectors
    config = transformers.MixtralConfig(
        intermediate_size=inner, num_local_experts=8, num_experts_per_tok=2, **sizes(width)
    )
    return transformers.MixtralForCausalLM(config)


def gemma2(width: int) -> Any:
    """Soft caps on scores and logits, four norms a block."""
    config = transformers.Gemma2Config(intermediate_size=width * 8 // 3, **sizes(width))
    return transformers.Gemma2ForCausalLM(config)


SHAPES: dict[str, Callable[[int], Any]] = {"plain": plain, "mixtral": mixtral, "gemma2": gemma2}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", nargs="+", type=int, default=[32, 576])
    parser.add_argument("--tokens", nargs="+", type=int, default=[32, 128])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\n{options.clock} time\n")
    print("| shape | width | tokens | LRPx | AttnLRPx |\n|---|---:|---:|---:|---:|")
    for width, (name, make) in itertools.product(options.width, SHAPES.items()):
        torch.manual_seed(0)
        model = make(width).eval()
        for tokens in options.tokens:
            ways = {name: True, f"{name}, fast=False": False} if name == "plain" else {name: True}
            for label, fast in ways.items():
                row(model, label, tokens, options.repetitions, options.clock, fast=fast)


def row(model: Any, label: str, tokens: int, repetitions: int, clock: Clock, *, fast: bool) -> None:
    """Measure one shape and print its row."""
    ids = torch.randint(5, 8000, (1, tokens), generator=torch.Generator().manual_seed(0))
    embeds = model.get_input_embeddings()(ids).detach()
    arguments = (None, tokens - 1)

    def gradient() -> object:
        forward = InputXGradient(lambda x: model(inputs_embeds=x).logits[:, -1])
        return forward.attribute(embeds.requires_grad_(), target=7)

    contenders: dict[str, Callable[[], object]] = {"InputXGradient": gradient}
    for method, kind in METHODS.items():
        attribution = kind(TokenLogits(model), fast=fast)
        contenders[method] = lambda a=attribution: a.attribute(  # type: ignore[misc]
            embeds.detach(), target=7, additional_forward_args=arguments
        )
    times = interleaved(contenders, repetitions, f"{label} {tokens}", clock)
    base = times["InputXGradient"]
    cells = [
        f"{times[method].ratio(base):.2f} ± {times[method].spread(base):.2f}" for method in METHODS
    ]
    print(f"| {label} | {model.config.hidden_size} | {tokens} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
