"""LRP, AttnLRP and ALTI-Logit as methods of inseq.

After ``register()``, ``inseq.load_model(name, "attnlrpx")`` works as for inseq's own methods. The
explained value is inseq's ``attributed_fn``: the probability of the next token by default, for
which relevances decompose its gradient times the logits; ``attributed_fn="logit"`` explains the
logit.
"""

from __future__ import annotations

import functools
from typing import Any

from captum_lrpx.attr import ALTILogit, AttnLRPx, LRPx
from captum_lrpx.extras import imported

__all__ = ["register"]

_METHODS = {"lrpx": LRPx, "attnlrpx": AttnLRPx, "altilogit": ALTILogit}


@functools.cache
def register() -> tuple[type, ...]:
    """Register the methods ``"lrpx"``, ``"attnlrpx"`` and ``"altilogit"`` with inseq.

    Options of a method (``recipe``) are passed to ``inseq.load_model`` or ``attribute``, like those
    of inseq's methods.

    Returns:
        The classes, of inseq's registry of gradient methods.

    Raises:
        ImportError: If inseq is not installed.

    Examples::

        >>> register()
        >>> model = inseq.load_model(llama, "attnlrpx", tokenizer=tokenizer)
        >>> model.attribute("the keys to the cabinet", attributed_fn="logit").show()
    """
    gradient = imported(
        "inseq.attr.feat.gradient_attribution",
        "The methods need inseq, which is not installed: `pip install captum-lrpx[inseq]`.",
    )

    def made(name: str, method: Any) -> type:
        def __init__(self: Any, attribution_model: Any, **options: Any) -> None:  # noqa: N807 - of the class below
            gradient.GradientAttributionRegistry.__init__(self, attribution_model)
            self.method = method(attribution_model, model=attribution_model.model, **options)

        return type(
            f"{method.__name__}Attribution",
            (gradient.GradientAttributionRegistry,),
            {"method_name": name, "__init__": __init__, "__doc__": method.__doc__},
        )

    return tuple(made(name, method) for name, method in _METHODS.items())
