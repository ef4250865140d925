"""The convergence delta in words: the parts of the model that hold it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from captum_lrpx.conservation.book import Kind, Ledger

_NAMES: Final[dict[Kind, str]] = {
    "positions": "the position embeddings",
    "token_types": "the token type embeddings",
    "bias": "the biases",
    "mlp": "the MLPs",
    "softmax": "the softmax",
    "score_bias": "the constants added to attention scores",
    "absorbed": "the rules of the linear layers",
    "rule": "the rules that do not conserve",
    "output": "the explained quantity itself, which is not linear in the logits,",
}
_WINDOW: Final = 0.6
"""Layers are named if a run of them holds at least this share of a kind."""
_NEGLIGIBLE: Final = 0.005
"""Shares below half a percent are not named."""
_COMPLETE: Final = 1e-3


Part = tuple[str, float]
"""Name and amount of a part of the model."""


def in_words(book: Ledger, example: int) -> str:
    """Describe which parts of the model hold the convergence delta.

    Args:
        book: The ledger.
        example: Index of the example in the batch.
    """
    value, delta = float(book.value[example]), float(book.delta[example])
    tokens = value - delta
    head = f"The explained value is {value:.4g}; the relevances of the tokens sum to {tokens:.4g}"
    if abs(delta) <= _COMPLETE * max(abs(value), abs(tokens)):
        return f"{head}: nothing is missing."
    missing = delta * value >= 0
    named = "what is missing" if missing else "the excess"
    sentences = [f"{head}: {abs(delta):.4g} {'are missing' if missing else 'are too much'}."]
    parts = sorted(_parts(book, example), key=lambda part: -abs(part[1]))
    shares = [(amount / delta, name) for name, amount in parts]
    with_it = [(share, name) for share, name in shares if share >= _NEGLIGIBLE]
    against = [(-share, name) for share, name in shares if share <= -_NEGLIGIBLE]
    verb, preposition = ("went", "into") if missing else ("came", "from")
    if with_it:
        first, *others = [f"{preposition} {name}" for _, name in with_it]
        percent = [f"{share:.0%}" for share, _ in with_it]
        rest = [f"{much} {where}" for much, where in zip(percent[1:], others, strict=True)]
        sentences.append(f"{_list([f'{percent[0]} of {named} {verb} {first}', *rest])}.")
    if against:
        opposite = _list([f"{share:.0%} by {name}" for share, name in against])
        sentences.append(f"This is offset, {opposite}.")
    open_share = abs(float(book.residual[example]) / delta)
    if open_share >= _NEGLIGIBLE:
        sentences.append(
            f"{open_share:.0%} of {named} is in no line: the account does not close, a "
            "non-linear operation of the model has no rule."
        )
    return " ".join(sentences).replace("%", " %")


def _list(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def _parts(book: Ledger, example: int) -> list[Part]:
    parts = []
    for kind, name in _NAMES.items():
        by_layer = {layer: float(amount[example]) for layer, amount in book.by_layer(kind).items()}
        outside = by_layer.pop(None, None)
        if outside is not None:
            where = " outside of the layers" if by_layer else ""
            parts.append((f"{name}{where}", outside))
        if by_layer:
            parts += _of_layers(name, by_layer)
    return parts


def _of_layers(name: str, by_layer: dict[int | None, float]) -> list[Part]:
    """All layers together, or the shortest run of layers that holds most, and the others."""
    layers = sorted(layer for layer in by_layer if layer is not None)
    amounts = [by_layer[layer] for layer in layers]
    total = sum(amounts)
    window = _shortest_window(amounts, total)
    if window is None:
        return [(f"{name} of {_layers(layers)}", total)]
    start, stop = window
    inside = sum(amounts[start:stop])
    return [
        (f"{name} of {_layers(layers[start:stop])}", inside),
        (f"{name} of all layers but {_numbers(layers[start:stop])}", total - inside),
    ]


def _shortest_window(amounts: list[float], total: float) -> tuple[int, int] | None:
    """Start and stop of the shortest run with most of the total; None if it is half or longer."""
    for length in range(1, (len(amounts) + 1) // 2):
        runs = [(start, start + length) for start in range(len(amounts) - length + 1)]
        shares = [sum(amounts[slice(*run)]) / (total or 1.0) for run in runs]
        if max(shares) >= _WINDOW:
            return runs[shares.index(max(shares))]
    return None


def _layers(numbers: list[int]) -> str:
    return f"layer{'s' if len(numbers) > 1 else ''} {_numbers(numbers)}"


def _numbers(numbers: list[int]) -> str:
    return f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0])
