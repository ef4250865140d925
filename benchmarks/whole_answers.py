"""Cost of explaining a whole answer in one backward pass, relative to one of its tokens.

    OMP_NUM_THREADS=1 python benchmarks/whole_answers.py [--model FILE.gguf] [--tokens 300]
        [--answers 1 16 64 256] [--quantity logit] [--repetitions 5]

Prompt and answer have the same number of tokens together, whatever the length of the answer. Ratios
are medians over interleaved repetitions of CPU time, so that other work on the machine counts less.
Without ``--model`` it is the shape of SmolLM2-135M with random weights.
"""

from __future__ import annotations

import argparse

import torch
from continuation import words
from harness import interleaved, machine
from shapes import build

from captum_lrpx import AttnLRPx, LLMRelevance, LRPx
from captum_lrpx.loading import load_model

_METHODS = {"AttnLRPx": AttnLRPx, "LRPx": LRPx}


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="GGUF file; default: random weights")
    parser.add_argument("--tokens", type=int, default=300, help="prompt and answer together")
    parser.add_argument("--answers", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--quantity", choices=("logit", "log_prob"), default="logit")
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.model:
        loaded = load_model(options.model)
        model, tokenizer = loaded.model, loaded.tokenizer
    else:
        model, tokenizer = build("smollm2"), words()
    ids = torch.randint(5, 900, (options.tokens,), generator=torch.Generator().manual_seed(0))
    print(f"{machine()}, {options.repetitions} repetitions, CPU time")
    print(f"{options.tokens} tokens, {options.quantity}\n")
    print("| | tokens of the answer | seconds | to one token | against single ones |")
    print("|---|---|---|---|---|")
    for name, kind in _METHODS.items():
        llm = LLMRelevance(kind(model), tokenizer, options.quantity)

        def whole(count: int, llm: LLMRelevance = llm) -> torch.Tensor:
            first = options.tokens - count
            return llm.attribute(ids[:first], ids[first:], spans=[(0, None)]).context_attr[0]

        runs = {str(count): lambda count=count: whole(count) for count in options.answers}
        few = min(count for count in options.answers if count > 1)
        first = options.tokens - few
        single = llm.attribute(ids[:first], ids[first:]).context_attr.sum(0)
        error = float((whole(few) - single).abs().max() / single.abs().max())
        times = interleaved(runs, options.repetitions, name, clock="cpu")
        for count, time in times.items():
            ratio = time.ratio(times[str(options.answers[0])])
            shown = f"{error:.0e}" if int(count) == few else ""
            print(f"| {name} | {count} | {time.median:.2f} | {ratio:.2f} | {shown} |")


if __name__ == "__main__":
    main()
