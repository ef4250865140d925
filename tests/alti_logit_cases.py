"""What the tests of ALTI-Logit on models share: families, their accuracy, and the identity."""

from __future__ import annotations

import pytest
import torch
from models import FAMILIES, MORE_FAMILIES

ALL_FAMILIES = {**FAMILIES, **MORE_FAMILIES}
# Where Hugging Face computes norms or rotary embeddings in float32 whatever the model's dtype is.
IDENTITY = {name: 1e-6 if known.rotary else 1e-10 for name, known in ALL_FAMILIES.items()}
every_family = pytest.mark.parametrize("family", ALL_FAMILIES)
SOME = ["gpt2", "llama", "bert", "bloom"]
some_families = pytest.mark.parametrize("family", SOME)
TARGET = (2, 7)


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)


def assert_identity(parts, tolerance):
    mass = torch.stack(list(parts.parts().values())).abs().sum(0)
    assert ((parts.total() - parts.value).abs() <= tolerance * mass).all()
    assert (parts.remainder.abs() <= tolerance * mass).all()
