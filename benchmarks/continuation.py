"""Time of explaining a continuation: one call, one call per token, and Captum's wrapper.

    OMP_NUM_THREADS=1 python benchmarks/continuation.py [--model gpt2] [--prompt 32] [--steps 32]
        [--targets-per-backward 8] [--repetitions 5]

A model of a true size with random weights. "one call" is ``LLMRelevance(AttnLRPx(model))``, "single
calls" is ``AttnLRPx`` on the text before each token, and "captum" is ``LLMGradientAttribution``
with ``LayerGradientXActivation`` at the token embeddings. All of them explain log-probabilities.
Ratios are medians over interleaved repetitions.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import LayerGradientXActivation, LLMGradientAttribution, TextTokenInput
from harness import interleaved, machine
from shapes import SHAPES, build
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from captum_lrpx import AttnLRPx, LLMRelevance, LogProbabilities, TokenLogits

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_BASE = "captum"
_WORDS = 1000


def words() -> Any:
    """A tokenizer of the words w0, w1, ..."""
    tokenizer = Tokenizer(
        WordLevel({f"w{index}": index for index in range(_WORDS)}, unk_token="w0")
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0")


def single_calls(model: Any, ids: Tensor, length: int) -> Tensor:
    """One call per token of the continuation, each on the text before it: ``[K, P]``."""
    method = AttnLRPx(LogProbabilities(TokenLogits(model)))
    rows = [
        method.attribute(ids[None, :position], target=int(ids[position]))[0, :length]
        for position in range(length, len(ids))
    ]
    return torch.stack(rows)


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="gpt2", choices=[name for name in SHAPES if "bert" not in name]
    )
    parser.add_argument("--prompt", type=int, default=32, help="tokens of the prompt")
    parser.add_argument("--steps", type=int, default=32, help="tokens of the continuation")
    parser.add_argument("--targets-per-backward", type=int, nargs="+", default=[8])
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = build(options.model), words()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, _WORDS, (options.prompt + options.steps,), generator=generator)
    prompt, continuation = ids[: options.prompt], ids[options.prompt :]
    ours = LLMRelevance(AttnLRPx(model), tokenizer)
    layer = LayerGradientXActivation(model, model.get_input_embeddings())
    captum = LLMGradientAttribution(layer, tokenizer)
    inp = TextTokenInput(tokenizer.decode(prompt), tokenizer)

    def one_call(at_once: int) -> Tensor:
        attributions: Tensor = ours.attribute(
            prompt, continuation, targets_per_backward=at_once
        ).token_attr
        return attributions

    runs: dict[str, Callable[[], object]] = {
        _BASE: lambda: captum.attribute(inp, target=continuation),
        "single calls": lambda: single_calls(model, ids, options.prompt),
    }
    for at_once in options.targets_per_backward:
        runs[f"one call, {at_once} per backward"] = lambda at_once=at_once: one_call(at_once)  # type: ignore[misc]
    single = single_calls(model, ids, options.prompt)
    error = (one_call(options.targets_per_backward[0]) - single).abs().max() / single.abs().max()
    print(f"{machine()}, {options.repetitions} repetitions")
    print(f"{options.model}: {options.steps} tokens behind a prompt of {options.prompt}\n")
    print(f"one call against single calls: {error:.1e} of the largest relevance\n")
    times = interleaved(runs, options.repetitions, options.model)
    print("| | seconds | to Captum's |")
    print("|---|---|---|")
    for name, time in times.items():
        print(f"| {name} | {time.median:.2f} | {time.ratio(times[_BASE]):.2f} |")


if __name__ == "__main__":
    main()
