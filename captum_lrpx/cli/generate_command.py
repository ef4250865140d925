"""``captum-lrpx generate``: a continuation of a prompt, each token explained."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from captum_lrpx.cli.options import add_entries, add_model
from captum_lrpx.cli.output import print_all, silence_transformers
from captum_lrpx.files import check_writable

if TYPE_CHECKING:
    from captum_lrpx.targets.quantity import Quantity


HELP = "explain every token of a generated text"
DESCRIPTION = (
    "Let a causal language model continue a prompt, and show how much each token "
    "of the prompt and of the text so far contributes to each token that follows."
)

DEFAULT_MODEL = "sva-llama"
DEFAULT_TOKENS = 10


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("prompt", help="the text that the model continues")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--tokens",
        type=_positive,
        default=DEFAULT_TOKENS,
        metavar="N",
        help="maximum number of tokens to generate (default: %(default)s)",
    )
    length.add_argument(
        "--target", metavar="TEXT", help="a given continuation, instead of a generated one"
    )
    parser.add_argument("--foil", help="contrast: a token subtracted at each step")
    parser.add_argument(
        "--quantity",
        choices=("log_prob", "prob", "logit"),
        help="quantity explained for each token (default: log_prob; logit for altilogit)",
    )
    add_model(parser, DEFAULT_MODEL)
    parser.add_argument(
        "--method",
        choices=("lrpx", "attnlrpx", "altilogit"),
        default="attnlrpx",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--hops",
        type=int,
        default=0,
        metavar="N",
        help="pass the relevance of generated tokens on to their own sources, N times",
    )
    _add_results(parser)


def _add_results(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("results")
    add_entries(results)
    results.add_argument("--html", metavar="FILE", help="write heat maps as one HTML file")
    results.add_argument(
        "--view", metavar="FILE", help="write an interactive page: hover, click, choose"
    )
    results.add_argument("--json", metavar="FILE", help="write everything as JSON")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    # Imported late: `--help` and usage errors need neither torch nor transformers.
    from captum_lrpx.attr import ALTILogit, AttnLRPx, LLMRelevance, LRPx  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.view import view  # noqa: PLC0415

    check_writable(options.html, options.json, options.view)
    silence_transformers()
    alti = options.method == "altilogit"
    loaded = load_model(options.model)
    methods = {"lrpx": LRPx, "attnlrpx": AttnLRPx, "altilogit": ALTILogit}
    method = methods[options.method](loaded.model)
    quantity: Quantity = options.quantity or ("logit" if alti else "log_prob")
    llm = LLMRelevance(method, loaded.tokenizer, quantity, model_name=loaded.name)
    generate = {"max_new_tokens": options.tokens, "do_sample": False}
    shown = llm.attribute(
        options.prompt,
        options.target,
        generate if options.target is None else None,
        foil=options.foil,
        hops=options.hops,
    )
    if options.view:
        view(shown, options.view)
    if options.words:
        shown = shown.words()
    if options.fold_special:
        shown = shown.fold_special()
    if options.html:
        shown.to_html(options.html)
    if options.json:
        shown.to_json(options.json)
    print_all(shown)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a number of tokens is at least 1, not {text!r}")
    return int(text)
