"""Components: where in a model a prediction is made."""

from captum_lrpx.components.patching import ActivationPatching, RelevancePatching

__all__ = ["ActivationPatching", "RelevancePatching"]
