"""What is not a number is an error that says which row it is and where it comes from."""

from __future__ import annotations

import warnings

import pytest
import torch
from models import tiny, token_ids
from state import snapshot

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LayerLRPx,
    LLMRelevance,
    LogitDifference,
    LRPx,
    NeuronLRPx,
    TokenLogits,
    explain,
)

TARGET = (-1, 5)
MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])


def broken(family="llama", position=None):
    """A model whose second block's MLP gives NaN, in the second row only."""
    model = tiny(family)
    mlp = model.model.layers[1].mlp if family == "llama" else model.transformer.h[1].mlp

    def spoil(_module, _args, output):
        spoiled = torch.zeros(output.shape[:2], dtype=torch.bool)
        spoiled[-1, slice(None) if position is None else position] = True
        return torch.where(spoiled.unsqueeze(-1), float("nan"), output)

    mlp.register_forward_hook(spoil)
    return model


CALLS = {
    "attribute": lambda m: AttnLRPx(m).attribute(token_ids(), TARGET),
    "lrp": lambda m: LRPx(TokenLogits(m)).attribute(token_ids(), 5),
    "embeddings": lambda m: LRPx(m).attribute(
        m.get_input_embeddings()(token_ids()).detach(), TARGET
    ),
    "targets": lambda m: AttnLRPx(m).attribute_targets(token_ids(), [TARGET, (-1, 6)]),
    "layer": lambda m: LayerLRPx(m, m.model.layers[0]).attribute(token_ids(), TARGET),
    "neuron": lambda m: NeuronLRPx(m, m.model.norm).attribute(token_ids(), (-1, 2)),
    "difference": lambda m: AttnLRPx(LogitDifference(m)).attribute(
        token_ids(), additional_forward_args=(None, 5, 6)
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_rows_and_module_are_named(call):
    model = broken()
    before = snapshot(model)
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match=r"explained value of row 1 is nan.*'model\.layers\.1\.mlp' \(LlamaMLP\) is the",
        ):
            CALLS[call](model)
    assert snapshot(model) == before


def test_alti_logit_names_where_it_is_too():
    with pytest.raises(ValueError, match=r"not finite|is nan"):
        ALTILogit(broken()).attribute(token_ids(), TARGET)


def test_padding_on_the_left_with_eager_attention():
    """A row of padding has nothing to attend to: transformers gives NaN there, in float64."""
    model = tiny("qwen2", attn="eager")
    with pytest.raises(ValueError, match=r"row 1 is nan.*'model\.layers\.0\..*padding on the left"):
        AttnLRPx(LogitDifference(model)).attribute(
            token_ids(), additional_forward_args=(MASK, 5, 6)
        )
    fine = tiny("qwen2", attn="sdpa")
    found = AttnLRPx(LogitDifference(fine)).attribute(
        token_ids(), additional_forward_args=(MASK, 5, 6)
    )
    assert found.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_function_around_the_model(value):
    model = tiny("gpt2")

    def forward(ids):
        return model(ids).logits[:, -1] * torch.tensor([[1.0], [value]])

    with pytest.raises(ValueError, match=r"row 1 is -?(nan|inf).*the function around"):
        AttnLRPx(forward, model).attribute(token_ids(), 5)


def test_inputs_that_are_no_numbers():
    model = tiny("gpt2")
    embeds = model.get_input_embeddings()(token_ids()).detach()
    embeds[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"row 0 is nan.*'transformer\.drop'"):
        LRPx(model).attribute(embeds, TARGET)


def test_all_rows_of_a_batch_are_named():
    model = tiny("gpt2")
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[0] = float("inf")
    with pytest.raises(ValueError, match=r"rows 0, 1 is .*'transformer\.h\.0\.mlp\.c_fc'"):
        LRPx(model).attribute(token_ids(), TARGET)


def test_explain_and_generated_text(loaded):
    model, tokenizer = loaded["sva-llama"]
    handle = model.model.layers[0].register_forward_hook(
        lambda _module, _args, output: output * float("nan")
    )
    try:
        for method in ("attnlrpx", "lrpx", "input_x_gradient"):
            with pytest.raises(ValueError, match=r"explained value of row 0 is nan.*layers\.0'"):
                explain(model, tokenizer, "the keys to the cabinet", "are", method=method)
        with pytest.raises(ValueError, match=r"explained value of tokens? 0.*layers\.0'"):
            LLMRelevance(AttnLRPx(model), tokenizer).attribute("the keys", target=" are")
    finally:
        handle.remove()


def test_a_value_that_is_finite_with_relevances_that_are_not_is_one_warning():
    """A causal model does not see the position that is spoiled; its gradient does."""
    model = broken("gpt2", position=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        relevance = LRPx(model).attribute(token_ids(), (0, 5))
    said = [str(each.message) for each in caught if "Relevances are not" in str(each.message)]
    assert bool(relevance.isfinite().all()) == (not said)
    for each in said:
        assert "row 1" in each
        assert "'transformer.h.1.mlp' (GPT2MLP) is not, at a position" in each


def test_half_precision_that_overflows():
    model = tiny("gpt2", dtype=torch.float16)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.fill_(60000)
    with pytest.raises(ValueError, match=r"torch\.bfloat16 or torch\.float32 for torch\.float16"):
        AttnLRPx(model).attribute(token_ids(), TARGET)
