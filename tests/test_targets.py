"""Forward modules: the same numbers as the whole model, usable with every Captum method."""

import pytest
import torch
from captum.attr import FeatureAblation, InputXGradient, IntegratedGradients, NoiseTunnel
from captum.metrics import infidelity
from models import FAMILIES, outputs, tiny, token_ids
from torch import nn

from captum_lrpx import (
    LRP,
    AnswerLogits,
    AttnLRPx,
    ClassDifference,
    ClassLogits,
    LogitDifference,
    LogProbabilities,
    LRPx,
    OutputFunction,
    OutputSum,
    Probabilities,
    Target,
    TokenLogits,
    TokenSum,
    ask_batch,
    explain,
    propagation,
    zoo,
)
from captum_lrpx.rules import Epsilon
from captum_lrpx.targets import encode

ROWS = torch.arange(2)
POSITIONS = [2, -1, torch.tensor([1, 3]), torch.tensor(4)]


def inputs_of(model):
    ids = token_ids()
    return [ids, model.get_input_embeddings()(ids).detach()]


def whole(model, position):
    return outputs(model, input_ids=token_ids())[ROWS, position]


@pytest.mark.parametrize("position", POSITIONS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_token_logits_are_the_models(family, position):
    model = tiny(family)
    for x in inputs_of(model):
        logits = TokenLogits(model)(x, None, position)
        torch.testing.assert_close(logits, whole(model, position), rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_logit_difference_is_the_models(family):
    model = tiny(family)
    good, bad = torch.tensor([3, 4]), torch.tensor([5, 6])
    logits = whole(model, 2)
    expected = logits[ROWS, good] - logits[ROWS, bad]
    for x in inputs_of(model):
        difference = LogitDifference(model)(x, None, good, bad, 2)
        assert difference.shape == (2,)
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_needed_part_of_the_output_layer_is_computed(family, monkeypatch):
    model = tiny(family)
    output, computed = model.get_output_embeddings(), []
    linear = nn.Linear.forward

    def record(self, x):
        result = linear(self, x)
        if self is output:
            computed.append(tuple(result.shape))
        return result

    monkeypatch.setattr(nn.Linear, "forward", record)
    TokenLogits(model)(token_ids(), None, 2)
    assert computed == [(2, output.weight.shape[0])]  # one position
    computed.clear()
    LogitDifference(model)(token_ids(), None, 3, 4, 2)
    # two rows of the matrix; RoBERTa's head has an activation between its layers, so it runs whole
    assert computed == ([(2, output.weight.shape[0])] if family == "roberta" else [])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rule_on_the_output_layer_is_kept(family):
    model = tiny(family)
    recipe = LRP.override("*", Epsilon(0.5))
    expected = LRPx(model, recipe=recipe).attribute(token_ids(), target=(2, 3))
    forward = TokenLogits(model)
    result = LRPx(forward, recipe=recipe).attribute(
        token_ids(), target=3, additional_forward_args=(None, 2)
    )
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-9)
    with propagation(model, recipe):
        difference = LogitDifference(model)(token_ids(), None, 3, 4, 2)
    expected = whole(model, 2)
    torch.testing.assert_close(difference, expected[:, 3] - expected[:, 4], rtol=0, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_relevances_through_a_forward_module_are_those_of_the_whole_model(family):
    model = tiny(family)
    for method in (LRPx, AttnLRPx):
        expected = method(model).attribute(token_ids(), target=(2, 3))
        result = method(TokenLogits(model)).attribute(
            token_ids(), target=3, additional_forward_args=(None, 2)
        )
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-7)


def test_the_default_position_is_the_last_real_token():
    model = tiny("gpt2")
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    logits = TokenLogits(model)(token_ids(), mask)
    expected = model(token_ids(), attention_mask=mask).logits[ROWS, torch.tensor([4, 2])]
    torch.testing.assert_close(logits, expected)


def test_a_masked_model_needs_a_position():
    with pytest.raises(ValueError, match="give `position`"):
        TokenLogits(tiny("bert"))(token_ids())


@pytest.mark.parametrize(
    ("position", "error"),
    [(5, IndexError), (-6, IndexError), (torch.tensor([0, 1, 2]), ValueError), (1.5, ValueError)],
    ids=str,
)
def test_positions_that_do_not_fit(position, error):
    with pytest.raises(error, match="position"):
        TokenLogits(tiny("gpt2"))(token_ids(), None, position)


def test_token_ids_that_do_not_exist():
    with pytest.raises(IndexError):
        LogitDifference(tiny("gpt2"))(token_ids(), None, 3, 10**6)


def test_inputs_of_the_wrong_rank():
    with pytest.raises(ValueError, match=r"token ids \[B, T\] or embeddings"):
        TokenLogits(tiny("gpt2"))(torch.zeros(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_class_logits(family):
    model = tiny(family, head="sequence")
    ids = token_ids(batch=1)
    expected = model(ids).logits
    torch.testing.assert_close(ClassLogits(model)(ids), expected)
    for method in (LRPx, AttnLRPx):
        relevance, delta = method(ClassLogits(model)).attribute(
            ids, target=1, return_convergence_delta=True
        )
        torch.testing.assert_close(relevance.sum(1) + delta, expected[:, 1].detach())


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_class_logits_of_embeddings_and_a_mask(family):
    model = tiny(family, head="sequence")
    ids, embeds = inputs_of(model)
    mask = torch.ones_like(ids)
    torch.testing.assert_close(ClassLogits(model)(embeds, mask), model(ids).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_classes(family):
    model = tiny(family, head="token")
    logits = TokenLogits(model)(token_ids(), None, 2)
    torch.testing.assert_close(logits, model(token_ids()).logits[:, 2])


@pytest.mark.parametrize("end", ["start", "end"])
@pytest.mark.parametrize("family", FAMILIES)
def test_answers(family, end):
    model = tiny(family, head="qa")
    logits = AnswerLogits(model, end)(token_ids())
    torch.testing.assert_close(logits, getattr(model(token_ids()), f"{end}_logits"))
    assert LRPx(AnswerLogits(model, end)).attribute(token_ids(), target=1).shape == (2, 5)


def test_an_end_that_does_not_exist():
    with pytest.raises(ValueError, match="'start' or 'end'"):
        AnswerLogits(tiny("bert", head="qa"), "middle")


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_every_captum_method_takes_them(family):
    model = tiny(family, dtype=torch.float32)
    embeds = inputs_of(model)[1]
    args = (torch.ones(2, 5), torch.tensor([3, 4]), torch.tensor([5, 6]), torch.tensor([2, 3]))
    forward = LogitDifference(model)
    for method in (LRPx, AttnLRPx, InputXGradient, IntegratedGradients, FeatureAblation):
        attributions = method(forward).attribute(embeds, additional_forward_args=args)
        assert attributions.shape == embeds.shape
        assert torch.isfinite(attributions).all()

    def perturb(inputs):
        noise = 0.01 * torch.randn_like(inputs)
        return noise, inputs - noise

    relevance = LRPx(forward).attribute(embeds, additional_forward_args=args)
    score = infidelity(forward, perturb, embeds, relevance, additional_forward_args=args)
    assert score.shape == (2,)


# Several tokens, spans, probabilities ---------------------------------------------------------


@pytest.mark.parametrize("of", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_over_tokens(family, of):
    model = tiny(family)
    function = {"logit": lambda z: z, "log_prob": torch.log_softmax, "prob": torch.softmax}[of]
    values = function(*((whole_text(model),) if of == "logit" else (whole_text(model), -1)))
    tokens, weights = torch.tensor([[3, 4, 5], [6, 7, 8]]), torch.tensor([[1, 1, -1], [2.0, 0, 1]])
    places = torch.tensor([[0, 1, 2], [3, 3, 1]])
    forward, rows = TokenSum(model, of), ROWS[:, None]
    for x in inputs_of(model):
        for args, expected in [
            ((tokens, 2), values[:, 2].gather(1, tokens).sum(1)),
            ((tokens, torch.tensor([1, 3])), values[rows, [[1], [3]], tokens].sum(1)),
            ((tokens, places), values[rows, places, tokens].sum(1)),
            ((tokens, places, weights), (values[rows, places, tokens] * weights).sum(1)),
            (([3, 4], 2, [1, -1]), values[:, 2, 3] - values[:, 2, 4]),
            ((tokens[:1], places[:1]), values[rows, places[:1], tokens[:1]].sum(1)),
        ]:
            found = forward(x, None, *args)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def whole_text(model):
    return outputs(model, input_ids=token_ids()).detach()


@pytest.mark.parametrize(
    ("tokens", "position", "weights", "error"),
    [
        (torch.tensor([3, 4, 5]), 2, None, ValueError),
        (torch.zeros(3, 2, dtype=torch.long), 2, None, ValueError),
        ([], 2, None, ValueError),
        ([3, 4], torch.zeros(2, 3, dtype=torch.long), None, ValueError),
        ([3, 4], 2, torch.ones(2), ValueError),
        ([3, 10**6], 2, None, IndexError),
        ([3, 4], torch.tensor([[0, 9]]), None, IndexError),
    ],
)
def test_sums_that_do_not_fit(tokens, position, weights, error):
    with pytest.raises(error):
        TokenSum(tiny("gpt2"))(token_ids(), None, tokens, position, weights)


def test_an_unknown_quantity():
    for make in (lambda: TokenSum(tiny("gpt2"), "odds"), lambda: Target("a", quantity="odds")):
        with pytest.raises(ValueError, match="Unknown quantity 'odds'"):
            make()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_relevance_of_a_log_probability_is_that_of_the_logits_by_its_slope(family, method):
    """As the softmax has no rule: R(log p_t) = R(z_t) - sum_v p_v R(z_v)."""
    model = tiny(family)
    x, args = token_ids(), (None, 2)
    probabilities = whole(model, 2).softmax(-1).detach()
    logits = torch.stack(
        [
            method(TokenLogits(model)).attribute(x, token, args)
            for token in range(probabilities.shape[1])
        ]
    )
    mean = torch.einsum("bv,vbt->bt", probabilities, logits)
    found = method(LogProbabilities(TokenLogits(model))).attribute(x, 3, args)
    torch.testing.assert_close(found, logits[3] - mean, rtol=1e-5, atol=1e-8)
    found = method(Probabilities(TokenLogits(model))).attribute(x, 3, args)
    expected = probabilities[:, 3:4] * (logits[3] - mean)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


def test_probabilities_in_half_precision_are_normalized_in_float32():
    model = tiny("gpt2", dtype=torch.bfloat16)
    found = Probabilities(TokenLogits(model))(token_ids())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.sum(1), torch.ones(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_differences_of_classes(family):
    model = tiny(family, head="sequence")
    ids = token_ids(batch=1)
    logits = model(ids).logits
    for good, bad in [(1, 0), (torch.tensor([2]), torch.tensor([1]))]:
        difference = ClassDifference(model)(ids, None, good, bad)
        torch.testing.assert_close(difference, logits[:, good].view(1) - logits[:, bad].view(1))
    args = (torch.tensor([[1, 0]]), torch.tensor([[1.0, -1.0]]), None)
    for method in (LRPx, AttnLRPx):
        single = [method(ClassLogits(model)).attribute(ids, label) for label in (1, 0)]
        for forward, arguments in [
            (ClassDifference(model), (None, 1, 0)),
            (OutputSum(ClassLogits(model)), args),
            (OutputSum(LogProbabilities(ClassLogits(model))), args),
            (OutputFunction(ClassLogits(model), lambda logits: logits[:, 1] - logits[:, 0]), None),
        ]:
            found = method(forward).attribute(ids, additional_forward_args=arguments)
            torch.testing.assert_close(found, single[0] - single[1], rtol=1e-5, atol=1e-6)
    with pytest.raises(IndexError):
        ClassDifference(model)(ids, None, 1, 9)
    with pytest.raises(IndexError, match="out of range for 3 outputs"):
        OutputSum(ClassLogits(model))(ids, [1, 3])


def test_a_function_must_give_one_value_per_row():
    model = tiny("gpt2")
    for function in (torch.sum, lambda logits: float(logits.detach().sum())):
        with pytest.raises(ValueError, match=r"one value per row, \[2\]"):
            OutputFunction(TokenLogits(model), function)(token_ids())


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_every_captum_method_takes_the_sums(family):
    model = tiny(family, dtype=torch.float32)
    embeds = inputs_of(model)[1]
    tokens, weights = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[1.0, -1.0], [1.0, 0.5]])
    args = (torch.ones(2, 5), tokens, torch.tensor([[1, 2], [3, 3]]), weights)
    forwards = [
        (TokenSum(model), args),
        (TokenSum(model, "log_prob"), args),
        (OutputSum(Probabilities(TokenLogits(model))), (tokens, weights, args[0], 2)),
        (OutputFunction(TokenLogits(model), lambda z: z.logsumexp(-1)), (args[0], 2)),
    ]
    for forward, arguments in forwards:
        for method in (LRPx, InputXGradient, IntegratedGradients, FeatureAblation):
            found = method(forward).attribute(embeds, additional_forward_args=arguments)
            assert found.shape == embeds.shape
            assert torch.isfinite(found).all()
        found = LRPx(forward).attribute(embeds, additional_forward_args=arguments)
        noiseless = NoiseTunnel(LRPx(forward)).attribute(
            embeds, stdevs=0.0, nt_samples=2, additional_forward_args=arguments
        )
        torch.testing.assert_close(noiseless, found, rtol=1e-4, atol=1e-5)


# Targets of texts -----------------------------------------------------------------------------

TEXT = "the keys to the cabinet"


@pytest.fixture(scope="module")
def loaded():
    return {name: zoo.load(name) for name in zoo.names()}


def asked(model, tokenizer, target, text=TEXT):
    """The value of a target."""
    encoding = encode(model, tokenizer, text)
    question = target.ask(model, tokenizer, encoding)
    output = question.forward(torch.tensor([encoding.ids]), *question.additional_forward_args)
    return (output if question.target is None else output[:, question.target]).item()


@pytest.mark.parametrize("quantity", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("name", zoo.names())
def test_several_tokens_and_quantities(loaded, name, quantity):
    model, tokenizer = loaded[name]
    one = {
        word: asked(model, tokenizer, Target(word, quantity=quantity))
        for word in ("are", "is", "were", "was")
    }
    for token, contrast, expected in [
        ("are", "is", one["are"] - one["is"]),
        (("are", "were"), None, one["are"] + one["were"]),
        (["are", "were"], ["is", "was"], one["are"] + one["were"] - one["is"] - one["was"]),
        (("are", "were"), "is", one["are"] + one["were"] - one["is"]),
    ]:
        target = Target(token, contrast=contrast, quantity=quantity)
        assert asked(model, tokenizer, target) == pytest.approx(expected, abs=1e-4)
        found = explain(model, tokenizer, TEXT, target)
        assert found.value == pytest.approx(expected, abs=1e-4)
    if quantity == "prob":
        assert 0 < sum(one.values()) < 1


def test_words_and_ids_are_the_same_target(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    number = tokenizer.encode("are", add_special_tokens=False)[0]
    mixed = asked(model, tokenizer, Target((number, "is"), contrast=number))
    assert mixed == pytest.approx(asked(model, tokenizer, Target("is")), abs=1e-4)


def test_a_word_of_several_tokens_is_refused_by_name(loaded):
    model, tokenizer = loaded["sva-bert"]
    for target in (Target(("are", "keyboards")), Target("are", contrast="keyboards")):
        with pytest.raises(ValueError, match=r"'keyboards' is \d tokens \('key' \+ '##b'"):
            asked(model, tokenizer, target)


@pytest.mark.parametrize("name", ["sva-gpt2", "sva-llama"])
def test_spans_of_a_text(loaded, name):
    model, tokenizer = loaded[name]
    text = f"{TEXT} are old"
    ids = torch.tensor([encode(model, tokenizer, text).ids])
    steps = model(ids).logits[0, -3:-1].detach()
    for quantity, values in [("logit", steps), ("log_prob", steps.log_softmax(-1))]:
        expected = values.gather(1, ids[0, -2:, None]).sum().item()
        length = ids.shape[1]
        for span in ("are old", " are old", (-2, length), (length - 2, length)):
            target = Target(span=span, quantity=quantity)
            assert asked(model, tokenizer, target, text) == pytest.approx(expected, abs=1e-4)
        found = explain(model, tokenizer, text, target)
        assert found.relevances[-1] == 0, "the last token predicts nothing of the span"
        assert "are old" in Target(span="are old").describe(model)


def test_the_last_occurrence_of_a_span_counts(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    text = "the keys to the cabinet near the door"
    last = encode(model, tokenizer, text).tokens.index("Ġnear") + 1
    found = asked(model, tokenizer, Target(span="the"), text)
    assert found == asked(model, tokenizer, Target(span=(last, last + 1)), text)


@pytest.mark.parametrize(
    ("span", "error", "message"),
    [
        ("dogs", ValueError, "does not occur"),
        ("", ValueError, "does not occur"),
        ("key", ValueError, "cuts through a token: its tokens are those of 'keys'"),
        ((0, 2), ValueError, "no token comes before"),
        ((3, 3), IndexError, "empty or out of range"),
        ((3, 99), IndexError, "empty or out of range"),
    ],
)
def test_spans_that_do_not_fit(loaded, span, error, message):
    with pytest.raises(error, match=message):
        asked(*loaded["sva-gpt2"], Target(span=span))


def test_spans_need_a_causal_model(loaded):
    with pytest.raises(ValueError, match="causal language model only"):
        asked(*loaded["sva-bert"], Target(span="keys"))


def test_a_function_as_target(loaded):
    def odds(logits):
        return logits[:, 5] - logits.logsumexp(-1)

    for name in zoo.names():
        model, tokenizer = loaded[name]
        expected = asked(model, tokenizer, Target(5, quantity="log_prob"))
        assert asked(model, tokenizer, Target(odds)) == pytest.approx(expected, abs=1e-4)
        assert explain(model, tokenizer, TEXT, Target(odds)).target == "odds of the logits"


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"token": "are", "span": "keys"},
        {"span": "keys", "contrast": "is"},
        {"span": "keys", "position": 2},
        {"token": torch.sum, "contrast": "is"},
        {"token": torch.sum, "quantity": "prob"},
        {"token": ()},
        {"token": "are", "contrast": []},
    ],
    ids=lambda given: ", ".join(f"{k}={getattr(v, '__name__', v)}" for k, v in given.items()),
)
def test_targets_that_contradict_themselves(arguments):
    with pytest.raises(ValueError):  # noqa: PT011 - each has a message of its own
        Target(**arguments)


def test_targets_can_be_compared():
    assert Target(["are", "were"]) == Target(("are", "were"))
    assert len({Target("are"), Target("are"), Target("is")}) == 2


def with_vocabulary(head, tokenizer):
    config = {"max_position_embeddings": 64, "vocab_size": len(tokenizer), "pad_token_id": 0}
    return tiny("bert", head=head, dtype=torch.float32, **config)


@pytest.mark.parametrize("quantity", ["logit", "log_prob", "prob"])
@pytest.mark.parametrize("head", ["sequence", "token", "qa"])
def test_targets_of_other_heads(loaded, head, quantity):
    tokenizer = loaded["sva-bert"][1]
    model = with_vocabulary(head, tokenizer)
    one = [asked(model, tokenizer, Target(choice, quantity=quantity)) for choice in range(2)]
    for target, expected in [
        (Target(1, contrast=0, quantity=quantity), one[1] - one[0]),
        (Target((0, 1), quantity=quantity), one[0] + one[1]),
    ]:
        assert asked(model, tokenizer, target) == pytest.approx(expected, abs=1e-5)
        assert explain(model, tokenizer, TEXT, target).value == pytest.approx(expected, abs=1e-4)


# Batches --------------------------------------------------------------------------------------

TEXTS = [TEXT, "the author that the guards like", "the author"]


def rows_alone(model, tokenizer, texts, targets, method=LRPx):
    """The relevances of each text by itself."""
    for text, target in zip(texts, targets, strict=True):
        encoding = encode(model, tokenizer, text)
        question = target.ask(model, tokenizer, encoding)
        yield method(question.forward).attribute(
            torch.tensor([encoding.ids]), question.target, question.additional_forward_args
        )[0]


def check_batch(model, tokenizer, targets):
    batch = ask_batch(model, tokenizer, TEXTS, targets)
    found = LRPx(batch.forward).attribute(
        batch.inputs, additional_forward_args=batch.additional_forward_args
    )
    several = targets if isinstance(targets, list) else [targets] * len(TEXTS)
    several = [item if isinstance(item, Target) else Target(item) for item in several]
    alone = rows_alone(model, tokenizer, TEXTS, several)
    for row, expected, encoding in zip(found, alone, batch.encodings, strict=True):
        length = len(encoding.ids)
        torch.testing.assert_close(row[:length], expected, rtol=1e-4, atol=1e-4)
        assert row[length:].eq(0).all()
    assert list(batch.descriptions) == [target.describe(model) for target in several]


@pytest.mark.parametrize("name", zoo.names())
def test_one_target_per_row(loaded, name):
    model, tokenizer = loaded[name]
    check_batch(model, tokenizer, "are")
    check_batch(model, tokenizer, ["are", Target("is", contrast="are"), Target(("is", "was"))])
    check_batch(
        model,
        tokenizer,
        [
            Target("are", quantity="log_prob"),
            Target(("is", "was"), contrast="are", quantity="log_prob"),
            Target(7, position=2, quantity="log_prob"),
        ],
    )
    check_batch(model, tokenizer, Target(lambda logits: logits[:, 9] - logits[:, 8]))
    if name != "sva-bert":
        check_batch(model, tokenizer, [Target(span="cabinet"), "are", Target(span="author")])


@pytest.mark.parametrize("head", ["sequence", "token"])
def test_one_class_per_row(loaded, head):
    tokenizer = loaded["sva-bert"][1]
    model = with_vocabulary(head, tokenizer)
    check_batch(model, tokenizer, ["LABEL_1", Target("LABEL_1", contrast=0), Target((0, 2))])
    check_batch(model, tokenizer, Target("LABEL_1", quantity="prob"))


def test_batches_that_do_not_fit(loaded):
    model, tokenizer = loaded["sva-gpt2"]
    for texts, targets, message in [
        ([], "are", "at least one text"),
        (TEXT, "are", "at least one text"),
        (TEXTS, ["are"], "3 texts, but 1 targets"),
        (TEXTS[:2], [Target("are"), Target("are", quantity="prob")], "the same quantity"),
        (TEXTS[:2], [Target(torch.sum), Target("are")], "function"),
    ]:
        with pytest.raises(ValueError, match=message):
            ask_batch(model, tokenizer, texts, targets)
