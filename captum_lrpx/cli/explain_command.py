"""``captum-lrpx explain``: one prediction for a text, by one method or several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from captum_lrpx.cli.options import (
    add_entries,
    add_method,
    add_method_options,
    add_model,
    options_by_method,
)
from captum_lrpx.cli.output import print_all, silence_transformers
from captum_lrpx.files import check_writable

if TYPE_CHECKING:
    import argparse

    from captum_lrpx.compare import Comparison
    from captum_lrpx.explanation import Explanation
    from captum_lrpx.targets.inputs import Given
    from captum_lrpx.targets.outputs import Choice


HELP = "explain one prediction for a text"
DESCRIPTION = "Show how much each token of a text contributes to a logit of a model."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    _add_inputs(parser)
    explained = parser.add_argument_group("what to explain")
    _add_choice(explained, "target", "that is explained (default: the model's prediction)")
    _add_choice(explained, "contrast", "whose logit is subtracted: why this, not that")
    _add_methods(parser)
    _add_results(parser)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "text",
        nargs="?",
        help="the text; a masked model gets a mask token if it has none; no text for a model that "
        "reads an image or audio alone",
    )
    medium = parser.add_mutually_exclusive_group()
    medium.add_argument("--image", metavar="FILE", help="an image, for a model that reads one")
    medium.add_argument("--audio", metavar="FILE", help="a WAV file, for a model that reads audio")
    form = parser.add_mutually_exclusive_group()
    form.add_argument(
        "--pair", metavar="TEXT", help="second text of a pair (the context of a question)"
    )
    form.add_argument(
        "--chat", action="store_true", help="treat the text as a user's message to a chat model"
    )
    written = parser.add_mutually_exclusive_group()
    written.add_argument(
        "--written",
        metavar="TEXT",
        help="output of an encoder-decoder so far (default: nothing)",
    )
    written.add_argument(
        "--write-first",
        type=int,
        metavar="N",
        help="let an encoder-decoder write N tokens first, and explain the next one",
    )
    parser.add_argument("--first-token", help="special token to put in front of the text")
    parser.add_argument(
        "--truncate", action="store_true", help="cut a text that is too long for the model"
    )


def _add_methods(parser: argparse.ArgumentParser) -> None:
    methods = parser.add_argument_group("model and method")
    add_model(methods)
    method = methods.add_mutually_exclusive_group()
    add_method(method)
    method.add_argument(
        "--compare", nargs="+", metavar="METHOD", help="several methods, shown side by side"
    )
    add_method_options(methods)
    methods.add_argument(
        "--no-certificate",
        action="store_true",
        help="skip the checks of forward pass, coverage and ledger (slower than the rest)",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("results")
    add_entries(results)
    results.add_argument("--html", metavar="FILE", help="write a heat map as one HTML file")
    results.add_argument("--png", metavar="FILE", help="write the heat map over the image or audio")
    results.add_argument("--json", metavar="FILE", help="write everything as JSON")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    # Imported late: `--help` and usage errors need neither torch nor transformers.
    from captum_lrpx import zoo  # noqa: PLC0415
    from captum_lrpx.compare import compare  # noqa: PLC0415
    from captum_lrpx.explainer import explain  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.targets import Target  # noqa: PLC0415

    has_medium = options.image is not None or options.audio is not None
    _check(options, has_medium=has_medium)
    check_writable(options.html, options.json, options.png)
    target = Target(_choice(options, "target"), contrast=_choice(options, "contrast"))
    methods = options.compare or [options.method]
    chosen = options_by_method(methods, options.option)
    silence_transformers()
    name = options.model or zoo.DEFAULT
    loaded = load_model(name, processor=has_medium)
    explanations = [
        explain(
            loaded.model,
            loaded.tokenizer,
            _given(options),
            target,
            method=method,
            first_token=options.first_token,
            truncate=options.truncate,
            model_name=loaded.name,
            certify=not options.no_certificate,
            image=options.image,
            audio=options.audio,
            written=options.write_first if options.written is None else options.written,
            **chosen[method],
        )
        for method in methods
    ]
    shown: Explanation | Comparison = compare(explanations) if options.compare else explanations[0]
    if options.words:
        shown = shown.words()
    if options.fold_special:
        shown = shown.fold_special()
    if options.html:
        shown.to_html(options.html)
    if options.png:
        shown.to_png(options.png)  # type: ignore[union-attr]
    if options.json:
        shown.to_json(options.json)
    _show(shown)


def _check(options: argparse.Namespace, *, has_medium: bool) -> None:
    if options.text is None and not has_medium:
        raise ValueError("There is nothing to explain: give a text, --image or --audio.")
    if options.png is not None and (not has_medium or options.compare):
        raise ValueError(
            "--png draws one explanation of an image or audio: give --image or --audio and one "
            "--method."
        )


def _add_choice(parser: argparse._ArgumentGroup, name: str, what: str) -> None:
    """Add three options for one choice: a word or class, a token by id, or by exact string."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(f"--{name}", metavar="WORD", help=f"word (of one token) or class {what}")
    group.add_argument(
        f"--{name}-id", type=int, metavar="ID", help="the same, as token id, class or position"
    )
    group.add_argument(
        f"--{name}-token", metavar="TOKEN", help="the same, in the tokenizer's notation"
    )


def _choice(options: argparse.Namespace, name: str) -> Choice | None:
    from captum_lrpx.targets import Token  # noqa: PLC0415

    token = getattr(options, f"{name}_token")
    if token is not None:
        return Token(token)
    number: int | None = getattr(options, f"{name}_id")
    word: str | None = getattr(options, name)
    return word if number is None else number


def _given(options: argparse.Namespace) -> Given | None:
    if options.chat:
        return [{"role": "user", "content": options.text}]
    if options.text is None:
        return None
    return options.text if options.pair is None else (options.text, options.pair)


def _show(shown: Explanation | Comparison) -> None:
    from rich.text import Text  # noqa: PLC0415

    from captum_lrpx.explanation import Explanation  # noqa: PLC0415
    from captum_lrpx.explanation.pictures import picture_blocks, regions  # noqa: PLC0415
    from captum_lrpx.explanation.terminal import closing_lines, heat_map, legend, relevance_table  # noqa: PLC0415

    if isinstance(shown, Explanation):
        lines = map(Text, closing_lines(shown))
        scale = Text(legend(shown))
        pictures = [picture_blocks(shown, region) for region in regions(shown)]
        text = (heat_map(shown), scale, Text(), relevance_table(shown), Text())
        print_all(*pictures, *(text if shown.text else ()), *lines)
    else:
        print_all(shown)
