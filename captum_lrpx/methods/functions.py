"""The methods: functions of a query, whose keyword arguments are their options.

A query is a batch of texts, and each text gets the relevances that it would get by itself:
random numbers are drawn for each text, and padding takes no part.

Methods that perturb or interpolate the input do so on the token embeddings and need a
replacement: the option ``baseline``, which is ``"zero"`` (an embedding of zeros, as in Captum),
or ``"mask"``, ``"pad"``, ``"unk"`` (the embedding of that token of the tokenizer).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import captum.attr as captum
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, AttnLRPx, LRPx
from captum_lrpx.attr.baselines import AttentionRollout, InformationFlow, RandomAttribution
from captum_lrpx.attr.forward_function import RecordedForward
from captum_lrpx.attr.protocol import require_gradients
from captum_lrpx.frozen import frozen
from captum_lrpx.recipes import ATTN_LRP
from captum_lrpx.rules import ActivationGradient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from captum_lrpx.recipes import Recipe
    from captum_lrpx.targets import Query


@dataclass(frozen=True)
class Attributed:
    """Result of a method.

    Attributes:
        relevances: ``[B, T]``, zero at padding.
        values: The explained values ``[B]``.
        deltas: The method's own convergence deltas ``[B]``, if it has them.
        recipe: Name of the rules, if it has any.
    """

    relevances: Tensor
    values: Tensor
    deltas: Tensor | None = None
    recipe: str | None = None


def lrpx(query: Query, *, recipe: Recipe | None = None) -> Attributed:
    """LRP, all relevance of attention to the values; conserves."""
    return _with_rules(LRPx, query, recipe)


def attnlrpx(query: Query, *, recipe: Recipe | None = None) -> Attributed:
    """AttnLRP, queries and keys take part."""
    return _with_rules(AttnLRPx, query, recipe)


def _with_rules(kind: type[LRPx], query: Query, recipe: Recipe | None) -> Attributed:
    forward = RecordedForward(query.forward)
    method = kind(forward, query.model, recipe=recipe)
    relevance, delta = method.attribute(
        query.inputs, **query.arguments, return_convergence_delta=True
    )
    return _decomposed(query, forward, relevance, delta, method.recipe.name)


def altilogit(
    query: Query,
    *,
    value_bias: Literal["tokens", "apart"] = "tokens",
    include_start: bool = True,
) -> Attributed:
    """ALTI-Logit, through the attention of every layer; the delta belongs to MLPs and biases."""
    forward = RecordedForward(query.forward)
    contributions, delta = ALTILogit(forward, query.model, value_bias=value_bias).attribute(
        query.inputs,
        **query.arguments,
        include_start=include_start,
        return_convergence_delta=True,
    )
    return _decomposed(query, forward, contributions, delta)


def _decomposed(
    query: Query,
    forward: RecordedForward,
    relevance: Tensor | tuple[Tensor, ...],
    delta: Tensor,
    recipe: str | None = None,
) -> Attributed:
    # The forward pass under the rules returns the model's own values, so it need not run again.
    value = _captum.select_targets(forward.output, query.target)
    return Attributed(query.real(relevance), value.detach().reshape(-1), delta.detach(), recipe)


def saliency_l1(query: Query) -> Attributed:
    """Gradient of the embedding, L1 norm: no sign, no sum."""
    return _of_embeddings(query, _gradient(query).abs())


def saliency_l2_squared(query: Query) -> Attributed:
    """Gradient of the embedding, squared L2 norm: no sign, no sum."""
    return _of_embeddings(query, _gradient(query).square())


def _gradient(query: Query) -> Tensor:
    with _for_gradients(query):
        gradient: Tensor = captum.Saliency(query.forward).attribute(
            query.embeddings(), abs=False, **query.arguments
        )
    return gradient


def input_x_gradient(query: Query) -> Attributed:
    """Gradient times embedding."""
    with _for_gradients(query):
        found = captum.InputXGradient(query.forward).attribute(
            query.embeddings(), **query.arguments
        )
    return _of_embeddings(query, found)


def integrated_gradients(
    query: Query,
    *,
    n_steps: int = 50,
    baseline: str = "zero",
    internal_batch_size: int | None = None,
) -> Attributed:
    """Integrated Gradients on embeddings, along the line from the baseline."""
    with _for_gradients(query):
        found, delta = captum.IntegratedGradients(query.forward).attribute(
            query.embeddings(),
            baselines=query.baseline(baseline),
            n_steps=n_steps,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=True,
            **query.arguments,
        )
    return _of_embeddings(query, found, delta)


def gradient_shap(
    query: Query,
    *,
    n_samples: int = 20,
    stdevs: float = 0.0,
    baseline: str = "zero",
    seed: int = 0,
) -> Attributed:
    """Expected gradients between the noisy embeddings and the baseline, seeded."""
    return _row_by_row(query, lambda row: _gradient_shap(row, n_samples, stdevs, baseline, seed))


def _gradient_shap(
    query: Query, n_samples: int, stdevs: float, baseline: str, seed: int
) -> Attributed:
    embeddings = query.embeddings()

    def forward(inputs: Tensor, *args: object) -> object:
        # Captum's random factors are float32, which would make a bfloat16 model's inputs float32.
        return query.forward(inputs.to(embeddings.dtype), *args)

    with _for_gradients(query), _seeded(seed):
        found, delta = captum.GradientShap(forward).attribute(
            embeddings,
            baselines=query.baseline(baseline),
            n_samples=n_samples,
            stdevs=stdevs,
            return_convergence_delta=True,
            **query.arguments,
        )
    return _of_embeddings(query, found, delta.mean(0, keepdim=True))  # one delta per sample


def deep_lift(query: Query, *, baseline: str = "zero") -> Attributed:
    """DeepLift on embeddings, for models whose activations Captum has a rule for (ReLU, tanh)."""
    activations = _with_deep_lift_rules(query)
    try:
        with _for_gradients(query):
            found, delta = captum.DeepLift(query.forward).attribute(
                query.embeddings(),
                baselines=query.baseline(baseline),
                return_convergence_delta=True,
                **query.arguments,
            )
    finally:
        for module in activations:  # where Captum leaves them after an error
            vars(module).pop("input", None)
            vars(module).pop("output", None)
    return _of_embeddings(query, found, delta)


def _with_deep_lift_rules(query: Query) -> list[nn.Module]:
    """Modules of activations, if Captum's DeepLift has a rule for all of them."""
    chosen = ActivationGradient()  # with it activations inside of other ones are listed too
    found = AttnLRPx(
        query.forward, query.model, recipe=replace(ATTN_LRP, activation=chosen)
    ).coverage(query.ids, query.additional_forward_args)
    modules: dict[nn.Module, None] = {}
    for each in found.operations:
        if each.rule != repr(chosen).removesuffix("()"):
            continue
        module = query.model.get_submodule(each.module)
        if type(module) not in _captum.DEEP_LIFT_RULES:  # it only attaches rules to modules
            raise ValueError(
                f"Captum's DeepLift has no rule for {each.function.rpartition('.')[2]} in "
                f"{each.place} and would silently use its plain gradient: use "
                "input_x_gradient for that, or lrpx."
            )
        modules[module] = None
    return list(modules)


def feature_ablation(
    query: Query, *, baseline: str = "zero", perturbations_per_eval: int = 8
) -> Attributed:
    """Leave one out: how much the value falls without the embedding of each token."""
    embeddings = query.embeddings()
    tokens = torch.arange(embeddings.shape[1], device=embeddings.device)
    found = captum.FeatureAblation(query.forward).attribute(
        embeddings.detach(),
        baselines=query.baseline(baseline),
        feature_mask=tokens.view(1, -1, 1),
        perturbations_per_eval=perturbations_per_eval,
        **query.arguments,
    )
    # The result is the effect of the whole token, repeated for each of its features.
    return Attributed(query.real(found[:, :, 0]), query.values)


def occlusion(
    query: Query,
    *,
    window: int = 3,
    baseline: str = "zero",
    perturbations_per_eval: int = 8,
) -> Attributed:
    """Leave some out: a window of tokens, mean over the windows that cover a token."""
    # Windows that reach into the padding would be additional ones.
    return _row_by_row(query, lambda row: _occlusion(row, window, baseline, perturbations_per_eval))


def _occlusion(query: Query, window: int, baseline: str, perturbations_per_eval: int) -> Attributed:
    embeddings = query.embeddings().detach()
    size = min(window, embeddings.shape[1])
    found = captum.Occlusion(query.forward).attribute(
        embeddings,
        sliding_window_shapes=(size, embeddings.shape[2]),
        baselines=query.baseline(baseline),
        perturbations_per_eval=perturbations_per_eval,
        **query.arguments,
    )
    return Attributed(found[:, :, 0], query.values)


def attention_rollout(query: Query) -> Attributed:
    """Attention of all layers multiplied: no sign, the same for every target at a position."""
    return _rolled_out(query, AttentionRollout(query.forward, query.model))


def information_flow(query: Query, *, by_head: bool = True) -> Attributed:
    """Information flow routes, or ALTI, of all layers: no sign, the same for every target."""
    flow = InformationFlow(query.forward, query.model, by_head=by_head)
    return _rolled_out(query, flow)


def _rolled_out(query: Query, method: AttentionRollout | InformationFlow) -> Attributed:
    found = method.attribute(query.ids, **query.arguments)
    return Attributed(query.real(found), query.values)


def random(query: Query, *, seed: int = 0) -> Attributed:
    """Uniform random numbers in [-1, 1), seeded: the baseline of any method."""
    draw = RandomAttribution(query.forward, seed)
    drawn = [draw.attribute(row.ids)[0] for row in query.rows]
    return Attributed(pad_sequence(drawn, batch_first=True), query.values)


def _of_embeddings(query: Query, found: Tensor, deltas: Tensor | None = None) -> Attributed:
    """Attributions of embeddings ``[B, T, D]``, summed over ``D``."""
    deltas = None if deltas is None else deltas.detach()
    return Attributed(query.real(found.detach().sum(-1)), query.values, deltas)


def _row_by_row(query: Query, method: Callable[[Query], Attributed]) -> Attributed:
    """Run a method text by text, if its results would depend on the rest of the batch."""
    found = [method(row) for row in query.rows]
    relevances = pad_sequence([each.relevances[0] for each in found], batch_first=True)
    deltas = [each.deltas for each in found if each.deltas is not None]
    return Attributed(
        relevances,
        torch.cat([each.values for each in found]),
        torch.cat(deltas) if deltas else None,
    )


@contextmanager
def _for_gradients(query: Query) -> Iterator[None]:
    """Prepare gradients by Captum; parameters are frozen, to save memory.

    Captum makes its steps and samples on the default device, here set to the inputs' device.
    """
    require_gradients()
    with frozen(query.model), query.ids.device:
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the random states of PyTorch and NumPy, which Captum uses, and restore them."""
    state = np.random.get_state()  # noqa: NPY002 - Captum uses this one
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
