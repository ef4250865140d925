"""ALTI-Logit of short inputs: streams read from nodes, small attentions computed at once.

The slow twins are the recording of a pass, and one example of one attention after another.
"""

import copy
import math

import pytest
import torch
from alti_logit_cases import ALL_FAMILIES, IDENTITY, close, every_family
from hypothesis import given
from hypothesis import strategies as st
from models import tiny, token_ids
from test_alti import blocks

from captum_lrpx import ALTILogit, InformationFlow
from captum_lrpx.alti import blocks as in_blocks
from captum_lrpx.alti import formulas
from captum_lrpx.alti.formulas import contributions, contributions_at_once
from captum_lrpx.alti.recording import Recording
from captum_lrpx.attr import alti_pass

TARGET = (4, 7)


@pytest.fixture
def recorded(monkeypatch):
    """One entry for each pass that has been recorded."""
    passes = []
    enter = Recording.__enter__

    def entered(self):
        passes.append(self)
        return enter(self)

    monkeypatch.setattr(Recording, "__enter__", entered)
    return passes


def one_by_one(monkeypatch):
    monkeypatch.setattr(in_blocks, "_FEWEST", math.inf)


# Recording ----------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_recording_gives_the_same(family, dtype, recorded, monkeypatch):
    model, ids = tiny(family, dtype=dtype, layers=3), token_ids(2, 5)
    method = ALTILogit(model)
    first, second = (method.attribute(ids, TARGET) for _ in range(2))
    assert torch.equal(first, second)
    # Norms that compute in float32 have saved a rounded copy of a tensor in float64.
    rounded = dtype == torch.float64 and ALL_FAMILIES[family].rotary
    assert len(recorded) == (2 if rounded else 1)
    monkeypatch.setattr(alti_pass, "is_worth_it", lambda *_: True)
    whole = method.attribute(ids, TARGET)
    assert len(recorded) == (3 if rounded else 2)
    close(second, whole, 8 * torch.finfo(dtype).eps * float(whole.abs().max()))


def test_what_reads_more_is_recorded(recorded):
    model, ids = tiny("gpt2"), token_ids(2, 5)
    method, apart = ALTILogit(model), ALTILogit(model, value_bias="apart")
    for count in (1, 1, 1):
        method.attribute(ids, TARGET)
        assert len(recorded) == count
    parts = method.decompose(ids, TARGET)
    close(parts.tokens(), method.attribute(ids, TARGET))
    assert not parts.remainder.abs().gt(1e-10).any()
    apart.attribute(ids, TARGET)
    method.attribute(token_ids(8, 20), TARGET)
    assert len(recorded) == 4


def test_another_path_is_recorded(recorded):
    model, ids = tiny("gpt2", layers=3), token_ids(2, 5)
    scale = 1.0

    def explained(ids):
        output = model(ids).logits
        return output if scale == 1.0 else output * scale

    method = ALTILogit(explained, model=model)
    plain = method.attribute(ids, TARGET)
    method.attribute(ids, TARGET)
    assert len(recorded) == 1
    scale = 2.0
    close(method.attribute(ids, TARGET), 2 * plain)
    assert len(recorded) == 2


def test_another_precision_is_measured_anew(recorded):
    """Its norms save a wider copy of a stream in bfloat16, and a rounded one in float64."""
    model, ids = tiny("llama", dtype=torch.bfloat16, layers=3), token_ids(2, 5)
    method = ALTILogit(model)
    method.attribute(ids, TARGET)
    method.attribute(ids, TARGET)
    assert len(recorded) == 1
    model.double()
    found = method.attribute(ids, TARGET)
    assert torch.equal(found, ALTILogit(copy.deepcopy(model)).attribute(ids, TARGET))


def test_streams_that_nodes_do_not_save_are_recorded(recorded):
    """Without norms only projections read a stream, and with frozen weights they save nothing."""
    model, ids = tiny("gpt2"), token_ids(2, 5)
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
    method = ALTILogit(model)
    for count in (1, 2):
        method.attribute(ids, TARGET)
        assert len(recorded) == count


# Several at once ----------------------------------------------------------------------------------


@given(examples=st.lists(blocks(), min_size=1, max_size=3))
def test_contributions_of_several_examples(examples):
    for block in examples:
        if len(block["residual"]) < block["weights"].shape[-1]:
            continue
        tensors = {name: each for name, each in block.items() if name != "first_row"}
        several = {name: torch.stack([each, each.flip(0)]) for name, each in tensors.items()}
        found = contributions_at_once(**several)
        for row in range(2):
            one = contributions(**{name: each[row] for name, each in several.items()})
            torch.testing.assert_close(found[row], one, rtol=0, atol=1e-12)


@every_family
@pytest.mark.parametrize("budget", [1 << 28, 3 * 8 * 16 * 5 * 12])
def test_one_by_one_gives_the_same(family, budget, monkeypatch):
    """The second budget is enough for a few examples of one attention."""
    model, ids = tiny(family, layers=5), token_ids(7, 5)
    method = ALTILogit(model, memory_budget=budget)
    targets = [(4, 7), (1, 9)]

    def results():
        parts = method.decompose(ids, TARGET, return_alti=True)
        tokens = method.attribute_targets(ids, targets)
        return parts.updates, parts.heads, parts.alti, parts.sinks, tokens

    together = results()
    one_by_one(monkeypatch)
    for found, expected in zip(together, results(), strict=True):
        close(found, expected, 1e-12)


@pytest.mark.parametrize("by_head", [True, False])
def test_information_flow_one_by_one(by_head, monkeypatch):
    model, ids = tiny("gpt2", layers=3), token_ids(3, 5)
    together = InformationFlow(model, by_head=by_head).attribute(ids, TARGET)
    one_by_one(monkeypatch)
    close(together, InformationFlow(model, by_head=by_head).attribute(ids, TARGET), 1e-12)


def test_attentions_of_different_forms(monkeypatch):
    model, ids = tiny("llama", heads=4, key_value_heads=2, layers=4), token_ids(2, 5)
    other = tiny("llama", heads=4, key_value_heads=4, layers=4)
    model.model.layers[1].self_attn = other.model.layers[1].self_attn
    method = ALTILogit(model)
    together = method.attribute(ids, TARGET)
    one_by_one(monkeypatch)
    close(together, method.attribute(ids, TARGET), max(1e-12, IDENTITY["llama"]))


def test_numbers_that_are_not_finite_are_left_to_the_slow_way(monkeypatch):
    """It computes only the rows that the explained value depends on."""
    model, ids = tiny("gpt2", layers=3), token_ids(2, 5)
    method = ALTILogit(model)
    expected = method.attribute(ids, TARGET)
    monkeypatch.setattr(
        formulas, "contributions_at_once", lambda *each: contributions_at_once(*each) / 0
    )
    close(method.attribute(ids, TARGET), expected, 1e-12)
