"""Several inputs as one question: source and decoder text; image, audio, text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx.models import device_of
from captum_lrpx.targets.decoder import DecoderLogits, written_ids
from captum_lrpx.targets.encoding import Encoding, check_length, encode_for, encoding_of_ids
from captum_lrpx.targets.forward import OutputFunction
from captum_lrpx.targets.inputs import check_known
from captum_lrpx.targets.outputs import tokens_of
from captum_lrpx.targets.quantity import in_quantity
from captum_lrpx.targets.query import Query
from captum_lrpx.targets.standing import ranked

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.targets.inputs import Given, TokenIds
    from captum_lrpx.targets.outputs import Outputs
    from captum_lrpx.targets.quantity import Quantity
    from captum_lrpx.targets.query import Terms
    from captum_lrpx.targets.standing import Standing
    from captum_lrpx.targets.target import Target


@dataclass(frozen=True)
class Part:
    """The entries of an explanation that belong to one input.

    Attributes:
        name: Name of the input: ``"source"`` and ``"written"`` of an encoder-decoder, ``"image"``,
            ``"audio"`` (and ``"padding"`` after it), ``"text"``.
        first: Its first entry.
        stop: The entry after its last one.
        grid: Rows and columns, for an image or audio whose entries are cells, row by row; None for
            a text.
        picture: The image, or the spectrogram or wave, as PNG, in base64; None for a text.
    """

    name: str
    first: int
    stop: int
    grid: tuple[int, int] | None = None
    picture: str | None = None

    def __post_init__(self) -> None:
        size = self.stop - self.first
        if size < 0 or (self.grid is not None and self.grid[0] * self.grid[1] != size):
            raise ValueError(f"the part {self.name!r} has {size} entries, and the grid {self.grid}")


@dataclass(frozen=True)
class Scene:
    """Several inputs of a model, and their entries in a record.

    Attributes:
        outputs: Forward module that computes outputs ``[B, C]`` from the inputs.
        inputs: The inputs, in batches of one.
        entries: All entries, as one text.
        parts: The input that entries belong to.
        gather: Maps relevances of the inputs to relevances of the entries ``[1, N]``.
        known: Its outputs, by name.
        position: The entry whose logits are read, if there is one.
    """

    outputs: nn.Module
    inputs: tuple[Tensor, ...]
    entries: Encoding
    parts: tuple[Part, ...]
    gather: Callable[[Sequence[Tensor]], Tensor]
    known: Outputs
    position: int | None = None

    def ask(self, target: Target) -> Query:
        """Make a query for a target, without arguments besides the inputs.

        Raises:
            ValueError: If the target is a span or has a position, or a word is unknown.
            IndexError: If a token id or class is out of range.
        """
        if target.span is not None or target.position is not None:
            raise ValueError(
                "Spans and positions can be explained for a single text only: with "
                "several inputs the next token or a class is."
            )
        if callable(target.token):
            return self._query(OutputFunction(self.outputs, target.token), target, None)
        terms = target.chosen(self.known, lambda: int(self.rows().argmax()))
        return self._query(_Chosen(self.outputs, terms, target.quantity), target, terms)

    def _query(self, forward: nn.Module, target: Target, terms: Terms | None) -> Query:
        return Query(
            forward,
            self.inputs,
            encodings=(self.entries,),
            terms=(terms,),
            positions=(self.position,),
            descriptions=(target.in_words(self.known.task, terms),),
            gather=self.gather,
        )

    def rows(self) -> Tensor:
        """All outputs ``[1, C]``."""
        with torch.no_grad():
            rows: Tensor = self.outputs(*self.inputs)
        return rows

    def standings(self, terms: Terms) -> tuple[Standing, ...]:
        """Rank and probability of each term; none for a model with a single output."""
        rows = self.rows()
        return ranked(terms, rows, in_quantity(rows, "prob")) if rows.shape[1] > 1 else ()


class _Chosen(nn.Module):
    """Weighted sum of outputs of a forward module with several inputs. No ``target``."""

    def __init__(self, outputs: nn.Module, terms: Terms, quantity: Quantity) -> None:
        super().__init__()
        self.inner = outputs
        self.terms = terms
        self.quantity = quantity

    def forward(self, *inputs: Tensor) -> Tensor:
        """Compute the sum for each example, ``[B]``."""
        outputs = in_quantity(self.inner(*inputs), self.quantity)
        chosen = outputs[:, list(self.terms.choices)]
        return (chosen * chosen.new_tensor(self.terms.weights)).sum(1)


# Encoder-decoders ---------------------------------------------------------------------------------


def sequence_scene(
    model: Any, tokenizer: Any, given: Given | None, written: str | TokenIds | int = ""
) -> Scene:
    """Make a scene of a source and the decoder's text so far.

    Args:
        model: A Hugging Face encoder-decoder.
        tokenizer: Its tokenizer.
        given: The source: a text, token ids, or the tokenizer's output for it.
        written: The text so far, its token ids without the start token, or a number of tokens to
            generate, greedily.

    Raises:
        ValueError: If a text is empty or too long, or ids are of another tokenizer.
        TypeError: If the source is none of these.
    """
    text: Given = "" if given is None else given
    source = encode_for("sequence-classification", tokenizer, text, None, model)
    check_length(model, len(source.ids))
    device = device_of(model)
    ids = torch.tensor([source.ids], device=device)
    target = encoding_of_ids(tokenizer, list(written_ids(model, tokenizer, ids, written)))
    check_known(model, target.ids)
    check_length(model, len(target.ids))
    length, size = len(source.ids), len(source.ids) + len(target.ids)
    return Scene(
        DecoderLogits(model),
        (ids, torch.tensor([target.ids], device=device)),
        _joined(source, target),
        (Part("source", 0, length), Part("written", length, size)),
        lambda relevances: torch.cat(tuple(relevances), dim=1),
        tokens_of(model, tokenizer, target),
        position=size - 1,
    )


def _joined(first: Encoding, second: Encoding) -> Encoding:
    """Two texts as one, on two lines."""
    shift = len(first.text) + 1
    return replace(
        first,
        text=f"{first.text}\n{second.text}",
        ids=(*first.ids, *second.ids),
        tokens=(*first.tokens, *second.tokens),
        offsets=(
            *first.offsets,
            *((a + shift, b + shift) if a < b else (0, 0) for a, b in second.offsets),
        ),
        special=(*first.special, *second.special),
        template=None,
        token_types=None,
        second=shift,
    )
