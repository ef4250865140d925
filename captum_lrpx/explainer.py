"""``explain()``: one call from a text to an explanation."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

import torch

from captum_lrpx._version import __version__
from captum_lrpx.binding import find_model
from captum_lrpx.certification import certified
from captum_lrpx.explanation import Explanation
from captum_lrpx.methods import Option, Subject, attribute, options_of
from captum_lrpx.targets import Target, encode

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.recipes import Recipe

__all__ = ["explain"]


def explain(
    model: nn.Module,
    tokenizer: Any,
    text: str,
    target: Target | str | int,
    *,
    method: str = "attnlrpx",
    recipe: Recipe | None = None,
    first_token: str | None = None,
    model_name: str | None = None,
    certify: bool = True,
    **options: Option,
) -> Explanation:
    """Explain what a Hugging Face model predicts for a text.

    Args:
        model: A model with a head: causal or masked language model, classifier, question answering.
            Of a module around one (an adapter, a prompt, a function of the logits) its own outputs
            are explained.
        tokenizer: Its (fast) tokenizer.
        text: The text. A causal language model is explained at its end, a masked one at its mask
            token, which is appended if the text has none.
        target: What is explained; a word or class stands for ``Target(word)``.
        method: A name in :data:`captum_lrpx.methods.METHODS`.
        recipe: Rules other than the method's own.
        first_token: A special token to put in front of the text.
        model_name: Name for the record. Default: where the model was loaded from.
        certify: Whether to check the forward pass, the coverage and the ledger and to record the
            findings in :attr:`Explanation.certificate`, for the methods with rules and ALTI-Logit;
            the others have nothing of the kind. A check that fails is a warning, not an error.
        **options: Options of the method (``n_steps=100``), the keyword arguments of its function in
            :mod:`captum_lrpx.methods.functions`.

    Returns:
        The explanation.

    Raises:
        ValueError: If the text, the target, the method or an option cannot be used; the message
            says why.
        IndexError: If an id or position is out of range.

    Examples:
        >>> from captum_lrpx import Target, explain, zoo
        >>> model, tokenizer = zoo.load("sva-gpt2")
        >>> explain(model, tokenizer, "the keys to the cabinet", Target("are", contrast="is"))
    """
    options_of(method)  # refuses an unknown method before anything else happens
    if not isinstance(target, Target):
        target = Target(target)
    hugging_face = find_model(model)
    encoding = encode(hugging_face, tokenizer, text, first_token)
    question = target.ask(model, tokenizer, encoding)
    parameter = next(hugging_face.parameters())
    ids = torch.tensor([encoding.ids], device=parameter.device)
    subject = Subject(hugging_face, tokenizer, question, ids)
    found = attribute(method, subject, recipe, options)
    config: Any = hugging_face.config
    explanation = Explanation(
        text=encoding.text,
        tokens=encoding.tokens,
        ids=encoding.ids,
        offsets=encoding.offsets,
        special=encoding.special,
        relevances=tuple(found.relevances[0].double().tolist()),
        value=float(found.values[0]),
        target=question.description,
        position=question.position,
        method=method,
        recipe=found.recipe,
        model=model_name or str(getattr(hugging_face, "name_or_path", "") or type(model).__name__),
        dtype=str(parameter.dtype).removeprefix("torch."),
        versions=_versions(),
        revision=getattr(config, "_commit_hash", None),
        options=options_of(method) | options,
        convergence_delta=None if found.deltas is None else float(found.deltas[0]),
    )
    return certified(explanation, subject, recipe) if certify else explanation


def _versions() -> dict[str, str]:
    others = {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "captum")
    }
    return {"captum_lrpx": __version__, **others}
