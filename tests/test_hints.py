"""Hints decide products in real families: each is needed, and has a reason."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from passes import opened
from tiny_models import build, example
from torch import Tensor, nn

from captum_lrpx import traced
from captum_lrpx.attr.embedded import embedded_ids
from captum_lrpx.hints import HINTS, Hint
from captum_lrpx.recipes import ATTN_LRP, LRP, Recipe
from captum_lrpx.traced import TracedPass

TYPES = {
    **dict.fromkeys(
        [
            "bailing_hybrid",
            "bamba",
            "falcon_h1",
            "falcon_mamba",
            "gemma3n_text",
            "granitemoehybrid",
            "inkling2_text",
            "jamba",
            "kimi_linear",
            "lfm2_moe",
            "mamba",
            "mamba2",
            "minimax",
            "nemotron_h",
            "olmo_hybrid",
            "qwen3_5_text",
            "qwen3_next",
            "xlstm",
            "zamba2",
        ],
        "CAUSAL_LM",
    ),
    "neomme": "MASKED_LM",
    "focalnet": "IMAGE_CLASSIFICATION",
    "mobilevitv2": "IMAGE_CLASSIFICATION",
    "swiftformer": "IMAGE_CLASSIFICATION",
}
ELSEWHERE = {"Lfm3VlVisionShortConv", "Glm5NextTextLinearAttention", "ZambaMambaMixer"}
"""Classes of models that need an image, several GB, or a size that these do not have."""

ADDING = {"focalnet", "mobilevitv2", "neomme", "swiftformer"}
"""Families that add batch norms' biases, or other embeddings of the ids, to their values."""

TURNED = {"mobilevitv2"}
"""Families whose activated branch would be the gate: AttnLRP shares with it in either case."""

FLOAT32 = 1e-4


def _relevances(kind: str, recipe: Recipe) -> tuple[float, Tensor] | None:
    """Value and relevances without biases; None if something has no rule."""
    model = build(kind, TYPES[kind], biases=False)
    given = example(model)
    (name,) = given.relevant
    inputs = given.keywords[name]
    ids = [] if inputs.is_floating_point() else [inputs]
    if not ids:
        inputs = inputs.requires_grad_()
    with (
        torch.enable_grad(),
        opened(TracedPass(model, recipe, None)) as rules,
        embedded_ids(model, ids) as embedded,
    ):
        logits = model(**{**given.keywords, name: inputs}).logits[0]
        value = logits.reshape(-1, logits.shape[-1])[-1, 1]
        rules.attach(value)
        leaf = embedded[0][0] if ids else inputs
        if not rules.coverage([leaf]).complete:
            return None
        (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), (leaf * gradient).detach()


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("kind", TYPES)
def test_hints_decide_a_family(kind: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = _relevances(kind, recipe)
    assert explained is not None
    value, found = explained
    if recipe is LRP and kind not in ADDING:
        assert abs(float(found.sum()) - value) < FLOAT32 * max(1.0, abs(value))

    monkeypatch.setattr(traced, "natures_of", lambda *_: {})
    without = _relevances(kind, recipe)
    if recipe is LRP or kind not in TURNED:
        assert without is None or not torch.allclose(without[1], found, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def classes() -> set[str]:
    """Names of the classes of all modules of these families."""
    models = [build(kind, mapping) for kind, mapping in TYPES.items()]
    return {type(module).__name__ for model in models for module in model.modules()}


@pytest.mark.parametrize("hint", HINTS, ids=lambda hint: f"{hint.modules.split()[0]}-{hint.nature}")
def test_a_hint_speaks_of_classes_that_there_are(hint: Hint, classes: set[str]) -> None:
    for pattern in set(hint.modules.split()) - ELSEWHERE - {"Lfm2ShortConv", "Lfm3ShortConv"}:
        assert any(fnmatchcase(name, pattern) for name in classes)
    assert hint.reason
    assert bool(hint.child) != bool(hint.operator)


def _clip() -> Any:
    from transformers import CLIPConfig, CLIPModel

    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    size |= {"num_attention_heads": 2, "projection_dim": 12}
    text = {**size, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 49}
    vision = {**size, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).eval()


@pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)
def test_both_towers_of_clip_get_relevance(recipe: Recipe) -> None:
    model: nn.Module = _clip()
    ids = torch.tensor([[3, 5, 8, 49], [7, 2, 6, 49]])
    pixels = torch.randn(1, 3, 8, 8).requires_grad_()
    with (
        torch.enable_grad(),
        opened(TracedPass(model, recipe, None)) as rules,
        embedded_ids(model, [ids]) as embedded,
    ):
        value = model(input_ids=ids, pixel_values=pixels).logits_per_image[0, 1]
        rules.attach(value)
        leaves = [embedded[0][0], pixels]
        coverage = rules.coverage(leaves)
        gradients = torch.autograd.grad(value, leaves)
    assert coverage.complete, coverage
    assert rules.structure is not None
    assert any(each.role == "similarity" for each in rules.structure.roles)
    text, image = ((leaf * each).detach() for leaf, each in zip(leaves, gradients, strict=True))
    assert text[1].any()
    assert not text[0].any()  # the other text
    assert image.any()
