"""``captum-lrpx chat``: an answer in a chat, by document and sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_lrpx.cli.options import add_method, add_method_options, options_by_method
from captum_lrpx.cli.output import print_all, silence_transformers
from captum_lrpx.files import check_writable

if TYPE_CHECKING:
    import argparse

    from captum_lrpx.explanation import Explanation


HELP = "explain an answer in a chat by its documents and sentences"
DESCRIPTION = (
    "Show how much each turn, document and sentence of a chat contributes to an "
    "answer. The file is JSON: a list of messages, or an object with messages and optionally "
    "documents, answer and span."
)

_KEYS = ("messages", "documents", "answer", "span")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("file", help="messages as JSON")
    parser.add_argument(
        "--model", required=True, help="directory, .gguf file, or name of the Hugging Face hub"
    )
    parser.add_argument(
        "--by",
        nargs="+",
        metavar="KIND",
        help="segments, outermost first (default: turn, document if there are any, and sentence)",
    )
    parser.add_argument(
        "--language", default="en", help="language of the sentences (default: %(default)s)"
    )
    _add_answer(parser)
    add_method(parser)
    add_method_options(parser)
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="also show the drop of the answer's log-probability without each segment",
    )
    parser.add_argument(
        "--no-certificate", action="store_true", help="skip the check of forward pass and ledger"
    )
    _add_results(parser)


def _add_answer(parser: argparse.ArgumentParser) -> None:
    answer = parser.add_argument_group("the answer")
    answer.add_argument("--answer", help="the answer (default: from the file, or generated)")
    answer.add_argument("--span", help="a part of the answer (default: all of it)")
    answer.add_argument(
        "--tokens",
        type=int,
        default=64,
        help="maximum number of tokens to generate (default: %(default)s)",
    )
    answer.add_argument(
        "--quantity",
        choices=("logit", "log_prob", "prob"),
        default="logit",
        help="quantity explained for each token of the answer (default: %(default)s)",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("results")
    results.add_argument("--html", metavar="FILE", help="write a heat map as one HTML file")
    results.add_argument("--view", metavar="FILE", help="write an interactive page")
    results.add_argument("--json", metavar="FILE", help="write the explanation as JSON")


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    # Imported late: `--help` and usage errors need neither torch nor transformers.
    from captum_lrpx.chat import explain_chat, leave_one_out_of_chat  # noqa: PLC0415
    from captum_lrpx.loading import load_model  # noqa: PLC0415
    from captum_lrpx.segments import check_by  # noqa: PLC0415
    from captum_lrpx.view import view  # noqa: PLC0415

    check_writable(options.html, options.json, options.view)
    chat = _read_chat(options.file)
    by = options.by or ["turn", *(["document"] if chat.get("documents") else []), "sentence"]
    check_by(by)
    (chosen,) = options_by_method([options.method], options.option).values()
    silence_transformers()
    loaded = load_model(options.model)
    answer = options.answer or chat.get("answer")
    asked: dict[str, Any] = {
        "messages": chat["messages"],
        "documents": chat.get("documents", ()),
        "span": options.span or chat.get("span"),
        "model_name": loaded.name,
    }
    explanation = explain_chat(
        loaded.model,
        loaded.tokenizer,
        answer=answer,
        gen_args=None if answer else {"max_new_tokens": options.tokens, "do_sample": False},
        quantity=options.quantity,
        method=options.method,
        certify=False if options.no_certificate else "full",
        **asked,
        **chosen,
    )
    segments = explanation.segments(by, language=options.language)
    if options.html:
        segments.level().to_html(options.html)
    if options.view:
        view(explanation, options.view, by=("token", *by), language=options.language)
    if options.json:
        explanation.to_json(options.json)
    print_all(segments)
    if options.leave_one_out:
        found = leave_one_out_of_chat(
            loaded.model,
            loaded.tokenizer,
            answer=_answer_ids(explanation),
            quantity="log_prob",
            by=by,
            language=options.language,
            **asked,
        )
        print_all("\nThe same left out one by one:\n", found)


def _answer_ids(explanation: Explanation) -> list[int]:
    """Token ids of the explained answer, generated or given."""
    (written,) = (each for each in explanation.regions or () if each.kind == "answer")
    places = zip(explanation.ids, explanation.offsets, strict=True)
    return [number for number, place in places if place[0] >= written.start]


def _read_chat(path: str) -> dict[str, Any]:
    """Read messages, and optional further entries.

    Args:
        path: A JSON file.

    Raises:
        ValueError: If it has no messages, or unknown entries.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    chat = {"messages": content} if isinstance(content, list) else content
    if not isinstance(chat, dict) or "messages" not in chat or chat.keys() - set(_KEYS):
        raise ValueError(
            f"{path} must be a list of messages, or an object with {', '.join(_KEYS)}, of which "
            "only the first is required."
        )
    return chat
