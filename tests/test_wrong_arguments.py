"""Wrong targets, inputs, layers, outputs and keywords: an error that names the way out.

The types are those that Captum raises, and the model is left as it was.
"""

import copy

import numpy as np
import pytest
import torch
import transformers
from models import VOCABULARY, tiny, token_ids
from state import snapshot
from torch import nn

from captum_lrpx import (
    ALTILogit,
    AttentionRollout,
    AttnLRPx,
    ClassLogits,
    LayerAttnLRPx,
    LayerLRPx,
    LRPx,
    NeuronAttnLRPx,
    NeuronLRPx,
    TokenLogits,
    ledger,
)
from captum_lrpx.targets import OutputFunction

IDS = token_ids(2, 5)
TARGET = (-1, 7)
REFUSED = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)


def block_of(model):
    return next(each for each in model.modules() if isinstance(each, nn.ModuleList))[0]


EXPLAIN = {
    "LRPx": lambda model, inputs, target: LRPx(model).attribute(inputs, target),
    "attribute_targets": lambda model, inputs, target: AttnLRPx(model).attribute_targets(
        inputs, [target]
    ),
    "LayerLRPx": lambda model, inputs, target: LayerLRPx(model, block_of(model)).attribute(
        inputs, target
    ),
    "ALTILogit": lambda model, inputs, target: ALTILogit(model).attribute(inputs, target),
    "AttentionRollout": lambda model, inputs, target: AttentionRollout(model).attribute(
        inputs, target
    ),
    "ledger": lambda model, inputs, target: ledger(LRPx(model), inputs, target),
}


def refusal(model, call):
    """The error of a call, which leaves the model as it was."""
    before = snapshot(model)
    with pytest.raises(REFUSED) as caught:
        call()
    assert snapshot(model) == before
    return caught.value


# Targets ------------------------------------------------------------------------------------------

PER_POSITION = {
    "a token alone": (612, IndexError),
    "a token alone, in the range of positions": (2, AssertionError),
    "a position alone": ((1,), AssertionError),
    "three indices": ((0, 1, 2), AssertionError),
    "no such token": ((-1, 10**6), IndexError),
    "no such position": ((99, 5), IndexError),
    "no such token in a list": ([(0, 10**6), (0, 1)], IndexError),
    "a list of another length": ([(0, 1)] * 3, AssertionError),
    "a list of tokens": ([1, 2], AssertionError),
    "a list of positions": ([(1,), (2,)], AssertionError),
    "an empty list": ([], AssertionError),
    "a tensor of two dimensions": (torch.tensor([[1, 2]]), AssertionError),
    "a tensor of tokens": (torch.tensor([1, 2]), AssertionError),
    "true": (True, AssertionError),
    "true in a tuple": ((-1, True), AssertionError),
    "a float": (1.5, AssertionError),
    "a float in a tuple": ((-1, 5.0), AssertionError),
    "floats": (torch.tensor([1.5]), AssertionError),
    "a word": ("are", AssertionError),
    "words in a tuple": ((-1, "are"), AssertionError),
    "words": (["are", "is"], AssertionError),
    "nothing": (None, AssertionError),
    "an empty tuple": ((), AssertionError),
    "a number of NumPy": (np.int64(5), AssertionError),
}


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("case", PER_POSITION)
def test_a_target_of_logits_per_position_is_position_and_token(family, case):
    target, kind = PER_POSITION[case]
    model = tiny(family)
    error = refusal(model, lambda: LRPx(model).attribute(IDS, target))
    assert type(error) is kind
    assert "a target is a tuple (position, token)" in str(error)


@pytest.mark.parametrize("method", EXPLAIN)
@pytest.mark.parametrize("target", [612, 2, (1,), (0, 1, 2), [(0, 1)] * 3, True, 1.5, (-1, 10**6)])
def test_every_method_says_so(method, target):
    model = tiny("llama")
    error = refusal(model, lambda: EXPLAIN[method](model, IDS, target))
    assert isinstance(error, (AssertionError, IndexError))
    assert "a target is a tuple (position, token)" in str(error)


PER_TEXT = {
    "no such class": (7, IndexError),
    "no such class from the end": (-5, IndexError),
    "no such class in a list": ([1, 9], IndexError),
    "no such class in a tensor": (torch.tensor([1, 9]), IndexError),
    "a pair": ((0, 1), AssertionError),
    "a list of another length": ([0, 1, 2], AssertionError),
    "a tensor of two dimensions": (torch.zeros(2, 2).long(), AssertionError),
    "true": (True, AssertionError),
    "truth values": ([True, False], AssertionError),
    "floats": (torch.tensor([1.0, 2.0]), AssertionError),
    "nothing": (None, AssertionError),
}


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("case", PER_TEXT)
def test_a_target_of_one_row_of_outputs_is_an_index(case, floating):
    target, kind = PER_TEXT[case]
    model = tiny("bert", "sequence", dtype=torch.float32)
    inputs = model.get_input_embeddings()(IDS).detach() if floating else IDS
    error = refusal(model, lambda: LRPx(model).attribute(inputs, target))
    assert type(error) is kind
    assert "a target is an index below 3, or a list or tensor of 2" in str(error)


def test_a_target_for_an_output_of_one_number():
    model = tiny("llama")
    call = LRPx(OutputFunction(TokenLogits(model), lambda logits: logits.sum(1)))
    error = refusal(model, lambda: call.attribute(IDS, 3))
    assert "one number for each row, and no target" in str(error)


def test_several_targets_are_a_list():
    model = tiny("llama")
    for call in (LRPx(model).attribute_targets, ALTILogit(model).decompose_targets):
        error = refusal(model, lambda call=call: call(IDS, 612))
        assert "`targets` is a list of targets" in str(error)
        assert "at least one target" in str(refusal(model, lambda call=call: call(IDS, [])))


@pytest.mark.parametrize("selector", [612, 2, (1,), (0, 10**6), (0, 1, 2), True, (1, 2.0), "a"])
def test_a_neuron_of_hidden_states_is_position_and_feature(selector):
    model = tiny("llama")
    method = NeuronAttnLRPx(model, block_of(model))
    error = refusal(model, lambda: method.attribute(IDS, selector))
    assert isinstance(error, (AssertionError, IndexError))
    assert "(position, feature)" in str(error)
    assert method.attribute(IDS, (1, slice(None))).shape == IDS.shape


# Inputs -------------------------------------------------------------------------------------------

ENCODING = transformers.BatchEncoding({"input_ids": IDS})
FOREIGN = {
    "an encoding": (ENCODING, ".input_ids"),
    "an encoding in a tuple": ((ENCODING,), ".input_ids"),
    "a dictionary": ({"input_ids": IDS}, ".input_ids"),
    "a text": ("the keys", "tokenizer(text"),
    "a list": (IDS.tolist(), "torch.as_tensor"),
    "an array": (IDS.numpy(), "torch.as_tensor"),
}


@pytest.mark.parametrize("method", EXPLAIN)
@pytest.mark.parametrize("case", FOREIGN)
def test_what_is_no_tensor(method, case):
    inputs, way_out = FOREIGN[case]
    model = tiny("llama")
    error = refusal(model, lambda: EXPLAIN[method](model, inputs, TARGET))
    assert type(error) is AssertionError  # as Captum's
    assert way_out in str(error)


UNREADABLE = {
    "one dimension": (IDS[0], ValueError, "ids.unsqueeze(0)"),
    "three dimensions": (IDS[None], ValueError, "takes token ids [B, T]"),
    "floating ids": (IDS.float(), ValueError, "ids.long()"),
    "truth values": (IDS.bool(), TypeError, "ids.long()"),
    "bytes": (IDS.to(torch.int8), TypeError, "ids.long()"),
    "no tokens": (IDS[:, :0], ValueError, "nothing to explain"),
    "negative": (IDS - 100, IndexError, "out of range"),
    "added": (IDS.clone().fill_(VOCABULARY), IndexError, "resize_token_embeddings(len(tokenizer))"),
    "too long": (token_ids(1, 60), ValueError, "truncation=True"),
}
FORWARDS = {
    "the model": lambda model: model,
    "its forward": lambda model: model.forward,
    "a forward module": lambda model: OutputFunction(
        TokenLogits(model), lambda logits: logits[:, :1, None]
    ),
    "a function": lambda model: lambda ids: model(ids).logits,
}


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt"])
@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("case", UNREADABLE)
def test_what_the_model_cannot_read(family, forward, case):
    inputs, kind, message = UNREADABLE[case]
    model = tiny(family)
    method = LRPx(FORWARDS[forward](model), model)
    if "dimension" in case and forward == "a function" and family == "opt":
        assert method.attribute(inputs, (0, 0)).shape == inputs.shape  # OPT reads them as rows
        return
    error = refusal(model, lambda: method.attribute(inputs, (0, 0)))
    if "dimension" in case and forward == "a function" and family != "bert":
        return  # the model of the function reads them, and what it gives is refused
    assert type(error) is kind
    assert message in str(error)


@pytest.mark.parametrize("method", EXPLAIN)
@pytest.mark.parametrize("case", ["one dimension", "negative", "too long"])
def test_every_method_says_what_the_model_cannot_read(method, case):
    inputs, kind, message = UNREADABLE[case]
    model = tiny("bert")
    error = refusal(model, lambda: EXPLAIN[method](model, inputs, TARGET))
    assert type(error) is kind
    assert message in str(error)


def test_rotary_positions_have_no_end():
    ids = token_ids(1, 60)
    assert LRPx(tiny("llama")).attribute(ids, TARGET).shape == ids.shape


def test_padding_takes_no_position_where_positions_follow_it():
    model = tiny("roberta")
    ids = torch.cat([token_ids(1, 22), torch.full((1, 1), model.config.pad_token_id)], 1)
    assert LRPx(model).attribute(ids, (0, 7), (ids != model.config.pad_token_id).long()).shape


def test_embeddings_that_are_not_resized_with_the_tokenizer():
    model = tiny("llama")
    model.resize_token_embeddings(VOCABULARY + 1)
    model.eval()
    added = IDS.clone().fill_(VOCABULARY)
    assert LRPx(model).attribute(added, TARGET).shape == added.shape


@pytest.mark.parametrize("method", EXPLAIN)
@pytest.mark.parametrize("part", ["all", "a block", "a norm"])
def test_a_model_without_values(method, part):
    model = tiny("llama")
    parts = {"all": model, "a block": block_of(model), "a norm": model.model.norm}
    parts[part].to("meta")
    for ids in (IDS, IDS.to("meta")):
        with pytest.raises(ValueError, match='LlamaForCausalLM is on the device "meta"'):
            EXPLAIN[method](model, ids, TARGET)


def test_ids_without_values():
    error = refusal(model := tiny("llama"), lambda: LRPx(model).attribute(IDS.to("meta"), TARGET))
    assert "An input is on the device" in str(error)


def test_offloaded_weights_have_values():
    accelerate = pytest.importorskip("accelerate")
    model = tiny("llama", dtype=torch.float32)
    expected = LRPx(model).attribute(IDS, TARGET)
    offloaded = accelerate.cpu_offload(copy.deepcopy(model))
    torch.testing.assert_close(LRPx(offloaded).attribute(IDS, TARGET), expected)


def test_rows_of_a_decoder_classifier_without_a_padding_token():
    model = tiny("llama", "sequence")
    model.config.pad_token_id = None
    for forward in (model, ClassLogits(model)):
        error = refusal(model, lambda forward=forward: LRPx(forward).attribute(IDS, 1))
        assert "set `model.config.pad_token_id = tokenizer.pad_token_id`" in str(error)
        assert LRPx(forward).attribute(IDS[:1], 1).shape == IDS[:1].shape


# Layers -------------------------------------------------------------------------------------------

LAYERS = {
    "a path": ("model.layers.0", TypeError, "model.get_submodule('model.layers.0')"),
    "nearly a path": ("model.layer.0", TypeError, "model.get_submodule('model.layers.0')"),
    "no path": ("attention!", TypeError, "named_modules"),
    "a number": (0, TypeError, "torch.nn.Module"),
    "nothing": (None, TypeError, "torch.nn.Module"),
    "a tensor": (torch.ones(2), TypeError, "torch.nn.Module"),
}


@pytest.mark.parametrize("method", [LayerLRPx, LayerAttnLRPx, NeuronLRPx, NeuronAttnLRPx])
@pytest.mark.parametrize("case", LAYERS)
def test_what_is_no_layer(method, case):
    layer, kind, message = LAYERS[case]
    model = tiny("llama")
    error = refusal(model, lambda: method(model, layer))
    assert type(error) is kind
    assert message in str(error)


def test_lists_of_layers():
    model = tiny("llama")
    assert "get_submodule" in str(refusal(model, lambda: LayerLRPx(model, ["model.layers.0"])))
    assert "at least one" in str(refusal(model, lambda: LayerLRPx(model, [])))


def test_a_layer_that_does_not_run():
    model = tiny("llama")
    for layer, message in [
        (nn.Linear(2, 2), "no module of the LlamaForCausalLM"),
        (copy.deepcopy(model).model.layers[0], "no module of the LlamaForCausalLM"),
        (model.model.layers, "only holds layers"),
    ]:
        for call in (
            lambda layer=layer: LayerLRPx(model, layer).attribute(IDS, TARGET),
            lambda layer=layer: NeuronLRPx(model, layer).attribute(IDS, (1, 2)),
        ):
            error = refusal(model, call)
            assert type(error) is ValueError
            assert "did not run in the forward pass" in str(error)
            assert message in str(error)
