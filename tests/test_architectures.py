"""Declarations: found by model type, extended by registration, and checked against the model."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from models import FAMILIES, HEADS, tiny, token_ids
from state import snapshot
from torch import nn

from captum_lrpx import LRPx
from captum_lrpx.architectures import (
    GPT2,
    LLAMA,
    architecture_for,
    model_types,
    register,
    registry,
    unregister,
)
from captum_lrpx.models import bind
from captum_lrpx.sites import ActivationSite

TARGET = (-1, 7)


@pytest.fixture
def registered():
    """Registers for the time of a test."""
    done = []

    def add(architecture):
        done.append(architecture)
        return register(architecture)

    yield add
    for architecture in done:
        unregister(architecture)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_activation_and_norm_has_a_site(family, head):
    model = tiny(family, head=head, layers=3)
    sites = bind(model)
    assert len(sites.blocks) == len(sites.attentions) == 3
    assert sites.token_embedding is model.get_input_embeddings()
    norms = {site.path for site in sites.norms}
    assert norms == {
        path for path, module in model.named_modules() if type(module).__name__.endswith("Norm")
    }
    activations = {site.path for site in sites.activations if isinstance(site, ActivationSite)}
    assert activations >= {
        path for path, module in model.named_modules() if "Activation" in type(module).__name__
    }


def test_a_declaration_is_a_value():
    assert replace(LLAMA, model_types=("llama",)) == LLAMA
    with pytest.raises(FrozenInstanceError):
        LLAMA.blocks = "h.*"


def test_every_declared_type_is_found():
    for name in model_types():
        assert name in architecture_for(name, config_with_everything()).model_types


def config_with_everything():
    """A config that meets the first condition of any declaration."""

    class Config:
        def __getattr__(self, name):
            for architecture in registry._BUILT_IN:
                for attribute, value in architecture.requires:
                    if attribute == name:
                        return value
            raise AttributeError(name)

    return Config()


def test_an_unknown_type_names_the_known_ones_and_the_way_out():
    with pytest.raises(ValueError, match=r"'nope'.*bert.*gpt2.*llama.*register"):
        architecture_for("nope")


def test_registering_a_type(registered):
    model = tiny("llama")
    model.config.model_type = "my_llama"
    with pytest.raises(ValueError, match="my_llama"):
        bind(model)
    on_the_graph = LRPx(model).attribute(token_ids(), target=TARGET)
    registered(replace(LLAMA, model_types=("my_llama",)))
    assert "my_llama" in model_types()
    expected = LRPx(tiny("llama")).attribute(token_ids(), target=TARGET)
    assert torch.equal(LRPx(model).attribute(token_ids(), target=TARGET), expected)
    torch.testing.assert_close(on_the_graph, expected)


def test_a_registered_declaration_precedes_the_built_in_one(registered):
    mine = registered(replace(GPT2, position_ids=False))
    assert architecture_for("gpt2") is mine


def test_a_condition_on_the_config(registered):
    registered(replace(LLAMA, model_types=("picky",), requires=(("tied", True),)))
    with pytest.raises(ValueError, match="'tied': True"):
        architecture_for("picky", object())


def test_only_declarations_can_be_registered():
    with pytest.raises(TypeError, match="Architecture"):
        register("llama")


def test_what_was_not_registered_cannot_be_taken_back():
    with pytest.raises(ValueError, match="not registered"):
        unregister(LLAMA)


def test_entry_points_of_other_packages(monkeypatch):
    mine = replace(GPT2, model_types=("of_a_plugin",))

    class EntryPoint:
        def load(self):
            return mine

    monkeypatch.setattr(registry, "_from_entry_points", None)
    monkeypatch.setattr(registry, "entry_points", lambda group: [EntryPoint()] if group else [])
    assert architecture_for("of_a_plugin") is mine


def test_a_declaration_that_does_not_fit_is_refused(registered):
    registered(replace(GPT2, blocks="layers.*"))
    model = tiny("gpt2")
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"no modules 'transformer\.layers\.\*'"):
        bind(model)
    LRPx(model).attribute(token_ids(), target=TARGET)  # from the graph, which needs none
    assert snapshot(model) == before


def test_a_missing_module_is_named(registered):
    registered(replace(GPT2, norms=replace(GPT2.norms, mlp="ln_3")))
    with pytest.raises(ValueError, match=r"transformer\.h\.0\.ln_3"):
        bind(tiny("gpt2"))


@pytest.mark.parametrize("added", [nn.GELU(), nn.LayerNorm(8), nn.Tanh()], ids=str)
def test_an_activation_or_norm_that_is_not_declared_is_refused(added):
    model = tiny("gpt2")
    model.transformer.h[1].mlp.extra = added
    with pytest.raises(ValueError, match=r"transformer\.h\.1\.mlp\.extra"):
        bind(model)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_cross_attention_is_refused(family):
    model = tiny(family, add_cross_attention=True, is_decoder=True)
    with pytest.raises(ValueError, match="crossattention"):
        bind(model)
