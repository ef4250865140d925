"""Compile the programs of ``captum_lrpx.zoo.programs`` into the weights that the package ships.

    pip install tracr-pypi safetensors   # jax and haiku come with it
    python benchmarks/compile_programs.py FOLDER

Programs in RASP (Weiss et al. 2021, https://arxiv.org/abs/2106.06981) become transformers by Tracr
(Lindner et al. 2023, https://arxiv.org/abs/2301.05062): one-hot subspaces in the residual stream,
no norms, ReLU in the MLPs. Nothing is random. What the embeddings of all tokens have in common, a
constant that Tracr keeps there, is moved to the positions, which leaves every result as it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tracr.compiler import compiling, lib
from tracr.rasp import rasp

BOS = "BOS"


def count() -> rasp.SOp:
    """How many x there were so far, their own position included."""
    placed = rasp.SequenceMap(
        lambda letter, i: i if letter == "x" else -1, rasp.tokens, rasp.indices
    )
    before = rasp.Select(placed, rasp.indices, lambda key, query: 0 <= key <= query)
    return rasp.SelectorWidth(before).named("count")


def sort() -> rasp.SOp:
    """The digits in ascending order."""
    return lib.make_sort(rasp.tokens, rasp.tokens, max_seq_len=6, min_key=1)


PROGRAMS: dict[str, tuple[rasp.SOp, list[Any], int]] = {
    "fraction": (lib.make_frac_prevs(rasp.tokens == "x"), list("wxyz"), 8),
    "count": (count(), list("wxyz"), 6),
    "reverse": (lib.make_reverse(rasp.tokens), list("abcd"), 7),
    "sort": (sort(), [1, 2, 3, 4, 5], 6),
    "dyck": (lib.make_shuffle_dyck(["()"]), list("()a"), 8),
}
"""Name -> program, vocabulary, longest text."""


def tensors_of(model: Any) -> dict[str, np.ndarray]:
    """The parameters, under the names that ``captum_lrpx.zoo.programs`` has for them."""
    params = model.params
    found = {
        "tokens.weight": params["token_embed"]["embeddings"],
        "positions.weight": params["pos_embed"]["embeddings"],
        "read.weight": reader_of(model),
    }
    tokens, positions = found["tokens.weight"], found["positions.weight"]
    common = np.where((tokens == tokens[0]).all(0), tokens[0], 0.0)
    found["tokens.weight"], found["positions.weight"] = tokens - common, positions + common
    modules = {
        "query": "attn/query",
        "key": "attn/key",
        "value": "attn/value",
        "output": "attn/linear",
        "up": "mlp/linear_1",
        "down": "mlp/linear_2",
    }
    for layer in range(model.model_config.num_layers):
        for name, path in modules.items():
            linear = params[f"transformer/layer_{layer}/{path}"]
            found[f"blocks.{layer}.{name}.weight"] = np.asarray(linear["w"]).T
            found[f"blocks.{layer}.{name}.bias"] = linear["b"]
    return {
        name: np.ascontiguousarray(np.asarray(each, np.float32)) for name, each in found.items()
    }


def reader_of(model: Any) -> np.ndarray:
    """The directions of the residual stream that the result is read from ``[C, D]``."""
    label = PROGRAMS_BY_MODEL[id(model)].label
    labels = model.residual_labels
    if not is_categorical(model):
        wanted = [label]
    else:
        values = model.output_encoder.encoding_map
        wanted = [f"{label}:{value}" for value in sorted(values, key=values.__getitem__)]
    return np.eye(len(labels))[[labels.index(each) for each in wanted]]


def is_categorical(model: Any) -> bool:
    """Whether the result is one of several values."""
    return hasattr(model.output_encoder, "encoding_map")


def forward(weights: dict[str, np.ndarray], ids: list[int], heads: int, layers: int) -> np.ndarray:
    """The transformer of the shipped weights, to compare with Tracr's own ``[T, C]``."""
    x = weights["tokens.weight"][ids] + weights["positions.weight"][: len(ids)]

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for layer in range(layers):
        q, k, v = (
            np.split(linear(f"blocks.{layer}.{name}", x), heads, -1)
            for name in ("query", "key", "value")
        )
        found = []
        for query, key, value in zip(q, k, v, strict=True):
            scores = query @ key.T / np.sqrt(query.shape[-1])
            odds = np.exp(scores - scores.max(-1, keepdims=True))
            found.append(odds / odds.sum(-1, keepdims=True) @ value)
        x = x + linear(f"blocks.{layer}.output", np.concatenate(found, -1))
        x = x + linear(f"blocks.{layer}.down", np.maximum(linear(f"blocks.{layer}.up", x), 0))
    return x @ weights["read.weight"].T


PROGRAMS_BY_MODEL: dict[int, rasp.SOp] = {}


def main(folder: Path) -> None:
    """Compile, compare with the interpreter of RASP, and write."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, (program, vocabulary, longest) in PROGRAMS.items():
        model = compiling.compile_rasp_to_model(
            program, vocab=set(vocabulary), max_seq_len=longest, compiler_bos=BOS
        )
        PROGRAMS_BY_MODEL[id(model)] = program
        weights, config = tensors_of(model), model.model_config
        encoding = model.input_encoder.encoding_map
        values = model.output_encoder.encoding_map if is_categorical(model) else {}
        results = sorted(values, key=values.__getitem__)
        for _ in range(50):
            length = int(generator.integers(1, longest + 1))
            text = [vocabulary[each] for each in generator.integers(0, len(vocabulary), length)]
            ids = [encoding[each] for each in (BOS, *text)]
            found = forward(weights, ids, config.num_heads, config.num_layers)[1:]
            expected = program(text)
            if results:
                right = [results[each] for each in found.argmax(-1)] == expected
            else:
                right = np.allclose(found[:, 0], expected, atol=1e-3)
            if not right:
                raise ValueError(f"{name} of {text} is {expected}, and not {found}.")
        tokens = sorted(encoding, key=encoding.__getitem__)
        metadata = {
            "heads": config.num_heads,
            "vocabulary": [str(each) for each in tokens],
            "letters": [str(each) for each in vocabulary],
            "results": [str(each) for each in results],
            "longest": longest,
        }
        save_file(weights, folder / f"{name}.safetensors", {"program": json.dumps(metadata)})
        print(name, sum(each.nbytes for each in weights.values()), "bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
