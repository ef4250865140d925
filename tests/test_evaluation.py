"""The benchmark's engine: batches, journal, results; killed and resumed, in one process or two."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import processes
import pytest
import torch

from captum_lrpx import Target, explain, zoo
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import Processes, Settings, contenders, evaluate
from captum_lrpx.sva.evaluation.journal import Journal

SAMPLES = generate(12, "test", 3, attractors=(0, 2))
METHODS = ("lrpx", "saliency_l1", "random")


@pytest.fixture(scope="module")
def models():
    loaded = {name: zoo.load(name) for name in ("sva-bert", "sva-gpt2")}
    return {name: lambda each=each: each for name, each in loaded.items()}


# What is found ----------------------------------------------------------------------------------


def test_relevances_are_those_of_explain(models):
    found = evaluate(models, SAMPLES, contenders(("attnlrpx", "altilogit")), Settings())
    for results in found.models:
        model, tokenizer = models[results.model]()
        assert len(results.samples) > len(SAMPLES) / 2
        for row, sample in enumerate(results.samples):
            masked = tokenizer.mask_token is not None
            text = sample.masked(tokenizer.mask_token) if masked else sample.prefix
            target = Target(sample.verb, contrast=sample.foil)
            for method in ("attnlrpx", "altilogit"):
                alone = explain(model, tokenizer, text, target, method=method)
                relevances = results.relevances[method, 0][row][results.mask[row]]
                expected = torch.tensor(alone.relevances, dtype=torch.float64)
                torch.testing.assert_close(relevances, expected, rtol=1e-3, atol=1e-4)
                assert results.values[row] == pytest.approx(alone.value, rel=1e-4)
            evidence = [
                any(start < stop and first < end for first, stop in sample.evidence)
                for start, end in alone.offsets
            ]
            if not masked:  # offsets after the mask are those of another text
                assert results.evidence[row][results.mask[row]].tolist() == evidence
            assert results.special[row][results.mask[row]].tolist() == list(alone.special)


def test_only_what_the_model_gets_right_unless_asked_for(models):
    flipped = [replace(each, verb=each.foil, foil=each.verb, **_moved(each)) for each in SAMPLES]
    only = {"sva-gpt2": models["sva-gpt2"]}
    (right,) = evaluate(only, [*SAMPLES, *flipped], contenders(["lrpx"])).models
    assert right.accuracy == pytest.approx(0.5)
    assert len(right.samples) == len(SAMPLES)
    assert (right.values > 0).all()
    settings = Settings(include_wrong=True)
    (everything,) = evaluate(only, [*SAMPLES, *flipped], contenders(["lrpx"]), settings).models
    assert len(everything.samples) == 2 * len(SAMPLES)
    assert everything.accuracy == right.accuracy
    # What the model predicts is the same, whichever form is called the correct one.
    relevances, ours = everything.relevances["lrpx", 0], everything.values
    halves = (slice(None, len(SAMPLES)), slice(len(SAMPLES), None))
    torch.testing.assert_close(*(ours[half].abs() for half in halves), rtol=1e-4, atol=1e-4)
    assert [bool((ours[half] > 0).all()) for half in halves] == [True, False]
    torch.testing.assert_close(*(relevances[half] for half in halves), rtol=1e-3, atol=1e-4)


def test_a_run_has_the_precision_that_it_says(models):
    only = {"sva-gpt2": models["sva-gpt2"]}
    with pytest.raises(
        ValueError, match=r"'sva-gpt2' is in float32, .* in float64: let its loader"
    ):
        evaluate(only, SAMPLES, contenders(["lrpx"]), Settings(dtype="float64"))
    model, tokenizer = zoo.load("sva-gpt2")
    double = {"sva-gpt2": lambda: (model.double(), tokenizer)}
    (found,) = evaluate(double, SAMPLES, contenders(["lrpx"]), Settings(dtype="float64")).models
    (single,) = evaluate(only, SAMPLES, contenders(["lrpx"]), Settings(dtype="float32")).models
    ours, theirs = (each.relevances["lrpx", 0] for each in (found, single))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert not torch.equal(ours, ours.float().double()), "the relevances are double precision"


def _moved(sample):
    start = sample.verb_span[0]
    sentence = sample.sentence[:start] + sample.foil + sample.sentence[sample.verb_span[1] :]
    return {
        "sentence": sentence,
        "verb_span": (start, start + len(sample.foil)),
        "evidence": tuple(span for span in sample.evidence if span[1] <= start),
    }


def test_batches_do_not_change_what_is_found(models):
    few, many = (
        evaluate(models, SAMPLES, contenders(METHODS), Settings(token_budget=budget))
        for budget in (40, 4000)
    )
    for one, other in zip(few.models, many.models, strict=True):
        order = [other.samples.index(sample) for sample in one.samples]
        for key, relevances in one.relevances.items():
            there = other.relevances[key][order][:, : relevances.shape[1]]
            torch.testing.assert_close(relevances, there, rtol=1e-3, atol=1e-5)


def test_random_is_drawn_ten_times(models):
    (found,) = evaluate({"m": models["sva-gpt2"]}, SAMPLES, contenders(["random"])).models
    draws = [found.relevances["random", draw] for draw in range(10)]
    assert len(found.relevances) == 10
    assert not any(torch.equal(draws[0], other) for other in draws[1:])
    (once,) = contenders(["random"], {"random": {"seed": 3}})
    assert once.draws == 1


def test_first_token(models):
    only = {"sva-gpt2": models["sva-gpt2"]}
    found, plain, same = (
        evaluate(only, SAMPLES, contenders(["random"]), Settings(first_token=token)).models[0]
        for token in ("Ġthe", None, "<|endoftext|>")
    )
    assert torch.equal(same.mask, plain.mask), "it is there already"
    assert found.special[:, 0].all()
    assert torch.equal(found.special.sum(-1), plain.special.sum(-1) + 1)
    assert torch.equal(found.mask.sum(-1), plain.mask.sum(-1) + 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"models": {}}, "nothing to evaluate"),
        ({"samples": []}, "nothing to evaluate"),
        ({"methods": []}, "nothing to evaluate"),
        ({"methods": contenders(["lrpx"]) * 2}, "different names"),
        ({"processes": Processes(0, 2)}, "give an output"),
    ],
)
def test_what_cannot_be_evaluated(models, arguments, message):
    usual = {"models": models, "samples": SAMPLES, "methods": contenders(["lrpx"])}
    with pytest.raises(ValueError, match=message):
        evaluate(**(usual | arguments))


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ([], {}, "at least one method"),
        (["lrpx", "lrpx"], {}, "each once"),
        (["nope"], {}, "Unknown method"),
        (["random"], {"random": {"sead": 1}}, "no option 'sead'"),
    ],
)
def test_what_cannot_be_compared(methods, options, message):
    with pytest.raises(ValueError, match=message):
        contenders(methods, options)


# The journal ------------------------------------------------------------------------------------

MANIFEST = {"format": 1, "models": ["m"]}


def test_a_torn_line_is_dropped_and_nothing_else(tmp_path):
    with Journal(tmp_path, MANIFEST) as journal:
        for number in range(3):
            journal.append(("unit", number), {"values": [number / 3]})
    log = tmp_path / "log-00000.jsonl"
    whole = log.read_bytes()
    for cut in range(len(whole)):
        log.write_bytes(whole[:cut])
        with Journal(tmp_path, MANIFEST, resume=True) as journal:
            found = dict(journal.records)
            assert len(found) == whole[:cut].count(b"\n")
            for number in range(3):
                if ("unit", number) not in found:
                    journal.append(("unit", number), {"values": [number / 3]})
        assert log.read_bytes() == whole, cut


def test_another_run_is_refused(tmp_path):
    Journal(tmp_path, MANIFEST).close()
    with pytest.raises(ValueError, match="already holds a run: resume it"):
        Journal(tmp_path, MANIFEST)
    with pytest.raises(ValueError, match=r'models was \["m"\] and is \["n"\]'):
        Journal(tmp_path, MANIFEST | {"models": ["n"]}, resume=True)
    assert json.loads((tmp_path / "manifest.json").read_text()) == MANIFEST


def test_a_broken_line_is_named(tmp_path):
    with Journal(tmp_path, MANIFEST) as journal:
        journal.append(("a",), {})
    with (tmp_path / "log-00000.jsonl").open("a") as log:
        log.write('nonsense\n{"key":["b"]}\n')
    with pytest.raises(ValueError, match=r"log-00000\.jsonl, line 2 is not a record"):
        Journal(tmp_path, MANIFEST, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        {"methods": contenders(("lrpx", "saliency_l1"))},
        {"methods": contenders(METHODS, {"random": {"seed": 5}})},
        {"samples": SAMPLES[:-1]},
        {"samples": [*SAMPLES[1:], SAMPLES[0]]},
        {"settings": Settings(token_budget=99)},
        {"settings": Settings(include_wrong=True)},
        {"settings": Settings(dtype="float32")},
    ],
)
def test_a_run_with_other_arguments_is_not_resumed(models, tmp_path, change):
    usual = {"models": models, "samples": SAMPLES, "methods": contenders(METHODS)}
    evaluate(**usual, output=tmp_path)
    with pytest.raises(ValueError, match="holds another run, which cannot be resumed"):
        evaluate(**(usual | change), output=tmp_path, resume=True)


def test_what_is_finished_is_not_done_again(models, tmp_path):
    usual = {"samples": SAMPLES, "methods": contenders(METHODS), "output": tmp_path}
    first = evaluate(models, **usual)

    def refuse():
        raise AssertionError("the model was loaded")

    again = evaluate(dict.fromkeys(models, refuse), **usual, resume=True)
    for one, other in zip(first.models, again.models, strict=True):
        assert one.relevances.keys() == other.relevances.keys()
        assert all(
            torch.equal(one.relevances[key], other.relevances[key]) for key in one.relevances
        )


def test_two_processes_share_the_work(models, tmp_path):
    usual = {
        "samples": SAMPLES,
        "methods": contenders(METHODS),
        "settings": Settings(token_budget=40),
    }
    alone = evaluate(models, **usual)
    # One after the other, so the second one finds what the first one did and did not do.
    evaluate_share(models, usual, tmp_path, 1)
    done = {tuple(record["key"]) for record in lines(tmp_path)}
    found = evaluate_share(models, usual, tmp_path, 0)
    keys = [tuple(record["key"]) for record in lines(tmp_path)]
    assert done < set(keys)
    assert len(keys) == len(set(keys)), "nothing is done twice"
    for one, other in zip(alone.models, found.models, strict=True):
        assert all(
            torch.equal(one.relevances[key], other.relevances[key]) for key in one.relevances
        )


def test_a_resumed_process_does_not_need_the_share_of_the_others_before_they_meet(models, tmp_path):
    usual = {
        "samples": SAMPLES,
        "methods": contenders(METHODS),
        "settings": Settings(token_budget=40),
    }
    alone = evaluate(models, **usual)
    evaluate_share(models, usual, tmp_path, 1)
    log = tmp_path / "log-00001.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    meetings = []

    def meet():
        meetings.append(None)
        if len(meetings) == 3:  # two are before anything is written
            evaluate_share(models, usual, tmp_path, 1)

    found = evaluate(
        models, **usual, output=tmp_path, resume=True, processes=Processes(0, 2, wait=meet)
    )
    for one, other in zip(alone.models, found.models, strict=True):
        assert all(
            torch.equal(one.relevances[key], other.relevances[key]) for key in one.relevances
        )


def evaluate_share(models, usual, folder, rank):
    return evaluate(models, **usual, output=folder, resume=True, processes=Processes(rank, 2))


def lines(folder):
    for path in sorted(folder.glob("log-*.jsonl")):
        yield from map(json.loads, path.read_text().splitlines())


# Killed -----------------------------------------------------------------------------------------

ARGUMENTS = ["evaluate", "--models", "sva-gpt2", "sva-llama", "--sentences", "24"]
ARGUMENTS += ["--methods", *METHODS, "--batch-tokens", "60", "--format", "csv", "--resume"]


KILLED = -getattr(signal, "SIGKILL", signal.SIGTERM)
"""Exit status of a process that was killed; Windows has no SIGKILL."""


def started(folder, environments=({},)):
    """Processes that evaluate together in a folder, and the files of what they show."""
    folder.mkdir(exist_ok=True)
    arguments = [*ARGUMENTS, "--output", str(folder)]
    shown = [folder / f"shown-{rank}.txt" for rank in range(len(environments))]
    pairs = zip(shown, environments, strict=True)
    return [processes.start(arguments, file, environment) for file, environment in pairs], shown


def run(folder):
    """Evaluate to the end, in one process; returns what it showed."""
    (process,), (shown,) = started(folder)
    process.join()
    assert process.exitcode == 0, shown.with_suffix(".err").read_text()
    return shown.read_text()


def kill_when(folder, lines_written, environments=({},)):
    """Kill all processes of a run at once when their logs have so many bytes."""
    running, _ = started(folder, environments)
    while all(process.is_alive() for process in running):
        if size_of_logs(folder) >= lines_written:
            for process in running:
                process.kill()
        time.sleep(0.001)
    for process in running:
        process.join()
    return [process.exitcode for process in running]


def size_of_logs(folder):
    return sum(path.stat().st_size for path in folder.glob("log-*.jsonl"))


def results(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("[st]a*"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run that nothing happened to, and what it showed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, run(folder)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_resumed_it_gives_the_identical_table(undisturbed, tmp_path, kills):
    expected, shown = undisturbed
    size = size_of_logs(expected)
    dice = random.Random(kills)  # noqa: S311
    moments = sorted(dice.randrange(size) for _ in range(kills))
    codes = [kill_when(tmp_path, moment)[0] for moment in moments]
    assert codes.count(KILLED) >= kills // 2, "too few of the kills came in time"
    assert run(tmp_path) == shown
    assert results(tmp_path) == results(expected)


def test_two_processes_of_accelerate_killed_and_resumed(undisturbed, tmp_path):
    accelerate = pytest.importorskip("accelerate.commands.launch")
    alone, shown = undisturbed
    port = str(29500 + os.getpid() % 1000)
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [group | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    assert kill_when(tmp_path, size_of_logs(alone) // 2, ranks) == [KILLED] * 2
    launch = [sys.executable, accelerate.__file__, "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", port, "-m", "captum_lrpx", *ARGUMENTS]
    found = subprocess.run(
        [*launch, "--output", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert len(list(tmp_path.glob("log-*.jsonl"))) == 2
    assert found.stdout == shown
    assert results(tmp_path) == results(alone)
    units = [tuple(each["key"]) for each in lines(tmp_path) if each["key"][0] == "relevances"]
    assert len(units) == len(set(units)), "no unit is done twice"
    assert set(units) == {
        tuple(each["key"]) for each in lines(alone) if each["key"][0] == "relevances"
    }
