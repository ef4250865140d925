"""``captum-lrpx generate``."""

import pytest

from captum_lrpx import ALTILogit, AttnLRPx, LLMRelevance, LLMRelevanceResult, LRPx, cli, view, zoo

PROMPT = "the keys to the cabinet"


def shown_by(capsys, *words):
    assert cli.main(["generate", *map(str, words)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def test_the_main_job(capsys, tmp_path):
    page, record, viewed = (tmp_path / name for name in ("map.html", "map.json", "view.html"))
    files = ["--html", page, "--json", record, "--view", viewed]
    shown = shown_by(capsys, PROMPT, "--tokens", 4, *files)
    model, tokenizer = zoo.load("sva-llama")
    llm = LLMRelevance(AttnLRPx(model), tokenizer)
    expected = llm.attribute(PROMPT, gen_args={"max_new_tokens": 4, "do_sample": False})
    stored = LLMRelevanceResult.from_json(record)
    assert stored == expected
    assert page.read_text() == expected.to_html()
    assert viewed.read_text() == view(expected)
    assert shown.splitlines()[0].split() == ["position", "token", *expected.row_labels]
    assert "keys" in shown
    assert shown.splitlines()[-1] == "attnlrpx on sva-llama"


def test_another_model_method_continuation_and_quantity(capsys, tmp_path):
    record = tmp_path / "map.json"
    words = ["--model", "sva-gpt2", "--method", "lrpx", "--quantity", "logit", "--json", record]
    shown = shown_by(capsys, PROMPT, "--target", " are old", "--foil", " is", *words)
    model, tokenizer = zoo.load("sva-gpt2")
    llm = LLMRelevance(LRPx(model), tokenizer, "logit")
    assert LLMRelevanceResult.from_json(record) == llm.attribute(PROMPT, " are old", foil=" is")
    assert "lrpx on sva-gpt2" in shown


def test_alti_logit_and_hops(capsys, tmp_path):
    record = tmp_path / "map.json"
    words = ["--method", "altilogit", "--hops", 1, "--target", "are old", "--json", record]
    assert "altilogit on sva-llama" in shown_by(capsys, PROMPT, *words)
    model, tokenizer = zoo.load("sva-llama")
    llm = LLMRelevance(ALTILogit(model), tokenizer, "logit")
    assert LLMRelevanceResult.from_json(record) == llm.attribute(PROMPT, "are old", hops=1)


def test_words_and_special_tokens(capsys):
    shown = shown_by(capsys, "the Keys un-locked", "--tokens", 1, "--words", "--fold-special")
    assert shown.splitlines()[0].split()[1] == "word"
    assert "0  (special tokens)" in shown
    assert "un-locked" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([PROMPT, "--tokens", "0"], "at least 1"),
        ([PROMPT, "--tokens", "many"], "at least 1"),
        ([PROMPT, "--tokens", "1000"], "takes at most"),
        ([PROMPT, "--tokens", "2", "--target", "are"], "not allowed with"),
        ([PROMPT, "--method", "magic"], "invalid choice"),
        ([PROMPT, "--target", "are old .", "--foil", "is is"], "is 2 tokens"),
        ([PROMPT, "--model", "sva-bert"], "does not predict a text"),
        ([PROMPT, "--hops", "-1"], "hops must be 0 or more"),
        ([PROMPT, "--method", "altilogit", "--quantity", "prob"], "decomposes logits"),
        ([PROMPT, "--html", "/no/such/folder/map.html"], "no folder"),
        ([PROMPT, "--json", "/no/such/folder/map.json"], "no folder"),
        (["", "--tokens", "1"], "empty"),
        ([], "prompt"),
    ],
)
def test_bad_input_is_one_clear_line(capsys, words, message):
    try:
        status = cli.main(["generate", *words])
    except SystemExit as stop:  # argparse's own errors
        status = stop.code
    captured = capsys.readouterr()
    assert status == 2
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_files_are_checked_before_anything_is_loaded(capsys, monkeypatch):
    from captum_lrpx import loading

    monkeypatch.setattr(loading, "load_model", lambda _: pytest.fail("loaded"))
    assert cli.main(["generate", PROMPT, "--html", "/no/such/folder/map.html"]) == 2
    assert "no folder" in capsys.readouterr().err
