"""The benchmark of factual recall and indirect objects, on an embedded model."""

from __future__ import annotations

import json
import sys

import pytest
import recall
import torch

from captum_lrpx import TokenLogits, zoo

PROMPTS = {"the keys to the cabinet": "keys", "the author that the guards like": "author"}


def rows():
    """What the model predicts, something else, and an answer that does not occur."""
    model, tokenizer = zoo.load("sva-gpt2")
    for prompt, subject in PROMPTS.items():
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
        with torch.no_grad():
            best = int(model(ids).logits[0, -1].argmax())
        yield {"prompt": prompt, "subject": subject, "attribute": tokenizer.decode(best).strip()}
    yield {"prompt": prompt, "subject": subject, "attribute": "keys"}
    yield {"prompt": prompt, "answer": "cabinet"}


def test_rows_are_measured_once_and_in_tables(tmp_path, capsys, monkeypatch):
    data, journal = tmp_path / "facts.jsonl", tmp_path / "journal.jsonl"
    data.write_text("\n".join(map(json.dumps, rows())))
    few = {name: recall.METHODS[name] for name in ("CP-LRP", "leave one out")}
    monkeypatch.setattr(recall, "METHODS", few)
    given = ["recall.py", str(data), "--model", "sva-gpt2", "--journal", str(journal)]
    monkeypatch.setattr(sys, "argv", given)
    recall.main()
    shown = capsys.readouterr().out
    assert "facts: 2 of 4 rows are predicted right and have evidence" in shown
    assert shown.count("\n| ") == 1 + len(few)
    written = journal.read_text()
    assert len(written.splitlines()) == 4
    recall.main()
    assert journal.read_text() == written
    assert capsys.readouterr().out == shown


def test_curves():
    model, tokenizer = zoo.load("sva-gpt2")
    forward = TokenLogits(model)
    ids = tokenizer("the keys to the cabinet", return_tensors="pt").input_ids
    target = tokenizer(" are", add_special_tokens=False).input_ids[0]
    count = ids.shape[1] - 1  # the first token stays
    order = torch.tensor([1, 0, *range(2, count)])
    found = recall.left(forward, ids, target, recall.zeroed(order))
    embeddings = model.get_input_embeddings()(ids).detach()

    def left(zero):
        other = embeddings.clone()
        other[0, [1 + each for each in zero]] = 0
        with torch.no_grad():
            odds = [forward(each).softmax(-1)[0, target] for each in (other, embeddings)]
        return float(odds[0] / odds[1])

    tops = [order.tolist()[: -(-count * step // 5)] for step in range(1, 6)]
    rest = [[each for each in order.tolist() if each not in top] for top in tops]
    expected = torch.tensor([list(map(left, rest)), list(map(left, tops))])
    assert torch.allclose(found, expected, rtol=1e-3)
    assert found[0, -1] == pytest.approx(1)


def test_the_evidence_is_a_part_of_the_prompt():
    row = {"prompt": "Then Ann and Bob came. Bob gave it to", "answer": "Ann"}
    assert recall.spans(row) == ("Ann", [(5, 8)])
    assert recall.spans({"prompt": "no", "answer": "Ann"}) == ("Ann", [])
