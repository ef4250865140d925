"""What reads files, each with valid files of its kind: what the fuzzer mutates.

One line of :data:`READERS` adds a reader.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import tiny

from captum_lrpx import (
    Comparison,
    Explanation,
    LLMRelevance,
    LLMRelevanceResult,
    LRPx,
    compare,
    explain,
    loading,
    zoo,
)
from captum_lrpx.sva import generate
from captum_lrpx.sva.evaluation import Report, Settings, contenders, evaluate, read_reference
from captum_lrpx.sva.parsing import ParsedWord
from captum_lrpx.sva.samples import read_jsonl
from captum_lrpx.sva.sources import read_blimp, read_conllu, read_goldberg, read_linzen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

TEXT = "the keys to the cabinet"


@dataclass(frozen=True)
class Reader:
    """Something that reads a file.

    Attributes:
        read: Reads it; what it returns may be used in a way that must not fail either.
        seeds: Contents of valid files.
        suffix: Of the file's name.
        json: Whether the seeds are JSON, one value or one per line.
        share: Of the inputs that this reader gets, relative to the others.
    """

    read: Callable[[Path], Any]
    seeds: Callable[[], list[bytes]]
    suffix: str = ".json"
    json: bool = True
    share: float = 1.0


@cache
def model_and_tokenizer() -> Any:
    return zoo.load("sva-gpt2")


@cache
def explanations() -> list[Explanation]:
    model, tokenizer = model_and_tokenizer()
    return [explain(model, tokenizer, TEXT, "are", method=name) for name in ("lrpx", "random")]


@cache
def generation() -> LLMRelevanceResult:
    model, tokenizer = model_and_tokenizer()
    return LLMRelevance(LRPx(model), tokenizer).attribute(TEXT, " are old")


def use(found: Explanation | Comparison | LLMRelevanceResult) -> None:
    """Show what was read, in each way."""
    str(found)
    found.to_html()
    assert type(found).from_json(found.to_json()) is not None


def samples() -> list[bytes]:
    record = {
        "sentence": "the keys to the cabinet are old",
        "verb_span": [24, 27],
        "verb": "are",
        "foil": "is",
        "evidence": [[4, 8]],
        "number": "plural",
        "n_attractors": 1,
        "source": "here",
        "licence": "CC0",
    }
    line = json.dumps(record).encode()
    return [line + b"\n", line + b"\n\n" + line]


def _of_zoo(name: str) -> list[bytes]:
    return [(zoo.path(model) / name).read_bytes() for model in ("sva-gpt2", "sva-bert")]


def _small_model() -> Path:
    """A folder with a model of a few kilobytes."""
    folder = Path(tempfile.mkdtemp()) / "model"
    tiny("gpt2").save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(zoo.path("sva-gpt2") / name, folder / name)
    return folder


@cache
def small_model() -> Path:
    return _small_model()


def in_folder(name: str) -> Callable[[Path], Any]:
    """Load a model with one of its files replaced."""

    def read(path: Path) -> Any:
        target = small_model() / name
        before = target.read_bytes()
        shutil.copy(path, target)
        try:
            return loading.load_model(str(small_model()))
        finally:
            target.write_bytes(before)

    return read


def gguf_headers() -> list[bytes]:
    """Magic, version, counts of tensors and of values; one value, a string; a tensor."""
    value = b"\x14\0\0\0\0\0\0\0general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama"
    tensor = b"\x01\0\0\0\0\0\0\0w\x01\0\0\0\x08" + bytes(7) + bytes(4) + bytes(8)
    zero, one = bytes(8), b"\x01" + bytes(7)
    start = b"GGUF\x03\0\0\0"
    return [start + zero + zero, start + zero + one + value, start + one + one + value + tensor]


def blimp() -> list[bytes]:
    record = {
        "sentence_good": "The keys are old.",
        "sentence_bad": "The keys is old.",
        "one_prefix_prefix": "The keys",
        "one_prefix_word_good": "are",
        "one_prefix_word_bad": "is",
        "UID": "regular_plural_subject_verb_agreement_1",
        "pairID": "0",
    }
    line = json.dumps(record).encode()
    return [line + b"\n", line + b"\n" + line]


TREE = """# sent_id = 1
# text = keys fit
1\tkeys\tkey\tNOUN\t_\tNumber=Plur\t2\tnsubj\t_\t_
2\tfit\tfit\tVERB\t_\tMood=Ind|Number=Plur|Person=3|Tense=Pres|VerbForm=Fin\t0\troot\t_\t_

1\tkey\tkey\tNOUN\t_\tNumber=Sing\t2\tnsubj\t_\t_
2\tfits\tfit\tVERB\t_\tMood=Ind|Number=Sing|Person=3|Tense=Pres|VerbForm=Fin\t0\troot\t_\t_

"""
GOLDBERG = "1\tThe keys are old .\tThe keys ***mask*** old .\tare\tis\n"


def parsed(sentences: Iterable[str]) -> list[list[ParsedWord]]:
    """What a parser might say of any sentence: the second word is the subject of the third."""
    results = []
    for sentence in sentences:
        found = list(re.finditer(r"\S+", sentence))
        head = min(2, len(found) - 1)
        results.append(
            [
                ParsedWord(*each.span(), "NNS" if at == 1 else "VBP", _RELATIONS.get(at, "x"), head)
                for at, each in enumerate(found)
            ]
        )
    return results


_RELATIONS = {1: "nsubj", 2: "ROOT"}

LINZEN_TEXT = b"The keys are old . <eos>\nthe key is in the door <eos>\n"
LINZEN_GOLD = b"2\tare\tis\t0\n2\tis\tare\t1\n"


def linzen(path: Path, *, gold: bool) -> Any:
    """Read a text or a gold file, with a valid one for the other."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "other"
        other.write_bytes(LINZEN_TEXT if gold else LINZEN_GOLD)
        return read_linzen(*((other, path) if gold else (path, other)), parsed)


def of_model(name: str) -> Callable[[], list[bytes]]:
    """A file of the small model, of JSON."""
    return lambda: _compact(small_model() / name)


@cache
def finished_run() -> Path:
    """A folder with a finished evaluation."""
    folder = Path(tempfile.mkdtemp()) / "run"
    evaluation(folder, model_and_tokenizer)
    return folder


def evaluation(folder: Path, load: Callable[[], Any]) -> Any:
    """An evaluation in a folder, a new one or one that goes on."""
    methods = contenders(["lrpx", "random"], {"random": {"seed": 1}})
    chosen = generate(3, "test", 0, attractors=(1, 2))
    settings = Settings(token_budget=16, faithfulness=True)
    return evaluate({"m": load}, chosen, methods, settings, output=folder, resume=True)


def in_run(name: str) -> Callable[[Path], Any]:
    """Go on with a finished evaluation, one of whose files is replaced, and tabulate it."""

    def no_model() -> Any:
        raise ValueError("something of the run is missing")

    def read(path: Path) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            for file in finished_run().iterdir():
                shutil.copy(path if file.name == name else file, Path(folder) / file.name)
            return list(Report(evaluation(Path(folder), no_model)).records())

    return read


def of_run(name: str) -> Callable[[], list[bytes]]:
    """A file of a finished evaluation."""
    return lambda: [(finished_run() / name).read_bytes()]


def published() -> list[bytes]:
    return [b'{"source": "a paper", "values": {"m": {"lrpx": {"PG-1": 0.5, "MRR": 1}}}}']


READERS = {
    "read_jsonl": Reader(read_jsonl, samples, ".jsonl", share=6),
    "Explanation.from_json": Reader(
        lambda path: use(Explanation.from_json(path)),
        lambda: [each.to_json().replace("\n", "").encode() for each in explanations()],
        share=6,
    ),
    "Comparison.from_json": Reader(
        lambda path: use(Comparison.from_json(path)),
        lambda: [compare(explanations()).to_json().replace("\n", "").encode()],
        share=3,
    ),
    "LLMRelevanceResult.from_json": Reader(
        lambda path: use(LLMRelevanceResult.from_json(path)),
        lambda: [generation().to_json().replace("\n", "").encode()],
        share=3,
    ),
    "read_blimp": Reader(read_blimp, blimp, ".jsonl"),
    "read_conllu": Reader(read_conllu, lambda: [TREE.encode()], ".conllu", json=False),
    "read_goldberg": Reader(
        lambda path: read_goldberg(path, parsed), lambda: [GOLDBERG.encode()], ".tsv", json=False
    ),
    "read_linzen, text": Reader(
        partial(linzen, gold=False), lambda: [LINZEN_TEXT], ".text", json=False
    ),
    "read_linzen, gold": Reader(
        partial(linzen, gold=True), lambda: [LINZEN_GOLD], ".gold", json=False
    ),
    "log of a run": Reader(
        in_run("log-00000.jsonl"), of_run("log-00000.jsonl"), ".jsonl", share=0.5
    ),
    "manifest of a run": Reader(
        in_run("manifest.json"), lambda: _compact(finished_run() / "manifest.json"), share=0.2
    ),
    "read_reference": Reader(read_reference, published),
    **{
        name: Reader(in_folder(name), of_model(name), share=0.1)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    },
    "model.safetensors": Reader(
        in_folder("model.safetensors"),
        lambda: [(small_model() / "model.safetensors").read_bytes()],
        json=False,
        share=0.03,
    ),
    "GGUF": Reader(
        lambda path: loading.load_model(str(path)), gguf_headers, ".gguf", json=False, share=0.03
    ),
}


def _compact(path: Path) -> list[bytes]:
    return [json.dumps(json.loads(path.read_text())).encode()]
