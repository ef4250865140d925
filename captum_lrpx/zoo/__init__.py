"""Small trained language models that know subject-verb agreement, shipped with the package.

Nothing here needs the network. ``transformers`` is imported when a model is loaded, not before.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT = "sva-bert"
"""The model to take when none is asked for."""

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
    model, tokenizer = load_folder(path(name))
    model.name_or_path = name  # what records show, instead of where the package happens to be
    return model, tokenizer


def load_folder(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model that the training script wrote, in evaluation mode, and its tokenizer.

    Args:
        folder: Where it was written.
    """
    # Slow to import, and the names of the models are of use without it.
    from transformers import (  # noqa: PLC0415
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForMaskedLM,
        AutoTokenizer,
    )

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    loader = AutoModelForMaskedLM if config.model_type == "bert" else AutoModelForCausalLM
    model: PreTrainedModel = loader.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model.eval()  # type: ignore[no-untyped-call]
    return model, tokenizer
