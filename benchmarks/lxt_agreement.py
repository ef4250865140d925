"""Whether LXT finds the relevances that this package finds: tiny models with the same weights.

    PYTHON benchmarks/lxt_agreement.py --ours python [--dtype float64] [--attention sdpa]

``PYTHON`` and ``--ours`` are as for ``lxt_peer.py``. An environment with this package draws the
weights (all of them, norms and biases included) and writes them with its own relevances into a
temporary folder; one process per family and set of rules under LXT reads them. AttnLRPx is compared
with LXT's AttnLRP and LRPx with its CP-LRP, on the logit of one token at the last position.

Shown is the largest difference of the relevances of embeddings ``[B, T, D]``, relative to the
largest of them, and the same of the logits; last, how far Gradient x Input without rules is from
these relevances, which says what the comparison would see. What is expected is not zero: LXT
divides activations by their input plus 1e-10, and norms of Llama compute in float32 in both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from lxt_model import offered, patch, relevance
from safetensors.torch import load_file, save_file

VOCABULARY, LENGTH, ROWS, TOKEN = 40, 12, 3, 7
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64")}
METHODS = {"AttnLRP": "AttnLRPx", "CP-LRP": "LRPx"}
"""LXT's rules -> the class of this package for the same rules."""


_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
FAMILIES: dict[str, tuple[str, str, dict[str, int]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _SIZES),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4}),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_SIZES, "num_key_value_heads": 2}),
}
"""Name -> classes of transformers, and sizes: three blocks, Llama with two queries per key."""


def build(family: str, options: argparse.Namespace) -> Any:
    """A tiny model of a family, in evaluation mode."""
    model, config, sizes = FAMILIES[family]
    made = getattr(transformers, config)(
        vocab_size=VOCABULARY, attn_implementation=options.attention, **sizes
    )
    return getattr(transformers, model)(made).to(DTYPES[options.dtype]).eval()


def write(path: Path, family: str, options: argparse.Namespace) -> None:
    """Draw a model and write its weights, ids, logits and relevances: needs this package."""
    import captum_lrpx  # noqa: PLC0415 - not in LXT's environment

    generator = torch.Generator().manual_seed(0)
    model = build(family, options)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * drawn)
    ids = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    embeds = model.get_input_embeddings()(ids).detach()
    found = {"ids": ids, "logits": model(inputs_embeds=embeds).logits.detach()}
    found["plain"] = relevance(model.requires_grad_(False), embeds, TOKEN)
    for rules, name in METHODS.items():
        method = getattr(captum_lrpx, name)(model)
        found[rules] = method.attribute(embeds, target=(LENGTH - 1, TOKEN)).detach()
    found |= {f"weights.{name}": weight.clone() for name, weight in model.state_dict().items()}
    save_file(found, path)


def compare(path: Path, family: str, rules: str, options: argparse.Namespace) -> list[float]:
    """The relative differences of one row of the table; this process keeps LXT's rules."""
    patch(family, rules)
    found = load_file(path)
    model = build(family, options)
    prefix = "weights."
    weights = {name: value for name, value in found.items() if name.startswith(prefix)}
    model.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    model.requires_grad_(False)
    embeds = model.get_input_embeddings()(found["ids"])
    logits = model(inputs_embeds=embeds).logits
    return [
        difference(logits, found["logits"]),
        difference(relevance(model, embeds, TOKEN), found[rules]),
        difference(found["plain"], found[rules]),
    ]


def difference(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((mine - other).abs().max() / other.abs().max())


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
    parser.add_argument("--dtype", default="float64", choices=list(DTYPES))
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)  # file, family
    parser.add_argument("--compare", nargs=3, help=argparse.SUPPRESS)  # file, family, rules
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
        for family in FAMILIES:
            path = str(Path(folder) / family)
            child(options.ours, ["--write", path, family], options)
            for rules in offered(family):
                found = child(sys.executable, ["--compare", path, family, rules], options)
                cells = " | ".join(f"{number:.0e}" for number in json.loads(found))
                print(f"| {family} | {rules} | {METHODS[rules]} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
