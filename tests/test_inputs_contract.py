"""Captum's contract for several inputs, images and audio: tuples, targets, batches, errors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import NoiseTunnel
from state import snapshot
from tiny_models import build, config_class, small_config
from torch import nn
from transformers import BatchFeature

from captum_lrpx import (
    AttnLRPx,
    DecoderLogits,
    LayerAttnLRPx,
    LRPx,
    NeuronAttnLRPx,
    ledger,
)

MARK, LENGTH = 98, 16
"""The token that stands for a patch of an image, and number of patches."""
METHODS = pytest.mark.parametrize("method", [LRPx, AttnLRPx])
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


@dataclass
class Case:
    """A forward function of inputs of some kinds, for a batch of two.

    Attributes:
        model: The model.
        forward: Gives outputs ``[B, C]``.
        inputs: Its inputs.
        arguments: What it takes after them.
        layer: A layer that relevance goes through.
    """

    model: nn.Module
    forward: Any
    inputs: tuple[torch.Tensor, ...]
    layer: nn.Module
    arguments: tuple[Any, ...] = ()

    def row(self, number: int) -> tuple[tuple[torch.Tensor, ...], tuple[Any, ...]]:
        here = slice(number, number + 1)
        cut = (each[here] if isinstance(each, torch.Tensor) else each for each in self.arguments)
        return tuple(each[here] for each in self.inputs), tuple(cut)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 90, shape, generator=torch.Generator().manual_seed(seed))


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def image() -> Case:
    model = build("vit", "IMAGE_CLASSIFICATION", num_labels=3)
    inputs = (floats(2, 3, 32, 32),)
    return Case(model, lambda x: model(x).logits, inputs, model.vit.layers[0])


def spectrogram() -> Case:
    sizes = {"max_length": 64, "num_mel_bins": 32, "patch_size": 8, "num_labels": 3}
    model = build("audio-spectrogram-transformer", "AUDIO_CLASSIFICATION", **sizes)
    layer = model.audio_spectrogram_transformer.layers[0]
    return Case(model, lambda x: model(x).logits, (floats(2, 64, 32),), layer)


def wave() -> Case:
    model = build("wav2vec2", "AUDIO_CLASSIFICATION", num_labels=3)
    inputs = (floats(2, 4000),)
    return Case(model, lambda x: model(x).logits, inputs, model.wav2vec2.encoder.layers[0])


def speech() -> Case:
    model = build("whisper", "SPEECH_SEQ_2_SEQ", num_mel_bins=16, max_source_positions=50)
    inputs = (floats(2, 16, 100), ids(2, 4))
    return Case(model, DecoderLogits(model), inputs, model.model.decoder.layers[0])


def translation() -> Case:
    model = build("t5", "SEQ_TO_SEQ_CAUSAL_LM")
    return Case(model, DecoderLogits(model), (ids(2, 6), ids(2, 4)), model.decoder.block[0])


def image_and_text() -> Case:
    text = small_config(config_class("llama"), vocab_size=99)
    model = build("llava", "IMAGE_TEXT_TO_TEXT", text_config=text, image_token_id=MARK)
    tokens = torch.cat([torch.full((2, LENGTH), MARK), ids(2, 5)], dim=1)

    def forward(tokens, pixels, mask):
        return model(input_ids=tokens, pixel_values=pixels, attention_mask=mask).logits[:, -1]

    layer = model.model.language_model.layers[0]
    mask = torch.ones_like(tokens)
    return Case(model, forward, (tokens, floats(2, 3, 32, 32)), layer, (mask,))


MAKERS = (image, spectrogram, wave, speech, translation, image_and_text)


@pytest.fixture(scope="module", params=MAKERS, ids=lambda maker: maker.__name__)
def case(request):
    case = request.param()
    case.forward(*case.inputs, *case.arguments)  # transformers puts hooks of its own
    return case


def attributed(method: Any, case: Case, target: Any, **options: Any) -> Any:
    return method(case.forward, case.model).attribute(
        case.inputs, target, additional_forward_args=case.arguments or None, **options
    )


@METHODS
def test_a_tuple_gives_a_tuple_of_the_same_shapes(case, method):
    before = snapshot(case.model)
    found = attributed(method, case, 1)
    assert snapshot(case.model) == before
    assert isinstance(found, tuple)
    assert [each.shape for each in found] == [each.shape for each in case.inputs]
    assert all(each.isfinite().all() and each.abs().max() > 0 for each in found)
    if len(case.inputs) == 1:
        alone = method(case.forward, case.model).attribute(case.inputs[0], 1)
        assert torch.equal(alone, found[0])


@METHODS
def test_rows_of_a_batch_are_single_calls_in_each_form_of_target(case, method):
    found = attributed(method, case, [1, 2])
    for same in (torch.tensor([1, 2]), [(1,), (2,)]):
        again = attributed(method, case, same)
        assert all(map(torch.equal, found, again))
    for number, target in enumerate([1, 2]):
        inputs, arguments = case.row(number)
        alone = method(case.forward, case.model).attribute(
            inputs, target, additional_forward_args=arguments or None
        )
        for batched, single in zip(found, alone, strict=True):
            torch.testing.assert_close(batched[number], single[0], **CLOSE)


@METHODS
def test_deltas_are_values_minus_sums_and_the_ledger_closes(case, method):
    found, delta = attributed(method, case, [1, 2], return_convergence_delta=True)
    with torch.no_grad():
        values = case.forward(*case.inputs, *case.arguments)[[0, 1], [1, 2]]
    sums = sum(each.flatten(1).sum(1) for each in found)
    torch.testing.assert_close(delta, values - sums, **CLOSE)
    book = ledger(method(case.forward, case.model), case.inputs, [1, 2], case.arguments or None)
    assert book.closes(1e-4)


def test_many_targets_are_single_calls(case):
    attribution = AttnLRPx(case.forward, case.model)
    found = attribution.attribute_targets(case.inputs, [1, [0, 2]], case.arguments or None)
    for place, target in enumerate([1, [0, 2]]):
        for many, single in zip(found, attributed(AttnLRPx, case, target), strict=True):
            torch.testing.assert_close(many[place], single, **CLOSE)


def test_blocks_may_be_computed_again(case):
    expected = attributed(AttnLRPx, case, 1)
    again = AttnLRPx(case.forward, case.model, checkpointing=True).attribute(
        case.inputs, 1, additional_forward_args=case.arguments or None
    )
    for one, other in zip(expected, again, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_layers_and_neurons(case):
    arguments = case.arguments or None
    layers = LayerAttnLRPx(case.forward, case.layer, model=case.model)
    (found, *_) = _listed(layers.attribute(case.inputs, 1, arguments))
    assert found.shape[0] == 2
    assert found.abs().max() > 0
    neuron = NeuronAttnLRPx(case.forward, case.layer, model=case.model)
    of_neuron = neuron.attribute(case.inputs, (1, 2), arguments)
    assert [each.shape for each in _listed(of_neuron)] == [each.shape for each in case.inputs]


def _listed(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, (tuple, list)) else [value]


def test_errors_are_captums(case):
    with pytest.raises((AssertionError, IndexError), match=r"[Tt]arget|out of range|bounds"):
        attributed(LRPx, case, 10_000)
    with pytest.raises(AssertionError, match=r"[Tt]arget"):
        attributed(LRPx, case, None)
    with pytest.raises(AssertionError, match=r"[Tt]arget|examples|match"):
        attributed(LRPx, case, [1, 2, 0])
    assert not any(module._backward_hooks for module in case.model.modules())


def test_rows_that_differ_in_number_are_refused():
    for case in (speech(), translation()):
        first, second = case.inputs
        with pytest.raises(AssertionError, match="one of each for every example"):
            LRPx(case.forward, case.model).attribute((first, second[:1]), 1)


@METHODS
def test_padding_beside_an_image_has_no_relevance(method):
    case = image_and_text()
    tokens, pixels = case.inputs
    short = torch.cat([tokens[1:, :LENGTH], tokens[1:, LENGTH + 2 :]], dim=1)
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), short], dim=1)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    both = torch.cat([tokens[:1], padded])
    of_tokens, of_pixels = method(case.forward, case.model).attribute(
        (both, pixels), 1, additional_forward_args=(mask,)
    )
    alone = method(case.forward, case.model).attribute(
        (short, pixels[1:]), 1, additional_forward_args=(torch.ones_like(short),)
    )
    assert not of_tokens[1, :2].any()
    torch.testing.assert_close(of_tokens[1, 2:], alone[0][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(of_pixels[1], alone[1][0], rtol=1e-3, atol=1e-4)


def test_noise_tunnel_goes_over_pixels():
    case = image()
    tunnel = NoiseTunnel(LRPx(case.forward, case.model))
    found = tunnel.attribute(case.inputs[0], nt_samples=2, stdevs=0.0, target=1)
    torch.testing.assert_close(found, attributed(LRPx, case, 1)[0], **CLOSE)


@pytest.mark.parametrize("kept", [BatchFeature({"mask": 1.0}), np.ones(3), {"mask": 1.0}, [1.0]])
def test_a_forward_function_may_keep_what_a_processor_returned(kept):
    case = image()
    found = LRPx(lambda x: case.forward(x) * float(bool(len(kept))), case.model).attribute(
        case.inputs, 1
    )
    assert all(map(torch.equal, found, attributed(LRPx, case, 1)))
