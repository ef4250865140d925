"""Deterministic, single-threaded tests.

``pytest --hypothesis-profile=thorough`` draws ten times as many examples, and other ones each time.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from captum_lrpx import zoo

torch.set_num_threads(1)  # tiny models are several times slower with more

REPEATABLE = settings(
    max_examples=100,
    deadline=None,  # the first example of a kind builds its model
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("repeatable", REPEATABLE)
settings.register_profile("thorough", REPEATABLE, max_examples=1000, derandomize=False)
settings.load_profile("repeatable")


@pytest.fixture(scope="module")
def loaded():
    """The embedded models with their tokenizers, by name."""
    return {name: zoo.load(name) for name in zoo.names()}
