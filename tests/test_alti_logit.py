"""ALTI-Logit on models: reference values, the decomposition identity, and Captum's contract."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from safetensors.torch import load_file
from state import snapshot
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from captum_lrpx import (
    ATTN_LRP,
    LRP,
    ALTILogit,
    LogitDifference,
    LRPx,
    TokenLogits,
    propagation,
)

GOLDENS = Path(__file__).parent / "goldens" / "alti"
ALL_FAMILIES = {**FAMILIES, **MORE_FAMILIES}
# Where Hugging Face computes norms or rotary embeddings in float32 whatever the model's dtype is.
IDENTITY = {name: 1e-6 if known.rotary else 1e-10 for name, known in ALL_FAMILIES.items()}
every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
SOME = ["gpt2", "llama", "bert", "bloom"]
some_families = pytest.mark.parametrize("family", SOME)
TARGET = (2, 7)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def assert_identity(parts, tolerance):
    mass = torch.stack(list(parts.parts().values())).abs().sum(0)
    assert ((parts.total() - parts.value).abs() <= tolerance * mass).all()
    assert (parts.remainder.abs() <= tolerance * mass).all()


# Reference values ---------------------------------------------------------------------------------

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


# The identity -------------------------------------------------------------------------------------


@st.composite
def configurations(draw):
    family = draw(st.sampled_from(sorted(ALL_FAMILIES)))
    config = {
        "layers": draw(st.integers(1, 3)),
        "heads": draw(st.sampled_from([1, 2, 4])),
        "head_dim": draw(st.sampled_from([2, 4])),
        "biases": draw(st.sampled_from(["random", "zero"])),
        "attn": draw(st.sampled_from(["sdpa", "eager"])),
        "seed": draw(st.integers(0, 9)),
    }
    if ALL_FAMILIES[family].gated:
        config["key_value_heads"] = draw(st.sampled_from([1, config["heads"]]))
    if family == "opt":
        config["do_layer_norm_before"] = draw(st.booleans())
        config["word_embed_proj_dim"] = draw(st.sampled_from([6, config["heads"] * 4]))
    return family, config


@given(
    configuration=configurations(),
    length=st.integers(1, 6),
    batch=st.integers(1, 2),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=150)
def test_the_parts_sum_to_the_explained_value(configuration, length, batch, seed, data):
    family, config = configuration
    ids = token_ids(batch, length, seed)
    where = data.draw(st.integers(0, length - 1))
    model = tiny(family, **config)
    parts = ALTILogit(model).decompose(ids, (where, 5), return_alti=True)
    assert_identity(parts, IDENTITY[family])
    close(parts.value, model(ids).logits[:, where, 5])
    shares = parts.alti.sum(-1)
    close(shares, torch.ones_like(shares))
    assert (parts.alti >= 0).all()
    close(parts.heads.sum(-1), parts.updates.sum(-1))
    if config["biases"] == "zero":
        assert not any(bias.any() for bias in parts.biases.values())
    if ALL_FAMILIES[family].causal:
        assert not parts.alti.triu(1).any()
        assert not parts.tokens()[:, where + 1 :].any()


@pytest.mark.parametrize("head", ["sequence", "qa"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "gpt2", "llama"])
def test_other_heads(family, head):
    model = tiny(family, head, head_dim=4, heads=2)
    name = "logits" if head == "sequence" else "start_logits"
    method = ALTILogit(lambda ids: model(ids)[name], model=model)
    assert_identity(method.decompose(token_ids(), 1), IDENTITY[family])


# What is explained --------------------------------------------------------------------------------


@some_families
def test_many_targets_are_one_call_for_each(family):
    method = ALTILogit(tiny(family, heads=4, key_value_heads=2))
    ids = token_ids()
    targets = [(4, 5), (1, 3), [(2, 5), (4, 9)]]
    together = method.decompose_targets(ids, targets, return_alti=True)
    for target, parts in zip(targets, together, strict=True):
        alone = method.decompose(ids, target, return_alti=True)
        for name in ("value", "updates", "heads", "start", "mlps", "remainder", "alti"):
            close(getattr(parts, name), getattr(alone, name))
        for name, value in alone.parts().items():
            close(parts.parts()[name], value)
        close(method.attribute(ids, target), alone.tokens())


@every_family
def test_forward_modules(family):
    model, ids = tiny(family), token_ids()
    method = ALTILogit(TokenLogits(model))
    where = torch.tensor([2, 4])
    tokens = method.attribute(ids, 7, (None, where))
    close(tokens, ALTILogit(model).attribute(ids, [(2, 7), (4, 7)]), max(1e-9, IDENTITY[family]))
    contrast = ALTILogit(LogitDifference(model)).attribute(ids, None, (None, 7, 5, where))
    other = method.attribute(ids, 5, (None, where))
    close(contrast, tokens - other, max(1e-9, IDENTITY[family]))


@some_families
def test_explanations_are_linear_in_what_is_explained(family):
    model = tiny(family)
    ids = token_ids()

    def of(explained):
        return ALTILogit(explained, model=model).decompose(ids)

    several = of(lambda x: model(x).logits[:, 1:4, 7].sum(1) - 2 * model.config.vocab_size)
    single = [of(lambda x, p=p: model(x).logits[:, p, 7]) for p in (1, 2, 3)]
    for name in ("heads", "start", "mlps"):
        close(getattr(several, name), sum(getattr(parts, name) for parts in single))
    close(several.remainder, torch.full((2,), -2.0 * model.config.vocab_size).double(), 1e-6)


@some_families
def test_log_probabilities(family):
    model = tiny(family)
    ids = token_ids()

    def explained(x):
        return model(x).logits[:, 2].log_softmax(-1)

    def contrast(x):
        return model(x).logits[:, 2, 5] - model(x).logits[:, 2, 7]

    method = ALTILogit(explained, model=model)
    good, bad = method.decompose_targets(ids, [5, 7])
    by_logits = ALTILogit(model).decompose_targets(ids, [(2, 5), (2, 7)])
    close(good.tokens() - bad.tokens(), by_logits[0].tokens() - by_logits[1].tokens())
    close(good.total(), explained(ids)[:, 5])
    with pytest.raises(ValueError, match="more than once"):
        ALTILogit(contrast, model=model).attribute(ids)


@every_family
def test_padded_batches_equal_single_texts(family):
    causal = ALL_FAMILIES[family].causal
    model = tiny(family, layers=3, attn="sdpa")
    texts = [token_ids(1, length, seed=length) for length in (5, 3)]
    # BLOOM has no SDPA, and eager attention gives NaN at padding on the left in float64.
    for side in ("right", "left") if causal and family != "bloom" else ("right",):
        ids, mask = torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long)
        where = []
        for row, text in enumerate(texts):
            start = 5 - text.shape[1] if side == "left" else 0
            ids[row, start : start + text.shape[1]] = text
            mask[row, start : start + text.shape[1]] = 1
            where.append(start + text.shape[1] - 1)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        keywords = {"attention_mask": mask}
        if family in ("gpt2", "llama", "mistral", "qwen2", "qwen3"):
            keywords["position_ids"] = positions

        def explained(ids, keywords=keywords, where=where):
            return model(ids, **keywords).logits[torch.arange(2), where]

        together = ALTILogit(explained, model=model).attribute(ids, target=7)
        assert not together[mask == 0].any()
        for row, text in enumerate(texts):
            alone = ALTILogit(model).attribute(text, target=(text.shape[1] - 1, 7))
            close(together[row][mask[row] == 1], alone[0], max(1e-9, IDENTITY[family]))


def test_padding_on_the_left_of_bloom():
    model = tiny("bloom", layers=3, dtype=torch.float32)
    text = token_ids(1, 3)
    ids, mask = torch.zeros(1, 5, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1]])
    ids[:, 2:] = text
    method = ALTILogit(lambda ids: model(ids, attention_mask=mask).logits[:, -1], model=model)
    padded = method.attribute(ids, 7)
    close(padded[:, 2:], ALTILogit(model).attribute(text, (2, 7)), 1e-4)
    assert not padded[:, :2].any()
    model.double()
    with pytest.raises(ValueError, match="not finite"):
        method.attribute(ids, 7)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bloom"])
def test_what_follows_the_explained_position_does_not_matter(family):
    method = ALTILogit(tiny(family, layers=3))
    ids = token_ids(2, 6)
    whole = method.attribute(ids, target=(3, 7))
    close(whole[:, :4], method.attribute(ids[:, :4], target=(3, 7)), max(1e-9, IDENTITY[family]))
    assert not whole[:, 4:].any()


@every_family
def test_examples_are_independent(family):
    method = ALTILogit(tiny(family))
    ids = token_ids(3, 4)
    together = method.attribute(ids, target=[(3, 5), (1, 7), (0, 9)])
    for row, target in enumerate([(3, 5), (1, 7), (0, 9)]):
        close(together[row : row + 1], method.attribute(ids[row : row + 1], target=target))


@every_family
@pytest.mark.parametrize("shape", [{"layers": 1}, {"heads": 1}, {"layers": 1, "heads": 1}])
def test_one_token_one_layer_one_head(family, shape):
    model = tiny(family, **shape)
    for length in (1, 3):
        ids = token_ids(2, length)
        parts = ALTILogit(model).decompose(ids, (length - 1, 7), return_alti=True)
        assert_identity(parts, IDENTITY[family])
        assert parts.heads.shape == (2, shape.get("layers", 2), shape.get("heads", 2), length)
        assert parts.alti.shape == (2, shape.get("layers", 2), length, length)


# Precision, memory, attention implementations -----------------------------------------------------


@every_family
def test_every_attention_implementation_gives_the_same(family):
    ids, mask = token_ids(), torch.ones(2, 5, dtype=torch.long)
    mask[0, 4:] = 0
    both = []
    for attention in ("sdpa", "eager"):
        model = tiny(family, attn=attention)

        def explained(ids, model=model):
            return model(ids, attention_mask=mask).logits[:, 3]

        both.append(ALTILogit(explained, model=model).attribute(ids, target=7))
    close(both[0], both[1], max(1e-9, 100 * IDENTITY[family]) if family != "opt" else 1e-6)


@pytest.mark.parametrize("upcast", [{"reorder_and_upcast_attn": True}, {}])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_variants_of_attention_in_gpt2(upcast, attn):
    config = {"attn": attn, "scale_attn_by_inverse_layer_idx": True, **upcast}
    model = tiny("gpt2", dtype=torch.float32, **config)  # it upcasts to float32, and only to that
    assert_identity(ALTILogit(model).decompose(token_ids(), TARGET), 1e-6)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(family, dtype):
    ids = token_ids()
    exact = ALTILogit(tiny(family)).attribute(ids, target=TARGET)
    rough = ALTILogit(tiny(family, dtype=dtype)).attribute(ids, target=TARGET)
    assert rough.dtype is torch.float32
    assert torch.isfinite(rough).all()
    scale = exact.abs().max()
    accuracy = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
    assert (rough - exact).abs().max() < accuracy * scale


def test_a_small_memory_budget_gives_the_same():
    model = tiny("llama", heads=4, key_value_heads=2, layers=3)
    ids = token_ids(2, 12)
    method = ALTILogit(model, memory_budget=2 * 3 * 4 * 12 * 8)  # two rows at a time
    close(method.attribute(ids, target=TARGET), ALTILogit(model).attribute(ids, target=TARGET))
    with pytest.raises(ValueError, match="memory_budget"):
        ALTILogit(model, memory_budget=100).attribute(ids, target=TARGET)


def test_weights_of_an_adapted_output_projection():
    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_layer = base
            self.in_features = base.in_features
            self.low = torch.nn.Linear(base.in_features, 1, bias=False).double()

        def forward(self, x):
            return self.base_layer(x) + self.low(x)

    model = tiny("llama")
    merged = tiny("llama")
    for index, block in enumerate(model.model.layers):
        block.self_attn.o_proj = Adapted(block.self_attn.o_proj)
        with torch.no_grad():
            merged.model.layers[index].self_attn.o_proj.weight += block.self_attn.o_proj.low.weight
    model.eval()
    ids = token_ids()
    adapted, expected = (ALTILogit(m).decompose(ids, target=TARGET) for m in (model, merged))
    close(adapted.tokens(), expected.tokens(), 1e-6)
    assert_identity(adapted, 1e-6)


# Captum's contract --------------------------------------------------------------------------------


@every_family
def test_ids_and_embeddings(family):
    model = tiny(family)
    ids = token_ids()
    embeds = model.get_input_embeddings()(ids).detach()

    def explained(embeds):
        if family == "roberta":  # counts positions from ids otherwise
            positions = torch.arange(2, 7).expand(2, -1)
            return model(inputs_embeds=embeds, position_ids=positions).logits[:, 2]
        return model(inputs_embeds=embeds).logits[:, 2]

    of_ids, delta = ALTILogit(model).attribute(ids, (2, 7), return_convergence_delta=True)
    method = ALTILogit(explained, model=model)
    spread = method.attribute(embeds, 7)
    assert of_ids.shape == ids.shape
    assert spread.shape == embeds.shape
    if family != "roberta":
        close(spread.sum(-1), of_ids)
    close(method.attribute(embeds, 7, return_input_shape=False), spread.sum(-1))
    close(spread, spread[..., :1].expand_as(spread))
    close(delta, model(ids).logits[:, 2, 7] - of_ids.sum(1))
    (in_tuple,) = method.attribute((embeds,), 7)
    close(in_tuple, spread)


def test_the_start_term_can_be_left_out():
    method = ALTILogit(tiny("gpt2"))
    ids = token_ids()
    parts = method.decompose(ids, TARGET)
    close(method.attribute(ids, TARGET), parts.tokens())
    close(method.attribute(ids, TARGET, include_start=False), parts.tokens(include_start=False))
    assert parts.start[:, 2].all()
    assert not parts.start[:, [0, 1, 3, 4]].any()


@every_family
def test_the_model_is_left_as_it_was(family):
    model = tiny(family)
    before = snapshot(model)
    functions = dict(ALL_ATTENTION_FUNCTIONS)
    method = ALTILogit(model)
    attributes = sorted(vars(method))
    method.decompose(token_ids(), TARGET, return_alti=True)
    assert snapshot(model) == before
    for target, error in [((2, 999), IndexError), (None, AssertionError), ("x", AssertionError)]:
        with pytest.raises(error):
            method.attribute(token_ids(), target)
        assert snapshot(model) == before

    def broken(ids):
        model(ids)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ALTILogit(broken, model=model).attribute(token_ids())
    assert snapshot(model) == before
    assert dict(ALL_ATTENTION_FUNCTIONS) == functions
    assert sorted(vars(method)) == attributes


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP])
@some_families
def test_inside_another_explanation(family, recipe):
    model = tiny(family)
    ids = token_ids()
    alone, relevance = ALTILogit(model).attribute(ids, TARGET), LRPx(model).attribute(ids, TARGET)
    with propagation(model, recipe):
        close(ALTILogit(model).attribute(ids, TARGET), alone)
    close(LRPx(model).attribute(ids, TARGET), relevance)


@some_families
def test_without_gradients_around_it(family):
    model = tiny(family)
    ids = token_ids()
    expected = ALTILogit(model).attribute(ids, TARGET)
    with torch.no_grad():
        close(ALTILogit(model).attribute(ids, TARGET), expected)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="inference_mode"):
        ALTILogit(model).attribute(ids, TARGET)


@some_families
def test_gradient_checkpointing_gives_the_same(family):
    model = tiny(family, attn="eager")
    ids = token_ids()
    expected = ALTILogit(model).attribute(ids, TARGET)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with pytest.warns(UserWarning, match="training mode"):
        close(ALTILogit(model).attribute(ids, TARGET), expected)


# What is refused ----------------------------------------------------------------------------------


def test_inputs_that_do_not_fit():
    model = tiny("gpt2")
    method = ALTILogit(model)
    with pytest.raises(ValueError, match="one input"):
        method.attribute((token_ids(), token_ids()), TARGET)
    with pytest.raises(AssertionError, match="must be a torch"):
        method.attribute([token_ids()], TARGET)
    with pytest.raises(ValueError, match="at least one target"):
        method.decompose_targets(token_ids(), [])
    with pytest.raises(ValueError, match="value_bias"):
        ALTILogit(model, value_bias="nowhere")
    with pytest.raises(ValueError, match="model="):
        ALTILogit(lambda ids: model(ids).logits)
    with pytest.raises(ValueError, match="ran the model on"):
        ALTILogit(lambda ids: model(ids.repeat(1, 2)).logits[:, -1], model=model).attribute(
            token_ids(), 5
        )


@pytest.mark.parametrize(
    ("explained", "error", "message"),
    [
        (lambda model, ids: model(ids).logits[:, -1].detach(), ValueError, "by a gradient"),
        (lambda model, ids: model(ids).logits[:, -1].sum(0, True), ValueError, "2 examples"),
        (lambda _, ids: torch.ones(len(ids), 9, requires_grad=True), ValueError, "did not run"),
    ],
)
def test_forward_functions_that_do_not_fit(explained, error, message):
    model = tiny("gpt2")
    before = snapshot(model)
    with pytest.raises(error, match=message):
        ALTILogit(lambda ids: explained(model, ids), model=model).attribute(token_ids(), 5)
    assert snapshot(model) == before


def test_a_forward_function_without_gradients():
    model = tiny("gpt2")
    explained = torch.no_grad()(lambda ids: model(ids).logits[:, -1])
    with pytest.raises(RuntimeError, match="without gradients"):
        ALTILogit(explained, model=model).attribute(token_ids(), 5)


def test_attention_whose_weights_cannot_be_had(monkeypatch):
    def opaque(_module, _query, _key, value, *_args, **_kwargs):
        return value.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "opaque", opaque)
    model = tiny("gpt2")
    model.config._attn_implementation = "opaque"
    before = snapshot(model)
    with pytest.raises(ValueError, match="cannot be had"):
        ALTILogit(model).attribute(token_ids(), TARGET)
    assert snapshot(model) == before


@pytest.mark.parametrize(
    ("part", "hook", "message"),
    [
        ("o_proj", lambda _m, _args, output: 2 * output, "not simply added"),
        ("v_proj", lambda _m, _args, output: output.sigmoid(), "do not fit|weighed by"),
    ],
)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_blocks_that_do_something_else(part, hook, message, attn):
    model = tiny("llama", attn=attn)
    getattr(model.model.layers[1].self_attn, part).register_forward_hook(hook)
    with pytest.raises(ValueError, match=message):
        ALTILogit(model).attribute(token_ids(), TARGET)


def test_a_gated_attention_output():
    model = tiny("llama")
    gate = lambda _m, args: (args[0] * 0.5,)  # noqa: E731
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(gate)
    with pytest.raises(ValueError, match="weighed by"):
        ALTILogit(model).attribute(token_ids(), TARGET)


@pytest.mark.parametrize(
    "config",
    [{"apply_residual_connection_post_layernorm": True}, {"slow_but_exact": True}],
)
def test_variants_of_bloom_that_are_not_declared(config):
    with pytest.raises(ValueError, match="supported only with"):
        ALTILogit(tiny("bloom", **config))
