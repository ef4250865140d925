"""A ledger: its entries, their sums, what they leave open, and its views."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import torch
from rich.table import Table
from rich.text import Text

from captum_lrpx.characters import readable
from captum_lrpx.conservation.delta_in_words import in_words
from captum_lrpx.visualization.console import plain_text
from captum_lrpx.visualization.markup import table as html_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from torch import Tensor

Kind = Literal[
    "tokens",
    "positions",
    "token_types",
    "bias",
    "mlp",
    "softmax",
    "score_bias",
    "absorbed",
    "rule",
    "output",
]
By = Literal["kind", "layer", "entry"]
Line = tuple[list[str], str, str]
"""Kind, path and layer (as far as a table shows them), amount, and share of the value."""

_FIGURE_SIZE: Final = (8.0, 4.0)


def wide(x: Tensor) -> Tensor:
    """The tensor in the precision of sums: float64 where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


@dataclass(frozen=True, eq=False)
class Entry:
    """One line: an amount of the explained value, and its place.

    Attributes:
        kind: Kind of the line.

            - ``"tokens"``: the relevance of the tokens, as the attribution itself returns it (of
              ALTI-Logit: through each block, and along the residual stream);
            - ``"positions"``: relevance of a table of embeddings indexed by a counter;
            - ``"token_types"``: relevance of a table indexed by anything else but the explained
              tokens;
            - ``"bias"``: relevance of a bias, including the beta of a LayerNorm, or of another
              constant summand;
            - ``"softmax"``: the share of a softmax under the rules of AttnLRP;
            - ``"score_bias"``: relevance of constants added to attention scores (ALiBi, additive
              masks);
            - ``"absorbed"``: loss in a linear layer due to its rule (epsilon, alpha1-beta0,
              Captum's rules);
            - ``"rule"``: gain or loss in a norm, activation, gate or attention whose
              rule does not conserve (the plain gradient);
            - ``"mlp"``: contribution of an MLP, which ALTI-Logit assigns to no token;
            - ``"output"``: the explained quantity minus its gradient times the logits, if
              it is not linear in them (a probability, a log-probability).
        path: Path of the module or parameter in the model; outside of it, name of a function.
        layer: Number of the block, None outside of the blocks.
        amount: ``[B]``, in units of the explained value.
    """

    kind: Kind
    path: str
    layer: int | None
    amount: Tensor


@dataclass(frozen=True, eq=False)
class Ledger:
    """Completeness check of an explained value: ``value = sum of all entries + residual``.

    Attributes:
        method: Name of the attribution.
        value: The explained value of each example ``[B]``, in float64 (float32 where the device has
            no float64), like all amounts.
        entries: The lines, in the order of the computation.
        attributions: Attributions, computed in the same pass.
    """

    method: str
    value: Tensor
    entries: tuple[Entry, ...]
    attributions: Tensor | tuple[Tensor, ...] = field(repr=False)

    # Sums -----------------------------------------------------------------------------------

    @property
    def total(self) -> Tensor:
        """The sum of all entries ``[B]``."""
        return self._sum(self.entries)

    @property
    def residual(self) -> Tensor:
        """``value - total`` ``[B]``: 0 up to rounding, if the account is complete."""
        return self.value - self.total

    @property
    def delta(self) -> Tensor:
        """Explained value minus the relevances of the tokens ``[B]``: the convergence delta."""
        return self.value - self._sum(self.of("tokens"))

    def of(self, kind: Kind, layer: int | None = None) -> tuple[Entry, ...]:
        """Entries of a kind, of one layer or of all."""
        return tuple(
            entry for entry in self.entries if entry.kind == kind and layer in (None, entry.layer)
        )

    def by_kind(self) -> dict[Kind, Tensor]:
        """Sum of the entries of each kind present ``[B]``."""
        present = {entry.kind for entry in self.entries}
        return {kind: self._sum(self.of(kind)) for kind in get_args(Kind) if kind in present}

    def by_layer(self, kind: Kind) -> dict[int | None, Tensor]:
        """Sum of the entries of a kind in each layer ``[B]``; None is outside of the blocks."""
        entries = self.of(kind)
        layers = dict.fromkeys(entry.layer for entry in entries)
        return {
            layer: self._sum(tuple(entry for entry in entries if entry.layer == layer))
            for layer in layers
        }

    def _sum(self, entries: tuple[Entry, ...]) -> Tensor:
        if not entries:
            return torch.zeros_like(self.value)
        return torch.stack([entry.amount for entry in entries]).sum(0)

    # Whether it closes ----------------------------------------------------------------------

    @property
    def largest(self) -> Tensor:
        """The largest absolute number of the account ``[B]``: value, entry or single relevance.

        Numbers of both signs may cancel to a small value, which cannot be more exact than its
        summands.
        """
        of_inputs = self.attributions
        relevances = of_inputs if isinstance(of_inputs, tuple) else (of_inputs,)
        single = [
            _largest_of(each, len(self.value)).to(self.value) for each in relevances if each.numel()
        ]
        amounts = [entry.amount.abs() for entry in self.entries]
        return torch.stack([self.value.abs(), *amounts, *single]).amax(0)

    def relative_residual(self, to: Literal["value", "largest"] = "value") -> Tensor:
        """The absolute residual relative to a scale ``[B]``.

        Args:
            to: ``"value"``: the absolute explained value; ``"largest"``: see :attr:`largest`.

        Raises:
            ValueError: If ``to`` is something else.
        """
        if to not in ("value", "largest"):
            raise ValueError(f"`to` must be 'value' or 'largest', not {to!r}.")
        scale = self.largest if to == "largest" else self.value.abs()
        residual = self.residual.abs()
        return torch.where(residual == 0, 0.0, residual / scale)

    def closes(self, rtol: float = 1e-4, to: Literal["value", "largest"] = "largest") -> bool:
        """Whether the account of every example closes.

        Args:
            rtol: Largest :meth:`relative_residual` allowed. Rounding alone leaves 1e-10 of a
                float64 model and about 1e-6 to 1e-4 of a float32 one.
            to: See :meth:`relative_residual`.
        """
        return bool((self.relative_residual(to) <= rtol).all())

    # Views ----------------------------------------------------------------------------------

    def rows(self, by: By = "kind") -> list[tuple[str, str, int | None, Tensor]]:
        """Kind, path, layer and amount ``[B]`` of each line of a table.

        Args:
            by: One line for each kind, for each kind in each layer, or for each entry.

        Raises:
            ValueError: If ``by`` is something else.
        """
        if by == "entry":
            return [(entry.kind, entry.path, entry.layer, entry.amount) for entry in self.entries]
        if by == "layer":
            return [
                (kind, "", layer, amount)
                for kind in self.by_kind()
                for layer, amount in self.by_layer(kind).items()
            ]
        if by == "kind":
            return [(kind, "", None, amount) for kind, amount in self.by_kind().items()]
        raise ValueError(f"`by` must be 'kind', 'layer' or 'entry', not {by!r}.")

    def table(self, example: int = 0, by: By = "kind") -> Table:
        """A table for the terminal (``rich.print``) or a notebook.

        Args:
            example: Index of the example in the batch.
            by: See :meth:`rows`.
        """
        shown = Table(title=self._title, title_justify="left")
        shown.add_column("kind", no_wrap=True)
        if by == "entry":
            shown.add_column("path", overflow="fold")
        if by != "kind":
            shown.add_column("layer", justify="right")
        shown.add_column("amount", justify="right", no_wrap=True)
        shown.add_column("of the value", justify="right", no_wrap=True)
        lines, totals = self._lines(self._checked(example), by)
        for cells, amount, share in lines:
            shown.add_row(*map(Text, cells), amount, share)
        shown.add_section()
        for (cells, amount, share), style in zip(totals, (None, "bold", None), strict=True):
            shown.add_row(*map(Text, cells), amount, share, style=style)
        return shown

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return plain_text(self.table())

    def _repr_html_(self) -> str:
        """The table of the first example, for a notebook; all text is escaped."""
        left, right = "text-align:left", "text-align:right"
        heads = [("kind", left), ("amount", right), ("of the value", right)]
        lines, totals = self._lines(self._checked(0), "kind")
        rows = [
            [*((cell, left) for cell in cells), (amount, right), (share, right)]
            for cells, amount, share in (*lines, *totals)
        ]
        title = html.escape(readable(self._title))
        return f"<div><p>{title}</p>{html_table(heads, rows)}</div>"

    @property
    def _title(self) -> str:
        return f"Ledger of {self.method}"

    def _lines(self, example: int, by: By) -> tuple[list[Line], list[Line]]:
        """Lines of a table, and the totals below."""
        value = float(self.value[example])

        def line(cells: list[str], amount: float, form: str = "+.6f") -> Line:
            return cells, f"{amount:{form}}", f"{amount / value:.1%}" if value else ""

        lines = []
        for kind, path, layer, amount in self.rows(by):
            number = "" if layer is None else str(layer)
            cells = {"kind": [kind], "layer": [kind, number], "entry": [kind, path, number]}[by]
            lines.append(line(cells, float(amount[example])))
        blank = [""] * {"kind": 0, "layer": 1, "entry": 2}[by]
        totals = [
            line(["sum of the lines", *blank], float(self.total[example])),
            line(["explained value", *blank], value),
            line(["residual", *blank], float(self.residual[example]), "+.1e"),
        ]
        return lines, totals

    def to_pandas(self, by: By = "entry") -> pd.DataFrame:
        """All lines of all examples.

        Args:
            by: See :meth:`rows`.

        Returns:
            Columns ``example``, ``kind``, ``path``, ``layer``, ``amount`` and ``share`` (of the
            explained value).

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            import pandas as pd  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise ImportError(
                "A data frame needs the package 'pandas': pip install 'captum-lrpx[pandas]'."
            ) from error
        records = [
            {
                "example": example,
                "kind": kind,
                "path": path,
                "layer": layer,
                "amount": float(amount[example]),
                "share": float(amount[example] / self.value[example]),
            }
            for example in range(len(self.value))
            for kind, path, layer, amount in self.rows(by)
        ]
        columns = ["example", "kind", "path", "layer", "amount", "share"]
        frame: pd.DataFrame = pd.DataFrame(records, columns=columns).astype({"layer": "Int64"})
        return frame

    def plot(self, example: int = 0, ax: Axes | None = None) -> Axes:
        """Bars for each layer, one color for each kind.

        Args:
            example: Index of the example in the batch.
            ax: Where to draw. Default: new axes.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        example = self._checked(example)
        try:
            import matplotlib.pyplot as plt  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            raise ImportError(
                "A plot needs the package 'matplotlib': pip install 'captum-lrpx[plot]'."
            ) from error
        if ax is None:
            _, ax = plt.subplots(figsize=_FIGURE_SIZE, layout="constrained")
        numbers = sorted({entry.layer for entry in self.entries if entry.layer is not None})
        layers: list[int | None] = [None, *numbers]
        above, below = [0.0] * len(layers), [0.0] * len(layers)
        for kind in self.by_kind():
            by_layer = self.by_layer(kind)
            amounts = [float(by_layer[n][example]) if n in by_layer else 0.0 for n in layers]
            bottoms = [above[i] if amount >= 0 else below[i] for i, amount in enumerate(amounts)]
            ax.bar(range(len(layers)), amounts, bottom=bottoms, label=kind)
            for i, amount in enumerate(amounts):
                (above if amount >= 0 else below)[i] += amount
        ax.axhline(0.0, color="black", linewidth=0.8)
        ax.set_xticks(range(len(layers)), ["outside", *map(str, numbers)])
        ax.set_xlabel("layer")
        ax.set_ylabel("amount of the explained value")
        ax.set_title(f"{self.method}: {float(self.value[example]):.4g}")
        ax.legend()
        return ax

    def explanation(self, example: int = 0) -> str:
        """The convergence delta in words: which parts of the model hold it.

        Args:
            example: Index of the example in the batch.
        """
        return in_words(self, self._checked(example))

    def _checked(self, example: Any) -> int:
        if not -len(self.value) <= example < len(self.value):
            raise IndexError(f"example {example} is out of range for a batch of {len(self.value)}.")
        return int(example) % len(self.value)


def _largest_of(relevances: Tensor, examples: int) -> Tensor:
    """The largest absolute relevance of each example ``[B]``.

    Rows that are not examples, as the patches of all images in one tensor, count for each.
    """
    if len(relevances) != examples:
        return relevances.abs().amax().expand(examples)
    return relevances.abs().flatten(1).amax(1)
