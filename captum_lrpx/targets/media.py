"""Images and audio as inputs: the output of a processor, with its cells as entries of a record.

Images and spectrograms are alike: planes of numbers, whose cells are the entries. The differences
are in :mod:`captum_lrpx.targets.images` and :mod:`captum_lrpx.targets.sounds`.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from captum_lrpx.models import device_of
from captum_lrpx.targets.decoder import DecoderLogits, is_encoder_decoder, written_ids
from captum_lrpx.targets.encoding import (
    Encoding,
    check_length,
    encoding_of_ids,
    vocabulary_size,
)
from captum_lrpx.targets.head import output_of
from captum_lrpx.targets.inputs import check_known
from captum_lrpx.targets.outputs import classes_of, tokens_of
from captum_lrpx.targets.scene import Part, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.targets.inputs import Given, TokenIds

    Written = str | TokenIds | int | None


@dataclass(frozen=True)
class Layout:
    """Arrangement of the numbers of an input, and their cells, the entries of a record.

    Attributes:
        planes: Maps an input, or its relevances, to ``[1, N, C, H, W]`` or ``[1, C, H, W]``.
        names: Names of the N planes.
        cell: Height and width of a cell.
        label: Label of a cell from plane, row and column.
        pictures: Each plane as PNG in base64.
        width: Columns that are drawn; those after it are padding. Default: all.
    """

    planes: Callable[[Tensor], Tensor]
    names: tuple[str, ...]
    cell: tuple[int, int]
    label: Callable[[str, int, int], str]
    pictures: tuple[str, ...]
    width: int | None = None


@dataclass(frozen=True)
class Medium:
    """A kind of input besides text.

    Attributes:
        name: Its name: the argument of :func:`captum_lrpx.explain`.
        one: One of it, in words.
        many: Several, in words.
        inputs: Names of model inputs of this kind.
        part: The attribute of a processor that reads it.
        keyword: The argument of a processor.
        loader: The class of transformers that loads its reader.
        opened: Maps the user's value to the reader's input and further arguments.
        layout: Returns the layout, from the model, the reader, the reader's further outputs, the
            input, and the value read.
    """

    name: str
    one: str
    many: str
    inputs: tuple[str, ...]
    part: str
    keyword: str
    loader: str
    opened: Callable[[Any, Any], tuple[Any, dict[str, Any]]]
    layout: Callable[[Any, Any, dict[str, Any], Tensor, Any], Layout]

    def input_of(self, model: nn.Module) -> str | None:
        """Name of a Hugging Face model's input of this kind; None if it has none."""
        taken = inspect.signature(model.forward).parameters
        return next((name for name in self.inputs if name in taken), None)

    def is_needed(self, model: nn.Module) -> bool:
        """Whether a Hugging Face model requires such an input besides text."""
        if self.input_of(model) is None:
            return False
        name = type(model).__name__
        main = getattr(model, "main_input_name", None)
        return main in self.inputs or name.endswith(("ForConditionalGeneration", "Classification"))

    def reader_of(self, processor: Any) -> Any:
        """The part of a processor that reads this kind; None if it has none."""
        part = getattr(processor, self.part, None)
        if part is not None:
            return part
        read = getattr(processor, "model_input_names", ())
        return processor if any(name in read for name in self.inputs) else None


def media_scene(
    medium: Medium,
    model: Any,
    processor: Any,
    given: Any,
    text: Given | None,
    written: Written = None,
) -> Scene:
    """Make a scene of an image or audio: for a classifier, for a decoder, or along with a text.

    Args:
        medium: The kind.
        model: A Hugging Face model that reads it.
        processor: Its processor.
        given: The image or audio.
        text: The text, for a language model; None for a classifier and for a decoder.
        written: The decoder's text so far, see :func:`captum_lrpx.explain`.

    Raises:
        ValueError: If model, processor, text and medium do not fit together.
        TypeError: If the processor does not read it.
        ImportError: If Pillow is missing and an image is a file.
    """
    name, kind = medium.input_of(model), type(model).__name__
    if name is None:
        raise ValueError(f"{kind} reads no {medium.many}: leave `{medium.name}` out.")
    part = medium.reader_of(processor)
    if part is None:
        raise TypeError(
            f"{type(processor).__name__} reads no {medium.many}: pass the processor of the model, "
            f"`AutoProcessor.from_pretrained(name)` or `{medium.loader}.from_pretrained(name)`."
        )
    writes = is_encoder_decoder(model) and model.main_input_name == name
    if written is not None and not writes:
        raise ValueError(
            f"`written` is for an encoder-decoder, and {kind} is none that reads {medium.many}."
        )
    opened, options = medium.opened(part, given)
    if writes or not _reads_text(model):
        if text is not None:
            raise ValueError(f"{kind} reads {medium.many} and no text: give None for it.")
        made = part(opened, return_tensors="pt", **options)
    elif not (isinstance(text, str) and text.strip()):
        raise ValueError(f"{kind} reads {medium.one} along with a text: give the text as well.")
    else:
        options[medium.keyword] = opened
        made = processor(text=_prompt(medium, processor, text), return_tensors="pt", **options)
    made = _for_model(model, dict(made))
    numbers = made.pop(name)
    cells = _Cells(medium.layout(model, part, made, numbers, opened), numbers)
    if writes:
        return _decoder_scene(model, _tokenizer_of(medium, processor), numbers, cells, written)
    if _reads_text(model):
        return _text_scene(medium, model, processor, name, {**made, name: numbers}, cells)
    return Scene(
        _Outputs(model, (name,), made),
        (numbers,),
        cells.entries,
        cells.parts,
        lambda found: cells.sums(found[0]),
        classes_of(model),
    )


def _reads_text(model: nn.Module) -> bool:
    return "input_ids" in inspect.signature(model.forward).parameters


def _for_model(model: Any, made: dict[str, Any]) -> dict[str, Any]:
    """The output of a processor, on the device and in the precision of a model."""
    device, dtype = device_of(model), next(model.parameters()).dtype
    moved = {}
    for name, value in made.items():
        there = value.to(device)
        moved[name] = there.to(dtype) if there.is_floating_point() else there
    return moved


def _prompt(medium: Medium, processor: Any, text: str) -> str:
    """The text with a place for the medium, as in the chat template if there is one."""
    mark = getattr(processor, f"{medium.name}_token", None)
    if mark is not None and mark in text:
        return text
    if getattr(processor, "chat_template", None):
        content = [{"type": medium.name}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": content}]
        written: str = processor.apply_chat_template(messages, add_generation_prompt=True)
        return written
    return text if mark is None else f"{mark}\n{text}"


def _tokenizer_of(medium: Medium, processor: Any) -> Any:
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise TypeError(
            f"{type(processor).__name__} reads {medium.many} and writes no text: give the "
            "processor of the model with its tokenizer, `AutoProcessor.from_pretrained(name)`."
        )
    return tokenizer


# Scenes -------------------------------------------------------------------------------------------


class _Outputs(nn.Module):
    """Classes ``[B, C]``, or logits of the next token, of a model with several inputs by name."""

    def __init__(self, model: nn.Module, names: Sequence[str], rest: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        taken = inspect.signature(model.forward).parameters
        self.rest = {name: value for name, value in rest.items() if name in taken}

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute outputs for inputs in the order of the names."""
        keywords = self.rest | dict(zip(self.names, inputs, strict=True))
        logits = output_of(self.model(**keywords), "logits")
        if logits.ndim == 3 and "input_ids" not in self.names:
            raise ValueError(
                f"{type(self.model).__name__} returns outputs {tuple(logits.shape)}, more than one "
                "row for an input: give LRPx a forward function that chooses one."
            )
        return logits[:, -1] if logits.ndim == 3 else logits


def _text_scene(
    medium: Medium,
    model: Any,
    processor: Any,
    name: str,
    made: dict[str, Any],
    cells: _Cells,
) -> Scene:
    """Scene of a language model that reads the medium and a text."""
    ids, numbers = made.pop("input_ids"), made.pop(name)
    key = f"{medium.name}_token_id"
    mark = getattr(processor, key, getattr(model.config, key, None))
    kept = [at for at, number in enumerate(ids[0].tolist()) if number != mark]
    text = encoding_of_ids(processor.tokenizer, ids[0, kept].tolist())
    first = len(cells.entries.ids)
    return Scene(
        _Outputs(model, ("input_ids", name), {**made, "use_cache": False}),
        (ids, numbers),
        _with_text(cells.entries, text),
        (*cells.parts, Part("text", first, first + len(kept))),
        lambda found: torch.cat([cells.sums(found[1]), found[0][:, kept]], dim=1),
        tokens_of(model, processor.tokenizer, text),
        position=first + len(kept) - 1,
    )


def _decoder_scene(
    model: Any, tokenizer: Any, numbers: Tensor, cells: _Cells, written: Written
) -> Scene:
    """Scene of an encoder-decoder that reads no text but writes one."""
    so_far = written_ids(model, tokenizer, numbers, "" if written is None else written)
    text = encoding_of_ids(tokenizer, list(so_far))
    check_known(model, text.ids, size=vocabulary_size(model))
    check_length(model, len(text.ids))
    first, size = len(cells.entries.ids), len(cells.entries.ids) + len(text.ids)
    return Scene(
        DecoderLogits(model),
        (numbers, torch.tensor([text.ids], device=numbers.device)),
        _with_text(cells.entries, text),
        (*cells.parts, Part("written", first, size)),
        lambda found: torch.cat([cells.sums(found[0]), found[1]], dim=1),
        tokens_of(model, tokenizer, text),
        position=size - 1,
    )


# Entries ------------------------------------------------------------------------------------------


class _Cells:
    """Cells of an input as entries outside of any text, and one entry for its padding.

    Attributes:
        entries: The entries.
        parts: A part for each plane, and one for padding.
    """

    entries: Encoding
    parts: tuple[Part, ...]

    def __init__(self, layout: Layout, numbers: Tensor) -> None:
        self._layout = layout
        _, count, _, height, width = _as_five(layout.planes(numbers)).shape
        self._width = width if layout.width is None else min(width, layout.width)
        size = layout.cell
        grid = (-(-height // size[0]), -(-self._width // size[1]))
        cells = grid[0] * grid[1]
        labels = [
            layout.label(name, row, column)
            for name in layout.names
            for row in range(grid[0])
            for column in range(grid[1])
        ]
        parts = [
            Part(name, number * cells, (number + 1) * cells, grid, layout.pictures[number])
            for number, name in enumerate(layout.names)
        ]
        self._padded = self._width < width
        if self._padded:
            parts.append(Part("padding", count * cells, count * cells + 1))
            labels.append("(padding)")
        special = (*[False] * (count * cells), *[True] * self._padded)
        self.entries = Encoding(
            "", (-1,) * len(labels), tuple(labels), ((0, 0),) * len(labels), special
        )
        self.parts = tuple(parts)

    def sums(self, relevance: Tensor) -> Tensor:
        """Relevances of the input summed over cells, and over padding ``[1, entries]``."""
        planes = _as_five(self._layout.planes(relevance))
        drawn, rest = planes[..., : self._width], planes[..., self._width :]
        found = _sums(drawn, self._layout.cell)
        return torch.cat([found, rest.sum().reshape(1, 1)], 1) if self._padded else found


def _as_five(planes: Tensor) -> Tensor:
    """Planes ``[1, N, C, H, W]``."""
    return planes if planes.ndim == 5 else planes.unsqueeze(1)


def _sums(planes: Tensor, cell: tuple[int, int]) -> Tensor:
    """Values ``[1, N, C, H, W]`` summed over cells ``[1, N * cells]``."""
    pixels = planes[0].sum(1)
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % cell[1], 0, -height % cell[0]))
    rows, columns = padded.shape[1] // cell[0], padded.shape[2] // cell[1]
    return padded.reshape(-1, rows, cell[0], columns, cell[1]).sum((2, 4)).reshape(1, -1)


def _with_text(cells: Encoding, text: Encoding) -> Encoding:
    return Encoding(
        text.text,
        cells.ids + text.ids,
        cells.tokens + text.tokens,
        cells.offsets + text.offsets,
        cells.special + text.special,
    )
