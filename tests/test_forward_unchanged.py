"""The forward pass under any rules is bit-identical to the model's own."""

import pytest
import torch
from models import FAMILIES, HEADS, outputs, tiny, token_ids

from captum_lrpx import propagation
from captum_lrpx.recipes import LRP, NAMED_RECIPES
from captum_lrpx.rules import Alpha1Beta0, Epsilon, Gamma

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
RECIPES = {
    **NAMED_RECIPES,
    "epsilon": LRP.override("*", Epsilon(1e-3)),
    "alpha1-beta0": LRP.override("*", Alpha1Beta0()),
    "gamma": LRP.override("*", Gamma(0.25)),
}


def both(model, recipe, **inputs):
    with torch.no_grad():
        plain = outputs(model, **inputs)
    with propagation(model, recipe):
        ruled = outputs(model, **inputs)
    return plain, ruled


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_dtype_and_attention(family, dtype, attn):
    model = tiny(family, dtype=dtype, attn=attn)
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    for recipe in RECIPES.values():
        plain, ruled = both(model, recipe, inputs_embeds=embeds)
        assert torch.equal(plain, ruled), recipe.name
        assert ruled.requires_grad


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_head(family, head):
    model = tiny(family, head=head, dtype=torch.float32)
    plain, ruled = both(model, LRP, input_ids=token_ids(batch=1))
    assert torch.equal(plain, ruled)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_padded_batches(family, attn, side):
    model = tiny(family, dtype=torch.float32, attn=attn)
    ids = token_ids(batch=2, length=6)
    mask = torch.ones_like(ids)
    padding = slice(0, 2) if side == "left" else slice(4, 6)
    mask[1, padding] = 0
    plain, ruled = both(model, NAMED_RECIPES["attnlrp"], input_ids=ids, attention_mask=mask)
    assert torch.equal(plain, ruled)
