"""``explain_chat`` and leaving out: documents at their places, numbers that sum, exact drops."""

import json

import pytest
import torch
from chat import byte_level, chat_model
from chat_templates import FAMILIES

from captum_lrpx import (
    Explanation,
    Target,
    TokenSum,
    cli,
    explain,
    explain_chat,
    leave_one_out,
    leave_one_out_of_chat,
    zoo,
)
from captum_lrpx.segments import ELSEWHERE

QUESTION = [{"role": "user", "content": "Is 7 prime?"}]
DOCUMENTS = [{"title": "Primes", "text": "7 is prime. 8 is not."}, " Cats purr. "]
ANSWER = "Yes, 7 is."


@pytest.fixture(scope="module")
def chat():
    return chat_model(512)


def kinds(explanation, kind):
    return [
        (region.name, explanation.text[region.start : region.end])
        for region in explanation.regions
        if region.kind == kind
    ]


@pytest.mark.parametrize("template", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("content", ["Is 7 prime?", "{documents}\nIs 7 prime?", "So:\n{documents}"])
def test_documents_and_answers_are_found_at_their_places(chat, template, content):
    tokenizer = byte_level(template)
    messages = [{"role": "user", "content": content}]
    found = explain_chat(chat[0], tokenizer, messages, DOCUMENTS, answer=ANSWER, certify=False)
    assert kinds(found, "document") == [
        ("Primes", "Primes\n\n7 is prime. 8 is not."),
        ("document 2", "Cats purr."),
    ]
    assert [text.strip() for _, text in kinds(found, "answer")] == [ANSWER]
    assert [name for name, _ in kinds(found, "turn")] == ["user", "assistant"]
    segments = found.segments(["document", "sentence"])
    assert [part.text.strip() for part in segments.of("document")[0].parts] == [
        "Primes",
        "7 is prime.",
        "8 is not.",
    ]
    assert sum(part.relevance for part in segments.parts) == pytest.approx(found.sum)


@pytest.mark.parametrize("quantity", ["logit", "log_prob"])
def test_segments_and_the_ledger_sum_to_the_value_of_the_answer(chat, quantity):
    found = explain_chat(*chat, QUESTION, DOCUMENTS, answer=ANSWER, quantity=quantity)
    ids = torch.tensor([found.ids])
    count = sum(found.offsets[index][0] >= found.regions[-1].start for index in range(len(ids[0])))
    logits = chat[0](ids).logits[0, -count - 1 : -1].detach()
    rows = logits if quantity == "logit" else logits.log_softmax(-1)
    expected = rows.gather(1, ids[0, -count:, None]).sum()
    assert found.value == pytest.approx(float(expected), rel=1e-5)
    segments = found.segments(["turn", "document", "sentence", "word"])
    scale = max(abs(found.value), *(abs(amount) for _, amount in segments.rest))
    assert abs(segments.residual) <= 1e-5 * scale
    assert {kind for kind, _ in segments.rest} >= {"softmax", "bias", "positions"}


@pytest.mark.parametrize("method", ["attnlrpx", "lrpx", "altilogit", "input_x_gradient"])
def test_an_answer_is_the_sum_of_its_tokens(chat, method):
    whole = explain_chat(*chat, QUESTION, answer=ANSWER, method=method, certify=False)
    start = next(
        index for index, place in enumerate(whole.offsets) if place[0] >= whole.regions[-1].start
    )
    length = len(whole.ids) - start
    parts = [
        explain_chat(
            *chat, QUESTION, answer=ANSWER, method=method, span=(step, step + 1), certify=False
        )
        for step in range(length)
    ]
    total = torch.tensor([part.relevances for part in parts], dtype=torch.float64).sum(0)
    found = torch.tensor(whole.relevances, dtype=torch.float64)
    torch.testing.assert_close(found, total, rtol=1e-4, atol=1e-5)
    assert whole.value == pytest.approx(sum(part.value for part in parts), rel=1e-5)


def test_a_span_of_the_answer(chat):
    named = explain_chat(*chat, QUESTION, DOCUMENTS, answer=ANSWER, span="7 is", certify=False)
    whole = explain_chat(*chat, QUESTION, DOCUMENTS, answer=ANSWER, certify=False)
    assert named.value != whole.value
    assert named.text == whole.text
    assert named.segments("document").sum == pytest.approx(named.sum)


def test_an_answer_is_generated(chat):
    args = {"max_new_tokens": 4, "do_sample": False}
    found = explain_chat(*chat, QUESTION, gen_args=args, certify=False)
    assert len(found.ids) > len(explain(*chat, QUESTION, "Yes", certify=False).ids)
    assert kinds(found, "answer")[0][1] == found.text[found.regions[-1].start :]


def test_leaving_out_is_exact(chat):
    left = leave_one_out_of_chat(
        *chat, QUESTION, DOCUMENTS, answer=ANSWER, by=["document", "sentence"], batch_size=2
    )
    whole = explain_chat(*chat, QUESTION, DOCUMENTS, answer=ANSWER, certify=False)
    assert left.value == pytest.approx(whole.value, rel=1e-5)
    start = whole.regions[-1].start
    checked = 0
    for segment in left.of("sentence"):
        ids = [number for index, number in enumerate(whole.ids) if index not in segment.tokens]
        gone = set(segment.tokens)
        steps = [i for i, place in enumerate(whole.offsets) if place[0] >= start and i not in gone]
        if len(steps) < sum(place[0] >= start for place in whole.offsets):
            assert segment.relevance == 0, "the answer stays"
            continue
        positions = [step - 1 - sum(index < step for index in gone) for step in steps]
        tokens = [whole.ids[step] for step in steps]
        value = TokenSum(chat[0])(
            torch.tensor([ids]), None, torch.tensor([tokens]), torch.tensor([positions])
        )
        assert segment.relevance == pytest.approx(left.value - float(value), abs=1e-4)
        checked += 1
    assert checked >= 4


@pytest.mark.parametrize(
    ("name", "text", "target"),
    [
        ("sva-bert", "the author is old . the keys [MASK] here .", "are"),
        ("sva-gpt2", "the author is old . the keys", Target(" are", contrast=" is")),
    ],
)
def test_leaving_out_of_any_text(name, text, target):
    model, tokenizer = zoo.load(name)
    left = leave_one_out(model, tokenizer, text, target, by="sentence")
    first, second = left.of("sentence")
    shorter = explain(
        model, tokenizer, text.partition(" . ")[2], target, method="random", certify=False
    )
    assert first.relevance == pytest.approx(left.value - shorter.value, abs=1e-4)
    assert second.relevance == 0, "where the model predicts"
    assert dict(left.rest) == {"interaction": left.value - left.sum}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"messages": "Is 7 prime?"}, TypeError, "Messages are a list"),
        ({"messages": []}, ValueError, "no messages"),
        ({"documents": "Cats purr."}, TypeError, "put a single one in a list"),
        ({"documents": [3]}, TypeError, "Document 1 is neither"),
        ({"documents": ["Cats", " "]}, ValueError, "Document 2 is empty"),
        ({"answer": "Yes", "gen_args": {}}, ValueError, "gen_args are for generating"),
        ({"answer": ""}, ValueError, "empty"),
        ({"span": "xyz"}, ValueError, "does not occur in the answer"),
        ({"span": (3, 100)}, IndexError, "out of range"),
        ({"method": "magic"}, ValueError, "Unknown method"),
        ({"quantity": "loss"}, ValueError, "Unknown quantity"),
    ],
)
def test_what_cannot_be_explained_is_refused(chat, change, error, message):
    asked = {"messages": QUESTION, "documents": DOCUMENTS, "answer": ANSWER} | change
    with pytest.raises(error, match=message):
        explain_chat(*chat, **asked)


def test_a_template_that_rewrites_documents_is_refused(chat):
    shouting = FAMILIES["ChatML"].replace("message.content | trim", "message.content | upper")
    with pytest.raises(ValueError, match="rewrites the message with the documents"):
        explain_chat(chat[0], byte_level(shouting), QUESTION, DOCUMENTS, answer=ANSWER)


def test_other_models_are_refused():
    model, tokenizer = zoo.load("sva-bert")
    with pytest.raises(ValueError, match="does not predict a text"):
        explain_chat(model, tokenizer, QUESTION, answer=ANSWER)
    with pytest.raises(TypeError, match="function of the outputs"):
        leave_one_out(model, tokenizer, "the [MASK]", Target(len), by="word")


# The command --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(chat, tmp_path_factory):
    path = tmp_path_factory.mktemp("chat-model")
    chat[0].save_pretrained(path)
    chat[1].save_pretrained(path)
    return path


def test_the_command(folder, chat, tmp_path, capsys):
    names = ("chat.json", "out.json", "out.html", "view.html")
    file, record, page, viewed = (tmp_path / name for name in names)
    file.write_text(
        json.dumps({"messages": QUESTION, "documents": DOCUMENTS, "answer": ANSWER}), "utf-8"
    )
    files = ["--json", record, "--html", page, "--view", viewed]
    assert cli.main([*map(str, ["chat", file, "--model", folder, *files, "--leave-one-out"])]) == 0
    shown = capsys.readouterr().out
    for part in ("user: ", "Primes: ", "7 is prime.", "(softmax)", f"({ELSEWHERE})", "left out"):
        assert part in shown
    found = Explanation.from_json(record)
    expected = explain_chat(*chat, QUESTION, DOCUMENTS, answer=ANSWER)
    assert found.relevances == pytest.approx(expected.relevances, rel=1e-4, abs=1e-7)
    assert "7 is prime." in page.read_text()
    assert '"sentences"' in viewed.read_text()


def test_the_command_generates(folder, tmp_path, capsys):
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(QUESTION), "utf-8")
    words = ["chat", file, "--model", folder, "--tokens", 3, "--by", "turn", "--no-certificate"]
    assert cli.main([*map(str, words)]) == 0
    assert "assistant: " in capsys.readouterr().out


def test_the_command_writes_files_before_a_pipe_can_close(folder, tmp_path, monkeypatch):
    def closed(*_):
        raise SystemExit(1)  # what rich does about a BrokenPipeError

    monkeypatch.setattr("captum_lrpx.cli.chat_command.print_all", closed)
    file, record = tmp_path / "chat.json", tmp_path / "out.json"
    file.write_text(json.dumps({"messages": QUESTION, "answer": ANSWER}), "utf-8")
    words = ["chat", file, "--model", folder, "--by", "turn", "--no-certificate", "--json", record]
    with pytest.raises(SystemExit):
        cli.main([*map(str, words)])
    assert Explanation.from_json(record).text


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ("[", [], "is not JSON"),
        ("{}", [], "must be a list of messages"),
        ('{"messages": [], "more": 1}', [], "must be a list of messages"),
        ("[]", ["--by", "sentense"], "did you mean 'sentence'"),
        ("[]", ["--method", "magic"], "Unknown method"),
        ("[]", ["--html", "/no/such/folder/x.html"], "no folder"),
    ],
)
def test_bad_input_is_one_clear_line(content, words, message, tmp_path, capsys):
    file = tmp_path / "chat.json"
    file.write_text(content, "utf-8")
    assert cli.main(["chat", str(file), "--model", "/no/such/model", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
