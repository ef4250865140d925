"""The record of a generated text: views, storage, words, characters."""

import json
import math
import sys

import pytest
import torch
from byte_tokenizers import END, START, TOKENIZERS
from chat import QUESTION, chat_model
from explanations import Page, assert_harmless, printed
from generation_cases import TEXT, some_ids, words
from models import tiny
from transformers import GPT2Config, GPT2LMHeadModel

from captum_lrpx import (
    AttnLRPx,
    Explanation,
    LayerLRPx,
    LLMRelevance,
    LLMRelevanceResult,
    LRPx,
    compare,
    explain,
)
from captum_lrpx.targets import Target

SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def result(loaded):
    model, tokenizer = loaded["sva-llama"]
    return LLMRelevance(AttnLRPx(model), tokenizer).attribute(TEXT, "are old .")


def of_bytes(kind, prompt, continuation, cut=0, **options):
    """A result with a tokenizer whose tokens are bytes, of a model with random weights."""
    tokenizer = TOKENIZERS[kind]
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=256,
            bos_token_id=0,
            eos_token_id=1,
        )
    ).eval()
    length = len(tokenizer(prompt).input_ids)
    ids = tokenizer(prompt + continuation).input_ids
    llm = LLMRelevance(LRPx(model), tokenizer, "logit")
    return llm.attribute(ids[:length], ids[length : len(ids) - cut], **options)


# Labels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_of_prompt_and_continuation_are_shown_alike(kind):
    shown = of_bytes(kind, "the keys", " to the capital keys")
    assert shown.labels == ("the", "keys", "to", "the", "capital", "keys")
    assert shown.row_labels == ("to", "the", "capital", "keys")
    text = str(shown)
    for mark in ("Ġ", "▁", "Ċ", "\ufffd"):
        assert mark not in text
        assert mark not in Page(shown.to_html()).text.replace(shown.record.target, "")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_blanks_and_newlines_have_one_sign_in_prompt_and_continuation(kind):
    shown = of_bytes(kind, "the\nkeys", "\nthe keys")
    assert shown.labels.count("\n") == 2
    text = str(shown)
    assert text.count("↵") == 4  # two lines of the table, a column, and the name of the whole
    assert "\\n" not in text


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_character_of_several_tokens_is_shown_once(kind):
    shown = of_bytes(kind, "the 日", "🍕本")
    assert len(shown.spans) == 7
    page = Page(shown.to_html()).text
    table = str(shown)
    assert "\ufffd" not in page + table
    assert [line.split()[1] for line in table.splitlines() if " 日 " in f"{line} "] == ["日"]
    heads = table.splitlines()[0].split()
    assert heads == ["position", "token", "🍕", "本"]
    row = next(line.split() for line in table.splitlines()[1:] if " 🍕 " in f"{line} ")
    length = len(shown.shown)
    assert row[0] == f"{length}-{length + 3}"
    expected = shown.context_attr[4:, length : length + 4].sum()
    assert float(row[3]) == pytest.approx(float(expected), abs=1e-4)
    value = next(line.split() for line in table.splitlines() if line.split()[:1] == ["value"])
    assert float(value[1]) == pytest.approx(float(shown.values[:4].sum()), abs=1e-4)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_generation_that_stops_inside_a_character_shows_bytes(kind):
    shown = of_bytes(kind, "the", "日", cut=1)
    assert shown.record.text.endswith("<0xE6><0x97>")
    assert "\ufffd" not in str(shown)
    assert "<0xE6>" in str(shown)


# Captum's fields --------------------------------------------------------------------------------


def test_captums_fields_are_captums(result):
    assert result.input_tokens == ["<s>", "▁the", "▁keys", "▁to", "▁the", "▁cabinet"]
    assert result.output_tokens == ["are", "old", "."]
    torch.testing.assert_close(result.token_attr, result.context_attr[:, :6])
    torch.testing.assert_close(result.seq_attr, result.token_attr.sum(0))


# Rows as explanations ---------------------------------------------------------------------------


def test_a_row_is_an_explanation(result, loaded):
    model, tokenizer = loaded["sva-llama"]
    row = result.explanation(1)
    assert isinstance(row, Explanation)
    assert row.target == "log-probability of '▁old'"
    assert row.relevances == tuple(result.context_attr[1].double().tolist())
    assert row.value == float(result.values[1])
    assert row.convergence_delta == float(result.delta[1])
    assert row.labels == ("<s>", "the", "keys", "to", "the", "cabinet", "are", "old", ".")
    assert row.special == (True, *[False] * 8)
    target = Target(span="old", quantity="log_prob")
    alone = explain(model, tokenizer, f"{TEXT} are old", target, certify=False)
    assert row.relevances[:8] == pytest.approx(alone.relevances, abs=1e-4)
    assert row.value == pytest.approx(alone.value, abs=1e-4)
    assert row.position == alone.position
    assert (row.method, row.recipe, row.model, row.dtype) == (
        alone.method,
        alone.recipe,
        alone.model,
        alone.dtype,
    )
    assert row.versions == alone.versions


def test_all_rows_together(result):
    whole = result.explanation()
    assert whole.relevances == pytest.approx(result.context_attr.sum(0).tolist())
    assert whole.value == pytest.approx(float(result.values.sum()))
    assert whole.target == "log-probability of 'are old .'"
    with pytest.raises(IndexError, match="the result has 3"):
        result.explanation(3)
    assert result.explanation(-1) == result.explanation(2)


def test_rows_can_be_subtracted_and_compared(result):
    difference = result.explanation(0) - result.explanation(1)
    assert difference.value == pytest.approx(float(result.values[0] - result.values[1]))
    assert "keys" in str(compare(map(result.explanation, range(3))))
    assert result.explanation(0).top(1)[0].label == "keys"


def test_what_a_foil_and_a_span_are_called(loaded):
    model, tokenizer = loaded["sva-llama"]
    llm = LLMRelevance(LRPx(model), tokenizer, "logit", model_name="mine")
    shown = llm.attribute(TEXT, "are old .", foil="is", spans=[(0, 1), (0, 2)])
    assert shown.targets == (
        "logit of '▁are' minus logit of '▁is'",
        "logit of 'are old' minus logit of '▁is' at each step",
    )
    assert shown.row_labels == ("are", "are old")
    assert shown.record.model == "mine"
    layer = model.model.layers[0]
    there = LLMRelevance(LayerLRPx(model, layer), tokenizer).attribute(TEXT, "are")
    assert there.record.options == {"layer": "model.layers.0"}
    assert there.record.method == "layerlrpx"


# Words and special tokens -----------------------------------------------------------------------


def test_words_are_sums_over_their_tokens():
    shown = of_bytes("byte-level", "keyskeys to", " capitals the")
    whole = shown.words()
    assert whole.labels == ("keyskeys", "to", "capitals", "the")
    assert whole.row_labels == ("capitals", "the")
    assert len(shown.labels) > len(whole.labels)
    torch.testing.assert_close(whole.context_attr.sum(), shown.context_attr.sum())
    torch.testing.assert_close(whole.values.sum(), shown.values.sum())
    torch.testing.assert_close(whole.delta.sum(), shown.delta.sum())
    stop = whole.record.offsets[0][1]
    tokens = [i for i, (_, end) in enumerate(shown.record.offsets) if end <= stop]
    torch.testing.assert_close(whole.context_attr[:, 0].sum(), shown.context_attr[:, tokens].sum())
    assert whole.token_attr.shape == (2, 2)
    assert LLMRelevanceResult.from_json(whole.to_json()) == whole
    assert whole.words() == whole


def test_no_word_has_tokens_of_both_prompt_and_continuation():
    whole = of_bytes("byte-level", "the pap", "ers keys").words()
    assert whole.labels == ("the", "pap", "ers", "keys")
    assert whole.row_labels == ("ers", "keys")


def test_rows_for_spans_stay():
    shown = of_bytes("byte-level", "the keys", " to the capitals", spans=[(0, 2), (1, 3)])
    whole = shown.words()
    torch.testing.assert_close(whole.values, shown.values)
    assert len(whole.spans) == 2


def test_special_tokens_of_the_prompt_are_folded(result):
    folded = result.fold_special()
    assert folded.labels == ("(special tokens)", *result.labels[1:])
    torch.testing.assert_close(folded.context_attr, result.context_attr)
    plain = of_bytes("byte-level", f"{START}the {START}keys{END}", f" to{END}")
    folded = plain.fold_special()
    assert folded.labels == ("(special tokens)", "the", " ", "keys", "to", END)
    assert folded.row_labels == plain.row_labels
    torch.testing.assert_close(folded.context_attr.sum(1), plain.context_attr.sum(1))
    assert of_bytes("byte-level", "the", " keys").fold_special().labels == ("the", "keys")


def test_what_a_chat_template_wrote_is_folded():
    model, tokenizer = chat_model()
    found = LLMRelevance(AttnLRPx(model), tokenizer).attribute(list(QUESTION), "Yes")
    folded = found.words().fold_special()
    assert folded.labels == ("(special tokens)", "Is", "7", "prime", "?", "Yes")
    assert folded.row_labels == ("Yes",)
    torch.testing.assert_close(folded.context_attr.sum(1), found.context_attr.sum(1))
    assert LLMRelevanceResult.from_json(folded.to_json()) == folded


# Storage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_json_keeps_every_digit(dtype, tmp_path):
    model, (prompt, continuation) = tiny("gpt2", dtype=dtype), some_ids()
    shown = LLMRelevance(AttnLRPx(model), words()).attribute(prompt, continuation, foil=5)
    path = tmp_path / "generated.json"
    text = shown.to_json(path)
    for source in (text, path, str(path)):
        again = LLMRelevanceResult.from_json(source)
        assert again == shown
        assert again.to_json() == text
        for name in ("context_attr", "token_attr", "seq_attr", "values", "decomposed", "delta"):
            left, right = getattr(shown, name), getattr(again, name)
            assert left.dtype == right.dtype
            assert torch.equal(left, right)
        assert again.to_html() == shown.to_html()
    assert [each.name for each in tmp_path.iterdir()] == ["generated.json"]
    assert json.loads(text)["format"].startswith("captum_lrpx.generation/")


@pytest.mark.parametrize(
    "change",
    [
        {"values": {"dtype": "float32", "numbers": [1.0]}},
        {"values": {"dtype": "int8", "numbers": [1.0, 1.0, 1.0]}},
        {"spans": [[0, 99]] * 3},
        {"shown": None},
        {"targets": [1, 2, 3]},
        {"extra": 1},
        {"prompt_ids": [10**30]},
        {"prompt_ids": [[1]]},
        {"context_attr": {"dtype": "float32", "numbers": [["much"]]}},
    ],
)
def test_a_damaged_record_is_refused(result, change):
    record = json.loads(result.to_json()) | change
    with pytest.raises(ValueError, match="not a stored generation"):
        LLMRelevanceResult.from_json(json.dumps(record))


def test_a_record_of_another_kind_is_refused(result):
    with pytest.raises(ValueError, match="not a stored generation"):
        LLMRelevanceResult.from_json(result.explanation(0).to_json())
    with pytest.raises(ValueError, match="not a stored explanation"):
        Explanation.from_json(result.to_json())


def test_results_are_equal_if_everything_in_them_is(result):
    again = LLMRelevanceResult.from_json(result.to_json())
    assert again == result
    again.values = again.values + 1
    assert again != result
    assert result != result.explanation()


# Other forms ------------------------------------------------------------------------------------


def test_a_data_frame_has_a_line_for_each_row_and_token(result):
    frame = result.to_pandas()
    assert len(frame) == 3 * 9
    table = frame.pivot_table(index="position", columns="row", values="relevance")
    assert table.to_numpy().T.tolist() == result.context_attr.double().tolist()
    assert list(frame.explained[::9]) == ["are", "old", "."]
    assert frame.generated.sum() == 3 * 3
    assert frame.attrs["method"] == "attnlrpx"


def test_without_pandas_there_is_a_way_out(result, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'captum-lrpx\[pandas\]'"):
        result.to_pandas()


def test_printing_gives_tokens_times_tokens(result):
    lines = str(result).splitlines()
    assert lines[0].split() == ["position", "token", "are", "old", "."]
    for place, label in enumerate(result.labels):
        numbers = [f"{value:+.4f}" for value in result.context_attr[:, place].tolist()]
        assert lines[1 + place].split() == [str(place), label, *numbers]
    totals = [line.split()[0] for line in lines[10:14]]
    assert totals == ["sum", "delta", "decomposed", "value"]
    assert lines[-2].startswith("log-probability of 'are old .' = -")
    assert lines[-1] == "attnlrpx on sva-llama"
    assert "\x1b[" in printed(result)


def test_a_table_fits_the_terminal():
    shown = of_bytes("byte-level", "the keys", " to the capital keys" * 5)
    for width in (40, 80):
        plain = str_in(shown, width).splitlines()
        assert max(map(len, plain)) <= width
        heads = [line for line in plain if line.startswith("position")]
        names = [name for line in heads for name in line.split()[2:]]
        assert names == list(shown.row_labels)


def str_in(shown, width):
    from rich.console import Console

    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def test_a_page_has_a_map_for_the_whole_and_for_each_row(result, tmp_path):
    page = result.to_html(tmp_path / "map.html")
    assert (tmp_path / "map.html").read_text() == page
    assert_harmless(page)
    tags = Page(page).tags
    maps = [attrs for tag, attrs in tags if tag == "p" and "dir" in attrs]
    assert len(maps) == 1 + len(result.spans)
    for label, value in zip(result.row_labels, result.values.tolist(), strict=True):
        assert f"{label}   {value:+.4f}" in page
    assert_harmless(result._repr_html_())
    assert "<style" not in result._repr_html_()


def test_a_script_stays_text():
    shown = of_bytes("byte-level", SCRIPT, SCRIPT)
    for page in (shown.to_html(), shown._repr_html_(), shown.words().to_html()):
        assert "<script" not in page
        assert_harmless(page)


def test_not_a_number_can_be_kept_and_shown(result):
    broken = LLMRelevanceResult.from_json(result.to_json())
    broken.context_attr = torch.full_like(broken.context_attr, math.nan)
    assert "nan" in str(broken)
    assert_harmless(broken.to_html())
    again = LLMRelevanceResult.from_json(broken.to_json())
    assert again.context_attr.isnan().all()
