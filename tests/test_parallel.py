"""Models that several processes share: the relevances of each are those of a single process."""

import csv
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
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

PROCESSES = spread.PROCESSES
FLOAT32 = 1e-6
"""Of the largest number: sums over processes are rounded in another order."""


def together(jobs, folder):
    """What each process has found."""
    for kind in {job[0] for job in jobs}:
        spread.save(kind, folder)
    (folder / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    environment = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    words = [sys.executable, spread.__file__]
    finish([started([*words, str(rank), str(folder)], environment) for rank in range(PROCESSES)])
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def started(words, environment):
    """A process of its own."""
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment
    )


def finish(running):
    """What processes show that wait for each other: if one fails, the others would for ever."""
    with ThreadPoolExecutor(len(running)) as threads:
        waiting = {threads.submit(each.communicate, timeout=600): each for each in running}
        for done in as_completed(waiting):
            process, (_, errors) = waiting[done], done.result()
            if process.returncode:
                for each in running:
                    each.kill()
                raise AssertionError(errors)
    return [future.result()[0] for future in waiting]


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


# The benchmark -----------------------------------------------------------------------------------

BENCHMARK = ["evaluate", "--models", "sva-llama", "--sentences", "8", "--format", "csv"]
BENCHMARK += ["--methods", "lrpx", "attnlrpx", "altilogit", "--batch-tokens", "60"]


def evaluated(folder, environments, *options):
    """What each process of a run of the benchmark shows."""
    words = [sys.executable, "-m", "captum_lrpx", *BENCHMARK, "--output", str(folder), *options]
    return finish([started(words, each) for each in environments])


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_groups_of_processes_share_models_and_the_work(tmp_path, groups):
    pytest.importorskip("accelerate")
    (alone,) = evaluated(tmp_path / "alone", [{}])
    port = str(29500 + os.getpid() % 1000)
    count = 2 * groups
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    first, *others = evaluated(tmp_path / "shared", ranks, "--tensor-parallel", "2")
    assert others == [""] * (count - 1)
    assert len(list((tmp_path / "shared").glob("log-*.jsonl"))) == groups
    rows, expected = (list(csv.reader(text.splitlines())) for text in (first, alone))
    assert len(rows) == len(expected) > 1
    for row, other in zip(rows, expected, strict=True):
        assert [_number(each) for each in row] == pytest.approx(list(map(_number, other)), rel=1e-4)


def _number(text):
    try:
        return float(text)
    except ValueError:
        return float(sum(text.encode()))


def refusals(run, job):
    return {each[job] for each in run[1]}


REFUSED = [
    ("gpt2", "tensors", "relevances"),
    ("llama", "tensors", "positive"),
    ("llama", "stages", "relevances"),
]
ACCEPTED = [job for job in QUICK if job not in REFUSED]


@pytest.mark.parametrize("job", ACCEPTED, ids="; ".join)
def test_each_process_finds_what_a_single_one_does(quick, job):
    check_same(quick, job)


@pytest.mark.slow
@pytest.mark.parametrize("job", SLOW, ids="; ".join)
def test_whatever_is_asked(slow, job):
    check_same(slow, job)


def test_a_model_without_a_plan_is_refused_by_transformers(quick):
    (message,) = refusals(quick, REFUSED[0])
    assert "has no `tp_plan`" in message


def test_rules_that_split_weights_need_all_of_them(quick):
    (message,) = refusals(quick, REFUSED[1])
    assert message.startswith("TypeError")
    assert "spread over processes" in message


def test_stages_are_refused(quick):
    (message,) = refusals(quick, REFUSED[2])
    assert message.startswith("ValueError")
    assert "pipeline" in message
