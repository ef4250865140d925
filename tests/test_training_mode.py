"""Training mode is worth a warning where something in it is random, and then one."""

from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import (
    configure_interpretable_embedding_layer,
    remove_interpretable_embedding_layer,
)
from models import FAMILIES, MORE_FAMILIES, tiny, token_ids
from torch import nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import (
    ALTILogit,
    AttnLRPx,
    LayerLRPx,
    LLMRelevance,
    LRPx,
    NeuronLRPx,
    TokenLogits,
    explain,
    ledger,
)
from captum_lrpx.training import warn_if_training

TARGET = (-1, 5)


def said_by(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [each for each in caught if "training mode" in str(each.message)]


CALLS = {
    "attribute": lambda m: AttnLRPx(m).attribute(token_ids(), TARGET),
    "targets": lambda m: LRPx(m).attribute_targets(token_ids(), [TARGET]),
    "checkpointing": lambda m: LRPx(m, checkpointing=True).attribute(token_ids(), TARGET),
    "layer": lambda m: LayerLRPx(m, m.get_input_embeddings()).attribute(token_ids(), TARGET),
    "neuron": lambda m: NeuronLRPx(m, m.lm_head).attribute(token_ids(), TARGET),
    "ledger": lambda m: ledger(LRPx(m), token_ids(), TARGET),
    "alti": lambda m: ALTILogit(m).attribute(token_ids(), TARGET),
}


@pytest.mark.parametrize("call", CALLS)
def test_active_dropout_is_one_warning_at_the_callers_line(call):
    model = tiny("gpt2", resid_pdrop=0.2).train()
    for _ in range(2):
        (warning,) = said_by(lambda: CALLS[call](model))
        assert "its dropout is random" in str(warning.message)
        assert warning.filename == __file__


@pytest.mark.parametrize("call", CALLS)
def test_training_mode_without_dropout_is_none(call):
    """As LXT's examples tell to do, for transformers' gradient checkpointing."""
    model = tiny("llama").train()
    expected = CALLS[call](tiny("llama"))
    found = []
    assert not said_by(lambda: found.append(CALLS[call](model)))
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found[0], expected)


@pytest.mark.parametrize("family", FAMILIES | MORE_FAMILIES)
def test_dropout_is_found_in_each_family_wherever_it_is(family):
    names = {
        "gpt2": ["resid_pdrop", "embd_pdrop", "attn_pdrop"],
        "bert": ["hidden_dropout_prob", "attention_probs_dropout_prob"],
        "roberta": ["hidden_dropout_prob", "attention_probs_dropout_prob"],
        "distilbert": ["dropout", "attention_dropout"],
        "opt": ["dropout", "attention_dropout"],
        "bloom": ["hidden_dropout", "attention_dropout"],
    }.get(family, ["attention_dropout"])
    off = dict.fromkeys(names, 0.0)
    assert not said_by(lambda: warn_if_training(list(tiny(family, **off).train().modules())))
    for name in names:
        model = tiny(family, **off | {name: 0.1})
        assert not said_by(lambda: warn_if_training(list(model.modules())))  # noqa: B023
        model.train()
        assert len(said_by(lambda: warn_if_training(list(model.modules())))) == 1  # noqa: B023


def test_modules_that_others_put_into_a_model_are_none():
    """Captum's interpretable embedding is in training mode, in a model that is not."""
    model = tiny("bert")
    path = "bert.embeddings.word_embeddings"
    layer = configure_interpretable_embedding_layer(model, path)
    try:
        embeds = layer.indices_to_embeddings(token_ids()).detach()
        method = AttnLRPx(lambda x: model(inputs_embeds=x).logits, model=model)
        assert not said_by(lambda: method.attribute(embeds, TARGET))
    finally:
        remove_interpretable_embedding_layer(model, layer)
    model.bert.embeddings.added = nn.Identity()  # in training mode
    assert not said_by(lambda: AttnLRPx(model).attribute(token_ids(), TARGET))


def test_explain_says_it_once(loaded):
    model, tokenizer = loaded["sva-bert"]
    model.train()
    dropout = next(each for each in model.modules() if isinstance(each, nn.Dropout))
    before, dropout.p = dropout.p, 0.1
    try:
        for method in ("attnlrpx", "altilogit"):
            said = said_by(
                lambda: explain(model, tokenizer, "the keys [MASK]", "are", method=method)  # noqa: B023
            )
            assert len(said) == 1
    finally:
        dropout.p = before
        model.eval()


def test_generated_text_says_it_once(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    model.train()
    dropout = model.transformer.drop
    before, dropout.p = dropout.p, 0.1
    try:
        llm = LLMRelevance(AttnLRPx(TokenLogits(model).model), tokenizer)
        assert len(said_by(lambda: llm.attribute("the keys", target=" are"))) == 1
    finally:
        dropout.p = before
        model.eval()


def test_batch_norm_in_training_mode_is_another_reason():
    model = tiny("gpt2")
    model.transformer.normed = nn.BatchNorm1d(8)
    (warning,) = said_by(lambda: warn_if_training(list(model.modules())))
    assert "batch norm uses the statistics of the batch" in str(warning.message)


# Functions ----------------------------------------------------------------------------------------


class Dropping(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.function = function

    def forward(self, x):
        return self.function(self.linear(x))


RANDOM = {
    "dropout": lambda x: F.dropout(x, 0.5),
    "default": F.dropout,
    "torch": lambda x: torch.dropout(x, 0.2, True),
    "alpha": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, None, 0.3),
}
NOT_RANDOM = {
    "training": lambda x: F.dropout(x, 0.5, training=False),
    "zero": lambda x: F.dropout(x, 0.0),
    "torch": lambda x: torch.dropout(x, 0.2, False),
    "train": lambda x: torch.dropout(x, p=0.2, train=False),
    "alpha": lambda x: F.alpha_dropout(x, 0.5),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.0),
    "module": nn.Dropout(0.5).eval(),
}


def said_of_functions(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [each for each in caught if "evaluation mode" in str(each.message)]


@pytest.mark.parametrize("name", RANDOM)
def test_a_function_that_drops_in_evaluation_mode_is_one_warning(name):
    model = nn.Sequential(Dropping(RANDOM[name])).eval()
    x = torch.ones(1, 3, 4)
    for _ in range(2):
        (warning,) = said_of_functions(lambda: LRPx(model).attribute(x, (0, 1)))
        assert "drops values at random although" in str(warning.message)
        assert "in '0'" in str(warning.message)
        assert warning.filename == __file__


@pytest.mark.parametrize("name", NOT_RANDOM)
def test_a_function_that_drops_nothing_is_none(name):
    model = nn.Sequential(Dropping(NOT_RANDOM[name])).eval()
    assert not said_of_functions(lambda: LRPx(model).attribute(torch.ones(1, 3, 4), (0, 1)))


@pytest.mark.parametrize("call", CALLS)
def test_a_hook_that_drops_is_one_warning_for_each_way(call):
    model = tiny("llama")
    hook = lambda _module, _args, output: F.dropout(output, 0.5)  # noqa: E731
    with model.model.layers[0].mlp.register_forward_hook(hook):
        assert len(said_of_functions(lambda: CALLS[call](model))) == 1
        assert len(said_by(lambda: CALLS[call](model.train()))) == 0
