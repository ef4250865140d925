"""Small trained language models for subject-verb agreement, shipped with the package.

They need no network. ``transformers`` is imported when a model is loaded, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = "sva-bert"
"""Name of the default model."""

_NAMES = ("sva-bert", "sva-gpt2", "sva-llama")

__all__ = ["DEFAULT", "load", "names", "path"]


def names() -> tuple[str, ...]:
    """Return the names of the models."""
    return _NAMES


def path(name: str) -> Path:
    """Return the folder of a model, fit for ``AutoModel.from_pretrained``.

    Args:
        name: One of :func:`names`.

    Raises:
        ValueError: If there is no such model.
    """
    if name not in _NAMES:
        raise ValueError(
            f"unknown model {name!r}{suggestion(name, _NAMES)}, the zoo has: {', '.join(_NAMES)}"
        )
    return Path(__file__).resolve().parent / name


def load(name: str = DEFAULT) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model, in evaluation mode, and its tokenizer.

    Args:
        name: One of :func:`names`.

    Raises:
        ValueError: If there is no such model.
    """
    # Slow to import, and not needed for the names of the models.
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
    )

    folder = path(name)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    loader = AutoModelForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
    model: PreTrainedModel = loader.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.name_or_path = name  # for records, instead of the installation path
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer
