"""Tiny models that two processes share, and what is found of them; a script that each of them runs.

``python spread.py RANK FOLDER`` with a list of jobs in ``FOLDER/jobs.json``; each of these is the
name of a folder with a model, how the model is spread, and what is asked of it. Results are written
to ``FOLDER/RANK.pt``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import transformers

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LayerLRPx,
    LogProbabilities,
    LRPx,
    NeuronLRPx,
    TokenLogits,
    ledger,
)
from captum_lrpx.fast import direct, saved, sparse
from captum_lrpx.fast.least import Least
from captum_lrpx.rules import Alpha1Beta0

PROCESSES = 2
METHODS = {"lrp": LRPx, "attnlrp": AttnLRPx, "altilogit": ALTILogit}
TARGET = (-1, 3)
IDS = torch.arange(12).view(2, 6) * 7 % 50

_SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3_moe": {
        "moe_intermediate_size": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    },
    "gpt2": {},
    "gpt_neox": {},
    "gemma2": {"head_dim": 8},
    "olmo2": {},
    "deepseek_v3": {
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
}
"""Model type -> fields of its config beside the sizes."""


def save(kind: str, folder: Path) -> None:
    """Save a tiny random model."""
    generator = torch.Generator().manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **(_SMALL | CONFIGS[kind]))
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for each in model.parameters():
            each.normal_(std=0.2, generator=generator)
    model.save_pretrained(folder / kind)


def load(kind: str, folder: Path, how: str) -> torch.nn.Module:
    """Load a model in one piece, or spread in one of the ways that people use."""
    from torch.distributed.fsdp import fully_shard

    options = {}
    if "eager" in how:
        options["attn_implementation"] = "eager"
    if "tensors" in how:
        options["tp_plan"] = "auto"
    if "experts" in how:
        sizes = {"tp_size": PROCESSES, "ep_size": PROCESSES}
        options["distributed_config"] = transformers.distributed.DistributedConfig(**sizes)
    if "stages" in how:
        sizes = {"pp_size": PROCESSES}
        options["distributed_config"] = transformers.distributed.DistributedConfig(**sizes)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / kind, **options).eval()
    if "blocks" in how:
        for block in model.transformer.h if kind == "gpt2" else model.get_decoder().layers:
            fully_shard(block)
        fully_shard(model)
    return model


def asked(model: torch.nn.Module, what: str) -> dict[str, torch.Tensor]:
    """What is found of a model; the first pass of a form and a later one go different ways."""
    return dict(_ASKED[what](model))


def _relevances(model):
    for name, method in METHODS.items():
        attribution = method(model)
        for turn in ("first", "later"):
            yield f"{name}, {turn} pass", attribution.attribute(IDS, target=TARGET)


def _everything(model):
    yield from _relevances(model)
    for name, method in METHODS.items():
        targets = [TARGET, (-1, 4), (-2, 5)]
        yield f"{name}, targets", method(model).attribute_targets(IDS, targets)
    for name, method in list(METHODS.items())[:2]:
        slow = method(model, fast=False)
        yield f"{name}, slow", slow.attribute(IDS, target=TARGET)
        saving = method(model, checkpointing=True)
        for turn in ("first", "later"):
            yield f"{name}, checkpointing, {turn}", saving.attribute(IDS, target=TARGET)
    block = model.get_decoder()
    block = (block.h if hasattr(block, "h") else block.layers)[0]
    (of_layer,) = _tuple(LayerLRPx(model, block).attribute(IDS, target=TARGET))
    yield "a layer", of_layer
    yield "a neuron", NeuronLRPx(model, block).attribute(IDS, (2, 5))
    parts = ALTILogit(model, value_bias="apart").decompose(IDS, target=TARGET, return_alti=True)
    yield from (("heads", parts.heads), ("mlps", parts.mlps), ("matrices", parts.alti))
    yield from ((f"altilogit, {name}", amount) for name, amount in parts.biases.items())


def _accounts(model):
    for name, method in METHODS.items():
        book = ledger(method(model), IDS, target=TARGET)
        assert book.closes(1e-4), book.explanation()
        for entry in book.entries:
            yield f"{name}, {entry.kind} {entry.path}", entry.amount
    probability = LogProbabilities(TokenLogits(model))
    book = ledger(ALTILogit(probability), IDS, target=TARGET[-1])
    assert book.closes(1e-4), book.explanation()
    assert "output" in {entry.kind for entry in book.entries}


def _positive(model):
    yield "", LRPx(model, recipe=_alpha_beta()).attribute(IDS, target=TARGET)


def _alpha_beta():
    from dataclasses import replace

    from captum_lrpx import LRP

    return replace(LRP, name="alpha1-beta0", linear=Alpha1Beta0())


def _state(model):
    """Whether a model is left as it was: flags, forwards, and parts of weights."""
    before = _looks(model)
    for method in METHODS.values():
        method(model).attribute(IDS, target=TARGET)
        assert _looks(model) == before
    yield "", torch.ones(1)


def _looks(model):
    return [
        (name, each.requires_grad, type(each).__name__, tuple(each.shape))
        for name, each in model.named_parameters()
    ] + [(name, *vars(module)) for name, module in model.named_modules()]


_ASKED = {
    "relevances": _relevances,
    "everything": _everything,
    "accounts": _accounts,
    "positive": _positive,
    "state": _state,
}


def _tuple(found):
    return found if isinstance(found, tuple) else (found,)


def as_if_large() -> None:
    """Go all ways that are worth it for large models only."""
    direct._WORTH_IT = sparse._WORTH_A_LOOK = saved._FEW_NUMBERS = Least(0, 0)
    saved._FEW_POSITIONS = 0


def main(rank: str, folder: Path) -> None:
    """Do the jobs, together with the other processes."""
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=str(PROCESSES))
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=int(rank), world_size=PROCESSES
    )
    as_if_large()
    found = {}
    for kind, how, what in json.loads((folder / "jobs.json").read_text(encoding="utf-8")):
        found[kind, how, what] = _found_or_refused(kind, folder, how, what)
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def _found_or_refused(kind, folder, how, what):
    try:
        return asked(load(kind, folder, how), what)
    except (ValueError, TypeError) as error:  # of all processes alike
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    main(sys.argv[1], Path(sys.argv[2]))
