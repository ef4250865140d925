"""``captum-lrpx coverage``."""

import pytest
import torch

from captum_lrpx import loading, zoo
from captum_lrpx.cli import main
from captum_lrpx.loading import LoadedModel


@pytest.mark.parametrize("recipe", ["lrp", "attnlrp"])
def test_a_complete_model(recipe, capsys):
    assert main(["coverage", "--model", "sva-gpt2", "--recipe", recipe, "--text", "the key"]) == 0
    shown = capsys.readouterr().out
    assert "FrozenScale" in shown
    assert "complete: each of" in shown


def served(monkeypatch, change):
    model, tokenizer = zoo.load("sva-gpt2")
    change(model)
    monkeypatch.setattr(
        loading, "load_model", lambda name, **_: LoadedModel(model, tokenizer, name)
    )


def test_an_incomplete_model_has_exit_status_1(monkeypatch, capsys):
    def change(model):
        mlp = model.transformer.h[0].mlp
        mlp.forward = lambda x: mlp.c_proj(torch.lgamma(mlp.c_fc(x)))

    served(monkeypatch, change)
    assert main(["coverage"]) == 1
    shown = capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if "lgamma" in line]
    assert row.startswith("transformer.h.0.mlp ")
    assert "unruled" in row
    assert "INCOMPLETE" in shown


def test_an_unheard_of_architecture_is_listed(monkeypatch, capsys):
    def change(model):
        model.config.model_type = "unheard-of"

    served(monkeypatch, change)
    assert main(["coverage"]) == 0
    shown = capsys.readouterr().out
    assert "transformer.h.*.mlp.act" in shown
    assert "UniformAttention" in shown
    assert "complete: each of" in shown


def test_an_unknown_recipe(capsys):
    assert main(["coverage", "--recipe", "lime"]) == 2
    assert "The recipe must be one of lrp," in capsys.readouterr().err
