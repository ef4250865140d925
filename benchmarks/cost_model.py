"""Cost on paper: floating-point operations and bytes, from the configuration of a model.

    python benchmarks/cost_model.py [--ratios | --large | --spread] [--peak 400] [--link 450]

``--ratios`` prints what the time of ``LRPx`` and ``AttnLRPx`` with a target is expected to be,
relative to InputXGradient, on the three shapes that are measured. ``--large`` prints operations,
memory and seconds for models of 1B, 8B and 70B parameters at 1k to 128k tokens, at ``--peak``
TFLOP/s. ``--spread`` prints what each of 8 devices has to do for 70B, whose links move ``--link``
GB/s in each direction. Without any all are printed.

Counted are multiply-adds (two operations each) of matrix products; what is element by element is
left out. A linear layer costs as much backward, towards its input, as forward. Attention is counted
in units of ``T^2 d`` per block: 2 forward, 5 backward through a fused kernel, 2 backward where the
weights are constant (they are computed once more). A causal kernel skips half of it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import transformers
from shapes import MEASURED, SHAPES

from captum_lrpx import ATTN_LRP, LRP
from captum_lrpx.memory import estimate

if TYPE_CHECKING:
    from captum_lrpx.recipes import Recipe

SIZES = ((1, 32), (1, 128), (8, 32), (1, 512))
LENGTHS = (1024, 8192, 32768, 131072)
DEVICES = 8
ALL_REDUCES = {"LRPx": 4, "AttnLRPx": 7}
"""Of a block: two forward; backward one at each layer whose input gets a gradient."""
FORWARD, FUSED_BACKWARD, CONSTANT_BACKWARD = 2.0, 5.0, 2.0


@dataclass(frozen=True)
class Shape:
    """The sizes that operations depend on.

    Attributes:
        blocks: Number of blocks.
        hidden: Width of the residual stream.
        queries: Number of query features.
        keys: Number of key features, that of the value features too.
        wide: Width of the MLP.
        gated: Whether the MLP is a gated one.
        vocabulary: Number of logits per position.
        transform: Features of a layer between the last block and the output matrix, or 0.
    """

    blocks: int
    hidden: int
    queries: int
    keys: int
    wide: int
    gated: bool
    vocabulary: int
    transform: int = 0

    @property
    def linear(self) -> float:
        """Multiply-adds of the linear layers of a block, per token."""
        mlp = (3 if self.gated else 2) * self.wide
        return self.hidden * (2 * self.queries + 2 * self.keys + mlp)

    @property
    def key_value(self) -> float:
        """Those of the key and value projections, which the last block needs everywhere."""
        return 2.0 * self.hidden * self.keys

    @property
    def constant_under_lrp(self) -> float:
        """Those without a backward pass under LRP: query, key and gate."""
        return self.hidden * (self.queries + self.keys + (self.wide if self.gated else 0))

    def head(self, positions: float) -> float:
        """Multiply-adds of the output matrix."""
        return positions * self.hidden * (self.vocabulary + self.transform)


def shape_of(config: Any) -> Shape:
    """Read the sizes of a BERT, GPT-2 or Llama configuration."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    size = getattr(config, "head_dim", None) or hidden // heads
    llama = config.model_type == "llama"
    return Shape(
        blocks=config.num_hidden_layers,
        hidden=hidden,
        queries=heads * size,
        keys=(config.num_key_value_heads if llama else heads) * size,
        wide=config.intermediate_size if config.model_type != "gpt2" else 4 * hidden,
        gated=llama,
        vocabulary=config.vocab_size,
        transform=hidden if config.model_type == "bert" else 0,
    )


def input_x_gradient(shape: Shape, batch: int, length: int, causal: float) -> float:
    """Multiply-adds of forward and backward pass with logits of all positions."""
    tokens = batch * length
    square = causal * batch * length**2 * shape.queries
    blocks = 2 * tokens * shape.linear + (FORWARD + FUSED_BACKWARD) * square
    return shape.blocks * blocks + 2 * shape.head(tokens)


def explanation(shape: Shape, batch: int, length: int, causal: float, *, lrp: bool) -> float:
    """Multiply-adds of ``LRPx`` or ``AttnLRPx`` with one explained position per row."""
    tokens, square = batch * length, causal * batch * length**2 * shape.queries
    skipped = shape.constant_under_lrp if lrp else 0.0
    backward = CONSTANT_BACKWARD if lrp else FUSED_BACKWARD
    block = tokens * (2 * shape.linear - skipped) + (FORWARD + backward) * square
    backward_keys = 0.5 if lrp else 1.0  # values only, or keys and values
    last = tokens * (1 + backward_keys) * shape.key_value
    return (shape.blocks - 1) * block + last + 2 * shape.head(batch)


def ratios() -> None:
    """Print the expected ratios to InputXGradient."""
    header = [f"{batch}x{length}" for batch, length in SIZES]
    print(f"| | | {' | '.join(header)} | mean |\n{'|---' * (len(header) + 3)}|")
    for name in MEASURED:
        with torch.device("meta"):
            config = SHAPES[name]().config
        causal = 1.0 if config.model_type == "bert" else 0.5
        for method in ("AttnLRPx", "LRPx"):
            found = [
                explanation(shape_of(config), *size, causal, lrp=method == "LRPx")
                / input_x_gradient(shape_of(config), *size, causal)
                for size in SIZES
            ]
            cells = " | ".join(f"{ratio:.2f}" for ratio in [*found, sum(found) / len(found)])
            print(f"| {name} | {method}, Target | {cells} |")


def llama(hidden: int, wide: int, blocks: int, heads: int, groups: int) -> Any:
    """A Llama 3 without weights: shapes only."""
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=131072,
        tie_word_embeddings=blocks == 16,
    )
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def large(peak: float) -> None:
    """Print operations, memory and time of large models."""
    models = {
        "1B": llama(2048, 8192, 16, 32, 8),
        "8B": llama(4096, 14336, 32, 32, 8),
        "70B": llama(8192, 28672, 80, 64, 8),
    }
    recipes: dict[str, Recipe] = {"LRPx": LRP, "AttnLRPx": ATTN_LRP}
    heads = "model | tokens | method | PFLOP | in attention | s | weights | kept | checkpointed"
    print(f"| {heads} |\n{'|---' * 9}|")
    for name, model in models.items():
        weights = sum(parameter.numel() for parameter in model.parameters()) * 2 / 1e9
        shape = shape_of(model.config)
        for length in LENGTHS:
            for method, recipe in recipes.items():
                work = 2 * explanation(shape, 1, length, 0.5, lrp=method == "LRPx")
                short = 2 * explanation(shape, 1, length, 0.0, lrp=method == "LRPx")
                kept, less = (
                    estimate(model, recipe, 1, length, checkpointing=saving) / 1e9
                    for saving in (False, True)
                )
                print(
                    f"| {name} | {length // 1024}k | {method} | {work / 1e15:.2f} "
                    f"| {1 - short / work:.0%} | {work / (peak * 1e12):.1f} "
                    f"| {weights:.0f} GB | {kept:.1f} GB | {less:.1f} GB |"
                )


def spread(peak: float, link: float) -> None:
    """Print what each device of a 70B model has to do."""
    model = llama(8192, 28672, 80, 64, 8)
    shape, share = shape_of(model.config), (DEVICES - 1) / DEVICES
    weights = sum(parameter.numel() for parameter in model.parameters()) * 2 / 1e9
    embeddings = shape.vocabulary * shape.hidden * 2 / 1e9
    block = 2 * (shape.linear + 2 * shape.hidden) / 1e9
    print("| spread | tokens | method | PFLOP | s | moved | s | weights | kept | checkpointed |")
    print("|---" * 10 + "|")
    recipes: dict[str, Recipe] = {"LRPx": LRP, "AttnLRPx": ATTN_LRP}
    for length in LENGTHS[:3]:
        for method, recipe in recipes.items():
            work = 2 * explanation(shape, 1, length, 0.5, lrp=method == "LRPx")
            kept, less = (
                estimate(model, recipe, 1, length, checkpointing=saving) / 1e9
                for saving in (False, True)
            )
            inputs = shape.blocks * shape.hidden * length * 2 / 1e9
            summed = ALL_REDUCES[method] * inputs * 2 * share
            rows = {
                # The table of embeddings is on each device, logits are of one position.
                "features": (
                    work / DEVICES,
                    summed,
                    (weights - embeddings) / DEVICES + embeddings,
                    kept / DEVICES,
                    inputs + (less - inputs) / DEVICES,
                ),
                # Two blocks at a time are whole, and embeddings and head.
                "weights": (
                    work,
                    2 * weights * share,
                    weights / DEVICES + 2 * block + 2 * embeddings,
                    kept,
                    less,
                ),
            }
            for how, (own, moved, held, graph, saved) in rows.items():
                print(
                    f"| {how} | {length // 1024}k | {method} | {own / 1e15:.2f} "
                    f"| {own / (peak * 1e12):.2f} | {moved:.0f} GB | {moved / link:.2f} "
                    f"| {held:.0f} GB | {graph:.1f} GB | {saved:.1f} GB |"
                )


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ratios", action="store_true")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--spread", action="store_true")
    parser.add_argument("--peak", type=float, default=400.0, help="TFLOP/s of the device")
    parser.add_argument("--link", type=float, default=450.0, help="GB/s between devices")
    options = parser.parse_args()
    every = not (options.ratios or options.large or options.spread)
    if options.ratios or every:
        ratios()
        print()
    if options.large or every:
        large(options.peak)
        print()
    if options.spread or every:
        spread(options.peak, options.link)


if __name__ == "__main__":
    main()
