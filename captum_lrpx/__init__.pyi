# The public names and modules, each imported when it is first used.

from . import (
    architectures as architectures,
    attr as attr,
    components as components,
    conservation as conservation,
    coverage as coverage,
    explanation as explanation,
    hints as hints,
    loading as loading,
    memory as memory,
    methods as methods,
    metrics as metrics,
    recipes as recipes,
    rules as rules,
    segments as segments,
    sva as sva,
    targets as targets,
    zoo as zoo,
)
from ._version import __version__ as __version__
from .attr import (
    ALTILogit as ALTILogit,
    AttnLRPx as AttnLRPx,
    LayerAttnLRPx as LayerAttnLRPx,
    LayerLRPx as LayerLRPx,
    LLMRelevance as LLMRelevance,
    LLMRelevanceResult as LLMRelevanceResult,
    LRPx as LRPx,
    NeuronAttnLRPx as NeuronAttnLRPx,
    NeuronLRPx as NeuronLRPx,
)
from .attr.baselines import (
    AttentionRollout as AttentionRollout,
    InformationFlow as InformationFlow,
    RandomAttribution as RandomAttribution,
)
from .chat import explain_chat as explain_chat, leave_one_out_of_chat as leave_one_out_of_chat
from .compare import Comparison as Comparison, compare as compare
from .components import (
    ActivationPatching as ActivationPatching,
    ConceptRelevance as ConceptRelevance,
    ExpertRelevance as ExpertRelevance,
    MetaAttributions as MetaAttributions,
    ReferenceIndex as ReferenceIndex,
    RelevanceFlow as RelevanceFlow,
    RelevanceGraph as RelevanceGraph,
    RelevancePatching as RelevancePatching,
    Routing as Routing,
    build_references as build_references,
    meta_attributions as meta_attributions,
    prune as prune,
    steer as steer,
)
from .conservation import Ledger as Ledger, ledger as ledger
from .draw import draw as draw
from .explainer import explain as explain
from .explanation import Explanation as Explanation, Segment as Segment, Segments as Segments
from .leave_one_out import leave_one_out as leave_one_out
from .propagation import propagation as propagation
from .recipes import (
    ATTN_LRP as ATTN_LRP,
    GRADIENT as GRADIENT,
    LRP as LRP,
    LRP_MIRRORED_GATE as LRP_MIRRORED_GATE,
    LRP_UNIFORM_GATE as LRP_UNIFORM_GATE,
    Recipe as Recipe,
)
from .segments import Region as Region
from .targets import (
    AnswerLogits as AnswerLogits,
    ClassDifference as ClassDifference,
    ClassLogits as ClassLogits,
    DecoderLogits as DecoderLogits,
    LogitDifference as LogitDifference,
    LogProbabilities as LogProbabilities,
    OutputFunction as OutputFunction,
    OutputSum as OutputSum,
    Probabilities as Probabilities,
    Target as Target,
    Token as Token,
    TokenLogits as TokenLogits,
    TokenSum as TokenSum,
    ask_batch as ask_batch,
    last_token as last_token,
)
from .view import view as view
