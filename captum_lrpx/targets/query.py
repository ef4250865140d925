"""A question as tensors: one text or several, each with its own outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from captum_lrpx import _captum
from captum_lrpx.models import device_of, find_model
from captum_lrpx.structure import token_embedding_of
from captum_lrpx.targets.forward import (
    AnswerLogits,
    ClassDifference,
    ClassLogits,
    LogitDifference,
    LogProbabilities,
    OutputFunction,
    OutputSum,
    Probabilities,
    TokenSum,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.target import Target


_BASELINES = ("zero", "mask", "pad", "unk")


@dataclass(frozen=True)
class Terms:
    """A weighted sum of outputs of a model.

    Attributes:
        choices: Token ids, classes, or positions of an answer.
        weights: Weight of each.
        names: Name of each: the token, the class, the token at the position.
        positions: Position at which each is read, for models with outputs per position.
    """

    choices: tuple[int, ...]
    weights: tuple[float, ...]
    names: tuple[str, ...]
    positions: tuple[int, ...] | None = None

    @property
    def position(self) -> int | None:
        """The position, if there is a single one."""
        if self.positions is None or len(set(self.positions)) > 1:
            return None
        return self.positions[0]

    @property
    def is_one(self) -> bool:
        """Whether this is a single output."""
        return self.weights == (1.0,)

    @property
    def is_pair(self) -> bool:
        """Whether this is the difference of two outputs at one place."""
        return self.weights == (1.0, -1.0) and len(set(self.positions or (0,))) == 1


@dataclass(frozen=True)
class Query:
    """Arguments that Captum needs to explain one value for each text of a batch.

    Attributes:
        forward: Forward function, around a Hugging Face model.
        inputs: Token ids ``[B, T]``, padded on the right. With several inputs, or an image: these,
            in batches of one.
        additional_forward_args: Captum's ``additional_forward_args``. Tensors among them have a
            row per text; a ``mask`` must be among them, as the same object.
        target: Captum's ``target``; None if the output has one value per row.
        mask: 1 for tokens and 0 for padding, ``[B, T]``. Default: there is no padding.
        tokenizer: The tokenizer, for baselines that are one of its tokens.
        encodings: The texts; row ``b`` of a result belongs to the tokens of ``encodings[b]``.
        terms: The summed outputs of each row; None for a function of the outputs.
        positions: Position at which the outputs of each row are read, if it is a single one.
        descriptions: The explained value of each row, in words.
        gather: Maps relevances of several inputs to relevances of the entries ``[1, N]``.

    Raises:
        ValueError: If the mask has another shape than the ids, marks padding anywhere but on the
            right, or is not among the arguments.
    """

    forward: nn.Module
    inputs: Tensor | tuple[Tensor, ...]
    additional_forward_args: tuple[Any, ...] = ()
    target: int | None = None
    mask: Tensor | None = None
    tokenizer: Any = None
    encodings: tuple[Encoding, ...] = ()
    terms: tuple[Terms | None, ...] = ()
    positions: tuple[int | None, ...] = ()
    descriptions: tuple[str, ...] = ()
    gather: Callable[[Sequence[Tensor]], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.mask is None:
            return
        if self.mask.shape != self.ids.shape:
            raise ValueError(
                f"The mask has the shape {tuple(self.mask.shape)}, but the ids have "
                f"{tuple(self.ids.shape)}."
            )
        real = self.mask != 0
        if not bool(real[:, 0].all()) or bool((real[:, 1:] & ~real[:, :-1]).any()):
            raise ValueError(
                "The texts of a batch must be padded on the right: each row of the mask is ones "
                "and then zeros."
            )
        if not any(argument is self.mask for argument in self.additional_forward_args):
            raise ValueError(
                "The mask is not among the arguments of the query, so the model would read the "
                "padding: pass the same tensor as `mask` and in `additional_forward_args`."
            )

    @cached_property
    def model(self) -> nn.Module:
        """The Hugging Face model."""
        return find_model(self.forward)

    @property
    def ids(self) -> Tensor:
        """The inputs, if they are token ids ``[B, T]``."""
        assert isinstance(self.inputs, Tensor)  # noqa: S101 - several inputs need rules
        return self.inputs

    @property
    def arguments(self) -> dict[str, Any]:
        """Captum's arguments besides the inputs."""
        return {
            "target": self.target,
            "additional_forward_args": self.additional_forward_args,
        }

    @property
    def rows(self) -> list[Query]:
        """Each text by itself, without padding."""
        return [self.row(index) for index in range(len(self.ids))]

    def row(self, index: int) -> Query:
        """One text by itself, without padding.

        Args:
            index: Index of the text.

        Returns:
            A batch of one.
        """
        if len(self.ids) == 1 and self.mask is None:
            return self
        here = slice(index, index + 1)
        length = self.ids.shape[1] if self.mask is None else int((self.mask[index] != 0).sum())
        mask = None if self.mask is None else self.mask[here, :length]
        arguments = tuple(
            mask if argument is self.mask else _of_row(argument, len(self.ids), here)
            for argument in self.additional_forward_args
        )
        return replace(
            self,
            inputs=self.ids[here, :length],
            additional_forward_args=arguments,
            mask=mask,
            encodings=self.encodings[here],
            terms=self.terms[here],
            positions=self.positions[here],
            descriptions=self.descriptions[here],
        )

    def embeddings(self) -> Tensor:
        """Token embeddings ``[B, T, D]``, which need a gradient."""
        embedding = token_embedding_of(self.model)
        vectors: Tensor = embedding(self.ids).detach()
        return vectors.requires_grad_()

    def baseline(self, name: str) -> Tensor:
        """Replacement of the embeddings, ``[B, T, D]``.

        Args:
            name: ``"zero"``, or a token of the tokenizer: ``"mask"``, ``"pad"``, ``"unk"``.

        Raises:
            ValueError: If the tokenizer has no such token.
        """
        if name == "zero":
            return torch.zeros_like(self.embeddings())
        if name not in _BASELINES:
            raise ValueError(f"The baseline must be one of {', '.join(_BASELINES)}, not {name!r}.")
        token = getattr(self.tokenizer, f"{name}_token_id", None)
        if token is None:
            raise ValueError(f"The tokenizer has no {name} token: choose another baseline.")
        vectors: Tensor = token_embedding_of(self.model)(torch.full_like(self.ids, token))
        return vectors.detach()

    @cached_property
    def values(self) -> Tensor:
        """The explained values ``[B]``, from one forward pass."""
        with torch.no_grad():
            output: Tensor = _captum.run_forward(
                self.forward, self.embeddings(), self.target, self.additional_forward_args
            )
        return output.reshape(-1)

    def real(self, relevances: Tensor | tuple[Tensor, ...]) -> Tensor:
        """Relevances of the inputs by entry ``[B, T]``, zero at the padding."""
        if isinstance(relevances, tuple):
            assert self.gather is not None  # noqa: S101 - for the type checker
            return self.gather([each.detach() for each in relevances])
        relevances = relevances.detach()
        return relevances if self.mask is None else relevances.masked_fill(self.mask == 0, 0)


def _of_row(argument: Any, rows: int, here: slice) -> Any:
    """The part of an argument that belongs to one row."""
    per_row = isinstance(argument, Tensor) and argument.ndim and len(argument) == rows
    return argument[here] if per_row else argument


# Construction -------------------------------------------------------------------------------------


def query_of(
    model: nn.Module,
    tokenizer: Any,
    targets: Sequence[Target],
    encodings: Sequence[Encoding],
    terms: Sequence[Terms | None] | None = None,
    *,
    alone: bool = False,
) -> Query:
    """Turn texts and their targets into tensors.

    Args:
        model: A Hugging Face model with a head, or a module around one, whose own outputs are then
            explained.
        tokenizer: Its tokenizer.
        targets: A target for each text, all of one quantity, end and function.
        encodings: The texts.
        terms: The summed outputs of each text. Default: from its target.
        alone: Whether this is a single text: it gets no mask, a single output is explained by
            Captum's ``target``, and the difference of two by a dedicated forward module.

    Raises:
        ValueError: If a word is unknown or of several tokens, a class does not exist, or a function
            would include padding.
        IndexError: If a position or token id is out of range.
    """
    inner = find_model(model)
    if terms is None:
        terms = [
            None if callable(target.token) else target.terms(model, tokenizer, encoding)
            for target, encoding in zip(targets, encodings, strict=True)
        ]
    positions = tuple(
        target.place(model, tokenizer, encoding) if term is None else term.position
        for target, encoding, term in zip(targets, encodings, terms, strict=True)
    )
    padding = getattr(inner.config, "pad_token_id", None)
    if padding is None:  # a classifier finds its last token by the pad id of its config
        padding = getattr(tokenizer, "pad_token_id", None) or 0
    ids, mask, types = inputs_of(inner, encodings, padding)
    first, outputs = targets[0], targets[0].outputs(model)
    among_positions = callable(first.token) or first.quantity != "logit"
    if isinstance(outputs, AnswerLogits) and among_positions and not bool(mask.all()):
        raise ValueError(
            "A probability or function of the positions of an answer would include the padding: "
            "explain texts of one length in a batch, or each by itself."
        )
    given = None if alone else mask
    forward, chosen, arguments = _forward(model, first, outputs, terms, positions, given, ids)
    return Query(
        forward,
        ids,
        arguments if types is None else (*arguments, types),
        chosen,
        given,
        tokenizer,
        tuple(encodings),
        tuple(terms),
        positions,
        tuple(target.describe(model, term) for target, term in zip(targets, terms, strict=True)),
    )


def _forward(
    model: nn.Module,
    target: Target,
    outputs: nn.Module,
    terms: Sequence[Terms | None],
    places: Sequence[int | None],
    mask: Tensor | None,
    ids: Tensor,
) -> tuple[nn.Module, int | None, tuple[Any, ...]]:
    """Forward module, Captum's target, and arguments; no mask for a single row."""
    rows = [each for each in terms if each is not None]
    at = () if None in places else (torch.tensor(places, device=ids.device),)
    if callable(target.token):
        return OutputFunction(outputs, target.token), None, (mask, *at)
    inner = outputs
    if target.quantity != "logit":
        kind = LogProbabilities if target.quantity == "log_prob" else Probabilities
        inner = kind(outputs)
    if mask is None and rows[0].is_one:
        return inner, rows[0].choices[0], (None, *at)
    choices = table([row.choices for row in rows], device=ids.device)
    weights = table([row.weights for row in rows], dtype=torch.float32, device=ids.device)
    pair = mask is None and rows[0].is_pair and target.quantity == "logit"
    if rows[0].positions is None:
        if pair and isinstance(outputs, ClassLogits):
            return ClassDifference(model), None, (None, *choices.unbind(1))
        return OutputSum(inner), None, (choices, weights, mask)
    if pair:
        return LogitDifference(model), None, (None, *choices.unbind(1), *at)
    positions = table([row.positions or () for row in rows], device=ids.device)
    return TokenSum(model, target.quantity), None, (mask, choices, positions, weights)


def inputs_of(
    model: nn.Module, encodings: Sequence[Encoding], padding: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids, mask, and token types if any, each ``[B, T]``, on the device of a model."""
    device = device_of(model)
    typed = any(each.token_types is not None for each in encodings)
    types = [each.token_types or (0,) * len(each.ids) for each in encodings]
    return (
        table([each.ids for each in encodings], padding, device=device),
        table([(1,) * len(each.ids) for each in encodings], device=device),
        table(types, device=device) if typed else None,
    )


def table(
    rows: Sequence[Sequence[float]],
    fill: float = 0,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.long,
) -> Tensor:
    """Rows of different lengths as one tensor ``[B, N]``, filled on the right."""
    width = max(map(len, rows))
    filled = [[*row, *[fill] * (width - len(row))] for row in rows]
    return torch.tensor(filled, dtype=dtype, device=device)
