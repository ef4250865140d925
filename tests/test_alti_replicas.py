"""ALTI-Logit against replicas that are written from its formulas and know each model."""

import pytest
import torch
from alti_logit_cases import assert_identity, close
from replica_alti import bart, gemma2, gpt_neox
from tiny_models import build

from captum_lrpx import ALTILogit

REPLICAS = {"gemma2": gemma2, "gpt_neox": gpt_neox}
WITHIN = {("gemma2", "eager"): 1e-6, ("gpt_neox", "eager"): 1e-9, ("gpt_neox", "sdpa"): 1e-6}
"""Gemma 2 computes norms and rotary embeddings in float32, GPT-NeoX an eager softmax."""


def ids_of(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 90, (1, length), generator=generator)


@pytest.mark.parametrize(("kind", "attention"), WITHIN)
def test_decoders(kind, attention):
    options = {"num_hidden_layers": 3, "dtype": torch.float64}
    judge = build(kind, "CAUSAL_LM", attention="eager", **options)
    model = build(kind, "CAUSAL_LM", attention=attention, **options)
    ids = ids_of(7)
    expected, matrices = REPLICAS[kind](judge, ids, 5, 11)
    parts = ALTILogit(model).decompose(ids, (5, 11), return_alti=True)
    assert_identity(parts, 1e-6)
    close(parts.heads[0], torch.stack(expected), WITHIN[kind, attention])
    close(parts.alti[0], torch.stack(matrices), WITHIN[kind, attention])
    assert parts.heads.abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_encoder_and_a_decoder(attention):
    options = {"dtype": torch.float64, "forced_eos_token_id": None}
    judge = build("bart", "SEQ_TO_SEQ_CAUSAL_LM", attention="eager", **options)
    model = build("bart", "SEQ_TO_SEQ_CAUSAL_LM", attention=attention, **options)
    ids, decoder_ids = ids_of(7), ids_of(5, 1)
    expected, start = bart(judge, ids, decoder_ids, 3, 11)

    def logits(ids, decoder_ids):
        return model(input_ids=ids, decoder_input_ids=decoder_ids).logits

    method = ALTILogit(logits, model)
    parts = method.decompose((ids, decoder_ids), (3, 11))
    assert_identity(parts, 1e-10)
    direct = parts.heads[0][parts.heads[0].abs().sum((1, 2)) > 0]
    close(direct, torch.stack([torch.cat(each, 1) for each in expected]))
    close(parts.start[0, 7:], start)
    of_source, of_target = method.attribute((ids, decoder_ids), (3, 11))
    close(of_source[0], sum(each[0].sum(0) for each in expected))
    close(of_target[0], sum(each[1].sum(0) for each in expected) + start)
    assert not of_target[0, 4:].any()
    assert of_source.abs().min() > 0
