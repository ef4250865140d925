"""ALTI-Logit on models: the parts sum to what is explained, whatever it is, in any precision."""

import pytest
import torch
from alti_logit_cases import (
    ALL_FAMILIES,
    IDENTITY,
    TARGET,
    assert_identity,
    close,
    every_family,
    some_families,
)
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from models import tiny, token_ids

from captum_lrpx import ALTILogit, LogitDifference, TokenLogits

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
@examples(150)
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
    for length in (1, 3, 1):
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


def test_an_adapter_may_add_in_place():
    """What it adds to is a view, which has another node afterwards; the bias is still known."""
    model, ids = tiny("llama"), token_ids()
    found = []
    for add in (torch.Tensor.add, torch.Tensor.add_):
        hooks = [
            layer.register_forward_hook(lambda _, args, output, add=add: add(output, args[0] / 2))
            for name, layer in model.named_modules()
            if name.endswith(("o_proj", "v_proj"))
        ]
        parts = ALTILogit(model).decompose(ids, TARGET)
        found.append((parts.tokens(), parts.updates, parts.biases))
        assert_identity(parts, IDENTITY["llama"])
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(*found)
