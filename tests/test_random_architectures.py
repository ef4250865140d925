"""Every flag of a config that changes the forward pass: explained exactly, or refused by name.

Hypothesis draws the flags of a family together. A model that is not refused has the forward pass
that it always has, bit by bit, and relevances that account for the whole explained value.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from anatomy import blocks_of
from drawing import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from models import LABELS, VOCABULARY, built, embeddings_of, outputs, tiny, token_ids
from passes import opened
from replica_ledger import MASS, RELATIVE, Exact, captured, ledger
from state import snapshot
from test_conservation import FLOAT32_MASS, FLOAT32_RELATIVE
from transformers.activations import ACT2FN

from captum_lrpx import ATTN_LRP, LRP, LRP_UNIFORM_GATE, propagation
from captum_lrpx.traced import TracedPass

RECIPES = (LRP, LRP_UNIFORM_GATE, ATTN_LRP)

ZERO_AT_ZERO = sorted(name for name in ACT2FN if ACT2FN[name](torch.zeros(1)) == 0)
"""The others have a constant at every unit, which the replica does not count."""
ACTIVATIONS = st.sampled_from(ZERO_AT_ZERO)
GATES = st.sampled_from([name for name in ZERO_AT_ZERO if name != "linear"])
"""A gate that is linear is refused: it could be the signal as well."""
LONGEST = 8

flag = st.booleans()
epsilon = st.sampled_from([1e-12, 1e-6, 1e-5, 1e-2])
window = st.sampled_from([None, 1, 2, 4])


@st.composite
def rotary(draw):
    """Parameters of rotary positions, of each kind that transformers has."""
    kind = draw(st.sampled_from(["default", "linear", "dynamic", "yarn", "longrope", "llama3"]))
    theta = draw(st.sampled_from([100.0, 10000.0]))
    parameters = {"rope_type": kind, "rope_theta": theta}
    if kind != "default":
        parameters["factor"] = draw(st.sampled_from([1.5, 4.0]))
    if kind in ("yarn", "longrope", "llama3"):
        parameters["original_max_position_embeddings"] = draw(st.sampled_from([4, 12]))
    if kind == "longrope":
        # One factor per pair of features: the size of a head is drawn with it, see `models`.
        parameters |= {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
    if kind == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return parameters


@st.composite
def sliding(draw):
    """Qwen's sliding windows, in all layers from one on, or by the type of each layer."""
    used = draw(flag)
    options = {
        "use_sliding_window": used,
        "sliding_window": draw(st.sampled_from([1, 2, 4])),
        "max_window_layers": draw(st.integers(0, 2)),
    }
    if used and draw(flag):
        kinds = st.sampled_from(["full_attention", "sliding_attention"])
        options["layer_types"] = draw(st.lists(kinds, min_size=2, max_size=2))
    return options


def flags(**named):
    return st.fixed_dictionaries({}, optional=named)


BERT = {
    "chunk_size_feed_forward": st.sampled_from([0, 1]),
    "hidden_act": ACTIVATIONS,
    "is_decoder": flag,
    "layer_norm_eps": epsilon,
    "tie_word_embeddings": flag,
    "type_vocab_size": st.integers(1, 3),
}
DECODER = {
    "hidden_act": GATES,
    "rms_norm_eps": epsilon,
    "rope_parameters": rotary(),
    "tie_word_embeddings": flag,
}
FLAGS = {
    "bert": flags(**BERT),
    "roberta": flags(**BERT),
    "distilbert": flags(
        activation=ACTIVATIONS,
        chunk_size_feed_forward=st.sampled_from([0, 1]),
        sinusoidal_pos_embds=flag,
        tie_word_embeddings=flag,
    ),
    "gpt2": flags(
        activation_function=ACTIVATIONS,
        layer_norm_epsilon=epsilon,
        n_inner=st.sampled_from([None, 5]),
        reorder_and_upcast_attn=flag,
        scale_attn_by_inverse_layer_idx=flag,
        scale_attn_weights=flag,
        tie_word_embeddings=flag,
    ),
    "opt": flags(
        activation_function=ACTIVATIONS,
        do_layer_norm_before=flag,
        enable_bias=flag,
        layer_norm_elementwise_affine=flag,
        tie_word_embeddings=flag,
        word_embed_proj_dim=st.sampled_from([6, 8]),
        _remove_final_layer_norm=flag,
    ),
    "bloom": flags(
        apply_residual_connection_post_layernorm=flag,
        layer_norm_epsilon=epsilon,
        pretraining_tp=st.sampled_from([1, 2]),
        slow_but_exact=flag,
        tie_word_embeddings=flag,
    ),
    "llama": flags(attention_bias=flag, mlp_bias=flag, **DECODER),
    "mistral": flags(sliding_window=window, **DECODER),
    "qwen2": st.tuples(flags(**DECODER), sliding()).map(lambda pair: pair[0] | pair[1]),
    "qwen3": st.tuples(flags(attention_bias=flag, **DECODER), sliding()).map(
        lambda pair: pair[0] | pair[1]
    ),
}
"""What is not here cannot change the forward pass of a model in evaluation mode (dropout,
initialization, ids of special tokens, what is returned), or is drawn with the sizes."""

HEADS = {"opt": ("lm", "sequence", "qa")}

CROSS_ATTENTION = [
    ("bert", {"is_decoder": True, "add_cross_attention": True}),
    ("roberta", {"is_decoder": True, "add_cross_attention": True}),
    ("gpt2", {"add_cross_attention": True}),
]
"""Models with a second attention in each block, which waits for the states of an encoder."""


@dataclass(frozen=True)
class Case:
    """What is drawn: how to make the model (see :func:`models.tiny`), and what is asked of it."""

    model: dict[str, Any]
    batch: int
    length: int
    index: tuple[int, ...]


@st.composite
def cases(draw, family):
    config = draw(FLAGS[family])
    head = draw(st.sampled_from(HEADS.get(family, ("lm", "sequence", "token", "qa"))))
    query_heads = draw(st.sampled_from([1, 2, 4]))
    upcast = config.get("reorder_and_upcast_attn", False)
    sizes = {
        "head": head,
        # The upcast attention of GPT-2 is computed in float32 whatever the dtype of the model.
        "dtype": torch.float32 if upcast else torch.float64,
        "attn": draw(st.sampled_from(["eager", "sdpa"])),
        "biases": draw(st.sampled_from(["zero", "random"])),
        "heads": query_heads,
        "key_value_heads": draw(st.sampled_from([n for n in (1, 2, 4) if query_heads % n == 0])),
        "seed": draw(st.integers(0, 2**32)),
    }
    batch, length = draw(st.integers(1, 2)), draw(st.integers(1, LONGEST))
    classes = {"lm": VOCABULARY, "qa": 2}.get(head, LABELS)
    index = [draw(st.integers(0, batch - 1)), draw(st.integers(0, classes - 1))]
    if head != "sequence":
        index.insert(1, draw(st.integers(0, length - 1)))
    return Case({"family": family, **sizes, **config}, batch, length, tuple(index))


def relevance_of_position_bias(model, index, ids):
    """What AttnLRP gives to ALiBi, which is added to the scores in front of the softmax.

    The scores are a sum of two parts then, of which only the product of queries and keys is carried
    on to the tokens.
    """
    found = []

    def keep(_module, args, kwargs):
        alibi = kwargs["alibi"].detach().requires_grad_()
        found.append(alibi)
        return args, kwargs | {"alibi": alibi}

    with ExitStack() as stack:
        stack.enter_context(captured(embeddings_of(model)))
        for block in blocks_of(model):
            handle = block.attention.register_forward_pre_hook(keep, with_kwargs=True)
            stack.callback(handle.remove)
        rules = stack.enter_context(opened(TracedPass(model, ATTN_LRP, None)))
        stack.enter_context(Exact())
        value = outputs(model, input_ids=ids)[index]
        rules.attach(value)
        gradients = torch.autograd.grad(value, found)
    products = zip(found, gradients, strict=True)
    return sum((alibi * gradient).sum().item() for alibi, gradient in products)


def assert_forward_unchanged(model, ids):
    """Compared under the same flags: PyTorch's kernels may differ in the last bit with a gradient.

    (They do where an input is not contiguous, as in a feed-forward layer that works in chunks.)
    """
    embeds = model.get_input_embeddings()(ids).detach().requires_grad_()
    plain = [outputs(model, input_ids=ids), outputs(model, inputs_embeds=embeds)]
    for recipe in RECIPES:
        with propagation(model, recipe):
            assert torch.equal(outputs(model, input_ids=ids), plain[0])
            assert torch.equal(outputs(model, inputs_embeds=embeds), plain[1])


def assert_accounted_for(model, recipe, index, ids):
    account = ledger(model, recipe, index, input_ids=ids)
    if recipe is ATTN_LRP and model.config.model_type == "bloom":
        position_bias = relevance_of_position_bias(model, index, ids)
        account = replace(account, softmax=account.softmax + position_bias)
    single = model.dtype == torch.float32
    relative, mass = (FLOAT32_RELATIVE, FLOAT32_MASS) if single else (RELATIVE, MASS)
    assert account.closes(relative, mass), (recipe.name, account)


def assert_explained(case):
    model, ids, index = built(**case.model), token_ids(case.batch, case.length), case.index
    flags_of_parameters = [parameter.requires_grad for parameter in model.parameters()]
    outputs(model, input_ids=ids)  # rotary tables that depend on the length are made here
    before = snapshot(model)
    model.requires_grad_(False)
    assert_forward_unchanged(model, ids)
    for parameter, needed in zip(model.parameters(), flags_of_parameters, strict=True):
        parameter.requires_grad_(needed)
    eager = model.config._attn_implementation == "eager"
    for recipe in RECIPES if eager else (LRP, LRP_UNIFORM_GATE):
        assert_accounted_for(model, recipe, index, ids)
    assert snapshot(model) == before


@pytest.mark.parametrize("family", FLAGS)
@examples(25)
@given(data=st.data())
def test_a_drawn_architecture_is_explained_exactly(family, data):
    assert_explained(data.draw(cases(family)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FLAGS)
@settings(max_examples=500, derandomize=False)
@given(data=st.data())
def test_many_drawn_architectures_are_explained_exactly(family, data):
    assert_explained(data.draw(cases(family)))


@pytest.mark.parametrize(("family", "config"), CROSS_ATTENTION)
def test_what_does_not_run_does_not_matter(family, config):
    sizes = {"family": family, "attn": "eager", "biases": "random"}
    assert_explained(Case(sizes | config, 2, 5, (0, 4, 7)))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_gate_that_is_linear_is_refused(family):
    model = tiny(family, activation="linear")
    before = snapshot(model)
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    for recipe in RECIPES:
        refused = pytest.raises(ValueError, match=r"mul in .*\.mlp.*which the gate")
        with refused, propagation(model, recipe):
            model(inputs_embeds=embeds)
    assert snapshot(model) == before
