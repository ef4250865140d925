"""The README says of each group of families what was found about it."""

from pathlib import Path

import pytest
from families import AUDIO, GROUPS, MARKS, TEXT, found, kind_of, pairs_of, with_table
from tiny_models import MAPPINGS

README = Path(__file__).parent.parent / "README.md"


def test_the_table_of_the_readme_is_the_generated_one():
    text = README.read_text(encoding="utf-8")
    assert all(text.count(mark) == 1 for mark in MARKS)
    assert with_table(text) == text, "run python tests/families.py README.md"


def test_every_pair_is_in_one_line():
    pairs = [pair for group in GROUPS for pair in pairs_of(group)]
    assert sorted(pairs) == sorted(found().explained | found().refused)
    assert {task for task, _ in pairs} == set(MAPPINGS)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.title)
def test_models_that_a_line_names_are_explained(group):
    named = {pair for pair in found().explained if pair[1] in group.named}
    assert set(group.named) == {kind for task, kind in named if task in group.tasks}
    assert {pair for pair in named if pair[0] in group.tasks} <= set(pairs_of(group))


def test_audio_that_the_readme_names_is_tested():
    text = README.parent.joinpath("tests", "test_sounds.py").read_text(encoding="utf-8")
    assert AUDIO.named
    assert all(f'"{kind}"' in text for kind in AUDIO.named)


def test_shares_are_counted_in_pairs_that_a_method_is_asked_about():
    data = found()
    assert data.shares([("IMAGE_CLASSIFICATION", "vit")]) == ("all", "no")
    assert data.shares([("CAUSAL_LM", "gpt2"), ("CAUSAL_LM", "mamba")]) == ("all", "1 of 2")
    assert data.shares([("CAUSAL_LM", "gpt2"), ("CAUSAL_LM", "reformer")])[0] == "1 of 2"
    assert {task for task, _ in data.without_alti} <= TEXT
    assert kind_of("jamba") == "states"
    assert kind_of("qwen3_5_moe") == kind_of("qwen3_next") == "states"
    assert kind_of("llama4") == "experts"
