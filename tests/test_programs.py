"""Compiled programs compute what they say, and depend on what they say; attributions of them."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import programs
import pytest
import torch

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, ledger
from captum_lrpx.metrics import relevance_rank_accuracy
from captum_lrpx.zoo.programs import PROGRAMS, load_program

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ground_truth.md"
every_program = pytest.mark.parametrize("name", PROGRAMS)


def balanced(text):
    depths = list(itertools.accumulate({"(": 1, ")": -1}.get(each, 0) for each in text))
    return min(depths) >= 0 and depths[-1] == 0


RESULTS = {
    "fraction": lambda text: [text[: i + 1].count("x") / (i + 1) for i in range(len(text))],
    "count": lambda text: [str(text[: i + 1].count("x")) for i in range(len(text))],
    "reverse": lambda text: list(reversed(text)),
    "sort": sorted,
    "dyck": lambda text: [str(balanced(text))] * len(text),
}


def texts_of(program, length, count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    letters = program.vocabulary.letters
    drawn = torch.randint(len(letters), (count, length), generator=generator)
    return ["".join(letters[each] for each in row) for row in drawn]


def targets_of(program, ids, position):
    found = program.results(ids)[:, position]
    outputs = found if program.vocabulary.results else torch.zeros(len(ids), dtype=torch.long)
    return [(position, int(each)) for each in outputs]


@every_program
def test_a_program_computes_what_it_says(name):
    program = load_program(name)
    for length in range(1, program.vocabulary.longest + 1):
        texts = texts_of(program, length)
        for text, found in zip(texts, program.results(program.encode(texts)), strict=True):
            expected = RESULTS[name](text)
            if name == "fraction":
                assert torch.allclose(found[1:], torch.tensor(expected), atol=1e-4)
            else:
                assert [program.vocabulary.results[each] for each in found[1:]] == expected


@every_program
def test_it_depends_on_what_the_program_depends_on(name):
    program = load_program(name)
    texts = texts_of(program, 5, count=6)
    for position in (2, 5):
        found = program.dependence(program.encode(texts), position)
        assert torch.equal(
            found, program.dependence(program.encode(texts), torch.full((6,), position))
        )
        for text, row in zip(texts, found, strict=True):
            result = RESULTS[name](text)[position - 1]
            for place in range(5):
                others = [
                    text[:place] + letter + text[place + 1 :]
                    for letter in program.vocabulary.letters
                ]
                changes = any(RESULTS[name](other)[position - 1] != result for other in others)
                assert bool(row[place + 1]) == changes, (text, place)
            assert not row[0]


@every_program
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
def test_the_module_is_explained_as_any_other(name, method):
    program = load_program(name).double()
    ids = program.encode(texts_of(program, 5, count=3))
    targets = targets_of(program, ids, 3)
    assert method(program).coverage(ids).complete
    book = ledger(method(program), ids, targets)
    assert book.residual.abs().max() < 1e-8
    embeddings = program.tokens(ids).detach()
    by_feature = method(program.of_embeddings, program).attribute(embeddings, target=targets)
    assert torch.allclose(by_feature.sum(-1), method(program).attribute(ids, target=targets))


@pytest.mark.parametrize("name", ["reverse", "sort"])
def test_relevance_is_on_the_letter_that_is_carried(name):
    program = load_program(name).double()
    texts = [text for text in texts_of(program, 5, count=40) if len(set(text)) > 3]
    ids = program.encode(texts)
    targets = targets_of(program, ids, 2)
    truth = program.dependence(ids, 2)
    relevance = LRPx(program).attribute(ids, target=targets)
    assert relevance[~truth].abs().max() < 1e-6
    carried = [RESULTS[name](text)[1] for text in texts]
    top = [text[int(row[1:].argmax())] for text, row in zip(texts, relevance, strict=True)]
    assert top == carried
    if name == "reverse":
        assert relevance_rank_accuracy(relevance, truth).eq(1).all()


def test_what_acts_by_attention_weights_alone_is_not_seen_with_constant_weights():
    program = load_program("count").double()
    ids = program.encode(texts_of(program, 6))
    targets = targets_of(program, ids, 4)
    for method in (LRPx, AttnLRPx, ALTILogit):
        assert method(program).attribute(ids, target=targets).abs().max() < 1e-6
    positions = ledger(LRPx(program), ids, targets).by_kind()["positions"]
    assert torch.allclose(positions, torch.ones_like(positions), atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["abq"], "reads a, b, c, d, not q"),
        (["ab", "abc"], "'abc' has 3"),
        ([""], "1 to 7 letters"),
        (["a" * 8], "1 to 7 letters"),
    ],
)
def test_texts_that_a_program_does_not_read(texts, message):
    with pytest.raises(ValueError, match=message):
        load_program("reverse").encode(texts)


def test_a_program_that_does_not_exist():
    with pytest.raises(ValueError, match=r"unknown program 'revers'.*did you mean 'reverse'"):
        load_program("revers")


# The benchmark ------------------------------------------------------------------------------------


def test_measures():
    truth = torch.tensor([[False, True, True, False], [False, True, False, False]])
    attributions = torch.tensor([[2.0, -3.0, 0.0, 1.0], [0.0, 1e-9, 0.0, 0.0]])
    precision, false, nothing, start = programs.measured(attributions, truth).squeeze(1)
    assert precision[0] == 0.5
    assert precision[1] == pytest.approx(1 / 3)  # all are tied
    assert false[0] == 0.25
    assert false[1].isnan()
    assert nothing.tolist() == [0, 1]
    assert start[0] == pytest.approx(2 / 6)


def test_questions_are_telling_and_seeded():
    program = load_program("dyck")
    ids, targets, truth = programs.questions("dyck", program, 5, 0)
    again, _, _ = programs.questions("dyck", program, 5, 0)
    assert torch.equal(ids, again)
    assert len(ids.unique(dim=0)) == len(ids) == len(targets) == 5
    assert truth.any(1).all()
    assert not truth[:, 1:].all(1).any()
    assert {position for position, _ in targets} == {8}


def test_the_tables(capsys, monkeypatch):
    given = ["programs.py", "--texts", "6", "--programs", "fraction", "reverse"]
    monkeypatch.setattr(sys, "argv", given)
    programs.main()
    shown = capsys.readouterr().out
    assert shown.count("| `lrpx` |") == len(programs.MEASURES)
    assert "| `replacement` | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] |" in shown


def cells(lines):
    """The means of the rows of tables, by method, in the order of the tables."""
    for line in lines:
        method, *found = [each.strip() for each in line.strip("|").split("|")]
        if line.startswith("| `") and method.strip("`") not in PROGRAMS:
            yield method, [each.partition(" ")[0] for each in found]


@pytest.mark.slow
def test_the_page_has_what_the_benchmark_gives(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["programs.py"])
    programs.main()
    shown = list(cells(capsys.readouterr().out.splitlines()))
    page = list(cells(PAGE.read_text(encoding="utf-8").splitlines()))
    assert len(page) == 3 * len(programs.METHODS)
    for (method, expected), (other, found) in zip(page, shown, strict=False):
        assert method == other
        for one, another in zip(expected, found, strict=True):
            assert (one == "-") == (another == "-")
            assert one == "-" or float(one) == pytest.approx(float(another), abs=0.02)
