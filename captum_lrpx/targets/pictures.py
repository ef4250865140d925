"""Images as inputs: what a processor makes of them, and their patches as entries of a record."""

from __future__ import annotations

import base64
import inspect
import math
import struct
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx.models import device_of
from captum_lrpx.targets.encoding import Encoding, encoding_of_ids
from captum_lrpx.targets.head import output_of
from captum_lrpx.targets.scene import Part, Scene, of_tokens
from captum_lrpx.targets.target import chosen_class

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.targets.inputs import Given

__all__ = ["image_processor_of", "needs_image", "picture_scene", "png", "reads_images"]

_CELLS: Final = 16
"""An image is at most so many patches wide and high in a record."""

_PIXELS: Final = "pixel_values"


def reads_images(model: nn.Module) -> bool:
    """Whether a Hugging Face model takes pixels."""
    return _PIXELS in inspect.signature(model.forward).parameters


def needs_image(model: nn.Module) -> bool:
    """Whether a Hugging Face model has no head for a text alone, as one for images and texts."""
    kind = type(model).__name__
    return reads_images(model) and kind.endswith(("ForConditionalGeneration", "Classification"))


def _reads_text(model: nn.Module) -> bool:
    return "input_ids" in inspect.signature(model.forward).parameters


def image_processor_of(processor: Any) -> Any:
    """The part of a processor that reads images; None if it has none."""
    part = getattr(processor, "image_processor", None)
    if part is not None:
        return part
    return processor if _PIXELS in getattr(processor, "model_input_names", ()) else None


def picture_scene(model: Any, processor: Any, image: Any, text: Given | None) -> Scene:
    """An image for a classifier of images, or an image and a text for a language model.

    Args:
        model: A Hugging Face model that reads images.
        processor: Its processor.
        image: Path of an image, an image of PIL, or an array or tensor ``[3, H, W]``.
        text: The text; None for a classifier.

    Raises:
        ValueError: If model, processor, image and text do not belong together.
        TypeError: If the processor reads no images.
        ImportError: If PIL is missing and the image is a file.
    """
    part = image_processor_of(processor)
    if not reads_images(model):
        raise ValueError(f"{type(model).__name__} reads no images: leave `image` out.")
    if part is None:
        raise TypeError(
            f"{type(processor).__name__} reads no images: give the processor of the model, "
            "`AutoProcessor.from_pretrained(name)` or `AutoImageProcessor.from_pretrained(name)`."
        )
    opened = _opened(image)
    device, dtype = device_of(model), next(model.parameters()).dtype
    if not _reads_text(model):
        if text is not None:
            raise ValueError(f"{type(model).__name__} reads images and no text: give None for it.")
        given = dict(part(images=opened, return_tensors="pt"))
    elif not (isinstance(text, str) and text.strip()):
        raise ValueError(
            f"{type(model).__name__} reads an image along with a text: give the text as well."
        )
    else:
        given = dict(processor(images=opened, text=_prompt(processor, text), return_tensors="pt"))
    for name, value in given.items():
        moved = value.to(device)
        given[name] = moved.to(dtype) if moved.is_floating_point() else moved
    return _scene(model, processor, part, given)


def _opened(image: Any) -> Any:
    if not isinstance(image, (str, Path)):
        return image
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            "Reading an image file needs Pillow: pip install 'captum-lrpx[images]'."
        ) from error
    if not Path(image).is_file():
        raise ValueError(f"There is no image {str(image)!r}.")
    try:
        return Image.open(image).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(image)!r} is no image that Pillow can read.") from error


def _prompt(processor: Any, text: str) -> str:
    """The text with a place for the image, as the chat template writes it where there is one."""
    mark = getattr(processor, "image_token", None)
    if mark is not None and mark in text:
        return text
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        written: str = processor.apply_chat_template(messages, add_generation_prompt=True)
        return written
    return text if mark is None else f"{mark}\n{text}"


# Entries ------------------------------------------------------------------------------------------


class _Outputs(nn.Module):
    """Classes ``[B, C]``, or the tokens that come next, of a model with several inputs by name."""

    def __init__(self, model: nn.Module, names: Sequence[str], rest: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.rest = rest

    def forward(self, *inputs: Tensor) -> Tensor:
        """Outputs for inputs in the order of the names."""
        keywords = self.rest | dict(zip(self.names, inputs, strict=True))
        logits = output_of(self.model(**keywords), "logits")
        return logits[:, -1] if logits.ndim == 3 else logits


def _scene(model: Any, processor: Any, part: Any, given: dict[str, Any]) -> Scene:
    pixels = given.pop(_PIXELS)
    unfold = _unfolding(part, given, pixels)
    seen = unfold(pixels)
    if seen.ndim not in (4, 5) or len(seen) != 1:
        raise ValueError(
            f"The processor makes pixels {tuple(pixels.shape)} of the image, and it is unknown "
            "where in the image they are: give LRPx a forward function of the pixels."
        )
    size = _patch_size(model, *seen.shape[-2:])
    images = seen.reshape(-1, *seen.shape[-3:])
    grid = (math.ceil(images.shape[2] / size), math.ceil(images.shape[3] / size))
    cells = grid[0] * grid[1]
    frames = part.temporal_patch_size if seen.shape != pixels.shape else 1
    names = ["image"] if len(images) == 1 else [f"image {1 + each}" for each in range(len(images))]
    parts = tuple(
        Part(name, number * cells, (number + 1) * cells, grid, _picture(part, image / frames))
        for number, (name, image) in enumerate(zip(names, images, strict=True))
    )
    patches = _patches(names, grid)
    if not _reads_text(model):
        return Scene(
            _Outputs(model, (_PIXELS,), given),
            (pixels,),
            patches,
            parts,
            lambda found: _sums(unfold(found[0]), size),
            "sequence-classification",
            partial(chosen_class, model),
            lambda numbers: tuple(str(model.config.id2label.get(each, each)) for each in numbers),
        )
    ids = given.pop("input_ids")
    mark = getattr(processor, "image_token_id", getattr(model.config, "image_token_id", None))
    kept = [at for at, number in enumerate(ids[0].tolist()) if number != mark]
    text = encoding_of_ids(processor.tokenizer, ids[0, kept].tolist())
    first = len(patches.ids)
    return Scene(
        _Outputs(model, ("input_ids", _PIXELS), {**given, "use_cache": False}),
        (ids, pixels),
        _with_text(patches, text),
        (*parts, Part("text", first, first + len(kept))),
        lambda found: torch.cat([_sums(unfold(found[1]), size), found[0][:, kept]], dim=1),
        *of_tokens(model, processor.tokenizer, text),
        position=first + len(kept) - 1,
    )


def _unfolding(part: Any, given: dict[str, Any], pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """From pixels, or their relevances, to images ``[1, C, H, W]`` or ``[1, N, C, H, W]``.

    Qwen-VL's processors make rows of patches ``[P, C * frames * size * size]``, in squares of which
    the model makes one token each; an image is repeated as frames, which are summed.
    """
    grid = given.get("image_grid_thw")
    if pixels.ndim != 2 or grid is None or len(grid) != 1 or int(grid[0, 0]) != 1:
        return lambda rows: rows
    _, rows, columns = grid[0].tolist()
    merged, size, frames = part.merge_size, part.patch_size, part.temporal_patch_size

    def unfold(patches: Tensor) -> Tensor:
        squares = patches.reshape(
            rows // merged, columns // merged, merged, merged, -1, frames, size, size
        ).sum(5)
        image = squares.permute(4, 0, 2, 5, 1, 3, 6)
        return image.reshape(1, -1, rows * size, columns * size)

    return unfold


def _patch_size(model: Any, height: int, width: int) -> int:
    """The model's own patches, or as many of them as make at most so many cells."""
    config = getattr(model.config, "vision_config", model.config)
    own = getattr(config, "patch_size", None)
    size = own if isinstance(own, int) and 0 < own <= min(height, width) else 1
    return size * max(1, math.ceil(max(height, width) / (size * _CELLS)))


def _sums(relevance: Tensor, size: int) -> Tensor:
    """Relevances of pixels ``[1, ..., C, H, W]`` summed over patches ``[1, N]``."""
    pixels = relevance.reshape(-1, *relevance.shape[-3:]).sum(1)
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % size, 0, -height % size))
    rows, columns = padded.shape[1] // size, padded.shape[2] // size
    return padded.reshape(-1, rows, size, columns, size).sum((2, 4)).reshape(1, -1)


def _patches(names: Sequence[str], grid: tuple[int, int]) -> Encoding:
    """Patches as entries that stand in no text."""
    labels = tuple(
        f"{name} {row},{column}"
        for name in names
        for row in range(grid[0])
        for column in range(grid[1])
    )
    count = len(labels)
    return Encoding("", (-1,) * count, labels, ((0, 0),) * count, (False,) * count)


def _with_text(patches: Encoding, text: Encoding) -> Encoding:
    return Encoding(
        text.text,
        patches.ids + text.ids,
        patches.tokens + text.tokens,
        patches.offsets + text.offsets,
        patches.special + text.special,
    )


# Pictures -----------------------------------------------------------------------------------------


def _picture(part: Any, image: Tensor) -> str:
    """An image ``[C, H, W]`` as the model sees it, before it was normalized, as PNG in base64."""
    shown = image.detach().float().cpu()
    if getattr(part, "do_normalize", False) and part.image_mean is not None:
        mean, deviation = (torch.tensor(each).view(-1, 1, 1) for each in
                           (part.image_mean, part.image_std))  # fmt: skip
        shown = shown * deviation + mean
    else:
        low, high = shown.min(), shown.max()
        shown = (shown - low) / (high - low).clamp(min=1e-12)
    numbers = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    if len(numbers) != 3:
        numbers = numbers[:1].expand(3, -1, -1)
    return base64.b64encode(png(numbers)).decode("ascii")


def png(numbers: Tensor) -> bytes:
    """An image as PNG.

    Args:
        numbers: Red, green and blue, ``uint8 [3, H, W]``.
    """
    height, width = numbers.shape[1:]
    rows = numbers.permute(1, 2, 0).reshape(height, -1).contiguous().numpy()
    lines = b"".join(b"\x00" + row.tobytes() for row in rows)

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )
