"""Images as inputs of models: reading them, and the patches that are entries of a record."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from captum_lrpx.targets.media import Layout, Medium

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


_CELLS: Final = 16
"""Largest number of patches of an image, in width and in height, in a record."""


def _opened(_part: Any, image: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(image, (str, Path)):
        return image, {}
    try:
        from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError(
            "Reading an image file needs Pillow: pip install 'captum-lrpx[images]'."
        ) from error
    if not Path(image).is_file():
        raise ValueError(f"There is no image {str(image)!r}.")
    try:
        return Image.open(image).convert("RGB"), {}
    except UnidentifiedImageError as error:
        raise ValueError(f"{str(image)!r} is no image that Pillow can read.") from error


def _layout(model: Any, part: Any, made: dict[str, Any], pixels: Tensor, _image: Any) -> Layout:
    unfold = _unfolding(part, made, pixels)
    seen = unfold(pixels)
    if seen.ndim not in (4, 5) or len(seen) != 1:
        raise ValueError(
            f"The processor makes pixels {tuple(pixels.shape)} of the image, and it is unknown "
            "where in the image they are: give LRPx a forward function of the pixels."
        )
    size = _patch_size(model, *seen.shape[-2:])
    images = seen.reshape(-1, *seen.shape[-3:])
    frames = part.temporal_patch_size if seen.shape != pixels.shape else 1
    numbered = (f"image {1 + each}" for each in range(len(images)))
    return Layout(
        unfold,
        ("image",) if len(images) == 1 else tuple(numbered),
        (size, size),
        lambda name, row, column: f"{name} {row},{column}",
        tuple(_picture(part, image / frames) for image in images),
    )


def _unfolding(part: Any, given: dict[str, Any], pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """Map pixels, or their relevances, to images ``[1, C, H, W]`` or ``[1, N, C, H, W]``.

    Qwen-VL's processors make rows of patches ``[P, C * frames * size * size]``, in squares that
    each become one token; an image is repeated as frames, which are summed.
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
    """Size of the model's own patches, or of groups of patches if there are too many."""
    parts = (getattr(model.config, name, None) for name in ("vision_config", "encoder"))
    config = next((part for part in parts if part is not None), model.config)
    own = getattr(config, "patch_size", None)
    size = own if isinstance(own, int) and 0 < own <= min(height, width) else 1
    return size * max(1, math.ceil(max(height, width) / (size * _CELLS)))


IMAGE: Final = Medium(
    name="image",
    one="an image",
    many="images",
    inputs=("pixel_values",),
    part="image_processor",
    keyword="images",
    loader="AutoImageProcessor",
    opened=_opened,
    layout=_layout,
)
"""Images: a path, an image of Pillow, or an array or tensor ``[3, H, W]``."""


# Pictures -----------------------------------------------------------------------------------------


def _picture(part: Any, image: Tensor) -> str:
    """An image ``[C, H, W]`` as the model sees it, before normalization, as PNG in base64."""
    if not getattr(part, "do_normalize", False) or part.image_mean is None:
        return png_in_base64(image)
    mean, deviation = (
        torch.tensor(each).view(-1, 1, 1) for each in (part.image_mean, part.image_std)
    )
    return png_in_base64(image.detach().float().cpu() * deviation + mean, scaled=False)


def png_in_base64(image: Tensor, *, scaled: bool = True) -> str:
    """Encode an image as PNG, in base64.

    Args:
        image: ``[C, H, W]``; unless there are three channels, the first one is drawn in gray.
        scaled: Whether black and white are its smallest and largest value, else 0 and 1.
    """
    shown = image.detach().float().cpu()
    if scaled:
        low, high = shown.min(), shown.max()
        shown = (shown - low) / (high - low).clamp(min=1e-12)
    numbers = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    if len(numbers) != 3:
        numbers = numbers[:1].expand(3, -1, -1)
    return base64.b64encode(_png(numbers)).decode("ascii")


def _png(numbers: Tensor) -> bytes:
    """Encode an image as PNG.

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
