"""Components: where in a model a prediction is made."""

from captum_lrpx.components.interactions import MetaAttributions, meta_attributions
from captum_lrpx.components.patching import ActivationPatching, RelevancePatching
from captum_lrpx.components.pruning import prune

__all__ = [
    "ActivationPatching",
    "MetaAttributions",
    "RelevancePatching",
    "meta_attributions",
    "prune",
]
