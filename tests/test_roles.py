"""What the graph tells of each module of the ten families: its operations and their roles."""

from __future__ import annotations

import pytest
import torch
from anatomy import blocks_of
from models import FAMILIES, MORE_FAMILIES, built, tiny, token_ids
from modifications import rewritten
from passes import opened
from torch import nn

from captum_lrpx import AttnLRPx, LRPx, ledger
from captum_lrpx.recipes import ATTN_LRP
from captum_lrpx.traced import TracedPass

TARGET = (-1, 7)
EVERY = FAMILIES | MORE_FAMILIES
GATED = [family for family in FAMILIES if FAMILIES[family].gated]
LINEAR = {"linear"}


def roles_of(model):
    """Path of each module -> the roles of the operations that it computes itself."""
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with torch.enable_grad(), opened(TracedPass(model, ATTN_LRP, None)) as rules:
        rules.attach(model(inputs_embeds=embeds).logits[0, -1, 7])
    structure = rules.structure
    found = {path: set() for path, _ in model.named_modules()}
    for number, (path, _, _) in structure.places.items():
        found[path].add(structure.roles[number].role)
    return {module: found[path] for path, module in model.named_modules()}


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@pytest.mark.parametrize("family", EVERY)
def test_the_parts_of_a_block_have_their_roles(family, attn):
    model = tiny(family, attn=attn)
    roles = roles_of(model)
    kernel = attn == "sdpa" and EVERY[family].interface
    for block in blocks_of(model):
        assert roles[block.attention] - LINEAR - {"constant factor"} == (
            {"kernel"} if kernel else {"scores", "softmax", "attention"}
        )
        linear = [block.query, block.key, block.value]
        for module in (block.mixed, block.up, block.output, *(each.module for each in linear)):
            assert roles[module] == LINEAR
        for norm in block.norms:
            written_out = {"constant factor", "activation", "unknown"}  # the mean of squares
            assert roles[norm] - LINEAR in ({"norm"}, written_out)
        assert roles[block.activation] - LINEAR in ({"activation"}, {"activation", "composite"})


@pytest.mark.parametrize("family", GATED)
def test_a_gated_product_knows_its_gate(family):
    model = tiny(family)
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with torch.enable_grad(), opened(TracedPass(model, ATTN_LRP, None)) as rules:
        rules.attach(model(inputs_embeds=embeds).logits[0, -1, 7])
    products = [
        (number, each)
        for number, each in enumerate(rules.structure.roles)
        if each.role == "gated product"
    ]
    assert len(products) == len(blocks_of(model))
    for number, product in products:
        (gate,), (up,) = product.constant, product.signal
        operands = rules.graph.operands[number]
        assert rules.structure.places[number][0].endswith(".mlp")
        assert rules.structure.places[operands[gate].node][0].endswith(".act_fn")
        assert not rules.structure.places[operands[up].node][0].endswith(".act_fn")


@pytest.mark.parametrize("head", ["lm", "sequence", "token", "qa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_undecided(family, head):
    model = tiny(family, head)
    embeds = model.get_input_embeddings()(token_ids()).detach().requires_grad_()
    with torch.enable_grad(), opened(TracedPass(model, ATTN_LRP, None)) as rules:
        output = model(inputs_embeds=embeds)
        rules.attach(output.start_logits if head == "qa" else output.logits)
    plan = rules.structure.plans[ATTN_LRP]
    assert not plan.problems
    assert {rules.structure.roles[number].role for number in plan.alive} <= {
        "linear",
        "activation",
        "composite",
        "norm",
        "constant factor",
        "scores",
        "softmax",
        "attention",
        "gated product",
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", EVERY)
def test_the_roles_are_those_of_every_precision(family, dtype):
    model = tiny(family, dtype=dtype)
    assert list(roles_of(model).values()) == list(roles_of(tiny(family)).values())
    assert AttnLRPx(model).attribute(token_ids(), TARGET).isfinite().all()


# A module is what it computes, whatever its class is called ---------------------------------------


def plus_a_half(self, x):
    return nn.functional.layer_norm(x, self.normalized_shape, self.weight + 0.5, self.bias)


def not_centered(self, x):
    return x * x.square().mean(-1, keepdim=True).rsqrt() * self.weight + self.bias


def squashed(self, x):
    return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias).tanh()


def with_residual(self, x):
    return x + nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias)


@pytest.mark.parametrize("twist", [plus_a_half, not_centered, squashed, with_residual])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_layer_norm_with_a_twist_is_explained_as_it_is(family, method, twist):
    model = tiny(family, layers=1)
    plain = method(model).attribute(token_ids(), TARGET)
    rewritten(next(each for each in model.modules() if isinstance(each, nn.LayerNorm)), twist)
    book = ledger(method(model), token_ids(), TARGET)
    assert book.closes(1e-10), str(book)
    assert not torch.allclose(book.attributions, plain)


def softmax(_self, x):
    return torch.softmax(x, -1)


def mixes_positions(_self, x):
    return nn.functional.gelu(x + x.roll(1, 1))


@pytest.mark.parametrize("twist", [softmax, mixes_positions])
@pytest.mark.parametrize("method", [LRPx, AttnLRPx])
@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_so_is_an_activation_that_is_not_element_wise(family, method, twist):
    model = tiny(family, layers=1)
    rewritten(blocks_of(model)[0].activation, twist)
    book = ledger(method(model), token_ids(), TARGET)
    assert book.closes(1e-6 if family == "llama" else 1e-10), str(book)


class SiLU(nn.Module):
    """Has the name of another one."""

    def forward(self, x):
        return torch.tanh(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_class_with_the_name_of_another_activation_gets_its_own_slope(dtype):
    model = tiny("gpt2", dtype=dtype, activation="tanh")
    expected = LRPx(model).attribute(token_ids(), TARGET)
    other = built("gpt2", dtype=dtype, activation="tanh")
    for block in other.transformer.h:
        block.mlp.act = SiLU()
    assert torch.equal(LRPx(other).attribute(token_ids(), TARGET), expected)
