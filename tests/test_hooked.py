"""Hooks of the package: they see the calls of their thread, and are gone afterwards."""

import threading

import pytest
import torch
from torch import nn

from captum_lrpx.components.experts import calls_of
from captum_lrpx.onlookers import hooked, is_hooked, looks_only


def elsewhere(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.fixture
def layer():
    return nn.Linear(2, 2)


def test_calls_in_other_threads_are_not_seen(layer):
    seen = []
    with hooked([layer, layer], before=lambda *call: seen.append(call)):
        layer(torch.ones(1, 2))
        elsewhere(lambda: layer(torch.zeros(1, 2)))
    ((module, args, kwargs),) = seen  # once, although it is given twice
    assert module is layer
    assert args[0].tolist() == [[1, 1]]
    assert not kwargs


def test_inputs_and_outputs_are_replaced(layer):
    with hooked([layer], after=lambda _module, _args, output: 0 * output):
        assert not layer(torch.ones(1, 2)).any()
    with hooked([layer], before=lambda _module, args, kwargs: ((0 * args[0],), kwargs)):
        assert torch.equal(layer(torch.ones(1, 2))[0], layer.bias)


def test_hooks_are_gone_after_an_error(layer):
    @looks_only
    def fail(*_call):
        assert not is_hooked(layer)
        raise KeyError

    with pytest.raises(KeyError), hooked([layer], after=fail):
        layer(torch.ones(1, 2))
    assert not layer._forward_hooks


def test_the_kept_call_of_experts_is_that_of_the_thread(layer):
    with calls_of([layer]) as calls:
        layer(torch.ones(1, 2))
        elsewhere(lambda: layer(torch.zeros(1, 2)))
    (kept,), _ = calls[layer]
    assert kept.tolist() == [[1, 1]]
