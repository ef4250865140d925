"""Models by name: embedded ones, a local directory, a GGUF file, or a name of the hub."""

from __future__ import annotations

import difflib
import importlib.util
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_lrpx import zoo
from captum_lrpx.gguf_header import check_gguf
from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import nn


_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NOTHING: Mapping[str, Any] = {}
_PATIENCE = 10
"""Seconds to wait for the hub's answer."""

_MISSPELT = 0.8
"""Similarity to an embedded model from which a name outside of the cache counts as misspelt."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer.

    Attributes:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer, or its processor.
        name: The name that it was loaded by.
    """

    model: nn.Module
    tokenizer: Any
    name: str


def load_model(name: str, *, processor: bool = False, tensor_parallel: int = 1) -> LoadedModel:
    """Load a model and its tokenizer.

    Weights are only read from safetensors or GGUF files, never unpickled, and no code shipped
    with a model is run. The hub is only contacted for a name that is neither an embedded model nor
    a path.

    Args:
        name: An embedded model (:func:`captum_lrpx.zoo.names`), a directory, the path of a
            ``.gguf`` file, or a name of the Hugging Face hub.
        processor: Whether to load the processor for images or audio in place of the tokenizer.
        tensor_parallel: Number of processes that share the model, each with a part of its features;
            all processes of the run must load it.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such model, or its files cannot be read.
        TypeError: If the name is no string.
        ImportError: If the name is a GGUF file and the extra for it is not installed.
    """
    source, keywords = source_of(name)
    model: nn.Module
    if tensor_parallel > 1:
        shared = {"distributed_config": _shared_by(tensor_parallel)}
        model, tokenizer = _from_folder(source, keywords, processor=processor, of_model=shared)
    elif name in zoo.names():
        model, tokenizer = zoo.load(name)
    else:
        model, tokenizer = _from_folder(source, keywords, processor=processor)
    return LoadedModel(model.eval(), tokenizer, name)


def _shared_by(count: int) -> Any:
    """Config of transformers that shards a model over processes, with copies over the rest."""
    from torch.distributed import get_world_size  # noqa: PLC0415
    from transformers.distributed.configuration_utils import (  # noqa: PLC0415
        DistributedConfig,
    )

    copies = get_world_size() // count
    return DistributedConfig(tp_size=count, tp_plan="auto", dp_replicate_size=copies)


def source_of(name: str) -> tuple[str, dict[str, Any]]:
    """Resolve the source of a model, without loading it.

    Args:
        name: As for :func:`load_model`.

    Returns:
        The path or name for transformers, and keywords for it.

    Raises:
        ValueError: If there is no such model.
        TypeError: If the name is no string.
        ImportError: If it is a GGUF file and the extra for it is not installed.
    """
    if not isinstance(name, str):
        raise TypeError(f"A model is loaded by its name, a string, not {type(name).__name__}.")
    path = Path(name)
    if name in zoo.names():
        return str(zoo.path(name)), {}
    if path.suffix == ".gguf":
        return _source_of_gguf(path)
    if path.is_dir():
        return str(path), {}
    if path.exists() or not _HUB_NAME.fullmatch(name):
        raise _no_model(name)
    return name, _of_hub(name)


def _no_model(name: str, reason: str = "") -> ValueError:
    names = zoo.names()
    if reason:
        return ValueError(
            f"The model {name!r} cannot be loaded: {reason}. Embedded models are "
            f"{', '.join(names)}{suggestion(name, names)}; a directory or a .gguf file needs no "
            "hub."
        )
    return ValueError(
        f"There is no model {name!r}{suggestion(name, names)}: give an embedded model "
        f"({', '.join(names)}), a directory, a .gguf file, or a name of the Hugging Face hub."
    )


def _of_hub(name: str) -> dict[str, Any]:
    """Keywords to load a name of the hub, with one query instead of a download's retries.

    Raises:
        ValueError: If the hub has no such model, or cannot be reached while it is needed.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache  # noqa: PLC0415 - slow
    from huggingface_hub.errors import (  # noqa: PLC0415
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError as error:  # an invalid name for the hub
        raise _no_model(name) from error
    if not cached and difflib.get_close_matches(name.lower(), zoo.names(), cutoff=_MISSPELT):
        raise _no_model(name)
    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except RepositoryNotFoundError as error:
        raise _no_model(name, "the hub has none of that name that you may read") from error
    except Exception as error:  # from whichever HTTP library it uses
        if cached:
            return {"local_files_only": True}
        reason = f"it is not in the cache, and the hub gave no answer ({type(error).__name__})"
        raise _no_model(name, reason) from error
    return {}


def _source_of_gguf(path: Path) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"Reading a GGUF file needs the package {package!r}: "
                "pip install 'captum-lrpx[gguf]'."
            )
    check_gguf(path)
    return str(path.parent), {"gguf_file": path.name}


def _from_folder(
    name: str, keywords: dict[str, Any], *, processor: bool, of_model: Mapping[str, Any] = _NOTHING
) -> tuple[nn.Module, Any]:
    """Load with transformers from a directory or the hub; a GGUF file is one in a directory."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415 - only when a model is loaded

    kind: Any
    shown = str(Path(name, keywords["gguf_file"])) if "gguf_file" in keywords else name
    with _reading(shown, "configuration"):
        config = transformers.AutoConfig.from_pretrained(name, **keywords)
    classes = [getattr(transformers, each, None) for each in config.architectures or ()]
    kind = next((each for each in classes if each), transformers.AutoModelForCausalLM)
    if not processor:
        _refuse_without_text(shown, kind)
    with _reading(shown, "processor" if processor else "tokenizer"):
        reader: Any = transformers.AutoProcessor if processor else transformers.AutoTokenizer
        tokenizer = reader.from_pretrained(name, **keywords)
    with _reading(shown, "weights"):
        options: dict[str, Any] = {"use_safetensors": True}
        if "gguf_file" in keywords:  # avoids reading its slow config again
            options = {"dtype": torch.float32, "config": config}
        options |= {"output_loading_info": True, **of_model, **keywords}
        model, report = kind.from_pretrained(name, **options)
    _refuse_random_weights(shown, report["missing_keys"])
    return model, tokenizer


@contextmanager
def _reading(name: str, part: str) -> Iterator[None]:
    """Unify errors of transformers, anything from OSError to KeyError for broken files."""
    try:
        yield
    except Exception as error:
        message = str(error).strip().split("\n")[0]
        of_gguf = name.endswith(".gguf")  # its reader explains little about truncated files
        if of_gguf or not isinstance(error, (OSError, ValueError, ImportError)) or not message:
            message = f"its {part} cannot be read ({type(error).__name__}: {message})"
            message += "; is the file complete?" if of_gguf else ""
        raise ValueError(f"The model {name!r} cannot be loaded: {message}") from error


def _refuse_without_text(name: str, kind: Any) -> None:
    """Refuse models of images or audio alone, which have no tokenizer for a text."""
    from captum_lrpx.targets.images import IMAGE  # noqa: PLC0415 - only when a model is loaded
    from captum_lrpx.targets.sounds import AUDIO  # noqa: PLC0415

    main = getattr(kind, "main_input_name", None)
    for medium in (IMAGE, AUDIO):
        if main in medium.inputs:
            raise ValueError(
                f"The model {name!r} reads {medium.one} and no text: `captum-lrpx explain "
                f"--{medium.name} FILE` explains it."
            )


def _refuse_random_weights(name: str, missing: Iterable[str]) -> None:
    """Refuse missing weights, which transformers would initialize at random."""
    names = sorted(missing)
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise ValueError(
            f"The model {name!r} cannot be loaded: its files lack {len(names)} of its weights "
            f"({shown}), which would be random numbers. Is it a model without a head, or a part of "
            "one?"
        )
