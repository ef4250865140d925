"""Transformers compiled from programs, with known dependences on their inputs.

Weights and program come from Tracr (see ``benchmarks/compile_programs.py``), the module is plain
PyTorch. The set of letters that a result depends on is found without any attribution: by
replacing every letter by every other one and comparing the results.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from captum_lrpx.names import suggestion

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["PROGRAMS", "Program", "Vocabulary", "load_program"]

PROGRAMS = ("fraction", "count", "reverse", "sort", "dyck")
"""The programs.

- ``"fraction"``: the share of x among the letters so far, a number;
- ``"count"``: the number of x so far;
- ``"reverse"``: the letters in reverse order;
- ``"sort"``: the digits in ascending order;
- ``"dyck"``: whether all parentheses are balanced, at every position.
"""

_SAME = 1e-3
"""Tolerance of numbers, computed by attention in float32; other results are exact choices."""


class Vocabulary(NamedTuple):
    """Inputs and outputs of a program.

    Attributes:
        tokens: The letters and the compiler's additional tokens, by id.
        letters: The letters allowed in a text.
        results: The values of its result by index; empty if it is a number.
        longest: Largest number of letters of a text.
    """

    tokens: tuple[str, ...]
    letters: tuple[str, ...]
    results: tuple[str, ...]
    longest: int


class _Block(nn.Module):
    """Attention and an MLP, each added to the stream, without norms."""

    def __init__(self, width: int, heads: int, inner: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, inner), nn.Linear(width, inner)
        self.value, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            each(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, dim=-1)
        x = x + self.output((weights @ v).transpose(1, 2).flatten(2))
        found: Tensor = x + self.down(torch.relu(self.up(x)))
        return found


class Program(nn.Module):
    """A compiled program.

    Args:
        weights: Its parameters by name.
        heads: Number of heads.
        vocabulary: Its inputs and outputs.

    Attributes:
        vocabulary: As given.
    """

    def __init__(self, weights: dict[str, Tensor], heads: int, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        inner, width = weights["blocks.0.query.weight"].shape
        hidden = len(weights["blocks.0.up.weight"])
        layers = sum(name.endswith("query.weight") for name in weights)
        self.tokens = nn.Embedding(*weights["tokens.weight"].shape)
        self.positions = nn.Embedding(*weights["positions.weight"].shape)
        self.blocks = nn.ModuleList([_Block(width, heads, inner, hidden) for _ in range(layers)])
        self.read = nn.Linear(width, len(weights["read.weight"]), bias=False)
        self.load_state_dict(weights)

    def forward(self, ids: Tensor) -> Tensor:
        """Compute the result at each position.

        Args:
            ids: Token ids ``[B, T]``, of which the first is the start token.

        Returns:
            ``[B, T, C]``: nearly 1 for the result and 0 for the other values, or the number itself
            with ``C = 1``. The output at the start token has no meaning.
        """
        return self.of_embeddings(self.tokens(ids))

    def of_embeddings(self, embeddings: Tensor) -> Tensor:
        """Compute the result from embeddings of tokens ``[B, T, D]``, like :meth:`forward`."""
        places = torch.arange(embeddings.shape[1], device=embeddings.device)
        x = embeddings + self.positions(places)
        for block in self.blocks:
            x = block(x)
        found: Tensor = self.read(x)
        return found

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Encode texts of one length as ids, with the start token in front.

        Args:
            texts: Letters.

        Returns:
            ``[B, 1 + T]``.

        Raises:
            ValueError: If a text has other characters than letters of the program, the texts differ
                in length, or they are longer than the program was compiled for.
        """
        known, longest = self.vocabulary.letters, self.vocabulary.longest
        for text in texts:
            strange = set(text) - set(known)
            if strange:
                raise ValueError(
                    f"The program reads {', '.join(known)}, not {', '.join(sorted(strange))}."
                )
            if not 1 <= len(text) <= longest or len(text) != len(texts[0]):
                raise ValueError(
                    f"Texts of the program have 1 to {longest} letters, all the same number: "
                    f"{text!r} has {len(text)}."
                )
        tokens = self.vocabulary.tokens
        return torch.tensor([[tokens.index(each) for each in ("BOS", *text)] for text in texts])

    @torch.no_grad()
    def results(self, ids: Tensor) -> Tensor:
        """Compute the number, or the index of the result, at each position ``[B, T]``."""
        found: Tensor = self(ids)
        return found.argmax(-1) if self.vocabulary.results else found.squeeze(-1)

    def dependence(self, ids: Tensor, position: int | Tensor) -> Tensor:
        """Find the letters that a result depends on, by trying all replacements.

        Args:
            ids: Token ids ``[B, T]``.
            position: Position of the result, one for all rows or one for each ``[B]``.

        Returns:
            ``[B, T]``: whether some other letter in this place, all else equal, changes the
            result; False for the start token, which has no alternative.
        """
        rows = torch.arange(len(ids), device=ids.device)
        results = self.results(ids)[rows, position]
        matters = torch.zeros_like(ids, dtype=torch.bool)
        for place in range(1, ids.shape[1]):
            for letter in self.vocabulary.letters:
                other = ids.clone()
                other[:, place] = self.vocabulary.tokens.index(letter)
                change = (self.results(other)[rows, position] - results).abs()
                matters[:, place] |= change > _SAME
        return matters


def load_program(name: str) -> Program:
    """Load a compiled program, in evaluation mode.

    Args:
        name: One of :data:`PROGRAMS`.

    Raises:
        ValueError: If there is no such program.
    """
    if name not in PROGRAMS:
        meant = suggestion(name, PROGRAMS)
        raise ValueError(f"unknown program {name!r}{meant}, there are: {', '.join(PROGRAMS)}")
    path = Path(__file__).resolve().parent / "rasp" / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        told: dict[str, Any] = json.loads(file.metadata()["program"])
    vocabulary = Vocabulary(
        tuple(told["vocabulary"]), tuple(told["letters"]), tuple(told["results"]), told["longest"]
    )
    return Program(weights, told["heads"], vocabulary).eval()
