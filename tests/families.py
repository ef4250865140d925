"""The table of families in the README, from what was found about each type of model.

As a script it writes the table into a file, between its two marks::

    python tests/families.py README.md

The data are ``docs/supported-models.md``, which ``breadth.py`` writes, and ``alti_refused.json``.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from breadth import TITLES
from tiny_models import _defaults, _part_of, config_class

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "supported-models.md"
ALTI = HERE / "alti_refused.json"
MARKS = ("<!-- families: python tests/families.py README.md -->", "<!-- end of families -->")

Pair = tuple[str, str]

_OF_EXPERTS = {
    *("num_experts", "num_local_experts", "num_routed_experts", "n_experts", "n_routed_experts"),
    "moe_num_experts",
}
_OF_STATES = {
    *("state_size", "mamba_d_state", "ssm_state_size", "linear_key_head_dim", "linear_num_heads"),
    *("lru_width", "conv_L_cache"),
}
"""Fields of configs that tell what a model is made of."""
_STATES = frozenset(("bailing_hybrid", "kimi_linear", "minimax", "xlstm", "rwkv"))
"""Recurrent in ways that no field of their configs says."""

TEXT = frozenset(("CAUSAL_LM", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "SEQUENCE_CLASSIFICATION"))
"""Tasks that ALTI-Logit is asked about."""


@dataclass(frozen=True)
class Group:
    """A line of the table.

    Attributes:
        title: What the models are.
        examples: Model types that are named, each with its usual name after "=".
        inputs: What they read.
        tasks: The tasks whose pairs are counted.
        kind: Which of their types: ``"attention"``, ``"experts"``, ``"states"``. Default: all.
    """

    title: str
    examples: str
    inputs: str
    tasks: tuple[str, ...]
    kind: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Model type -> its usual name."""
        return dict(each.split("=") for each in self.examples.split())

    def line(self, count: int | None, *shares: str) -> str:
        """The line with the number of pairs, and what each method explains of them."""
        title = ": ".join(filter(None, (self.title, ", ".join(self.named.values()))))
        counted = "" if count is None else f" ({count})"
        return f"| {title}{counted} | {self.inputs} | {' | '.join(shares)} |"


_WRITTEN = "source and written tokens ([how](docs/several_inputs.md))"
_HEARD = "audio; with written tokens, or a text ([how](docs/several_inputs.md#audio))"
_CAUSAL = ("CAUSAL_LM",)
GROUPS = (
    Group(
        "language models",
        "gpt2=GPT-2 opt=OPT bloom=BLOOM llama=Llama mistral=Mistral qwen3=Qwen gemma3_text=Gemma "
        "phi3=Phi",
        "text",
        _CAUSAL,
        "attention",
    ),
    Group(
        "mixtures of experts ([routing](docs/experts_and_state_spaces.md#mixtures-of-experts))",
        "mixtral=Mixtral qwen3_moe=Qwen-MoE gpt_oss=GPT-OSS deepseek_v3=DeepSeek-V3",
        "text",
        _CAUSAL,
        "experts",
    ),
    Group(
        "recurrent models and hybrids "
        "([state spaces](docs/experts_and_state_spaces.md#state-spaces))",
        "mamba=Mamba mamba2=Mamba-2 jamba=Jamba rwkv=RWKV qwen3_next=Qwen3-Next",
        "text",
        _CAUSAL,
        "states",
    ),
    Group(
        "masked language models",
        "bert=BERT roberta=RoBERTa distilbert=DistilBERT deberta-v2=DeBERTa "
        "modernbert=ModernBERT esm=ESM",
        "text",
        ("MASKED_LM",),
    ),
    Group("classifiers of texts", "", "text", ("SEQUENCE_CLASSIFICATION",)),
    Group(
        "encoder-decoders",
        "t5=T5 bart=BART marian=Marian nllb-moe=NLLB",
        _WRITTEN,
        ("SEQ_TO_SEQ_CAUSAL_LM",),
    ),
    Group(
        "classifiers of images",
        "vit=ViT dinov2=DINOv2 swin=Swin resnet=ResNet convnext=ConvNeXT siglip=SigLIP",
        "an image",
        ("IMAGE_CLASSIFICATION",),
    ),
    Group(
        "vision-language models",
        "llava=LLaVA qwen2_vl=Qwen-VL paligemma=PaliGemma",
        "an image and a text",
        ("IMAGE_TEXT_TO_TEXT",),
    ),
)
AUDIO = Group(
    "audio",
    "whisper=Whisper audio-spectrogram-transformer=AST wav2vec2=Wav2Vec2 hubert=HuBERT "
    "qwen2_audio=Qwen2-Audio",
    _HEARD,
    (),
)
"""These are not counted: ``test_sounds.py`` explains them."""


@dataclass(frozen=True)
class Found:
    """What was found about pairs of a task and a model type.

    Attributes:
        version: Of transformers.
        explained: By ``LRPx`` and ``AttnLRPx``.
        refused: By either.
        without_alti: Refused by ``ALTILogit``.
    """

    version: str
    explained: frozenset[Pair]
    refused: frozenset[Pair]
    without_alti: frozenset[Pair]

    def shares(self, pairs: Iterable[Pair]) -> tuple[str, str]:
        """How many of some pairs the methods explain, in words."""
        built = [pair for pair in pairs if pair in self.explained | self.refused]
        text = [pair for pair in built if pair[0] in TEXT]
        of_rules = _of(sum(pair in self.explained for pair in built), len(built))
        of_alti = _of(sum(pair not in self.without_alti for pair in text), len(text))
        return of_rules, of_alti


def _of(count: int, total: int) -> str:
    return "no" if not total else "all" if count == total else f"{count} of {total}"


@functools.cache
def found() -> Found:
    """What the page and the lists say."""
    page = PAGE.read_text(encoding="utf-8")
    tasks = {title: mapping for mapping, title in TITLES.items()}
    explained = {
        (tasks[title.lower()], kind)
        for title, kinds in re.findall(r"^## (.*) \(\d+\)\n\n(`.*)$", page, re.MULTILINE)
        for kind in re.findall(r"`([^`]+)`", kinds)
    }
    refused = {
        (tasks[title], kind)
        for kind, title in re.findall(r"^\| `([^`]+)` \| ([^|]+) \|", page, re.MULTILINE)
        if title in tasks
    }
    without = {tuple(pair.split()) for pair in json.loads(ALTI.read_text(encoding="utf-8"))}
    (version,) = re.findall(r"that transformers (\d+\.\d+)[\d.]* can build", page)
    return Found(version, frozenset(explained), frozenset(refused), frozenset(without))  # type: ignore[arg-type]


@functools.cache
def kind_of(model_type: str) -> str:
    """How a language model mixes tokens, by the fields of its config; experts come last."""
    config = config_class(model_type)
    text = "text_config" in (getattr(config, "sub_configs", None) or {})
    fields = set(_defaults((_part_of(config, "text_config") if text else None) or config))
    if model_type in _STATES or fields & _OF_STATES:
        return "states"
    return "experts" if fields & _OF_EXPERTS else "attention"


def pairs_of(group: Group) -> list[Pair]:
    """The pairs that a line is about."""
    return [
        pair
        for pair in sorted(found().explained | found().refused)
        if pair[0] in group.tasks and group.kind in (None, kind_of(pair[1]))
    ]


def table() -> str:
    """The table with a sentence before it, as Markdown."""
    data = found()
    explained, total = len(data.explained), len(data.explained | data.refused)
    sentence = f"""\
Of the {total} pairs of a task and a model type that transformers {data.version} can build and
run at a small size, {explained} are explained, with the ledger closed; the others are refused by
the name of an operation ([the list](docs/supported-models.md)). In brackets: the number of pairs.
"""
    lines = [
        sentence,
        "| models | inputs | `LRPx`, `AttnLRPx` | `ALTILogit` |",
        "|---|---|---|---|",
    ]
    for group in GROUPS:
        pairs = pairs_of(group)
        lines.append(group.line(len(pairs), *data.shares(pairs)))
    lines += [
        AUDIO.line(None, "yes", "no"),
        "| modules of your own ([how](docs/any_module.md)) | any tensors | yes | no |",
    ]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """A text with the table between its marks."""
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return f"{before}{MARKS[0]}\n{table()}\n{MARKS[1]}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(with_table(path.read_text(encoding="utf-8")), encoding="utf-8")
