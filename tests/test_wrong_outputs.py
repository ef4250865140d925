"""Forward functions that return what cannot be explained, and keywords of other methods."""

import copy
import inspect

import pytest
import torch
import transformers
from models import VOCABULARY, tiny, token_ids
from test_wrong_arguments import EXPLAIN, IDS, TARGET, block_of, refusal

from captum_lrpx import (
    ALTILogit,
    AttentionRollout,
    AttnLRPx,
    InformationFlow,
    LayerAttnLRPx,
    LayerLRPx,
    LLMRelevance,
    LRPx,
    NeuronLRPx,
    RandomAttribution,
    explain,
    propagation,
    zoo,
)

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


def without_gradient(model, x):
    with torch.no_grad():
        return model(x).logits[:, -1]


RETURNED = {
    "under no_grad": (without_gradient, 5, ValueError, "torch.no_grad"),
    "detached": (lambda model, x: model(x).logits[:, -1].detach(), 5, ValueError, ".detach()"),
    "argmax": (lambda model, x: model(x).logits[:, -1].argmax(-1), None, ValueError, "argmax"),
    "rounded": (lambda model, x: model(x).logits[:, -1].long(), 5, ValueError, "torch.int64"),
    "nothing": (lambda _model, _x: None, None, TypeError, "`return` missing"),
    "a text": (lambda _model, _x: "a", None, TypeError, "not a tensor"),
    "a number": (lambda model, x: model(x).logits[0, -1, 5].item(), None, TypeError, "float"),
    "a loss": (lambda model, x: model(x, labels=x).loss, None, ValueError, "a loss"),
    "one of all": (lambda model, x: model(x).logits.sum(), None, ValueError, "for each example"),
    "a tuple": (lambda model, x: model(x).to_tuple(), TARGET, TypeError, "one element of it"),
    "a dictionary": (lambda model, x: {"logits": model(x).logits}, TARGET, TypeError, "['logits']"),
    "an array": (
        lambda model, x: model(x).logits.detach().numpy(),
        TARGET,
        TypeError,
        "not a tensor",
    ),
}
METHODS = {
    "LRPx": lambda f, model, target: LRPx(f, model).attribute(IDS, target),
    "attribute_targets": lambda f, model, target: LRPx(f, model).attribute_targets(IDS, [target]),
    "LayerLRPx": lambda f, model, target: LayerLRPx(f, block_of(model), model=model).attribute(
        IDS, target
    ),
    "ALTILogit": lambda f, model, target: ALTILogit(f, model).attribute(IDS, target),
    "AttentionRollout": lambda f, model, target: AttentionRollout(f, model).attribute(IDS, target),
    "coverage": lambda f, model, _target: LRPx(f, model).coverage(IDS),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", RETURNED)
def test_an_output_that_cannot_be_explained(method, case):
    returned, target, kind, message = RETURNED[case]
    if method in ("ALTILogit", "AttentionRollout") and case == "under no_grad":
        kind = RuntimeError  # said inside of the model, where they need the gradient
    model = tiny("llama", dtype=torch.float32)
    error = refusal(model, lambda: METHODS[method](lambda x: returned(model, x), model, target))
    assert type(error) is kind
    assert message in str(error)


def test_calling_under_no_grad_is_fine():
    with torch.no_grad():
        assert LRPx(tiny("llama")).attribute(IDS, TARGET).shape == IDS.shape


def test_a_neuron_does_not_ask_for_the_output():
    model = tiny("llama")
    method = NeuronLRPx(lambda x: model(x).logits.argmax(-1), block_of(model), model=model)
    assert method.attribute(IDS, (1, 2)).shape == IDS.shape


HEADS = {
    "BertModel": ("last_hidden_state", (1, 5), "load the model with a head"),
    "BertForPreTraining": ("prediction_logits", (1, 5), "seq_relationship_logits"),
    "BertForQuestionAnswering": ("start_logits", 1, "end_logits"),
}


@pytest.mark.parametrize("method", EXPLAIN)
@pytest.mark.parametrize("name", HEADS)
def test_a_model_with_no_logits_or_several(name, method):
    field, target, message = HEADS[name]
    model = getattr(transformers, name)(transformers.BertConfig(**SIZES)).eval()
    error = refusal(model, lambda: EXPLAIN[method](model, IDS, target))
    assert type(error) is TypeError
    assert f"LRPx(lambda ids: model(ids).{field}, model=model)" in str(error)
    assert message in str(error)
    way_out = LRPx(lambda ids: getattr(model(ids), field), model=model)
    assert way_out.attribute(IDS, target).shape == IDS.shape


def test_multiple_choice():
    model = transformers.BertForMultipleChoice(transformers.BertConfig(**SIZES)).eval()
    ids = token_ids(4, 5).view(2, 2, 5)
    embeddings = model.get_input_embeddings()(ids).detach()
    of_embeddings = LRPx(model).attribute(embeddings, 1)
    assert of_embeddings.shape == embeddings.shape
    torch.testing.assert_close(LRPx(model).attribute(ids, 1), of_embeddings.sum(-1))
    error = refusal(model, lambda: LRPx(model).attribute(IDS, 1))
    assert "takes token ids [B, choices, T]" in str(error)


# Models and tokenizers ----------------------------------------------------------------------------


def test_something_else_than_a_model():
    model, tokenizer = zoo.load("sva-gpt2")
    for given in ("sva-gpt2", None, tokenizer, (model, tokenizer), model.config, type(model), 3):
        for call in (
            LRPx,
            ALTILogit,
            AttentionRollout,
            lambda given: LRPx(lambda x: x, given or 3),
        ):
            with pytest.raises(TypeError, match=r"zoo\.load\(name\).*from_pretrained"):
                call(given)
        with pytest.raises(TypeError, match=r"zoo\.load\(name\).*from_pretrained"):
            explain(given, tokenizer, "the keys", "are")
        with pytest.raises(TypeError, match=r"zoo\.load\(name\)"), propagation(given):
            pass


def test_something_else_than_a_tokenizer():
    model, tokenizer = zoo.load("sva-gpt2")
    with pytest.raises(TypeError, match="the model comes first"):
        explain(tokenizer, model, "the keys", "are")
    for given in ("sva-gpt2", None, model, transformers.AutoTokenizer):
        for call in (
            lambda given: explain(model, given, "the keys", "are"),
            lambda given: LLMRelevance(AttnLRPx(model), given),
        ):
            with pytest.raises(TypeError, match=r"AutoTokenizer\.from_pretrained\(name\)"):
                call(given)


def test_a_model_without_values_is_named_whatever_the_method():
    model, tokenizer = zoo.load("sva-gpt2")
    model = copy.deepcopy(model).to("meta")
    for method in ("attnlrpx", "altilogit", "saliency_l1", "random"):
        with pytest.raises(ValueError, match="GPT2LMHeadModel is on the device"):
            explain(model, tokenizer, "the keys", "are", method=method)
    with pytest.raises(ValueError, match="GPT2LMHeadModel is on the device"):
        LLMRelevance(AttnLRPx(model), tokenizer)


@pytest.mark.parametrize("given", [["a", "b"], ("a",), [None], b"abc", 3, [["a"]], {"a": 1}])
def test_what_is_neither_text_nor_ids(given):
    llm = LLMRelevance(AttnLRPx((loaded := zoo.load("sva-gpt2"))[0]), loaded[1])
    with pytest.raises(TypeError, match=r"give a text|give a pair|must have `input_ids`"):
        llm.attribute(given, "are")
    with pytest.raises(TypeError, match=r"must be a text or token ids \[K\], not"):
        llm.attribute("the keys", given)


# Keywords -----------------------------------------------------------------------------------------

ATTRIBUTIONS = {
    "LRPx": LRPx,
    "AttnLRPx": AttnLRPx,
    "LayerLRPx": lambda model: LayerLRPx(model, block_of(model)),
    "LayerAttnLRPx": lambda model: LayerAttnLRPx(model, block_of(model)),
    "NeuronLRPx": lambda model: NeuronLRPx(model, block_of(model)),
    "ALTILogit": ALTILogit,
    "AttentionRollout": AttentionRollout,
    "InformationFlow": InformationFlow,
    "RandomAttribution": RandomAttribution,
}
KEYWORDS = {
    "baselines": "has no baseline",
    "n_steps": "has no steps",
    "internal_batch_size": "has no steps",
    "nt_samples": "has no steps",
    "verbose": "prints nothing",
    "abs": "call `.abs()`",
    "feature_mask": "leaves no features out",
    "perturbations_per_eval": "leaves no features out",
    "inputz": "did you mean 'inputs'?",
    "colour": "has no argument 'colour'",
}


@pytest.mark.parametrize("name", ATTRIBUTIONS)
@pytest.mark.parametrize("keyword", KEYWORDS)
def test_a_keyword_of_another_method(name, keyword):
    method = ATTRIBUTIONS[name](tiny("llama"))
    with pytest.raises(TypeError) as caught:
        method.attribute(IDS, TARGET, **{keyword: 1})
    assert str(caught.value).startswith(name)
    assert KEYWORDS[keyword] in str(caught.value)


def test_the_signature_stays_that_of_the_method():
    assert list(inspect.signature(LRPx.attribute).parameters) == [
        "self",
        "inputs",
        "target",
        "additional_forward_args",
        "return_convergence_delta",
    ]


def test_names_that_may_have_been_meant():
    model, tokenizer = zoo.load("sva-gpt2")
    with pytest.raises(ValueError, match=r"'atnlrpx' \(did you mean 'attnlrpx'"):
        explain(model, tokenizer, "the keys", "are", method="atnlrpx")
    with pytest.raises(ValueError, match=r"'n_step'; .* \(did you mean 'n_steps'\?\)"):
        explain(model, tokenizer, "the keys", "are", method="integrated_gradients", n_step=3)
    with pytest.raises(ValueError, match=r"'sva-lama' \(did you mean 'sva-llama'"):
        zoo.load("sva-lama")
