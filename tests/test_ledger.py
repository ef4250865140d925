"""The ledger closes: for every family, head and recipe, with biases, in batches, padded or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from models import FAMILIES, HEADS, MORE_FAMILIES, tiny, token_ids
from replica_ledger import Exact, biases_by_hand
from replica_ledger import ledger as by_hand
from state import snapshot
from test_conservation import CONSERVING, LEAKING, by_name, cases

from captum_lrpx import (
    ALTILogit,
    AnswerLogits,
    AttnLRPx,
    ClassDifference,
    LogitDifference,
    LogProbabilities,
    LRPx,
    Probabilities,
    TokenLogits,
    TokenSum,
)
from captum_lrpx.conservation import ledger
from captum_lrpx.recipes import ATTN_LRP, LRP
from captum_lrpx.rules import ActivationGradient, NormGradient

pytestmark = pytest.mark.usefixtures("of_the_graph")

RELATIVE = 1e-10
"""Of the explained value, in float64."""
FLOAT32_INSIDE = 1e-6
"""Where transformers computes norms and rotations in float32 whatever the model's precision."""

EVERY = FAMILIES | MORE_FAMILIES
CASES = [
    pytest.param(family, head, id=f"{family}-{head}")
    for family in EVERY
    for head in HEADS
    if (family, head) != ("opt", "token")  # transformers has no such class
]
TARGETS = {
    "lm": [(3, 5), (1, 2), (4, 7)],
    "sequence": [1, 0, 2],
    "token": [(3, 1), (0, 0), (4, 2)],
    "qa": [2, 0, 4],
}
"""One per example."""


def forward_of(family, head, **options):
    model = tiny(family, head, **options)
    return AnswerLogits(model) if head == "qa" else model


def assert_closes(book, relative=RELATIVE):
    assert book.relative_residual("value").max() <= relative, (book.value, book.residual)


def amounts_of(book):
    return {entry.path: entry.amount for entry in book.entries if entry.kind == "bias"}


# Every family, head and recipe --------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [*CONSERVING, *LEAKING], **by_name)
@pytest.mark.parametrize(("family", "head"), CASES)
def test_the_ledger_closes(family, head, recipe):
    for attn in ("eager", "sdpa"):
        forward = forward_of(family, head, attn=attn)
        with Exact():
            book = ledger(LRPx(forward, recipe=recipe), token_ids(3), TARGETS[head])
        assert_closes(book)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_the_ledger_of_alti_logit_closes(family, head):
    with Exact():
        book = ledger(ALTILogit(forward_of(family, head)), token_ids(3), TARGETS[head])
    assert_closes(book)
    assert set(book.by_kind()) <= {"tokens", "mlp", "bias"}


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", EVERY)
def test_the_ledger_closes_with_the_family_s_own_float32(family, method):
    book = ledger(method(tiny(family)), token_ids(3), TARGETS["lm"])
    exact = not EVERY[family].gated and family not in ("opt", "bloom")
    assert_closes(book, RELATIVE if exact else FLOAT32_INSIDE)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
@examples(40)
@given(data=st.data())
def test_the_ledger_of_drawn_models_closes(family, data):
    model, ids, (row, *index) = data.draw(cases(family, biases="random", heads=["lm", "token"]))
    recipe = data.draw(st.sampled_from([*CONSERVING, *LEAKING]))
    with Exact():
        book = ledger(LRPx(model, recipe=recipe), ids[row : row + 1], tuple(index))
    assert book.closes(RELATIVE)


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], **by_name)
@pytest.mark.parametrize("options", [{"do_layer_norm_before": False}, {"word_embed_proj_dim": 6}])
def test_the_ledger_of_other_forms_of_opt_closes(options, recipe):
    with Exact():
        book = ledger(LRPx(tiny("opt", **options), recipe=recipe), token_ids(3), TARGETS["lm"])
    assert_closes(book)


# The lines themselves -----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", [*CONSERVING, *LEAKING], **by_name)
@pytest.mark.parametrize("head", ["lm", "sequence"])
@pytest.mark.parametrize("family", EVERY)
def test_kinds_are_what_autograd_gives(family, head, recipe):
    model, ids = tiny(family, head), token_ids(1)
    index = (2, 5) if head == "lm" else (1,)
    replica = by_hand(model, recipe, (0, *index), input_ids=ids)
    with Exact():
        kinds = ledger(LRPx(model, recipe=recipe), ids, index).by_kind()
    zero = torch.zeros(1, dtype=torch.float64)
    embeddings = [kinds.get(kind, zero) for kind in ("tokens", "positions", "token_types")]
    # The replica does not tell the softmax from constants in its scores.
    kept = kinds.get("softmax", zero) + kinds.get("score_bias", zero)
    if family != "bloom":
        assert sum(embeddings).item() == pytest.approx(
            sum(part.sum().item() for part in replica.embeddings), rel=1e-9, abs=1e-12
        )
        assert kept.item() == pytest.approx(replica.softmax, rel=1e-9, abs=1e-12)
    assert kinds.get("bias", zero).item() == pytest.approx(replica.biases, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", [family for family in EVERY if family != "mistral"])
def test_each_bias_of_each_example_has_its_own_amount(family, method):
    model, ids = tiny(family), token_ids(3)
    found = amounts_of(ledger(method(model), ids, TARGETS["lm"]))
    # A tied bias of a head has one name among the parameters and is added under another.
    assert len(found) == sum(name.endswith("bias") for name, _ in model.named_parameters())
    for row, index in enumerate(TARGETS["lm"]):
        expected = biases_by_hand(model, method.default_recipe, (0, *index), ids[row : row + 1])
        for name, amount in found.items():
            tolerance = {"rel": 1e-6 if EVERY[family].gated else 1e-9, "abs": 1e-7}
            assert amount[row].item() == pytest.approx(expected[name], **tolerance), name


TABLES = {
    "bert": {"token_types": "token_type_embeddings", "positions": "position_embeddings"},
    "roberta": {"token_types": "token_type_embeddings", "positions": "position_embeddings"},
    "distilbert": {"positions": "position_embeddings"},
    "gpt2": {"positions": "wpe"},
    "opt": {"positions": "embed_positions"},
}
"""Beside that of tokens; OPT and RoBERTa count what is not padding."""


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", EVERY)
def test_each_table_has_a_line(family, method):
    model, ids, mask = tiny(family), token_ids(2), torch.ones(2, 5, dtype=torch.long)
    ids[1, :2] = mask[1, :2] = 0
    with Exact():
        book = ledger(method(TokenLogits(model)), ids, 5, (mask, 4))
    tables = [each for kind in ("tokens", "positions", "token_types") for each in book.of(kind)]
    modules = dict(model.named_modules())
    assert modules[tables[0].path] is model.get_input_embeddings()
    found = {entry.kind: entry.path.rpartition(".")[2] for entry in tables[1:]}
    assert found == TABLES.get(family, {})
    for row in (0, 1):
        arguments = {"input_ids": ids[row:], "attention_mask": mask[row:]}
        if family in ("bert", "distilbert", "gpt2"):  # as TokenLogits counts for them
            arguments["position_ids"] = (mask[row:].cumsum(1) - 1).clamp(min=0)
        replica = by_hand(model, method.default_recipe, (0, 4, 5), **arguments)
        by_table = sorted(part[0].sum().item() for part in replica.embeddings)
        amounts = sorted(entry.amount[row].item() for entry in tables)
        assert amounts == pytest.approx(by_table, rel=1e-9, abs=1e-12)


def test_a_line_knows_its_layer():
    book = ledger(AttnLRPx(tiny("gpt2", layers=3)), token_ids(1), (2, 5))
    assert [entry.layer for entry in book.of("softmax")] == [0, 1, 2]
    assert {entry.path: entry.layer for entry in book.entries}["transformer.ln_f.bias"] is None
    assert {entry.layer for entry in book.of("bias", layer=1)} == {1}


def test_alibi_has_a_line_for_each_layer():
    model = tiny("bloom")
    for method, lines in ((LRPx, 0), (AttnLRPx, 2)):
        entries = ledger(method(model), token_ids(1), (3, 5)).of("score_bias")
        assert len(entries) == lines
        assert all(entry.amount.abs() > 1e-6 for entry in entries)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_mask_of_finite_numbers_has_a_line(family):
    """The same with both attention implementations, which hide it in different ways."""
    mask = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    books = []
    for attn in ("eager", "sdpa"):
        attribution = AttnLRPx(tiny(family, attn=attn))
        with Exact():
            books.append(
                ledger(attribution, token_ids(2), [(3, 5), (4, 1)], mask.repeat(2, 1, 1, 1))
            )
        assert_closes(books[-1])
        assert (books[-1].by_kind()["score_bias"].abs() > 1e-4).all()
    for kind, amount in books[0].by_kind().items():
        torch.testing.assert_close(books[1].by_kind()[kind], amount, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("family", EVERY)
def test_an_ordinary_mask_has_none(family):
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    book = ledger(AttnLRPx(TokenLogits(tiny(family))), token_ids(2), 5, (mask, 1))
    assert bool(book.of("score_bias")) == (family == "bloom")


# Batches, padding, what is explained --------------------------------------------------------------


@pytest.mark.parametrize("method", [LRPx, AttnLRPx, ALTILogit])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", EVERY)
def test_a_padded_batch_is_its_examples(family, side, method):
    mask = torch.ones(3, 5, dtype=torch.long)
    ids = token_ids(3)
    empty = slice(0, 2) if side == "left" else slice(3, 5)
    mask[1, empty], ids[1, empty] = 0, 0
    attribution = method(TokenLogits(tiny(family, attn="sdpa")))
    at = torch.tensor([4, 3 if side == "left" else 1, 2])
    with Exact():
        together = ledger(attribution, ids, 5, (mask, at))
        assert_closes(together)
        for row in range(3):
            real = mask[row] != 0
            where = at[row] - (2 if side == "left" and row == 1 else 0)
            alone = ledger(attribution, ids[row : row + 1, real], 5, (None, where.view(1)))
            for kind, amount in alone.by_kind().items():
                torch.testing.assert_close(
                    together.by_kind()[kind][row], amount[0], rtol=1e-9, atol=1e-11
                )


@pytest.mark.parametrize("method", [LRPx, AttnLRPx, ALTILogit])
@pytest.mark.parametrize("family", EVERY)
def test_forward_modules(family, method):
    model, ids = tiny(family), token_ids(2)
    good, bad, at = torch.tensor([5, 6]), torch.tensor([7, 8]), torch.tensor([3, 4])
    with Exact():
        books = [
            ledger(method(LogitDifference(model)), ids, None, (None, good, bad, at)),
            ledger(method(TokenSum(model)), ids, None, (None, [5, 6], at, [1.0, -0.5])),
            ledger(method(TokenLogits(model)), ids, good, (None, at)),
            ledger(method(ClassDifference(tiny(family, "sequence"))), ids, None, (None, 0, 2)),
        ]
    for book in books:
        assert_closes(book)
        assert "output" not in book.by_kind()
        torch.testing.assert_close(book.delta, book.value - book.by_kind()["tokens"])


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_is_not_linear_in_the_logits_has_a_line(family, method):
    for of in ("prob", "log_prob"):
        forward = TokenSum(tiny(family), of)
        book = ledger(method(forward), token_ids(2), None, (None, [5, 6], 3))
        assert (book.by_kind()["output"].abs() > 1e-3 * book.value.abs()).all()
        assert book.closes(FLOAT32_INSIDE)
    book = ledger(method(LogProbabilities(TokenLogits(tiny(family)))), token_ids(2), 5, (None, 3))
    assert book.closes(FLOAT32_INSIDE)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", EVERY)
def test_embeddings_and_ids_have_the_same_account(family, method):
    model, ids = tiny(family), token_ids(2)
    embeds = model.get_input_embeddings()(ids)
    books = [ledger(method(model), inputs, (3, 5)) for inputs in (ids, embeds)]
    for kind, amount in books[0].by_kind().items():
        torch.testing.assert_close(books[1].by_kind()[kind], amount, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", [LRPx, AttnLRPx, ALTILogit])
@pytest.mark.parametrize("family", EVERY)
def test_the_attributions_are_those_of_attribute(family, method):
    attribution, ids = method(tiny(family)), token_ids(2)
    expected, delta = attribution.attribute(ids, (3, 5), return_convergence_delta=True)
    book = ledger(attribution, ids, (3, 5))
    torch.testing.assert_close(book.attributions, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(book.delta, delta, rtol=1e-6, atol=1e-9)
    assert isinstance(ledger(attribution, (ids,), (3, 5)).attributions, tuple)


def test_one_token():
    for method in (LRPx, AttnLRPx, ALTILogit):
        assert_closes(ledger(method(tiny("gpt2")), token_ids(2, 1), (0, 5)))


def test_token_types_by_the_matrix_of_tokens():
    """GPT-2 embeds token types as it embeds tokens."""
    args = (None, None, token_ids(2, seed=1))  # past, mask, token types
    book = ledger(LRPx(tiny("gpt2")), token_ids(2), (3, 5), args)
    assert_closes(book)
    assert (book.by_kind()["token_types"] != 0).all()


@pytest.mark.parametrize("method", [LRPx, AttnLRPx, ALTILogit])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_the_model_is_left_as_it_was(family, method):
    model, ids = tiny(family), token_ids()
    before = snapshot(model)
    ledger(method(model), ids, (3, 5))
    assert snapshot(model) == before
    with pytest.raises((AssertionError, IndexError)):
        ledger(method(model), ids, None)
    assert snapshot(model) == before


# It is a judge ------------------------------------------------------------------------------------


class PretendedActivation(ActivationGradient):
    conserves = True


class PretendedNorm(NormGradient):
    conserves = True


@pytest.mark.parametrize("family", EVERY)
def test_a_rule_that_only_says_that_it_conserves_leaves_the_account_open(family):
    gate = LRP.gate if not EVERY[family].gated else ATTN_LRP.gate
    for wrong in ({"activation": PretendedActivation()}, {"norm": PretendedNorm()}):
        recipe = replace(LRP, gate=gate, **wrong)
        # A ReLU's gradient is its secant.
        model = tiny(family, activation="gelu")
        book = ledger(LRPx(model, recipe=recipe), token_ids(2), (3, 5))
        assert not book.closes(1e-4)
        assert book.relative_residual("value").max() > 1e-4


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_something_non_linear_that_no_rule_knows_leaves_the_account_open(family):
    model = tiny(family)
    inner = model.base_model.get_submodule(
        {"bert": "encoder.layer.0", "gpt2": "h.0", "llama": "layers.0"}[family]
    )

    def distort(_module, _args, output):
        return torch.sin(output) if isinstance(output, torch.Tensor) else output

    inner.register_forward_hook(distort)
    with pytest.raises(ValueError, match="sin in"):
        ledger(LRPx(model), token_ids(2), (3, 5))
    with pytest.warns(UserWarning, match="sin in"):
        book = ledger(LRPx(model, strict=False), token_ids(2), (3, 5))
    assert not book.closes(1e-3)
    assert "the account does not close" in book.explanation()


@pytest.mark.parametrize("function", [LogProbabilities, Probabilities])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_a_function_of_the_logits_keeps_is_on_a_line_of_alti_logit(family, function):
    model, ids, at = tiny(family), token_ids(3), (None, 3)
    forward, target = function(TokenLogits(model)), 5
    logits = TokenLogits(model)(ids, *at).detach().requires_grad_()
    of_logits = {LogProbabilities: torch.log_softmax, Probabilities: torch.softmax}[function]
    value = of_logits(logits, -1)[:, target]
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    kept = (value - (gradient * logits).sum(-1)).detach()
    method = ALTILogit(forward, model)
    for _ in range(2):  # the second pass knows what the first has found out
        book = ledger(method, ids, target, at)
        assert book.closes(1e-9 if family != "llama" else FLOAT32_INSIDE)
        (entry,) = [each for each in book.entries if each.kind == "output"]
        torch.testing.assert_close(entry.amount, kept.to(entry.amount), rtol=1e-6, atol=1e-9)
    book = ledger(ALTILogit(TokenLogits(model)), ids, target, at)
    assert "output" not in {each.kind for each in book.entries}
