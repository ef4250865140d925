"""ALTI-Logit on models: reference values."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from alti_logit_cases import assert_identity, close
from safetensors.torch import load_file

from captum_lrpx import ALTILogit

GOLDENS = Path(__file__).parent / "goldens" / "alti"
CASES = ["gpt2", "gpt2_nobias", "opt", "bloom", "llama", "bert"]
EXACT = {"opt": 1e-6, "llama": 1e-6}
OFFICIAL = 1e-5  # for the 1e-6 that its distance adds to every component


def golden(case, attention="sdpa"):
    described = json.loads((GOLDENS / f"{case}.json").read_text())
    tensors = load_file(GOLDENS / f"{case}.safetensors")
    kind = getattr(transformers, described["model_class"])
    implementation = "eager" if case == "bloom" else attention  # BLOOM has no other
    config = kind.config_class(**described["config"])
    model = kind._from_config(config, attn_implementation=implementation).double()
    prefix = "param."
    weights = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    model.load_state_dict({name: value.double() for name, value in weights.items()}, strict=False)
    model.tie_weights()
    return described, tensors, model.eval()


@pytest.mark.parametrize("text", ["a", "b"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_reference_values(case, attention, text):
    described, tensors, model = golden(case, attention)
    ids = torch.tensor([described["input_ids"][text]])
    where, axis = described["target_pos"][text], described["target_axis"]
    accuracy = EXACT.get(case, 1e-12)
    decompositions = ALTILogit(model).decompose_targets(
        ids, [(where, token) for token in axis], return_alti=True
    )
    official_only = case == "bloom"
    exact = "exact." if f"{text}.exact.alti" in tensors else ""
    for index, parts in enumerate(decompositions):
        assert_identity(parts, 1e-6 if case == "llama" else 1e-12)

        def reference(name):
            return tensors[f"{text}.{name}"].double()

        within = OFFICIAL if official_only else accuracy
        close(parts.alti[0], reference(f"{exact}alti"), within)
        close(parts.layers[0], reference(f"{exact}alti_logit")[:, index], within)
        close(parts.alti[0], reference("alti"), OFFICIAL)
        close(parts.layers[0], reference("alti_logit")[:, index], OFFICIAL)
        exact_parts = 1e-6 if official_only else accuracy  # softmax in float32
        close(parts.updates[0], reference("head_aff")[:, :, index], exact_parts)
        close(parts.mlps[0], reference("mlp")[:, index], exact_parts)
        close(parts.start[0, where], reference("init")[index], exact_parts)
        output_biases = [
            v
            for k, v in parts.biases.items()
            if "attention.output.dense" in k
            or (
                "LayerNorm" not in k
                and any(name in k for name in ("c_proj", "out_proj", "self_attention"))
            )
        ]
        if output_biases:
            close(torch.cat(output_biases), reference("b_o")[:, index], exact_parts)


@pytest.mark.parametrize("case", ["gpt2", "opt", "bloom", "llama", "bert"])
def test_reference_values_of_a_contrast(case):
    described, tensors, model = golden(case)
    ids, where = torch.tensor([described["input_ids"]["a"]]), described["target_pos"]["a"]
    good, bad = (described["target_axis"].index(k) for k in described["targets"]["contrast"])

    def contrast(ids):
        logits = model(ids).logits[:, where]
        return logits[:, described["target_axis"][good]] - logits[:, described["target_axis"][bad]]

    exact = "a.exact.alti_logit" if "a.exact.alti_logit" in tensors else "a.alti_logit"
    layers = tensors[exact].double()
    within = OFFICIAL if case == "bloom" else EXACT.get(case, 1e-12)
    parts = ALTILogit(contrast, model=model).decompose(ids)
    close(parts.layers[0], layers[:, good] - layers[:, bad], within)
    assert_identity(parts, 1e-6 if case == "llama" else 1e-12)


@pytest.mark.parametrize("case", ["gpt2", "gpt2_nobias", "opt", "bloom"])
def test_reference_values_without_the_bias_of_the_values(case):
    described, tensors, model = golden(case)
    ids, where = torch.tensor([described["input_ids"]["a"]]), described["target_pos"]["a"]
    parts = ALTILogit(model, value_bias="apart").decompose(ids, (where, 5))
    close(parts.layers[0], tensors["a.alti_logit_lin"][:, 0], OFFICIAL)
    assert_identity(parts, 1e-12)
    assert sum(name.endswith("value_bias") for name in parts.biases) == 3


def test_reference_values_of_every_bias_of_bert():
    described, tensors, model = golden("bert")
    ids, where = torch.tensor([described["input_ids"]["a"]]), described["target_pos"]["a"]
    biases = ALTILogit(model).decompose(ids, (where, 5)).biases
    names = {
        "head.dense": "cls.predictions.transform.dense.bias",
        "head.LN": "cls.predictions.transform.LayerNorm.bias",
        "decoder": "cls.predictions.decoder.bias",
    }
    for layer in range(3):
        path = f"bert.encoder.layer.{layer}"
        names[f"{layer}.LN1"] = f"{path}.attention.output.LayerNorm.bias"
        names[f"{layer}.LN2"] = f"{path}.output.LayerNorm.bias"
    references = {k.removeprefix("a.bias."): v for k, v in tensors.items() if "a.bias." in k}
    assert len(references) == len(names)
    for name, value in references.items():
        close(biases[names[name.removesuffix(".bias").removesuffix(".beta")]], value[:1], 1e-12)
