"""A continuation explained in one call: equal to one call per token, and to Captum's wrapper."""

import pytest
import torch
from captum.attr import LLMAttributionResult, LLMGradientAttribution, TextTokenInput
from generation_cases import CAUSAL, METHODS, PROMPT, STEPS, TEXT, single_calls, some_ids, words
from models import MAX_POSITIONS, VOCABULARY, tiny, token_ids
from state import snapshot

from captum_lrpx import (
    LRP,
    AttnLRPx,
    LayerAttnLRPx,
    LayerLRPx,
    LLMRelevance,
    LogitDifference,
    LogProbabilities,
    LRPx,
    Probabilities,
    TokenLogits,
)
from captum_lrpx.attr import generation_rows
from captum_lrpx.attr.backward import at_once_of
from captum_lrpx.rules import Epsilon


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", CAUSAL)
def test_one_call_is_one_call_per_token(family, method, attn):
    model, (prompt, continuation) = tiny(family, attn=attn), some_ids()
    result = LLMRelevance(method(model), words()).attribute(prompt, continuation)
    expected = single_calls(method, LogProbabilities(TokenLogits(model)), prompt, continuation)
    torch.testing.assert_close(result.context_attr, expected, rtol=1e-5, atol=1e-9)
    assert result.context_attr.abs().sum() > 0
    torch.testing.assert_close(result.token_attr, expected[:, :PROMPT], rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(result.seq_attr, expected[:, :PROMPT].sum(0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom"])
def test_it_is_exact_in_float64(family):
    model, (prompt, continuation) = tiny(family), some_ids()  # the others have norms in float32
    result = LLMRelevance(AttnLRPx(model), words(), "logit").attribute(prompt, continuation)
    expected = single_calls(AttnLRPx, TokenLogits(model), prompt, continuation)
    torch.testing.assert_close(result.context_attr, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_is_explained_of_a_token(family, method):
    model, (prompt, continuation) = tiny(family), some_ids()
    foils = some_ids(seed=1)[1]
    logits = model(torch.cat([prompt, continuation])[None]).logits[0, PROMPT - 1 : -1].detach()
    steps = torch.arange(STEPS)
    kinds = {"logit": TokenLogits, "prob": lambda model: Probabilities(TokenLogits(model))}
    for kind, wrap in kinds.items():
        result = LLMRelevance(method(model), words(), kind).attribute(prompt, continuation)
        expected = single_calls(method, wrap(model), prompt, continuation)
        torch.testing.assert_close(result.context_attr, expected, rtol=1e-5, atol=1e-9)
        values = logits if kind == "logit" else logits.softmax(-1)
        torch.testing.assert_close(result.values, values[steps, continuation])
    expected = single_calls(method, LogitDifference(model), prompt, continuation, foils)
    for kind in ("logit", "log_prob"):
        llm = LLMRelevance(method(model), words(), kind)
        result = llm.attribute(prompt, continuation, foil=foils)
        torch.testing.assert_close(result.context_attr, expected, rtol=1e-5, atol=1e-9)
        difference = logits[steps, continuation] - logits[steps, foils]
        torch.testing.assert_close(result.values, difference)


@pytest.mark.parametrize("kind", ["logit", "log_prob", "prob"])
def test_a_foil_is_subtracted(kind):
    model, (prompt, continuation) = tiny("llama"), some_ids()
    llm = LLMRelevance(AttnLRPx(model), words(), kind)
    for foil in (5, "w5", [5], [5] * STEPS, "w5 w5 w5 w5"):
        result = llm.attribute(prompt, continuation, foil=foil)
        for step in range(STEPS):
            before = torch.cat([prompt, continuation[:step]])
            pair = [llm.attribute(before, [token]) for token in (int(continuation[step]), 5)]
            expected = pair[0].token_attr[0] - pair[1].token_attr[0]
            seen = result.context_attr[step, : len(before)]
            torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-9)
            torch.testing.assert_close(result.values[step], pair[0].values[0] - pair[1].values[0])


def test_spans_are_sums_over_tokens():
    model, (prompt, continuation) = tiny("llama"), some_ids()
    llm = LLMRelevance(AttnLRPx(model), words())
    rows = llm.attribute(prompt, continuation)
    spans = llm.attribute(prompt, continuation, spans=[(0, 2), (1, 4), (-1, 4)])
    parts = [slice(0, 2), slice(1, 4), slice(3, 4)]
    for name in ("context_attr", "token_attr", "values", "decomposed"):
        expected = torch.stack([getattr(rows, name)[part].sum(0) for part in parts])
        torch.testing.assert_close(getattr(spans, name), expected, rtol=1e-6, atol=1e-9)
    texts = rows.output_tokens
    assert spans.output_tokens == [" ".join(texts[part]) for part in parts]


@pytest.mark.parametrize("kind", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_whole_answer_is_the_sum_of_single_ones(method, kind, dtype, monkeypatch):
    """In one backward pass, with the head for a few steps at a time."""
    ids = token_ids(1, 24)[0]
    prompt, answer = ids[:4], ids[4:]
    model = tiny("gpt2", dtype=dtype)
    llm = LLMRelevance(method(model), words(), kind)
    single = [llm.attribute(ids[:at], ids[at : at + 1]) for at in range(4, 24)]
    monkeypatch.setattr(generation_rows, "_LOGITS", 3 * VOCABULARY)
    whole = llm.attribute(prompt, answer, spans=[(0, None), (3, 20)])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    for row, part in enumerate((single, single[3:])):
        expected = sum(
            torch.nn.functional.pad(each.context_attr[0], (0, 24 - each.context_attr.shape[1]))
            for each in part
        )
        error = (whole.context_attr[row] - expected).abs().max()
        assert error <= tolerance * max(1, float(expected.abs().max()))
        value = sum(each.values[0] for each in part)
        assert abs(whole.values[row] - value) <= tolerance * max(1, abs(value))


def test_how_many_targets_a_backward_pass_has_depends_on_the_length():
    cpu, other = torch.device("cpu"), torch.device("cuda")
    chosen = [at_once_of(None, length, cpu) for length in (8, 64, 100, 300, 405, 4096)]
    assert chosen == [8, 8, 5, 1, 1, 1]
    assert at_once_of(None, 405, other) == 8
    assert at_once_of(3, 4096, cpu) == 3


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 100])
def test_the_number_of_targets_per_backward_pass_changes_nothing(at_once):
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    llm = LLMRelevance(AttnLRPx(model), words())
    expected = llm.attribute(prompt, continuation).context_attr
    found = llm.attribute(prompt, continuation, targets_per_backward=at_once).context_attr
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("at_once", [1, 2])
def test_it_takes_one_forward_pass_and_few_backward_passes(at_once, monkeypatch):
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    passes, gradients, grad = [], [], torch.autograd.grad
    handle = model.transformer.register_forward_hook(lambda *_: passes.append(1))
    monkeypatch.setattr(
        torch.autograd, "grad", lambda *args, **kwargs: gradients.append(1) or grad(*args, **kwargs)
    )
    llm = LLMRelevance(LRPx(model), words())
    llm.attribute(prompt, continuation, targets_per_backward=at_once)  # traces the model
    passes.clear()
    gradients.clear()
    llm.attribute(prompt, continuation, targets_per_backward=at_once)
    handle.remove()
    assert len(passes) == 1
    assert len(gradients) == STEPS / at_once + 2  # two through the head, for all targets


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_head_is_computed_where_it_is_needed(family, monkeypatch):
    model, (prompt, continuation) = tiny(family), some_ids()
    computed, linear = [], torch.nn.Linear.forward

    def record(self, x):
        result = linear(self, x)
        if self is model.lm_head:
            computed.append(tuple(result.shape))
        return result

    monkeypatch.setattr(torch.nn.Linear, "forward", record)
    LLMRelevance(LRPx(model), words()).attribute(prompt, continuation)  # traces the model
    computed.clear()
    LLMRelevance(LRPx(model), words()).attribute(prompt, continuation)
    assert computed == [(STEPS, VOCABULARY)]
    computed.clear()
    LLMRelevance(LRPx(model), words(), "logit").attribute(prompt, continuation, foil=4)
    LLMRelevance(LRPx(model), words()).attribute(prompt, continuation, foil=4)
    assert computed == []


@pytest.mark.parametrize("method", METHODS)
def test_relevances_and_delta_make_up_what_is_decomposed(method):
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    logits = model(torch.cat([prompt, continuation])[None]).logits[0, PROMPT - 1 : -1].detach()
    chosen = logits.gather(1, continuation[:, None])[:, 0]
    for kind in ("logit", "log_prob", "prob"):
        result = LLMRelevance(method(model), words(), kind).attribute(prompt, continuation)
        expected = {
            "logit": chosen,
            "log_prob": chosen - (logits.softmax(-1) * logits).sum(1),
            "prob": result.values * (chosen - (logits.softmax(-1) * logits).sum(1)),
        }[kind]
        torch.testing.assert_close(result.decomposed, expected)
        torch.testing.assert_close(result.context_attr.sum(1) + result.delta, expected)


def test_lrp_conserves_for_each_token():
    model, (prompt, continuation) = tiny("llama", biases="zero"), some_ids()
    result = LLMRelevance(LRPx(model), words()).attribute(prompt, continuation)
    torch.testing.assert_close(result.context_attr.sum(1), result.decomposed, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
@pytest.mark.parametrize("method", METHODS)
def test_it_gives_what_captums_wrapper_gives(loaded, name, method):
    model, tokenizer = loaded[name]
    layer = METHODS[method](model, model.get_input_embeddings())
    inp = TextTokenInput(TEXT, tokenizer, skip_tokens=[tokenizer.bos_token_id])
    for target in ("are old", tokenizer.encode(" are old .", add_special_tokens=False)):
        # Ids also for the string: Captum 0.8 puts the tokenizer's first token in front of one.
        ids = tokenizer.encode(target, add_special_tokens=False) if target == "are old" else target
        expected = LLMGradientAttribution(layer, tokenizer).attribute(inp, target=torch.tensor(ids))
        for attr_method in (method(model), layer):
            result = LLMRelevance(attr_method, tokenizer).attribute(inp, target)
            assert isinstance(result, LLMAttributionResult)
            assert result.input_tokens == expected.input_tokens
            assert result.output_tokens == expected.output_tokens
            torch.testing.assert_close(result.token_attr, expected.token_attr, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(result.seq_attr, expected.seq_attr, rtol=1e-4, atol=1e-5)
    assert tokenizer.bos_token not in result.input_tokens
    whole = LLMRelevance(method(model), tokenizer).attribute(TEXT, target)
    assert whole.input_tokens[0] == tokenizer.bos_token


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_what_the_model_generates_is_explained(loaded, name):
    model, tokenizer = loaded[name]
    inp, gen_args = TextTokenInput(TEXT, tokenizer), {"max_new_tokens": 3, "do_sample": False}
    layer = LayerAttnLRPx(model, model.get_input_embeddings())
    expected = LLMGradientAttribution(layer, tokenizer).attribute(inp, gen_args=gen_args)
    result = LLMRelevance(AttnLRPx(model), tokenizer).attribute(TEXT, gen_args=gen_args)
    assert result.output_tokens == expected.output_tokens
    torch.testing.assert_close(result.token_attr, expected.token_attr, rtol=1e-4, atol=1e-5)
    default = LLMRelevance(AttnLRPx(model), tokenizer).attribute(TEXT)
    assert default.output_tokens[:3] == result.output_tokens


def test_what_is_generated_stays_within_the_context():
    model = tiny("gpt2", dtype=torch.float32)
    llm = LLMRelevance(LRPx(model), words())
    prompt = token_ids(1, MAX_POSITIONS - 1)[0]
    forced = {"suppress_tokens": [0, 1, 2], "do_sample": False}
    assert 1 <= len(llm.attribute(prompt).continuation_ids) <= 2
    full = torch.cat([prompt, prompt[:1]])
    assert len(llm.attribute(full, gen_args={"max_new_tokens": 1, **forced}).output_tokens) == 1
    with pytest.raises(ValueError, match="takes at most 24"):
        llm.attribute(full, gen_args={"max_new_tokens": 2})
    with pytest.raises(ValueError, match="takes at most 24"):
        llm.attribute(torch.cat([full, prompt[:1]]))


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_layers(method, at_input):
    model, (prompt, continuation) = tiny("llama"), some_ids()
    block = model.model.layers[1]
    for layer in (block, block.self_attn.v_proj, block.mlp.down_proj, block.self_attn.q_proj):
        kind = METHODS[method]
        result = LLMRelevance(kind(model, layer), words()).attribute(
            prompt, continuation, attribute_to_layer_input=at_input
        )
        forward = LogProbabilities(TokenLogits(model))
        text = torch.cat([prompt, continuation])
        for step, token in enumerate(continuation):
            expected = kind(forward, layer).attribute(
                text[None, : PROMPT + step], int(token), attribute_to_layer_input=at_input
            )
            assert isinstance(expected, torch.Tensor), "hidden states only, no rotary tables"
            torch.testing.assert_close(
                result.context_attr[step, : PROMPT + step],
                expected[0].sum(-1),
                rtol=1e-5,
                atol=1e-8,
            )


def test_gradients_of_a_layer_without_the_factor():
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    layer = model.transformer.h[0]
    plain = LayerLRPx(model, layer, multiply_by_inputs=False)
    result = LLMRelevance(plain, words(), "logit").attribute(prompt, continuation[:1])
    expected = plain.attribute(prompt[None], (-1, int(continuation[0])))
    torch.testing.assert_close(result.token_attr, expected.sum(-1))


def test_a_rule_on_the_head_is_kept():
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    recipe = LRP.override("*", Epsilon(0.5))
    result = LLMRelevance(LRPx(model, recipe=recipe), words(), "logit").attribute(
        prompt, continuation
    )
    for step, token in enumerate(continuation):
        seen = torch.cat([prompt, continuation[:step]])[None]
        expected = LRPx(model, recipe=recipe).attribute(seen, target=(-1, int(token)))
        torch.testing.assert_close(result.context_attr[step, : PROMPT + step], expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_other_precisions(family, dtype):
    prompt, continuation = some_ids()
    result, exact = (
        LLMRelevance(AttnLRPx(tiny(family, dtype=kind, attn="sdpa")), words()).attribute(
            prompt, continuation
        )
        for kind in (dtype, torch.float64)
    )
    coarse = dtype == torch.bfloat16
    torch.testing.assert_close(
        result.context_attr.double(), exact.context_attr, rtol=0, atol=0.2 if coarse else 1e-4
    )


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_the_model_is_as_it_was(context):
    model, (prompt, continuation) = tiny("gpt2"), some_ids()
    before = snapshot(model)
    llm = LLMRelevance(LayerAttnLRPx(model, model.transformer.h[0]), words())
    with context():
        result = llm.attribute(prompt, continuation)
    assert not result.token_attr.requires_grad
    beyond = LayerLRPx(model, model.transformer.h)  # which gives nothing: it only holds layers
    with pytest.raises(ValueError, match="choose a layer"):
        LLMRelevance(beyond, words()).attribute(prompt, continuation)
    assert snapshot(model) == before


@pytest.mark.parametrize("at_once", [1, 4])
def test_gradient_checkpointing(at_once):
    model, (prompt, continuation) = tiny("llama"), some_ids()
    expected = LLMRelevance(AttnLRPx(model), words()).attribute(prompt, continuation)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    result = LLMRelevance(AttnLRPx(model), words()).attribute(
        prompt, continuation, targets_per_backward=at_once
    )
    torch.testing.assert_close(result.context_attr, expected.context_attr)


def test_captums_plots(loaded):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    model, tokenizer = loaded["sva-gpt2"]
    result = LLMRelevance(AttnLRPx(model), tokenizer).attribute(TEXT, " are old")
    both = result.with_continuation()
    assert both.input_tokens == [*result.input_tokens, "are", "old"]
    assert both.token_attr.shape == (2, len(both.input_tokens))
    for plotted in (result, both):
        for draw in (plotted.plot_token_attr, plotted.plot_seq_attr):
            figure, _ = draw()
            plt.close(figure)
    assert result.context_attr[:, -1].eq(0).all(), "nothing was predicted from the last token"
    assert result.context_attr[0, -2] == 0
    assert result.context_attr[1, -2] != 0


def test_the_subject_carries_the_verb(loaded):
    model, tokenizer = loaded["sva-llama"]
    llm = LLMRelevance(AttnLRPx(model), tokenizer)
    result = llm.attribute(TEXT, "are", foil="is")
    assert result.values[0] > 0
    assert result.input_tokens[int(result.seq_attr.argmax())].endswith("keys")
