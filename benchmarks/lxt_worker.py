"""A process that holds one model under one set of rules and measures it when it is told to.

LXT's rules stay on the classes that they were put on, so what they are compared with runs in a
process of its own, and what is compared runs in turn:

    worker = Worker(python, "gpt2", "AttnLRP")
    worker.measurable("1x32", "LXT AttnLRP").seconds()

The process is this file, started with any interpreter that has torch, transformers and captum:

- side ``plain``: InputXGradient by Captum, and Gradient x Input as LXT's examples write it, without
  rules.
- side ``AttnLRP`` or ``CP-LRP``: the same under LXT's rules, which needs LXT.
- side ``captum_lrpx``: the contenders of ``speed.py``, which need this package.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import InputXGradient
from device import Run
from lxt_model import RULES, patch, relevance
from shapes import DTYPES, MODEL_TYPES, SHAPES, build

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

__all__ = ["LXT", "OURS", "PLAIN", "Worker"]

PLAIN, OURS = "plain", "captum_lrpx"
LXT = tuple(RULES)
SIDES = (PLAIN, *LXT, OURS)
PACKAGES = ("torch", "transformers", "captum", "lxt")
TOKEN = 7


class Worker:
    """The process, seen from the one that started it. Ends with the ``with`` block.

    Attributes:
        versions: Package -> version in its environment.

    Raises:
        RuntimeError: It cannot measure this; the message says why.
    """

    def __init__(
        self, python: str, model: str, side: str, dtype: str = "float32", device: str = "cpu"
    ) -> None:
        command = [python, __file__, model, side, "--dtype", dtype, "--device", device]
        self._process = subprocess.Popen(  # noqa: S603 - this file
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions: dict[str, str] = self.ask()

    def __enter__(self) -> Self:
        """The worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self._process.communicate()  # closes its input, at which it ends

    def measurable(self, size: str, name: str) -> Measured:
        """One of its contenders at one size (batch x length)."""
        return Measured(self, size, name)

    def ask(self, *question: str) -> Any:
        """Its answer to a quantity (``seconds``, ``peak``), a size and a contender's name."""
        if question:
            print(json.dumps(question), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise RuntimeError(f"The process ended with {self._process.wait()}.")
        answer = json.loads(line)
        if "error" in answer:
            self._process.wait()
            raise RuntimeError(answer["error"])
        return answer["found"]


@dataclass(frozen=True)
class Measured:
    """One contender of a worker at one size, see :class:`device.Measurable`."""

    worker: Worker
    size: str
    name: str

    def seconds(self) -> float:
        """Time of one run."""
        return float(self.worker.ask("seconds", self.size, self.name))

    def peak(self) -> float | None:
        """Megabytes that one run adds at its peak: not a number on a CPU, None if it cannot be."""
        found: float | None = self.worker.ask("peak", self.size, self.name)
        return found


def contenders(side: str, model: Any, size: str) -> dict[str, Callable[[], object]]:
    """What a side measures, by name."""
    if side == OURS:
        import speed  # noqa: PLC0415 - needs this package

        return speed.contenders(model, size)
    batch, length = map(int, size.split("x"))
    ids = torch.randint(5, 1000, (batch, length), generator=torch.Generator().manual_seed(0))
    embeds = model.get_input_embeddings()(ids.to(model.device)).detach()

    def logits(embeds: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = model(inputs_embeds=embeds).logits
        return output

    def captum() -> torch.Tensor:
        model.requires_grad_(True)  # as a model comes
        found: torch.Tensor = InputXGradient(logits).attribute(embeds, target=(length - 1, TOKEN))
        return found

    def lxt() -> torch.Tensor:
        model.requires_grad_(False)  # as LXT's examples advise
        return relevance(model, embeds, TOKEN)

    if side == PLAIN:
        return {"InputXGradient": captum, "Gradient x Input": lxt}
    return {f"LXT {side}": lxt}


def versions() -> dict[str, str]:
    """Package -> version, of those that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def answers(side: str, model: Any, device: torch.device) -> Iterator[dict[str, object]]:
    """The versions, then an answer to each line of the input."""
    yield {"found": versions()}
    runs: dict[str, Run] = {}
    measured = ""
    for line in sys.stdin:
        quantity, size, name = json.loads(line)
        if size != measured:
            found = contenders(side, model, size)
            runs, measured = {name: Run(run, device) for name, run in found.items()}, size
        gc.collect()
        gc.disable()
        try:
            yield {"found": getattr(runs[name], quantity)()}
        finally:
            gc.enable()


def main() -> None:
    """Build the model, and answer questions until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=list(SHAPES))
    parser.add_argument("side", choices=SIDES)
    parser.add_argument("--dtype", default="float32", choices=list(DTYPES))
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    output, sys.stdout = sys.stdout, sys.stderr  # nothing but answers goes to the output
    try:
        if options.side in RULES:
            patch(MODEL_TYPES[options.model], options.side)
        model = build(options.model, DTYPES[options.dtype], options.device)
        for answer in answers(options.side, model, torch.device(options.device)):
            print(json.dumps(answer), file=output, flush=True)
    except Exception as error:  # noqa: BLE001 - the other process reports it
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=output, flush=True)


if __name__ == "__main__":
    main()
