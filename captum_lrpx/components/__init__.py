"""Components: the parts of a model where a prediction arises."""

from captum_lrpx.components.concepts import Concept, ConceptRelevance, steer
from captum_lrpx.components.flow_graph import RelevanceFlow, RelevanceGraph
from captum_lrpx.components.interactions import MetaAttributions, meta_attributions
from captum_lrpx.components.patching import ActivationPatching, RelevancePatching
from captum_lrpx.components.pruning import prune
from captum_lrpx.components.references import ReferenceIndex, ReferenceSample, build_references
from captum_lrpx.components.routing import ExpertRelevance, Routing

__all__ = [
    "ActivationPatching",
    "Concept",
    "ConceptRelevance",
    "ExpertRelevance",
    "MetaAttributions",
    "ReferenceIndex",
    "ReferenceSample",
    "RelevanceFlow",
    "RelevanceGraph",
    "RelevancePatching",
    "Routing",
    "build_references",
    "meta_attributions",
    "prune",
    "steer",
]
