"""``captum-lrpx coverage``: the operations of a model and their rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.cli.options import add_model
from captum_lrpx.cli.output import print_all, silence_transformers

if TYPE_CHECKING:
    import argparse

    from captum_lrpx.cli.output import Commands
    from captum_lrpx.coverage import Coverage
    from captum_lrpx.loading import LoadedModel
    from captum_lrpx.recipes import Recipe

__all__ = ["add_to", "run"]

DEFAULT_TEXT = "the keys to the cabinet"


def add_to(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "coverage",
        help="list the operations of a model and their rules",
        description="List every operation between the embeddings and the logits of a model, with "
        "its rule. Exit status 1 if a non-linear operation has none.",
        allow_abbrev=False,
    )
    add_model(parser)
    parser.add_argument("--recipe", default="attnlrp", help="the rules (default: %(default)s)")
    parser.add_argument("--text", default=DEFAULT_TEXT, help="input text of the model")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        Exit status: 1 if a non-linear operation has no rule.
    """
    # Imported late: `--help` and usage errors need neither torch nor transformers.
    from captum_lrpx import zoo  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.recipes import NAMED_RECIPES, PUBLISHED  # noqa: PLC0415

    known = {**NAMED_RECIPES, **PUBLISHED} | NAMED_RECIPES
    if options.recipe not in known:
        raise ValueError(f"The recipe must be one of {', '.join(known)}.")
    silence_transformers()
    loaded = load_model(options.model or zoo.DEFAULT)
    coverage = _coverage(loaded, options.text, known[options.recipe])
    print_all(coverage)
    return 0 if coverage.complete else 1


def _coverage(loaded: LoadedModel, text: str, recipe: Recipe) -> Coverage:
    from captum_lrpx.attr import LRPx  # noqa: PLC0415

    ids = loaded.tokenizer(text, return_tensors="pt").input_ids
    return LRPx(loaded.model, recipe=recipe).coverage(ids)
