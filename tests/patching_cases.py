"""Models with the layers of each kind of node, for tests of patching."""

import pytest
import torch
from models import tiny, token_ids
from plain_models import PLAIN
from replica_patching import value_at
from tiny_models import build

CLEAN, CORRUPTED = token_ids(seed=0), token_ids(seed=1)
TARGET = (-1, 7)


class Case:
    """A model, the layers of each kind of node, and how nodes are cut."""

    def __init__(self, model, projections, mlps, neurons, blocks, heads=2, clean=CLEAN):
        self.model, self.heads, self.clean = model, heads, clean
        self.corrupted = CORRUPTED if clean is CLEAN else clean.flip(0, 1)
        self.layers = {
            "head": (projections, True),
            "output": (mlps, False),
            "neuron": (neurons, True),
            "token": (blocks, False),
        }

    def run(self, inputs):
        output = self.model(inputs)
        return getattr(output, "logits", output)[:, TARGET[0], TARGET[1]]


def llama_like(model):
    blocks = list(model.model.layers)
    return Case(
        model,
        [block.self_attn.o_proj for block in blocks],
        [block.mlp for block in blocks],
        [block.mlp.down_proj for block in blocks if hasattr(block.mlp, "down_proj")],
        blocks,
        heads=model.config.num_attention_heads,
    )


def gpt2():
    model = tiny("gpt2")
    blocks = list(model.transformer.h)
    mlps = [block.mlp for block in blocks]
    projections = [block.attn.c_proj for block in blocks]
    return Case(model, projections, mlps, [mlp.c_proj for mlp in mlps], blocks)


def bert():
    model = tiny("bert")
    blocks = list(model.bert.encoder.layer)
    return Case(
        model,
        [block.attention.output.dense for block in blocks],
        [block.output for block in blocks],
        [block.output.dense for block in blocks],
        blocks,
    )


def nano_gpt():
    plain = PLAIN["nano-gpt-swiglu"]
    module = plain.module()
    blocks = list(module.blocks)
    neurons = [block.mlp.down for block in blocks]
    projections = [block.out for block in blocks]
    mlps = [block.mlp for block in blocks]
    return Case(module, projections, mlps, neurons, blocks, clean=plain.batch())


CASES = {
    "llama": lambda: llama_like(tiny("llama", heads=4, key_value_heads=2)),
    "qwen3": lambda: llama_like(tiny("qwen3")),
    "gemma2": lambda: llama_like(build("gemma2", "CAUSAL_LM").double().eval()),
    "mixtral": lambda: llama_like(build("mixtral", "CAUSAL_LM").eval()),
    "gpt2": gpt2,
    "bert": bert,
    "plain module": nano_gpt,
}
# Hugging Face computes the norms of these families in float32
EXACT = dict.fromkeys(("llama", "qwen3", "gemma2"), 1e-6)
KINDS = ("head", "output", "neuron", "token")
all_cases = pytest.mark.parametrize("name", CASES)
all_kinds = pytest.mark.parametrize("kind", KINDS)


def case_and_layers(name, kind):
    case = CASES[name]()
    layers, at_input = case.layers[kind]
    if not layers:
        pytest.skip("its experts are no modules with an output projection")
    return case, layers, at_input


def ask(patching, case, layers, kind, at_input, **options):
    given = {"recipe": options.pop("recipe")} if "recipe" in options else {}
    method = patching(case.model, layers, heads=case.heads if kind == "head" else None, **given)
    return method.attribute(
        case.clean,
        case.corrupted,
        target=TARGET,
        by=kind,
        attribute_to_layer_input=at_input,
        **options,
    )


def gradient_at(layer, case, *, at_input):
    """The tensor of a layer for the clean inputs, and the gradient there."""
    explained = []
    tensor = value_at(layer, lambda: explained.append(case.run(case.clean)), at_input=at_input)
    (slopes,) = torch.autograd.grad(explained[0].sum(), tensor)
    return tensor.detach(), slopes


def columns(effects, kind):
    return effects.unsqueeze(1) if kind == "output" else effects
