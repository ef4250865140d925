"""The methods: functions of a subject, whose keyword arguments are their options.

A subject is a batch of texts, and each text gets the relevances that it would get by itself: what
is drawn at random is drawn for each text, and padding takes no part.

Those that perturb or interpolate the input do it on the token embeddings and need something to
replace them by: the option ``baseline``, which is ``"zero"`` (an embedding of zeros, as in Captum),
or ``"mask"``, ``"pad"``, ``"unk"`` (the embedding of that token of the tokenizer).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import captum.attr as captum
import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from captum_lrpx import _captum
from captum_lrpx.attr import ALTILogit, AttnLRPx, LRPx
from captum_lrpx.attr.baselines import AttentionRollout, InformationFlow, RandomAttribution
from captum_lrpx.attr.forward import RecordedForward
from captum_lrpx.attr.protocol import require_gradients
from captum_lrpx.frozen import frozen
from captum_lrpx.methods.subject import Attributed
from captum_lrpx.recipes import ATTN_LRP
from captum_lrpx.rules import ActivationGradient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from captum_lrpx.methods.subject import Subject
    from captum_lrpx.recipes import Recipe

__all__ = [
    "altilogit",
    "attention_rollout",
    "attnlrpx",
    "deep_lift",
    "feature_ablation",
    "gradient_shap",
    "information_flow",
    "input_x_gradient",
    "integrated_gradients",
    "lrpx",
    "occlusion",
    "random",
    "saliency_l1",
    "saliency_l2_squared",
]


def lrpx(subject: Subject, *, recipe: Recipe | None = None) -> Attributed:
    """LRP, all relevance of attention to the values; conserves."""
    return _with_rules(LRPx, subject, recipe)


def attnlrpx(subject: Subject, *, recipe: Recipe | None = None) -> Attributed:
    """AttnLRP, queries and keys take part."""
    return _with_rules(AttnLRPx, subject, recipe)


def _with_rules(kind: type[LRPx], subject: Subject, recipe: Recipe | None) -> Attributed:
    forward = RecordedForward(subject.question.forward)
    method = kind(forward, subject.model, recipe=recipe)
    relevance, delta = method.attribute(
        subject.inputs, **subject.arguments, return_convergence_delta=True
    )
    return _decomposed(subject, forward, relevance, delta, method.recipe.name)


def altilogit(
    subject: Subject,
    *,
    value_bias: Literal["tokens", "apart"] = "tokens",
    include_start: bool = True,
) -> Attributed:
    """ALTI-Logit, through the attention of every layer; the delta is what MLPs and biases add."""
    forward = RecordedForward(subject.question.forward)
    contributions, delta = ALTILogit(forward, subject.model, value_bias=value_bias).attribute(
        subject.ids,
        **subject.arguments,
        include_start=include_start,
        return_convergence_delta=True,
    )
    return _decomposed(subject, forward, contributions, delta)


def _decomposed(
    subject: Subject,
    forward: RecordedForward,
    relevance: Tensor | tuple[Tensor, ...],
    delta: Tensor,
    recipe: str | None = None,
) -> Attributed:
    # The forward pass under the rules gives the model's own values, so it need not run again.
    value = _captum.select_targets(forward.output, subject.question.target)
    return Attributed(subject.real(relevance), value.detach().reshape(-1), delta.detach(), recipe)


def saliency_l1(subject: Subject) -> Attributed:
    """Gradient of the embedding, L1 norm: no sign, no sum."""
    return _of_embeddings(subject, _gradient(subject).abs())


def saliency_l2_squared(subject: Subject) -> Attributed:
    """Gradient of the embedding, squared L2 norm: no sign, no sum."""
    return _of_embeddings(subject, _gradient(subject).square())


def _gradient(subject: Subject) -> Tensor:
    with _for_gradients(subject):
        gradient: Tensor = captum.Saliency(subject.question.forward).attribute(
            subject.embeddings(), abs=False, **subject.arguments
        )
    return gradient


def input_x_gradient(subject: Subject) -> Attributed:
    """Gradient times embedding."""
    with _for_gradients(subject):
        found = captum.InputXGradient(subject.question.forward).attribute(
            subject.embeddings(), **subject.arguments
        )
    return _of_embeddings(subject, found)


def integrated_gradients(
    subject: Subject,
    *,
    n_steps: int = 50,
    baseline: str = "zero",
    internal_batch_size: int | None = None,
) -> Attributed:
    """Integrated Gradients on embeddings, along the line from the baseline."""
    with _for_gradients(subject):
        found, delta = captum.IntegratedGradients(subject.question.forward).attribute(
            subject.embeddings(),
            baselines=subject.baseline(baseline),
            n_steps=n_steps,
            internal_batch_size=internal_batch_size,
            return_convergence_delta=True,
            **subject.arguments,
        )
    return _of_embeddings(subject, found, delta)


def gradient_shap(
    subject: Subject,
    *,
    n_samples: int = 20,
    stdevs: float = 0.0,
    baseline: str = "zero",
    seed: int = 0,
) -> Attributed:
    """Expected gradients between the noisy embeddings and the baseline, seeded."""
    return _row_by_row(subject, lambda row: _gradient_shap(row, n_samples, stdevs, baseline, seed))


def _gradient_shap(
    subject: Subject, n_samples: int, stdevs: float, baseline: str, seed: int
) -> Attributed:
    embeddings = subject.embeddings()

    def forward(inputs: Tensor, *args: object) -> object:
        # Captum's random factors are float32, and so are then the inputs of a model in bfloat16.
        return subject.question.forward(inputs.to(embeddings.dtype), *args)

    with _for_gradients(subject), _seeded(seed):
        found, delta = captum.GradientShap(forward).attribute(
            embeddings,
            baselines=subject.baseline(baseline),
            n_samples=n_samples,
            stdevs=stdevs,
            return_convergence_delta=True,
            **subject.arguments,
        )
    return _of_embeddings(subject, found, delta.mean(0, keepdim=True))  # one delta per sample


def deep_lift(subject: Subject, *, baseline: str = "zero") -> Attributed:
    """DeepLift on embeddings, for models whose activations Captum has a rule for (ReLU, tanh)."""
    activations = _with_deep_lift_rules(subject)
    try:
        with _for_gradients(subject):
            found, delta = captum.DeepLift(subject.question.forward).attribute(
                subject.embeddings(),
                baselines=subject.baseline(baseline),
                return_convergence_delta=True,
                **subject.arguments,
            )
    finally:
        for module in activations:  # where Captum leaves them after an error
            vars(module).pop("input", None)
            vars(module).pop("output", None)
    return _of_embeddings(subject, found, delta)


def _with_deep_lift_rules(subject: Subject) -> list[nn.Module]:
    """The modules of activations, for all of which Captum's DeepLift has a rule."""
    chosen = ActivationGradient()  # with it those that are inside of another one are listed too
    found = AttnLRPx(
        subject.question.forward, subject.model, recipe=replace(ATTN_LRP, activation=chosen)
    ).coverage(subject.ids, subject.question.additional_forward_args)
    modules: dict[nn.Module, None] = {}
    for each in found.operations:
        if each.rule != repr(chosen).removesuffix("()"):
            continue
        module = subject.model.get_submodule(each.module)
        if type(module) not in _captum.DEEP_LIFT_RULES:  # modules are all that it puts rules on
            raise ValueError(
                f"Captum's DeepLift has no rule for {each.function.rpartition('.')[2]} in "
                f"{each.place} and would take its plain gradient without saying so: use "
                "input_x_gradient for that, or lrpx."
            )
        modules[module] = None
    return list(modules)


def feature_ablation(
    subject: Subject, *, baseline: str = "zero", perturbations_per_eval: int = 8
) -> Attributed:
    """Leave one out: how much the value falls without the embedding of each token."""
    embeddings = subject.embeddings()
    tokens = torch.arange(embeddings.shape[1], device=embeddings.device)
    found = captum.FeatureAblation(subject.question.forward).attribute(
        embeddings.detach(),
        baselines=subject.baseline(baseline),
        feature_mask=tokens.view(1, -1, 1),
        perturbations_per_eval=perturbations_per_eval,
        **subject.arguments,
    )
    # Each feature of a token has the effect of the whole token.
    return Attributed(subject.real(found[:, :, 0]), subject.values)


def occlusion(
    subject: Subject,
    *,
    window: int = 3,
    baseline: str = "zero",
    perturbations_per_eval: int = 8,
) -> Attributed:
    """Leave some out: a window of tokens, mean over the windows that cover a token."""
    # Windows that reach into the padding would be windows of their own.
    return _row_by_row(
        subject, lambda row: _occlusion(row, window, baseline, perturbations_per_eval)
    )


def _occlusion(
    subject: Subject, window: int, baseline: str, perturbations_per_eval: int
) -> Attributed:
    embeddings = subject.embeddings().detach()
    size = min(window, embeddings.shape[1])
    found = captum.Occlusion(subject.question.forward).attribute(
        embeddings,
        sliding_window_shapes=(size, embeddings.shape[2]),
        baselines=subject.baseline(baseline),
        perturbations_per_eval=perturbations_per_eval,
        **subject.arguments,
    )
    return Attributed(found[:, :, 0], subject.values)


def attention_rollout(subject: Subject) -> Attributed:
    """Attention of all layers multiplied: no sign, the same for every target at a position."""
    return _rolled_out(subject, AttentionRollout(subject.question.forward, subject.model))


def information_flow(subject: Subject, *, by_head: bool = True) -> Attributed:
    """Information flow routes, or ALTI, of all layers: no sign, the same for every target."""
    flow = InformationFlow(subject.question.forward, subject.model, by_head=by_head)
    return _rolled_out(subject, flow)


def _rolled_out(subject: Subject, method: AttentionRollout | InformationFlow) -> Attributed:
    found = method.attribute(subject.ids, **subject.arguments)
    return Attributed(subject.real(found), subject.values)


def random(subject: Subject, *, seed: int = 0) -> Attributed:
    """Uniform random numbers in [-1, 1), seeded: what any method has to beat."""
    draw = RandomAttribution(subject.question.forward, seed)
    drawn = [draw.attribute(row.ids)[0] for row in subject.rows]
    return Attributed(pad_sequence(drawn, batch_first=True), subject.values)


def _of_embeddings(subject: Subject, found: Tensor, deltas: Tensor | None = None) -> Attributed:
    """Attributions of embeddings ``[B, T, D]``, summed over ``D``."""
    deltas = None if deltas is None else deltas.detach()
    return Attributed(subject.real(found.detach().sum(-1)), subject.values, deltas)


def _row_by_row(subject: Subject, method: Callable[[Subject], Attributed]) -> Attributed:
    """A method whose result for a text would depend on the other texts of the batch."""
    found = [method(row) for row in subject.rows]
    relevances = pad_sequence([each.relevances[0] for each in found], batch_first=True)
    deltas = [each.deltas for each in found if each.deltas is not None]
    return Attributed(
        relevances,
        torch.cat([each.values for each in found]),
        torch.cat(deltas) if deltas else None,
    )


@contextmanager
def _for_gradients(subject: Subject) -> Iterator[None]:
    """Captum takes gradients here; frozen parameters save the memory that theirs would need.

    Captum makes its steps and samples on the default device, which is that of the inputs here.
    """
    require_gradients()
    with frozen(subject.model), subject.ids.device:
        yield


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The random states of PyTorch and NumPy, which Captum draws from, set and put back."""
    state = np.random.get_state()  # noqa: NPY002 - Captum uses this one
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            np.random.set_state(state)  # noqa: NPY002
