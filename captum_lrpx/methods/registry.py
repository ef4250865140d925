"""Registry of the methods by name, and their options."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from captum_lrpx.attr.finite import Finite
from captum_lrpx.attr.protocol import tensors_of
from captum_lrpx.methods import functions
from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Callable

    from captum_lrpx.methods.functions import Attributed
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.targets import Query


Option = int | float | str | bool | None
"""Type of an option of a method; explanations store options."""

METHODS: dict[str, Callable[..., Attributed]] = {
    method.__name__: method
    for method in (
        functions.lrpx,
        functions.attnlrpx,
        functions.altilogit,
        functions.saliency_l1,
        functions.saliency_l2_squared,
        functions.input_x_gradient,
        functions.integrated_gradients,
        functions.gradient_shap,
        functions.deep_lift,
        functions.feature_ablation,
        functions.occlusion,
        functions.attention_rollout,
        functions.information_flow,
        functions.random,
    )
}
"""Maps a name to a function of a ``Query``; its keyword arguments are the method's options."""


_OF_MEDIA = ("lrpx", "attnlrpx")
_OF_TWO_TEXTS = (*_OF_MEDIA, "altilogit")


def options_of(method: str) -> dict[str, Option]:
    """The options of a method and their defaults, without ``recipe``.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in METHODS:
        meant = suggestion(method, METHODS)
        raise ValueError(f"Unknown method {method!r}{meant}; known are {', '.join(METHODS)}.")
    parameters = list(inspect.signature(METHODS[method]).parameters.values())[1:]
    return {each.name: each.default for each in parameters if each.name != "recipe"}


def description(method: str) -> str:
    """Description of a method in one line."""
    return cast("str", METHODS[method].__doc__).partition("\n")[0].rstrip(".")


def attribute(
    method: str, query: Query, recipe: Recipe | None, options: dict[str, Option]
) -> Attributed:
    """Run a method.

    Args:
        method: A name in :data:`METHODS`.
        query: The question.
        recipe: Rules other than the method's own.
        options: Options of the method.

    Returns:
        Relevances and value.

    Raises:
        ValueError: If there is no such method or option, an option has an invalid value,
            or the explained value is infinite or NaN.
    """
    check_options(method, options)
    keywords: dict[str, Any] = dict(options)
    if recipe is not None:
        if "recipe" not in inspect.signature(METHODS[method]).parameters:
            raise ValueError(f"The method {method!r} has no rules, so it takes no recipe.")
        keywords["recipe"] = recipe
    found = METHODS[method](query, **keywords)
    inputs, arguments = tensors_of(query.inputs), query.additional_forward_args
    Finite(query.model, query.forward, inputs, arguments).require(found.values)
    return found


def check_several_inputs(method: str, *, texts: bool) -> None:
    """Refuse a method that only explains a single text.

    Args:
        method: A name in :data:`METHODS`.
        texts: Whether the inputs are two texts; else one is an image or audio.

    Raises:
        ValueError: If it does.
    """
    able = _OF_TWO_TEXTS if texts else _OF_MEDIA
    if method in METHODS and method not in able:
        inputs = "Two texts" if texts else "Images and audio"
        raise ValueError(
            f"The method {method!r} explains one text. {inputs} are explained by "
            f"{', '.join(able)}, or by Captum's classes with a forward function."
        )


def check_options(method: str, options: dict[str, Option]) -> None:
    """Check the options of a method.

    Args:
        method: A name in :data:`METHODS`.
        options: Options of the method.

    Raises:
        ValueError: If there is no such method or option, or an option has an invalid
            value.
    """
    known = options_of(method)
    for name, value in options.items():
        _check_option(method, known, name, value)


def _check_option(method: str, known: dict[str, Option], name: str, value: Option) -> None:
    if name not in known:
        some = f"its options are {', '.join(known)}" if known else "it has none"
        raise ValueError(
            f"The method {method!r} has no option {name!r}; {some}{suggestion(name, known)}."
        )
    default = known[name]
    kind = int if default is None else type(default)
    whole = isinstance(value, int) and not isinstance(value, bool)
    fits = (
        (whole or isinstance(value, float))
        if kind is float
        else (whole if kind is int else isinstance(value, kind))
    )
    if not (fits or (value is None and default is None)):
        raise ValueError(f"The option {name!r} of {method!r} takes {kind.__name__}, not {value!r}.")
    if kind is int and name != "seed" and value is not None and cast("int", value) < 1:
        raise ValueError(f"The option {name!r} of {method!r} must be at least 1, not {value!r}.")
