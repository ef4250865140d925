"""What people wrap around a model must not change what is explained: how that is compared."""

from __future__ import annotations

import pytest
import torch
from models import token_ids

from captum_lrpx import ALTILogit, AttnLRPx, LRPx

TARGET = (-1, 7)
METHODS = (LRPx, AttnLRPx, ALTILogit)

methods = pytest.mark.parametrize("method", METHODS)


def embeds_of(model):
    return model.get_input_embeddings()(token_ids()).detach()


def gradient(forward, embeds):
    embeds = embeds.clone().requires_grad_()
    value = forward(inputs_embeds=embeds, use_cache=False).logits[:, -1, TARGET[1]].sum()
    return torch.autograd.grad(value, embeds)[0]


def check_same(method, subject, model, **tolerance):
    """Ids and embeddings get the relevances that a plain model gives them."""
    plain = method(model)
    for inputs in (token_ids(), embeds_of(model)):
        expected = plain.attribute(inputs, TARGET)
        assert expected.abs().max() > 1e-3
        found = method(subject).attribute(inputs, TARGET)
        torch.testing.assert_close(found, expected, **tolerance)


def distance(found, expected):
    """Largest deviation, in units of the largest relevance."""
    return float((found.double() - expected).abs().max() / expected.abs().max())


def hooks_of(model):
    names = ("forward", "_old_forward", "_hf_hook")
    return {
        path: (sorted(vars(module)), [id(vars(module).get(name)) for name in names])
        for path, module in model.named_modules()
    }
