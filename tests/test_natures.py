"""The natures and roles that a graph shows: scores, gates, weights, and what has no gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import tiny, token_ids
from passes import opened
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx import LRPx, ledger
from captum_lrpx.recipes import ATTN_LRP, LRP, Recipe
from captum_lrpx.trace.graph import Graph
from captum_lrpx.trace.roles import roles_of
from captum_lrpx.traced import TracedPass

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 6
BOTH = pytest.mark.parametrize("recipe", [LRP, ATTN_LRP], ids=lambda recipe: recipe.name)


def _matrix(seed: int, rows: int = WIDTH) -> Tensor:
    return torch.randn(
        rows, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


X, IMAGE = _matrix(0, 4), _matrix(1, 4)
A, B, C = (_matrix(seed) for seed in (2, 3, 4))


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def _roles(function: Callable[..., Tensor], *inputs: Tensor, operator: str) -> list[str]:
    leaves = [each.clone().requires_grad_() for each in inputs]
    graph = Graph([function(*leaves)])
    roles = roles_of(graph)
    return [roles[number].role for number, name in enumerate(graph.names) if name == operator]


def _explained(
    function: Callable[..., Tensor], *inputs: Tensor, recipe: Recipe
) -> tuple[float, list[Tensor]]:
    """Value and relevances; a ``ValueError`` with the reasons of what has no rule."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    model = _Function(function)
    with torch.enable_grad(), opened(TracedPass(model, recipe, None)) as rules:
        value = model(*leaves).sum()
        rules.attach(value)
        unruled = rules.coverage(leaves).unruled
        if unruled:
            raise ValueError("; ".join(each.reason for each in unruled))
        gradients = torch.autograd.grad(value, leaves)
    found = [(leaf * each).detach() for leaf, each in zip(leaves, gradients, strict=True)]
    return float(value.detach()), found


# Roles --------------------------------------------------------------------------------------------


def _fused_mlp(x: Tensor) -> Tensor:
    gate, up = (x @ torch.cat([A, B], dim=1)).chunk(2, dim=-1)
    return F.silu(gate) * up


def test_two_results_of_one_operator_are_two_tensors() -> None:
    assert _roles(_fused_mlp, X, operator="Mul") == ["gated product"]


def test_functions_of_one_tensor_are_one_activation() -> None:
    assert _roles(lambda x: x * torch.sigmoid(x), X, operator="Mul") != ["gated product"]
    assert _roles(lambda x: (x @ A) * (x @ B), X, operator="Mul") == ["undecided"]


def _soft(scores: Tensor) -> Tensor:
    return torch.softmax(scores, -1)


def _through_a_projection(x: Tensor) -> Tensor:
    return _soft(((x @ A) * (x @ B)) @ C) @ (x[:, :1].T.expand(WIDTH, -1) @ X)


def _with_a_sink(x: Tensor) -> Tensor:
    scores = (x @ A) @ (x @ B).T
    return (_soft(scores) @ x) * torch.sigmoid(torch.logsumexp(scores, -1, keepdim=True))


def _lightning(x: Tensor) -> Tensor:
    return ((x @ A) @ (x @ B).T) @ x


@pytest.mark.parametrize(
    ("function", "operator", "role"),
    [
        (_through_a_projection, "Mul", "scores"),
        (_with_a_sink, "Mm", "scores"),
        (_lightning, "Mm", "undecided"),
    ],
)
def test_a_product_is_a_score_if_all_that_it_leads_to_is_a_softmax_or_a_gate(
    function: Callable[..., Tensor], operator: str, role: str
) -> None:
    assert role in _roles(function, X, operator=operator)


def _cross_attention(x: Tensor) -> Tensor:
    mixed = _soft((x @ A) @ (x @ B).T) @ x
    return _soft(A @ mixed.T) @ (mixed @ C)  # of queries that are constant


def _experts(x: Tensor) -> Tensor:
    mixed = _soft((x @ A) @ (x @ B).T) @ x
    experts = torch.stack([mixed @ A, mixed @ B], -1)
    return (experts @ _soft(mixed @ C[:, :2]).unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize(("function", "operator"), [(_cross_attention, "Mm"), (_experts, "Bmm")])
def test_what_attention_has_mixed_is_a_value_and_no_score(
    function: Callable[..., Tensor], operator: str
) -> None:
    assert _roles(function, X, operator=operator)[-1] == "constant factor"


def test_scores_that_are_also_added_to_the_stream_are_undecided() -> None:
    def both(x: Tensor) -> Tensor:
        scores = (x @ A) @ (x @ B).T
        return _soft(scores) @ x + scores @ X

    assert "undecided" in _roles(both, X, operator="Mm")


def test_the_solution_of_equations_is_linear_in_their_right_hand_side() -> None:
    def solved(x: Tensor, values: Tensor) -> Tensor:
        system = torch.sigmoid(x @ A[:, :4])
        return torch.linalg.solve_triangular(system, values, upper=False, unitriangular=True)

    assert _roles(solved, X, IMAGE, operator="LinalgSolveTriangular") == ["constant factor"]
    value, (values,) = _explained(lambda values: solved(X, values), IMAGE, recipe=ATTN_LRP)
    assert values.sum() == pytest.approx(value, rel=1e-10)


# Products of two inputs ---------------------------------------------------------------------------


def _similarity(text: Tensor, image: Tensor) -> Tensor:
    towers = (each / each.norm(dim=-1, keepdim=True) for each in (text @ A, image @ B))
    first, second = towers
    return first @ second.T


@BOTH
def test_two_towers_get_one_half_each(recipe: Recipe) -> None:
    value, found = _explained(_similarity, X, IMAGE, recipe=recipe)
    for each in found:
        assert each.sum() == pytest.approx(value / 2, rel=1e-10)


@BOTH
def test_towers_of_one_input_are_undecided(recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="multiplies two factors"):
        _explained(lambda x: _similarity(x, x), X, recipe=recipe)


# Gates and weights that are added -----------------------------------------------------------------


@pytest.mark.parametrize(
    "gate", [torch.sigmoid, torch.exp, F.softplus, F.logsigmoid, F.hardsigmoid, torch.exp2]
)
@BOTH
def test_an_added_gate_passes_on_what_it_is_beyond_its_constant(
    gate: Callable[[Tensor], Tensor], recipe: Recipe
) -> None:
    value, (found,) = _explained(lambda x: x + gate(x @ A), X, recipe=recipe)
    constant = float(gate(torch.zeros((), dtype=torch.float64))) * X.numel()
    assert found.sum() == pytest.approx(value - constant, rel=1e-8)


@BOTH
def test_an_added_gate_is_bounded_where_its_input_is_small(recipe: Recipe) -> None:
    _, (found,) = _explained(lambda x: x + torch.exp(1e-9 * x), X, recipe=recipe)
    assert torch.allclose(found, X, rtol=0, atol=1e-7)


def test_weights_of_constant_values_are_constant_under_lrp_only() -> None:
    def function(x: Tensor) -> Tensor:
        return x + _soft(x @ A) @ B

    _, (found,) = _explained(function, X, recipe=LRP)
    assert torch.equal(found, X)
    _, (found,) = _explained(function, X, recipe=ATTN_LRP)
    assert not torch.allclose(found, X)


@BOTH
def test_a_threshold_by_the_spread_conserves(recipe: Recipe) -> None:
    def sparse(x: Tensor) -> Tensor:
        return F.relu(x - x.mean(-1, keepdim=True) - 0.3 * x.std(-1, keepdim=True))

    value, (found,) = _explained(sparse, X, recipe=recipe)
    assert found.sum() == pytest.approx(value, rel=1e-10)


class _Hashing(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return gradient


@BOTH
def test_a_function_of_ones_own_is_refused_by_its_name(recipe: Recipe) -> None:
    leaf = X.clone().requires_grad_()
    model = _Function(lambda x: F.layer_norm(_Hashing.apply(x), (WIDTH,)))
    with torch.enable_grad(), opened(TracedPass(model, recipe, None)) as rules:
        rules.attach(model(leaf)[0, 0])
    (refused,) = rules.coverage([leaf]).unruled
    assert refused.function == "_Hashing"


# Without a gradient -------------------------------------------------------------------------------


def _without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x @ A


def _written(x: Tensor) -> Tensor:
    y = x * 2
    y[:1] = (x @ A)[:1].detach()
    return y


def _written_in_a_part(x: Tensor) -> Tensor:
    y = x * 2
    y[:1].copy_((x @ A)[:1].detach())
    return y


def _filled(x: Tensor) -> Tensor:
    buffer = torch.zeros(len(X), WIDTH, dtype=torch.float64)
    buffer[:1] = x[:1].detach()
    return buffer


HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "detached": lambda x: x + (x @ A).detach(),
    "no_grad": lambda x: x + _without_gradient(x),
    "beside": lambda x: torch.cat([x, (x @ A).detach()]),
    "chosen": lambda x: torch.where(x > 0, x, (x @ A).detach()),
    "written": _written,
    "part": _written_in_a_part,
    "buffer": lambda x: x + _filled(x),
    "bias": lambda x: F.linear(x, A, x[0].detach()),
    "summand": lambda x: torch.baddbmm(x.detach()[None], x[None], A[None])[0],
    "function": lambda x: F.linear(x[None, None], A, x[0].detach())[0, 0],
    "convolution": lambda x: F.conv1d(x[:, None], A[:, None, :2], x[0].detach()).flatten(1),
    "data": lambda x: x + (x @ A).data,
    "property": lambda x: x + (x @ A).detach().mT.mT,
    "copied": lambda x: x + x.new_tensor((x @ A).detach()),
    "fill": lambda x: x + torch.full_like(x, x.detach().mean()),
}


@BOTH
@pytest.mark.parametrize("case", HIDDEN)
def test_what_is_added_without_a_gradient_is_refused(case: str, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="without a gradient"):
        _explained(HIDDEN[case], X, recipe=recipe)


def _under_no_grad(y: Tensor) -> None:
    with torch.no_grad():
        y[:1] = 0


def _in_a_view(y: Tensor) -> None:
    with torch.no_grad():
        y[:1].mul_(2)


def _assigned(y: Tensor) -> None:
    y.data = y.data**2


OVERWRITTEN: dict[str, Callable[[Tensor], object]] = {
    "no_grad": _under_no_grad,
    "view": _in_a_view,
    "data": lambda y: y.data.mul_(2),
    "part of data": lambda y: y.data[:1].fill_(0),
    "assigned data": _assigned,
    "detached": lambda y: y.detach().exp_(),
    "part of detached": lambda y: y.detach()[:1].zero_(),
    "out": lambda y: torch.mul(y.detach(), 2, out=y.detach()),
}


def _overwritten(write: Callable[[Tensor], object]) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        y = x @ A
        write(y)
        return y @ B

    return function


@BOTH
@pytest.mark.parametrize("case", OVERWRITTEN)
def test_a_value_that_changes_behind_the_graph_is_refused(case: str, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="its result is overwritten later without a gradient"):
        _explained(_overwritten(OVERWRITTEN[case]), X, recipe=recipe)


@BOTH
@pytest.mark.parametrize("case", OVERWRITTEN)
def test_a_view_that_changes_behind_the_graph_is_refused(case: str, recipe: Recipe) -> None:
    """PyTorch makes a new node for a view whose base has changed; biased layers return views."""

    def function(x: Tensor) -> Tensor:
        y = F.linear(x[None], A, B[0])
        assert y._is_view()
        OVERWRITTEN[case](y)
        return y @ B

    with pytest.raises(ValueError, match="its result is overwritten later without a gradient"):
        _explained(function, X, recipe=recipe)


def _looked_at(y: Tensor) -> None:
    with torch.no_grad():
        y.clone().mul_(2)
        y.view(-1)[:1].clone().fill_(0)
        torch.zeros_like(y).copy_(y)
    y.detach().clone().exp_()
    y.data.square()
    y.detach().t_().unsqueeze_(0).squeeze_(0)


@BOTH
def test_a_value_that_is_looked_at_and_copied_is_not_overwritten(recipe: Recipe) -> None:
    value, (found,) = _explained(_overwritten(_looked_at), X, recipe=recipe)
    assert found.sum() == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("fast", [True, False])
def test_an_ablation_that_is_switched_off_is_explained_again(fast: bool) -> None:
    model, ids, switched_on = tiny("llama"), token_ids(), False

    def ablate(_module: nn.Module, _args: object, output: Tensor) -> None:
        if switched_on:
            output.data[:, 2] = 0

    expected = LRPx(model).attribute(ids, (-1, 7))
    with model.model.layers[1].mlp.register_forward_hook(ablate):
        for switched_on in (True, False, True, False):
            method = LRPx(model, fast=fast)
            if switched_on:
                with pytest.raises(ValueError, match="its result is overwritten later"):
                    method.attribute(ids, (-1, 7))
            else:
                torch.testing.assert_close(method.attribute(ids, (-1, 7)), expected)


@pytest.mark.parametrize("hooked", ["model.layers.0", "model.layers.1.mlp.down_proj"])
def test_an_ablation_behind_the_graph_is_refused(hooked: str) -> None:
    model, ids = tiny("llama"), token_ids()

    def behind(_module: nn.Module, _args: object, output: Tensor) -> None:
        with torch.no_grad():
            output[:, 2] = 0

    def before(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        output = output.clone()
        output[:, 2] = 0
        return output

    layer = model.get_submodule(hooked)
    for _ in range(2):  # watched and not
        with layer.register_forward_hook(behind), pytest.raises(ValueError, match="overwritten"):
            LRPx(model).attribute(ids, (-1, 7))
    with layer.register_forward_hook(before):
        assert ledger(LRPx(model), ids, (-1, 7)).closes(1e-5)


# A foreign function may have the name of an operator, and compute something else.


class Relu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class GeLUFunction(Relu):
    pass


class MyFlashAttention(Relu):
    pass


@BOTH
@pytest.mark.parametrize("function", [Relu, GeLUFunction, MyFlashAttention])
def test_a_foreign_function_is_not_known_by_its_name(function: type[Relu], recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="not linear and has no rule"):
        _explained(lambda x: function.apply(x @ A), X, recipe=recipe)


# Operators that are linear in some of their operands.

FLAT = X[:, :4] / X.abs().max()

HELD: dict[str, Callable[[Tensor], Tensor]] = {
    "grid_sample": lambda x: F.grid_sample(
        x.view(-1, 1, 2, 2), torch.tanh(x).view(-1, 1, 2, 2), align_corners=True
    ),
    "batch_norm": lambda x: F.batch_norm(x, 0 * FLAT[0], FLAT[0].exp(), weight=x[1]),
    "batch_norm with a bias": lambda x: F.batch_norm(
        x, 0 * FLAT[0], FLAT[0].exp(), weight=x[1], bias=x[2]
    ),
    "prelu": lambda x: F.prelu(x, x[1]),
    "convolution": lambda x: F.conv1d(x[:, None], FLAT[:1, None, :2], x.sum()[None]),
    "convolution of a gate": lambda x: F.conv1d(
        x[:, None], FLAT[:1, None, :2], torch.relu(x.sum())[None]
    ),
}


@BOTH
@pytest.mark.parametrize("case", HELD)
def test_what_is_linear_in_its_first_operand_holds_the_other_constant(
    case: str, recipe: Recipe
) -> None:
    value, (found,) = _explained(HELD[case], FLAT, recipe=recipe)
    assert found.sum() == pytest.approx(value, rel=1e-10)


OF_A_CONSTANT: dict[str, Callable[[Tensor], Tensor]] = {
    "quotient": lambda x: x + FLAT / (1 + x.exp()),
    "norm": lambda x: x + FLAT / x.norm(dim=-1, keepdim=True),
    "solution": lambda x: x + torch.linalg.solve_triangular(x.tril(), FLAT, upper=False),
    "grid_sample": lambda x: (
        F.grid_sample(FLAT.view(-1, 1, 2, 2), x.view(-1, 1, 2, 2), align_corners=True)
        .view(4, 2)
        .repeat(1, 2)
    ),
}


@BOTH
@pytest.mark.parametrize("case", OF_A_CONSTANT)
def test_a_constant_does_not_hide_what_it_is_divided_by(case: str, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match="not linear and has no rule"):
        _explained(OF_A_CONSTANT[case], FLAT, recipe=recipe)
    _explained(lambda x: x * OF_A_CONSTANT[case](x.detach()), FLAT, recipe=recipe)


def test_a_threshold_writes_a_constant() -> None:
    module = _Function(lambda x: F.threshold(x, 0.1, 20.0))
    assert ledger(LRPx(module), FLAT, 1).closes(1e-10)


def _soft_by_hand(x: Tensor) -> Tensor:
    e = torch.exp(x - x.max(-1, keepdim=True).values.detach())
    return e / e.sum(-1, keepdim=True)


CONSTANT: dict[str, Callable[[Tensor], Tensor]] = {
    "factor": lambda x: x * (x @ A).detach(),
    "denominator": lambda x: x / (x @ A).detach().abs().add(1),
    "matrix": lambda x: x @ (x.T @ X).detach(),
    "heads": lambda x: (x[None, None] @ (x.T @ X).detach()[None, None])[0, 0],
    "einsum": lambda x: torch.einsum("bij,bjk->bik", x[None], (x.T @ X).detach()[None])[0],
    "mask": lambda x: x.masked_fill(x < 0, 0),
    "maximum": lambda x: _soft_by_hand(x @ A) @ (2 * x[:1].expand(WIDTH, -1)),
}


@BOTH
@pytest.mark.parametrize("case", CONSTANT)
def test_what_multiplies_or_chooses_without_a_gradient_is_constant(
    case: str, recipe: Recipe
) -> None:
    value, (found,) = _explained(CONSTANT[case], X, recipe=recipe)
    assert found.sum() == pytest.approx(value, rel=1e-10)


@BOTH
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "exp"])
def test_a_function_written_over_its_operand_is_the_same(name: str, recipe: Recipe) -> None:
    _, (expected,) = _explained(lambda x: x + getattr(x @ A, name)(), X, recipe=recipe)
    _, (found,) = _explained(lambda x: x + getattr(x @ A, name + "_")(), X, recipe=recipe)
    assert torch.equal(found, expected)


def test_a_pass_leaves_the_values_alone() -> None:
    x: Any = X.clone().requires_grad_()
    with torch.enable_grad(), opened(TracedPass(_Function(_fused_mlp), LRP, None)) as rules:
        value = _fused_mlp(x).sum()
        rules.attach(value)
    assert torch.equal(value, _fused_mlp(X.clone().requires_grad_()).sum())
