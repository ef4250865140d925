"""Models that several processes share: the relevances of each are those of a single process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import spread
import torch

QUICK = [
    ("llama", "tensors", "relevances"),
    ("qwen3_moe", "tensors", "relevances"),
    ("gpt2", "tensors", "relevances"),
    ("gpt2", "blocks", "relevances"),
    ("llama", "blocks", "relevances"),
    ("llama", "blocks", "state"),
    ("llama", "tensors", "accounts"),
    ("llama", "tensors", "positive"),
    ("llama", "stages", "relevances"),
]
"""Model, how it is spread, and what is asked of it."""

SLOW = [
    *[(kind, "tensors", "everything") for kind in sorted(spread.CONFIGS) if kind != "gpt2"],
    ("llama", "tensors, eager", "everything"),
    ("gemma2", "tensors, eager", "everything"),
    ("qwen3_moe", "experts", "everything"),
    ("qwen3_moe", "blocks", "everything"),
    ("gpt2", "blocks", "everything"),
    ("llama", "blocks", "accounts"),
    ("qwen3_moe", "tensors", "accounts"),
    ("gpt_neox", "tensors", "accounts"),
    ("llama", "blocks", "positive"),
]

FLOAT32 = 1e-6
"""Of the largest number: sums over processes are rounded in another order."""


def together(jobs, folder):
    """What each process has found."""
    for kind in {job[0] for job in jobs}:
        spread.save(kind, folder)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    running = [
        subprocess.Popen(
            [sys.executable, spread.__file__, str(rank), str(folder)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else None,
        )
        for rank in range(spread.PROCESSES)
    ]
    errors = [each.communicate(timeout=600)[1] for each in running]
    assert [each.returncode for each in running] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in range(spread.PROCESSES)]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    return folder, together(QUICK, folder)


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow")
    return folder, together(SLOW, folder)


def check_same(run, job):
    folder, results = run
    kind, how, what = job
    how_alone = "eager" if "eager" in how else ""
    expected = spread.asked(spread.load(kind, Path(folder), how_alone), what)
    for found in (each[job] for each in results):
        assert not isinstance(found, str), found
        assert found.keys() == expected.keys()
        largest = max(value.abs().max() for value in expected.values())
        for name, value in expected.items():
            scale = value.abs().max() if what == "relevances" else largest
            assert (found[name] - value).abs().max() <= FLOAT32 * scale, name


def refusals(run, job):
    return {each[job] for each in run[1]}


ACCEPTED = [
    job for job in QUICK if job[1:] not in (("stages", "relevances"), ("tensors", "positive"))
]


@pytest.mark.parametrize("job", [job for job in ACCEPTED if job[:2] != ("gpt2", "tensors")])
def test_each_process_finds_what_a_single_one_does(quick, job):
    check_same(quick, job)


@pytest.mark.slow
@pytest.mark.parametrize("job", SLOW)
def test_whatever_is_asked(slow, job):
    check_same(slow, job)


def test_a_model_without_a_plan_is_refused_by_transformers(quick):
    (message,) = refusals(quick, ("gpt2", "tensors", "relevances"))
    assert "has no `tp_plan`" in message


def test_rules_that_split_weights_need_all_of_them(quick):
    (message,) = refusals(quick, ("llama", "tensors", "positive"))
    assert message.startswith("TypeError")
    assert "spread over processes" in message


def test_stages_are_refused(quick):
    (message,) = refusals(quick, ("llama", "stages", "relevances"))
    assert message.startswith("ValueError")
    assert "pipeline" in message
