"""Deterministic, single-threaded tests, spread over the processors.

The whole suite runs in one process per processor. Files and tests that are named, and whatever
needs the terminal (``-s``, ``--pdb``), run in this one; ``-n`` and ``-p no:xdist`` work as always.

``pytest --hypothesis-profile=thorough`` draws ten times as many examples, and other ones each time.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# Tiny models are several times slower with more; also in the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

MOST_PROCESSES = 8
"""More than so many spend their time on imports."""

NORMAL = settings(
    max_examples=100,
    deadline=None,  # the first example of a kind builds its model
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("normal", NORMAL)
settings.register_profile("thorough", NORMAL, max_examples=1000, derandomize=False)
settings.load_profile("normal")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spread the whole suite over processes, unless something else was asked for."""
    options = config.option
    if hasattr(config, "workerinput") or getattr(options, "numprocesses", 0) is not None:
        return  # in a process of xdist; without xdist, or with -n
    whole = config.args_source is not pytest.Config.ArgsSource.ARGS
    if whole and options.capture != "no" and not (options.usepdb or options.collectonly):
        options.numprocesses = min(_processors(), MOST_PROCESSES)
        options.dist = "worksteal"


def _processors():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


FIRST = ("test_sphinx.py", "test_evaluation.py")
"""Files with a test that takes as long as hundreds of others, for which one process would wait at
the end. What stands first is also never taken over by another process, so the site of
test_sphinx.py is built once."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in FIRST)


def pytest_runtest_setup():
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)  # whatever ran before in this process


def pytest_runtest_teardown(nextitem):
    if nextitem is None:  # errors in finalizers: the end of a process of xdist reports none
        gc.collect()


@pytest.fixture(scope="session")
def loaded():
    """The embedded models with their tokenizers, by name."""
    from captum_lrpx import zoo

    return {name: zoo.load(name) for name in zoo.names()}


@pytest.fixture(scope="module")
def of_the_graph():
    """``fast=False`` wherever nothing is said."""
    from captum_lrpx import LRPx

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LRPx.__init__.__kwdefaults__, "fast", False)
        yield


@pytest.fixture
def everything_fast(monkeypatch):
    """What is worth it for large models only is done for the smallest ones."""
    from captum_lrpx.fast import direct, saved, sparse
    from captum_lrpx.fast.least import Least

    monkeypatch.setattr(saved, "_FEW_POSITIONS", 0)
    monkeypatch.setattr(saved, "_FEW_NUMBERS", Least(0, 0))
    monkeypatch.setattr(sparse, "_WORTH_A_LOOK", Least(0, 0))
    monkeypatch.setattr(direct, "_WORTH_IT", Least(0, 0))
