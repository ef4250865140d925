"""Questions to tiny models of every type that transformers has: inputs, and what is explained."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch
from replica_ledger import Exact
from tiny_models import MAPPINGS, build, example, limit, names

from captum_lrpx.attr.embedded import embedded_ids

if TYPE_CHECKING:
    from captum_lrpx import LRPx


class NotBuilt(Exception):  # noqa: N818 - it is no error of this package
    """The model does not run by itself: nothing to explain."""


EMBEDDINGS = {"input_ids": "inputs_embeds", "decoder_input_ids": "decoder_inputs_embeds"}
"""Names of inputs that may be given as embeddings -> the names of these."""


class Asked:
    """A tiny model as a forward function of the inputs that relevance is attributed to.

    In float64 nothing is computed in less, whatever the model casts.
    """

    def __init__(
        self, model_type: str, mapping: str, *, dtype: torch.dtype = torch.float32, **options: Any
    ) -> None:
        self.dtype = dtype
        if dtype == torch.float64:
            options["experts"] = "eager"  # grouped products have no float64
        with quiet(), limit(60):
            self.model = build(model_type, mapping, dtype=dtype, **options)
            given = example(self.model)
            self.keywords = given.keywords
            self.names = given.relevant
            for name, value in self.keywords.items():
                if isinstance(value, torch.Tensor) and value.is_floating_point():
                    self.keywords[name] = value.to(dtype)
            self.inputs = tuple(self.keywords[name] for name in self.names)
            logits = self.logits(*self.inputs)
        if not isinstance(logits, torch.Tensor) or logits.ndim < 2:
            raise NotBuilt("no logits")
        self.place = tuple(size - 1 for size in logits.shape[1:-1])
        at = logits[(0, *self.place)]
        if not bool(torch.isfinite(at).all()):
            raise NotBuilt("its logits are not finite")
        self.target: Any = (*self.place, int(at.argmax())) if self.place else int(at.argmax())

    def logits(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The logits, for inputs in the order of ``names``."""
        keywords = self.keywords | dict(zip(self.names, inputs, strict=True))
        exact = Exact() if self.dtype == torch.float64 else contextlib.nullcontext()
        with quiet(), exact:
            found: torch.Tensor = self.model(**keywords).logits
        return found

    def given_as_embeddings(self) -> Asked:
        """The same question with embeddings for ids.

        Raises:
            NotBuilt: If the model takes none.
        """
        ids = [each for each in self.inputs if not each.is_floating_point()]
        if not ids:
            raise NotBuilt("has no token ids")
        taken = inspect.signature(self.model.forward).parameters
        with embedded_ids(self.model, ids) as found, torch.enable_grad():
            self.logits(*self.inputs)
        if any(EMBEDDINGS[name] not in taken for name in self.names if name in EMBEDDINGS):
            raise NotBuilt("takes no embeddings")
        if not all(found):
            raise NotBuilt("embeds its ids in a way of its own")
        other, embeddings = copy.copy(self), iter(found)
        other.keywords = {k: v for k, v in self.keywords.items() if k not in self.names}
        other.names = tuple(EMBEDDINGS.get(name, name) for name in self.names)
        other.inputs = tuple(
            each if each.is_floating_point() else next(embeddings)[0].detach()
            for each in self.inputs
        )
        return other

    def value(self) -> torch.Tensor:
        """The explained value.

        Raises:
            NotBuilt: If the model does not run.
        """
        try:
            with torch.no_grad():
                logits = self.logits(*(each.clone() for each in self.inputs))  # it may write
        except NotImplementedError as error:
            raise NotBuilt("takes no embeddings") from error
        except Exception as error:
            raise NotBuilt(f"{type(error).__name__}: {str(error)[:60]}") from error
        index = self.target if isinstance(self.target, tuple) else (self.target,)
        return logits[(0, *index)]

    def relevances(self, method: type[LRPx]) -> tuple[torch.Tensor, ...]:
        """The relevances of the inputs, one number per token."""
        found = method(self.logits, self.model).attribute(self.inputs, target=self.target)
        return tuple(
            each.sum(-1) if name in EMBEDDINGS.values() else each
            for name, each in zip(self.names, found, strict=True)
        )

    def state(self) -> list[Any]:
        """Everything about the model that an explanation must leave as it was."""
        return [
            (
                sorted(vars(module)),
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                module.training,
                [parameter.requires_grad for parameter in module.parameters(recurse=False)],
            )
            for module in self.model.modules()
        ]


def asked(model_type: str, mapping: str, **options: Any) -> Asked:
    """A tiny model that runs.

    Raises:
        NotBuilt: If it does not.
    """
    try:
        return Asked(model_type, mapping, **options)
    except NotBuilt:
        raise
    except Exception as error:
        raise NotBuilt(f"{type(error).__name__}: {str(error)[:120]}") from error


@functools.cache
def pairs() -> tuple[tuple[str, str], ...]:
    """All pairs of a mapping and a model type."""
    return tuple((mapping, kind) for mapping in MAPPINGS for kind in names(mapping))


def plain_logits(question: Asked) -> torch.Tensor:
    """The model's own logits, of the same call with gradients enabled and inputs that need one."""
    trained = [each for each in question.model.parameters() if each.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        inputs = tuple(
            each.detach().requires_grad_() if each.is_floating_point() else each
            for each in question.inputs
        )
        ids = [each for each in inputs if not each.is_floating_point()]
        with embedded_ids(question.model, ids), torch.enable_grad():
            return question.logits(*inputs).detach()
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def quiet() -> Any:
    """No warnings, and none of transformers' messages."""
    import transformers

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers.logging.set_verbosity(before)
