"""``captum-lrpx coverage``: the operations of a model and their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.cli.options import add_model
from captum_lrpx.cli.output import print_all, silence_transformers

if TYPE_CHECKING:
    import argparse


HELP = "list the operations of a model and their rules"
DESCRIPTION = (
    "List every operation between the embeddings and the logits of a model, with "
    "its rule. Exit status 1 if a non-linear operation has none."
)

DEFAULT_TEXT = "the keys to the cabinet"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    add_model(parser)
    parser.add_argument("--recipe", default="attnlrp", help="the rules (default: %(default)s)")
    parser.add_argument("--text", default=DEFAULT_TEXT, help="input text of the model")


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        Exit status: 1 if a non-linear operation has no rule.
    """
    # Imported late: `--help` and usage errors need neither torch nor transformers.
    from captum_lrpx import zoo  # noqa: PLC0415
    from captum_lrpx.attr import LRPx  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.recipes import NAMED_RECIPES, PUBLISHED  # noqa: PLC0415

    known = {**NAMED_RECIPES, **PUBLISHED} | NAMED_RECIPES
    if options.recipe not in known:
        raise ValueError(f"The recipe must be one of {', '.join(known)}.")
    silence_transformers()
    loaded = load_model(options.model or zoo.DEFAULT)
    ids = loaded.tokenizer(options.text, return_tensors="pt").input_ids
    coverage = LRPx(loaded.model, recipe=known[options.recipe]).coverage(ids)
    print_all(coverage)
    return 0 if coverage.complete else 1
