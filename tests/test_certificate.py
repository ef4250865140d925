"""The certificate of an explanation: made, shown, stored, and no longer valid once edited."""

import copy
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from explanations import assert_harmless, explanation
from models import FAMILIES, tiny, token_ids

from captum_lrpx import Comparison, Target, TokenLogits, cli, compare, explain, ledger, zoo
from captum_lrpx.attr import AttnLRPx, LRPx
from captum_lrpx.certification import certified
from captum_lrpx.explanation import Certificate, Explanation
from captum_lrpx.explanation.certificate import LEDGER_TOLERANCES, sealed
from captum_lrpx.methods import METHODS, attribute, options_of
from captum_lrpx.recipes import LRP
from captum_lrpx.rules import Gamma, node_rules
from captum_lrpx.targets import Query

TEXT = "the keys to the cabinet"
TARGET = Target("are", contrast="is")
RULE_BASED = ["lrpx", "attnlrpx", "altilogit"]
GOOD = Certificate(True, 312, 40, 0, 1e-4, ledger_residual=3e-7)


@pytest.fixture(scope="module")
def loaded():
    return zoo.load("sva-gpt2")


@pytest.fixture(scope="module")
def stored(loaded):
    """An explanation, as JSON."""
    return explain(*loaded, TEXT, TARGET, first_token="<|endoftext|>", certify="full").to_json()


def asked(model, recipe=None, method="lrpx", options=None):
    """A query of a tiny model, and the explanation of it without certificate."""
    ids = token_ids(batch=1)
    query = Query(TokenLogits(model), ids, (None, 3), 4)
    found = attribute(method, query, recipe, options or {})
    count = ids.shape[1]
    plain = explanation(
        labels=("a",) * count,
        relevances=found.relevances[0].double().tolist(),
        value=float(found.values[0]),
        method=method,
        recipe=found.recipe,
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        options=options_of(method) | (options or {}),
    )
    return query, plain


# Made ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RULE_BASED)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_certified(family, method):
    query, plain = asked(tiny(family, dtype=torch.float32), method=method)
    certificate = certified(plain, query, None).certificate
    assert certificate.holds, certificate
    assert not certificate.failed
    assert certificate.operations > certificate.ruled > 0 or method == "altilogit"


@pytest.mark.parametrize("dtype", LEDGER_TOLERANCES)
@pytest.mark.parametrize("method", RULE_BASED)
def test_every_precision_is_certified(dtype, method):
    for family in ("gpt2", "llama", "bert"):
        query, plain = asked(tiny(family, dtype=getattr(torch, dtype)), method=method)
        certificate = certified(plain, query, None).certificate
        assert certificate.holds, certificate
        assert certificate.ledger_tolerance == LEDGER_TOLERANCES[dtype]


@pytest.mark.parametrize("options", [{"include_start": False}, {"value_bias": "apart"}])
def test_the_account_is_of_what_was_recorded(options):
    query, plain = asked(tiny("gpt2"), method="altilogit", options=options)
    assert certified(plain, query, None).certificate.ledger_residual < 1e-9
    with pytest.warns(UserWarning, match="ledger OPEN"):
        other = certified(replace(plain, value=plain.value + 1), query, None, full=True)
    book = ledger(LRPx(query.model), query.ids, (3, 4))
    assert other.certificate.failed
    assert book.closes(1e-9)


def test_the_numbers_are_those_of_coverage_and_ledger(loaded):
    result = explain(*loaded, TEXT, TARGET, certify="full")
    query = TARGET.ask(*loaded, encoding_of(result))
    ids = torch.tensor([result.ids])
    arguments = query.additional_forward_args
    coverage = AttnLRPx(query.forward).coverage(ids, arguments)
    assert result.certificate.operations == len(coverage.operations)
    ruled = [each for each in coverage.operations if each.kind == "ruled"]
    assert result.certificate.ruled == len(ruled)
    book = ledger(AttnLRPx(query.forward), ids, query.target, arguments)
    assert result.certificate.ledger_residual < 10 * float(book.relative_residual("largest")) + 1e-6


def encoding_of(result):
    from captum_lrpx.targets import encode

    return encode(*zoo.load("sva-gpt2"), result.text)


def test_the_explanation_is_the_same_without(loaded):
    for method in METHODS.keys() - {"deep_lift"}:
        plain = explain(*loaded, TEXT, TARGET, method=method, certify=False)
        assert plain.certificate is None
        assert plain.certification == ""
        result = explain(*loaded, TEXT, TARGET, method=method)
        assert (result.certificate is not None) == (method in RULE_BASED)
        assert replace(result, certificate=None) == plain
        assert Explanation.from_json(plain.to_json()) == plain


# Failures -----------------------------------------------------------------------------------------


class Inexact(Gamma):
    """A rule that gets the last bit of a layer's values wrong."""

    def patch(self, module, path):
        exact = super().patch(module, path)

        def patch(forward, x):
            return exact(lambda each: torch.nextafter(forward(each), forward(each) + 1), x)

        return patch


def test_a_rule_that_changes_the_forward_pass_is_said():
    recipe = replace(LRP, linear=Inexact())
    query, plain = asked(tiny("gpt2", dtype=torch.float32), recipe)
    with pytest.warns(UserWarning, match="forward CHANGED by the rules"):
        result = certified(plain, query, recipe)
    assert not result.certificate.forward_unchanged
    assert result.certificate.coverage_complete
    assert result.certification.startswith("NOT certified: forward CHANGED by the rules, ")


def test_a_wrong_backward_pass_leaves_the_ledger_open(monkeypatch):
    monkeypatch.setattr(node_rules, "frozen_norm", lambda *_: lambda *_: None)
    query, plain = asked(tiny("gpt2"))
    with pytest.warns(UserWarning, match="ledger OPEN by"):
        result = certified(plain, query, None)
    assert result.certificate.forward_unchanged


def test_relevances_of_other_tokens_are_noticed():
    """By the second pass alone: the sum is right, and so is the ledger."""
    query, plain = asked(tiny("llama"))
    first, second, *others = plain.relevances
    swapped = replace(plain, relevances=(second, first, *others))
    with pytest.warns(UserWarning, match="relevances DIFFER in a second pass"):
        result = certified(swapped, query, None)
    assert result.certificate.ledger_closes
    assert not result.certificate.relevances_confirmed


@pytest.mark.filterwarnings("ignore:The explanation did not pass its checks")
@pytest.mark.parametrize("method", RULE_BASED)
def test_quantities_and_functions_of_the_outputs_are_forms_of_their_own(method):
    model, tokenizer = zoo.load("sva-gpt2")
    several = ("are", "is")
    for target in (
        Target(several),
        Target(several, quantity="log_prob"),
        Target(lambda logits: logits[:, 5]),
        Target(lambda logits: logits.logsumexp(-1)),
    ):
        first, second = (explain(model, tokenizer, TEXT, target, method=method) for _ in range(2))
        assert first.certificate.audited
        # ALTI-Logit has no account of what a function of the logits adds: each is audited.
        assert second.certificate.audited == (not first.certificate.holds)
        assert first.certificate.holds or method == "altilogit"
        assert first.relevances == second.relevances


@pytest.mark.filterwarnings("ignore:The explanation did not pass its checks")
def test_a_quantity_with_operations_of_its_own_is_recorded_anew():
    """In bfloat16 a log-probability has a cast that a logit does not have."""
    tokenizer = zoo.load("sva-bert")[1]
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    model = tiny("bert", dtype=torch.bfloat16, **shape)
    for quantity in ("logit", "log_prob"):
        target = Target((5, 6), quantity=quantity, position=3)
        found = explain(model, tokenizer, TEXT, target, method="altilogit")
        assert found.certificate.audited


@pytest.mark.parametrize("method", RULE_BASED)
def test_a_value_near_zero_is_the_rest_of_relevances_that_cancel(method):
    model, tokenizer = zoo.load("sva-llama")  # without biases: the tokens are all there is
    with torch.no_grad():
        logits = model(tokenizer(TEXT, return_tensors="pt").input_ids).logits[0, -1]
    order = logits.argsort()
    gaps = logits[order].diff()
    nearest = gaps.masked_fill(gaps == 0, math.inf).argmin()
    target = Target(int(order[nearest + 1]), contrast=int(order[nearest]))
    found = explain(model, tokenizer, TEXT, target, method=method, certify="full")
    assert abs(found.value) < 1e-4
    assert max(map(abs, found.relevances)) > 1e-2
    assert found.certificate.holds


@pytest.mark.parametrize("method", RULE_BASED)
def test_the_audit_is_made_once_for_a_form(method):
    query, plain = asked(tiny("gpt2"), method=method)
    audited, known, again = (
        certified(plain, query, None, full=full).certificate for full in (False, False, True)
    )
    assert audited.audited
    assert audited.ledger_closes
    assert again == audited
    assert not known.audited
    assert known.ledger_residual is known.ledger_delta is known.relevance_difference is None
    assert known.holds
    assert known.operations == audited.operations
    assert "when the first explanation of this form was audited" in str(known)
    query.model.transformer.h[0].register_forward_hook(lambda *_: None)
    assert certified(plain, query, None).certificate.audited, "it may do something else now"


def test_what_failed_is_audited_again():
    query, plain = asked(tiny("gpt2"))
    wrong = replace(plain, relevances=(plain.relevances[0] + 0.1, *plain.relevances[1:]))
    for _ in range(2):
        with pytest.warns(UserWarning, match="ledger OPEN"):
            assert certified(wrong, query, None).certificate.audited


def test_a_certified_explanation_runs_its_model_twice(loaded, monkeypatch):
    runs = []
    base = type(loaded[0].transformer)
    own = base.forward

    def counted(self, *args, **kwargs):
        runs.append(self)
        return own(self, *args, **kwargs)

    explain(*loaded, TEXT)
    monkeypatch.setattr(base, "forward", counted)
    explain(*loaded, TEXT)
    assert len(runs) == 2


def test_an_edited_relevance_leaves_the_ledger_open():
    query, plain = asked(tiny("llama"))
    wrong = replace(plain, relevances=(plain.relevances[0] + 0.1, *plain.relevances[1:]))
    with pytest.warns(UserWarning, match=r"ledger OPEN by .* \(tolerance 1e-05\)"):
        result = certified(wrong, query, None)
    assert result.certificate.forward_unchanged
    assert not result.certificate.ledger_closes
    assert Explanation.from_json(result.to_json()) == result


@pytest.mark.parametrize("error", [ValueError("no weights here"), MemoryError()])
def test_without_a_ledger_the_certificate_says_why(monkeypatch, loaded, error):
    def refuse(*_args, **_keywords):
        raise error

    monkeypatch.setattr("captum_lrpx.certification.observed_ledger", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = explain(*loaded, TEXT, TARGET, certify="full")
    assert not result.certificate.holds
    assert not result.certificate.failed
    reason = str(error) or "out of memory"
    assert result.certification.startswith("certified in part: forward unchanged")
    assert result.certification.endswith(f"ledger: not available ({reason})")
    assert Explanation.from_json(result.to_json()) == result


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"forward_unchanged": False}, "forward CHANGED"),
        ({"unruled": 2}, "2 of 312 operations WITHOUT a rule"),
        ({"ledger_residual": 0.5}, "ledger OPEN by 5.0e-01 (tolerance 1e-04)"),
        ({"ledger_residual": math.nan}, "ledger OPEN by nan"),
    ],
)
def test_what_failed_is_named(change, words):
    certificate = replace(GOOD, **change)
    assert certificate.failed
    assert not certificate.holds
    assert str(certificate).startswith("NOT certified: ")
    assert words in str(certificate)


# Stored -------------------------------------------------------------------------------------------


def edits(value):
    """Other values of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return math.nextafter(value, math.inf) if isinstance(value, float) else value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, list):
        return [edits(value[0]), *value[1:]]
    if isinstance(value, dict):
        return {**value, "more": "x"}
    return 1 if value is None else value


def test_every_edit_is_noticed(stored):
    record = json.loads(stored)
    assert Explanation.from_json(json.dumps(record, indent=3)).certificate.holds
    optional = {"revision", "template", "standings", "parts", "regions"}
    for name in record.keys() - optional - {"format", "certificate"}:
        with pytest.raises(ValueError, match="not the one that was certified"):
            Explanation.from_json(json.dumps(record | {name: edits(record[name])}))
    part = {"name": "source", "first": 0, "stop": 1, "grid": None, "picture": None}
    for change in (
        {"revision": "abc"},
        {"template": [False] * len(record["tokens"])},
        {"parts": [part]},
        {"regions": [["document", "keys", 0, 8]]},
    ):
        with pytest.raises(ValueError, match="not the one that was certified"):
            Explanation.from_json(json.dumps(record | change))


def test_every_edit_of_the_certificate_is_noticed(stored):
    for name, value in json.loads(stored)["certificate"].items():
        record = json.loads(stored)
        # There is a ledger, so the reason for none is None, and a string otherwise.
        record["certificate"][name] = "x" if value is None else edits(value)
        with pytest.raises(ValueError, match="not the one that was certified"):
            Explanation.from_json(json.dumps(record))


def test_every_relevance_is_sealed(stored):
    record = json.loads(stored)
    for index in range(len(record["relevances"])):
        edited = copy.deepcopy(record)
        edited["relevances"][index] = edits(edited["relevances"][index])
        with pytest.raises(ValueError, match="not the one that was certified"):
            Explanation.from_json(json.dumps(edited))


@pytest.mark.parametrize(
    "certificate", [3, [], {}, {"forward_unchanged": True}, {"other": 1}, {"ruled": "many"}]
)
def test_a_damaged_certificate_is_refused(stored, certificate):
    record = json.loads(stored) | {"certificate": certificate}
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(json.dumps(record))


def test_records_without_a_certificate_are_read(stored):
    record = json.loads(stored)
    del record["certificate"]
    assert Explanation.from_json(json.dumps(record)).certificate is None
    record["format"] = "captum_lrpx.explanation/2"
    assert Explanation.from_json(json.dumps(record)).certificate is None


def test_a_comparison_is_verified(loaded):
    both = compare(explain(*loaded, TEXT, TARGET, method=name) for name in ("lrpx", "random"))
    assert Comparison.from_json(both.to_json()) == both
    record = json.loads(both.to_json())
    record["explanations"][0]["value"] += 1
    with pytest.raises(ValueError, match="not the one that was certified"):
        Comparison.from_json(json.dumps(record))


def test_what_is_made_from_an_explanation_has_none(stored):
    result = Explanation.from_json(stored)
    for other in (result.words(), result.fold_special(), result - result, 2 * result, -result):
        assert other.certificate is None
        assert Explanation.from_json(other.to_json()) == other


# Shown --------------------------------------------------------------------------------------------


def test_the_line():
    assert str(GOOD) == (
        "certified: forward unchanged, 312 operations covered, ledger closed to 3e-07"
    )
    result = sealed(explanation(), GOOD)
    assert str(result).splitlines()[-1] == str(GOOD)
    assert str(GOOD) in result.to_html()
    assert str(GOOD) in result._repr_html_()


def test_no_line_without_a_certificate():
    assert "certified" not in str(explanation()) + explanation().to_html()


def test_the_line_is_escaped():
    hostile = replace(GOOD, ledger_residual=None, ledger_missing="<script>\x1b[2J")
    result = sealed(explanation(), hostile)
    for page in (result.to_html(), result._repr_html_(), compare([result, result]).to_html()):
        assert_harmless(page)
        assert "&lt;script&gt;" in page
    assert "\x1b[2J" not in str(result)


def test_the_command_line(tmp_path, capsys):
    words = ["explain", TEXT, "--target", "are", "--json", str(tmp_path / "record.json")]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    stored = Explanation.from_json(tmp_path / "record.json")
    assert shown.rstrip().splitlines()[-1] == stored.certification != ""
    assert cli.main([*words, "--no-certificate"]) == 0
    assert "certified" not in capsys.readouterr().out
    assert Explanation.from_json(tmp_path / "record.json") == replace(stored, certificate=None)
