"""Numbers under stress: no NaN where the logits are finite, and known errors against float64."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from precision import DTYPES, METHODS, TARGET, errors_of

from captum_lrpx import AttnLRPx, LRPx

pytestmark = pytest.mark.usefixtures("everything_fast")

ALL_FAMILIES = FAMILIES | MORE_FAMILIES
ALL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

FIRST_LAYERS = ("fc1", "c_fc", "lin1", "intermediate.dense", "gate_proj", "dense_h_to_4h")
QUERIES_AND_KEYS = ("q_proj", "k_proj", "query", "key", "c_attn", "q_lin", "k_lin")


@cache
def model_of(family, dtype, attn, change=None):
    model = tiny(family, dtype=dtype, attn=attn, biases="zero" if change == "silent" else "random")
    named = list(model.named_parameters())
    with torch.no_grad():
        for name, parameter in named:
            if change == "silent" and any(part in name for part in FIRST_LAYERS):
                parameter.zero_()
            if change == "saturated" and any(part in name for part in QUERIES_AND_KEYS):
                parameter.mul_(50 if "norm" not in name else 1)
    return model


def scaled(factor):
    def make(model):
        embeds = model.get_input_embeddings()(token_ids(2, 5)).detach()
        return {"inputs": (embeds.double() * factor).to(model.dtype)}

    return make


def some_rows(value):
    """One token of zeros, one whose features are all the same."""

    def make(model):
        embeds = model.get_input_embeddings()(token_ids(2, 5)).detach().clone()
        embeds[:, 1], embeds[:, 2] = 0.0, value
        return {"inputs": embeds}

    return make


def ids_of(batch, length):
    return lambda _model: {"inputs": token_ids(batch, length)}


def masked(make_mask):
    def make(model):
        ids = token_ids(2, 5)
        return {"inputs": ids, "mask": make_mask(ids, model.dtype)}

    return make


def fully_padded(ids, _dtype):
    mask = torch.ones_like(ids)
    mask[1] = 0
    return mask


def padded_on_the_left(ids, _dtype):
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return mask


def infinite(ids, dtype):
    hidden = torch.ones(ids.shape[1], ids.shape[1]).triu(1).bool()
    mask = torch.zeros(len(ids), 1, *hidden.shape, dtype=dtype)
    return mask.masked_fill(hidden, -torch.inf)


CONDITIONS = {
    "as usual": (None, ids_of(2, 5)),
    "one token": (None, ids_of(2, 1)),
    "as long as it gets": (None, ids_of(1, 22)),
    **{f"embeddings times {factor}": (None, scaled(factor)) for factor in (1e-30, 1e-10, 1e-5)},
    **{f"embeddings times {factor}": (None, scaled(factor)) for factor in (1e3, 1e10, 1e30)},
    "zeros": (None, scaled(0.0)),
    "rows without variance": (None, some_rows(1.0)),
    "activations at zero": ("silent", ids_of(2, 5)),
    "saturated softmax": ("saturated", ids_of(2, 5)),
    "a row of padding": (None, masked(fully_padded)),
    "padding on the left": (None, masked(padded_on_the_left)),
    "a mask of minus infinity": (None, masked(infinite)),
}

OUT_OF_RANGE = {"mistral": ("embeddings times 1e-30", "embeddings times 1e-10", "zeros")}
"""In float16, where a plain gradient is NaN as well: each of the norms multiplies it by 1000."""


def logits_of(model, inputs, mask):
    keywords = {} if mask is None else {"attention_mask": mask}
    with torch.no_grad():
        if inputs.is_floating_point():
            return model(inputs_embeds=inputs, **keywords).logits
        return model(inputs, **keywords).logits


def arguments(model, mask):
    """Captum's are positional, and some families have a cache before the mask."""
    if mask is None:
        return None
    return (None, mask) if model.config.model_type in ("gpt2", "bloom") else (mask,)


def assert_finite_where_the_logits_are(family, dtype, attn, condition):
    change, make = CONDITIONS[condition]
    model = model_of(family, dtype, attn, change)
    made = make(model)
    inputs, mask = made["inputs"], made.get("mask")
    finite = torch.isfinite(logits_of(model, inputs, mask)).all()
    out_of_range = dtype == torch.float16 and condition in OUT_OF_RANGE.get(family, ())
    for name, method in METHODS.items():
        explain = method(model).attribute
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                relevance = explain(inputs, TARGET, arguments(model, mask))
            except ValueError as error:
                assert "not finite" in str(error)  # noqa: PT017 - all others are errors
                assert not finite
                continue
        warned = any("Relevances are not finite" in str(each.message) for each in said)
        if finite:
            assert torch.isfinite(relevance).all() != warned, name
            assert warned == (out_of_range and name != "ALTILogit"), name
        else:
            assert not warned


CASES = [(family, condition) for family in ALL_FAMILIES for condition in CONDITIONS]


def possible(family, condition):
    """BLOOM and OPT count positions from a two-dimensional mask, and take no other."""
    return condition != "a mask of minus infinity" or family not in ("bloom", "opt")


@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("condition", CONDITIONS)
def test_finite_where_the_logits_are(family, condition):
    if not possible(family, condition):
        return
    number = CASES.index((family, condition))  # each dtype and kernel takes its turn
    attn = ("eager", "sdpa")[number // len(ALL_DTYPES) % 2]
    dtype = ALL_DTYPES[number % len(ALL_DTYPES)]
    assert_finite_where_the_logits_are(family, dtype, attn, condition)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_finite_where_the_logits_are_in_every_dtype_and_kernel(family, dtype):
    for condition in CONDITIONS:
        for attn in ("eager", "sdpa"):
            if possible(family, condition):
                assert_finite_where_the_logits_are(family, dtype, attn, condition)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("of_ids", [True, False])
def test_relevances_out_of_range_are_said(method, of_ids):
    model = tiny("mistral", dtype=torch.float16)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    ids = token_ids(2, 5)
    inputs = ids if of_ids else model.get_input_embeddings()(ids).detach()
    with pytest.warns(UserWarning, match=r"left the range of torch.float16") as said:
        method(model).attribute(inputs, target=TARGET)
    assert said[0].filename == __file__
    exact = method(model.float()).attribute(inputs if of_ids else inputs.float(), target=TARGET)
    assert not exact.any()


# Errors against float64 ---------------------------------------------------------------------------

# The largest error over the tables in docs/trust.md, rounded up; `precision.py` prints these.
BOUNDS_TRAINED = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
BOUNDS_RANDOM = {torch.float32: 2e-6, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_errors_against_float64(method, dtype):
    assert max(errors_of("random", method, dtype, range(2))) <= BOUNDS_RANDOM[dtype]
    assert max(errors_of("trained", method, dtype, range(2))) <= BOUNDS_TRAINED[dtype]


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_no_better_than_it_can_be(method):
    """The errors are those of the dtype: what is measured is not zero."""
    coarse = max(errors_of("random", method, torch.bfloat16, range(1)))
    assert coarse > max(errors_of("random", method, torch.float32, range(1)))
