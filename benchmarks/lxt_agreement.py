"""Whether LXT finds the relevances that this package finds: tiny models with the same weights.

    PYTHON benchmarks/lxt_agreement.py --ours python [--dtype float64] [--attention sdpa]

``PYTHON`` and ``--ours`` are as for ``lxt_peer.py``. An environment with this package draws the
weights (all of them, norms and biases included) and writes them with its own relevances into a
temporary folder; one process per family and set of rules under LXT reads them. AttnLRPx is compared
with LXT's AttnLRP and LRPx with its CP-LRP, on the logit of one token at the last position, or of
one class of an image.

Shown is the largest difference of the relevances of embeddings ``[B, T, D]`` or pixels
``[B, C, H, W]``, relative to the largest of them, and the same of the logits; last, how far
Gradient x Input without rules is from these relevances, which says what the comparison would see.
What is expected is not zero: LXT divides activations by their input plus 1e-10, and RMS norms
compute in float32 in both.

LXT 2.1 has no table for Qwen3-MoE. Its rules for Qwen3 are put on the classes of Qwen3-MoE instead,
which leaves the router its gradient; "router constant" also stops the gradient at the router. Its
vision transformer is torchvision's, made of ``torch.nn``; the one here is made of the same modules.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from lxt_model import BORROWED, gradient_x_input, offered, patch
from safetensors.torch import load_file, save_file
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

VOCABULARY, LENGTH, ROWS, TOKEN = 40, 12, 3, 7
IMAGE, PATCH, HIDDEN = 16, 4, 32
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64")}
METHODS = {"AttnLRP": "AttnLRPx", "CP-LRP": "LRPx"}
"""LXT's rules -> the class of this package for the same rules."""
CONSTANT = ", router constant"
"""Added to the name of LXT's rules."""


_SIZES = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _SIZES),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": HIDDEN, "n_layer": 3, "n_head": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_SIZES, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED),
    "qwen3_moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **_GROUPED,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
"""Name -> classes of transformers, and sizes: three blocks, two queries per key since Llama."""
IMAGES = "vit_torch"
"""LXT's name for torchvision's vision transformer."""


class Block(nn.Module):
    """A pre-norm block of ``torch.nn`` modules."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(HIDDEN)
        self.attention = nn.MultiheadAttention(HIDDEN, 4, batch_first=True)
        self.before_mlp = nn.LayerNorm(HIDDEN)
        self.mlp = nn.Sequential(nn.Linear(HIDDEN, 48), nn.GELU(), nn.Linear(48, HIDDEN))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[B, T, D]`` -> the same."""
        found = self.before_attention(hidden)
        hidden = hidden + self.attention(found, found, found, need_weights=False)[0]
        added: torch.Tensor = hidden + self.mlp(self.before_mlp(hidden))
        return added


class VisionTransformer(nn.Module):
    """Patches and a class token, three blocks, a head on the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, HIDDEN, PATCH, PATCH)
        self.class_token = nn.Parameter(torch.empty(1, 1, HIDDEN))
        self.positions = nn.Parameter(torch.empty(1, (IMAGE // PATCH) ** 2 + 1, HIDDEN))
        self.blocks = nn.Sequential(*(Block() for _ in range(3)))
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """``[B, 3, H, W]`` -> logits of classes ``[B, N]``."""
        patches = self.patches(pixels).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(pixels), -1, -1)
        hidden = self.blocks(torch.cat([first, patches], 1) + self.positions)
        logits: torch.Tensor = self.head(self.norm(hidden[:, 0]))
        return logits


def build(family: str, options: argparse.Namespace) -> Any:
    """A tiny model of a family, in evaluation mode."""
    if family == IMAGES:
        return VisionTransformer().to(DTYPES[options.dtype]).eval()
    model, config, sizes = FAMILIES[family]
    made = getattr(transformers, config)(
        vocab_size=VOCABULARY, attn_implementation=options.attention, **sizes
    )
    found = getattr(transformers, model)(made)
    if hasattr(found, "set_experts_implementation"):  # transformers 5: one that has float64
        found.set_experts_implementation("eager")
    return found.to(DTYPES[options.dtype]).eval()


def asked(family: str, model: Any) -> tuple[Callable[[torch.Tensor], torch.Tensor], Any]:
    """Inputs -> logits, and which of them is explained, as Captum has it."""
    if family == IMAGES:
        return model, TOKEN
    return lambda embeds: model(inputs_embeds=embeds).logits, (LENGTH - 1, TOKEN)


def plain_relevance(family: str, model: Any, inputs: torch.Tensor) -> torch.Tensor:
    """Gradient x Input of what is explained, under whatever rules the classes have."""
    logits, target = asked(family, model.requires_grad_(False))
    chosen = (slice(None), *(target if isinstance(target, tuple) else (target,)))
    return gradient_x_input(lambda inputs: logits(inputs)[chosen], inputs)


def write(folder: Path, family: str, options: argparse.Namespace) -> None:
    """Draw a model and write its weights, inputs, logits and relevances: needs this package."""
    import captum_lrpx  # noqa: PLC0415 - not in LXT's environment

    generator = torch.Generator().manual_seed(0)
    model = build(family, options)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * drawn)
    if family == IMAGES:
        shape = (ROWS, 3, IMAGE, IMAGE)
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
        inputs = inputs.to(DTYPES[options.dtype])
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
        inputs = model.get_input_embeddings()(ids).detach()
        model.save_pretrained(folder)  # under the names that transformers 4 has, too
    logits, target = asked(family, model)
    found = {"inputs": inputs, "logits": logits(inputs).detach()}
    found["plain"] = plain_relevance(family, model, inputs)
    for rules, name in METHODS.items():
        method = getattr(captum_lrpx, name)(model)
        found[rules] = method.attribute(inputs, target=target).detach()
    save_file(found, folder / "found.safetensors")


def compare(folder: Path, family: str, rules: str, options: argparse.Namespace) -> list[float]:
    """The relative differences of one row of the table; this process keeps LXT's rules."""
    table = rules.removesuffix(CONSTANT)
    patch(family, table)
    found = load_file(folder / "found.safetensors")
    model = build(family, options)
    _, unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if unknown:  # what is missing is tied, or the logits tell
        raise ValueError(f"transformers {transformers.__version__} has no weights {unknown}.")
    if rules != table:
        for name, module in model.named_modules():
            if name.endswith(".mlp.gate"):
                module.register_forward_hook(lambda _module, _inputs, output: output.detach())
    logits, _ = asked(family, model)
    return [
        difference(logits(found["inputs"]), found["logits"]),
        difference(plain_relevance(family, model, found["inputs"]), found[table]),
        difference(found["plain"], found[table]),
    ]


def difference(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return ((mine - other).abs().max() / other.abs().max()).item()


def child(python: str, arguments: list[str], options: argparse.Namespace) -> str:
    """Output of this script in another process."""
    settings = ["--dtype", options.dtype, "--attention", options.attention]
    command = [python, __file__, *settings, *arguments]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    return result.stdout


def main() -> None:
    """Compare, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ours", metavar="PYTHON", help="interpreter with this package")
    names = [*FAMILIES, IMAGES]
    parser.add_argument("--families", nargs="+", default=names, choices=names)
    parser.add_argument("--dtype", default="float64", choices=list(DTYPES))
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)  # folder, family
    parser.add_argument("--compare", nargs=3, help=argparse.SUPPRESS)  # folder, family, rules
    options = parser.parse_args()
    if options.write:
        write(Path(options.write[0]), options.write[1], options)
        return
    if options.compare:
        path, family, rules = options.compare
        print(json.dumps(compare(Path(path), family, rules, options)))
        return
    if options.ours is None:
        parser.error("--ours is missing")
    print(
        f"{options.dtype}, {options.attention}\n\n| | LXT | here | logits | relevances | no rules |"
    )
    print("|---" * 6 + "|")
    with tempfile.TemporaryDirectory() as folder:
        for family in options.families:
            path = Path(folder) / family
            path.mkdir()
            child(options.ours, ["--write", str(path), family], options)
            further = ["", CONSTANT] if family in BORROWED else [""]
            for table in offered(family):
                for rules in (f"{table}{added}" for added in further):
                    arguments = ["--compare", str(path), family, rules]
                    found = json.loads(child(sys.executable, arguments, options))
                    cells = " | ".join(f"{number:.0e}" for number in found)
                    print(f"| {family} | {rules} | {METHODS[table]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
