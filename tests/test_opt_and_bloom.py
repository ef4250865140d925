"""OPT (norms before and behind the branches) and BLOOM under the rules of LRP."""

import pytest
import torch
from anatomy import positions_of
from models import tiny, token_ids

from captum_lrpx import ATTN_LRP, LRP, AttnLRPx, LRPx, propagation

MODELS = {
    "opt": ("opt", {}),
    "opt with norms behind": ("opt", {"do_layer_norm_before": False}),
    "opt without projections": ("opt", {"word_embed_proj_dim": 8}),
    "opt with gelu": ("opt", {"activation": "gelu"}),
    "bloom": ("bloom", {}),
}
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name, **options):
    family, config = MODELS[name]
    return tiny(family, **config, **options)


@every_model
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP])
def test_the_forward_pass_is_bit_identical(name, dtype, recipe):
    model, ids = model_of(name, dtype=dtype), token_ids()
    expected = model(ids).logits
    with propagation(model, recipe):
        assert torch.equal(model(ids).logits, expected)


@every_model
def test_lrp_conserves_without_biases(name):
    model = model_of(name, biases="zero")
    positions = positions_of(model)
    if positions is not None:
        torch.nn.init.zeros_(positions.weight)
    for head in ((2, 7), (4, 3)):
        relevance, delta = LRPx(model).attribute(token_ids(), head, return_convergence_delta=True)
        assert (delta.abs() <= 1e-10 * relevance.abs().sum(1)).all()


@every_model
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_what_follows_has_no_relevance(name, method):
    relevance = method(model_of(name)).attribute(token_ids(), (2, 7))
    assert relevance[:, :3].abs().min() > 0
    assert not relevance[:, 3:].any()
