"""``captum-lrpx evaluate``: the agreement benchmark, models x methods x samples."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_lrpx.cli.options import (
    add_method_options,
    add_run,
    add_sampling,
    options_by_method,
)
from captum_lrpx.cli.output import print_all, silence_transformers
from captum_lrpx.files import check_folder, check_writable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from captum_lrpx.sva.evaluation import Contender, Evaluation, Reference
    from captum_lrpx.sva.samples import Sample


HELP = "measure methods on subject-verb agreement, where the evidence is known"
DESCRIPTION = (
    "Explain why a model prefers the right verb form to the wrong one, by several "
    "methods, and measure how much of the relevance lies on the subject (Arras et al. 2025). "
    "By default: the embedded models on held-out sentences of the package's grammar."
)

SENTENCES = 400
"""Sentences of the grammar by default: two minutes on one core for all models and methods."""

ATTRACTORS = (1, 3)
DTYPES = ("float64", "float32", "bfloat16", "float16")
LAYOUTS = ("full", "paper")
FORMATS = ("table", "markdown", "csv", "latex")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.epilog = (
        "Several processes: accelerate launch --multi_gpu --num_processes 2 "
        "-m captum_lrpx evaluate --output DIR ..."
    )
    _add_contenders(parser)
    _add_samples(parser)
    _add_running(parser)
    _add_results(parser)


def _add_contenders(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("models and methods")
    what.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help="embedded models, directories, .gguf files, names of the Hugging Face hub",
    )
    what.add_argument("--methods", nargs="+", metavar="METHOD", help="see `captum-lrpx methods`")
    add_method_options(what)
    what.add_argument(
        "--ablate",
        nargs="*",
        metavar="ROLE",
        help="instead of methods, all combinations of the propagation rules of these roles "
        "(attention, gate, activation, norm; default: all four), and the effect of each rule",
    )


def _add_samples(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("samples")
    data.add_argument("--samples", metavar="FILE", help="JSON lines instead of the grammar")
    data.add_argument(
        "--sentences",
        type=int,
        metavar="N",
        help=f"number of samples (default: {SENTENCES} of the grammar, all of a file); "
        "of a file, a random choice",
    )
    add_sampling(data)
    data.add_argument(
        "--include-wrong",
        action="store_true",
        help="also explain the samples that a model gets wrong: the form that it predicts",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    running = parser.add_argument_group("running")
    add_run(running)
    running.add_argument(
        "--batch-tokens",
        type=int,
        default=2048,
        metavar="N",
        help="tokens per batch (default: %(default)s)",
    )
    running.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="number of processes that share a model too large for one device",
    )
    running.add_argument(
        "--dtype",
        choices=DTYPES,
        help="precision of the models; float64 in the paper, and bfloat16 for its largest model "
        "(default: as loaded)",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    results = parser.add_argument_group("results")
    results.add_argument(
        "--faithfulness",
        action="store_true",
        help="also measure faithfulness: the output without the tokens of high relevance",
    )
    results.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="full",
        help="`paper`: rows and columns of Table 2 of Arras et al. (2025), with its values beside "
        "ours (default: %(default)s)",
    )
    results.add_argument(
        "--format", choices=FORMATS, default="table", help="output format (default: %(default)s)"
    )
    results.add_argument(
        "--reference", metavar="FILE", help="published values to print beside the results, as JSON"
    )
    results.add_argument("--plot", metavar="FILE", help="draw the table (needs matplotlib)")
    results.add_argument(
        "--parquet", metavar="FILE", help="write the results per sample (needs pandas, pyarrow)"
    )


def run(options: argparse.Namespace) -> None:
    """Run the command."""
    from captum_lrpx import zoo  # noqa: PLC0415
    from captum_lrpx.loading import source_of  # noqa: PLC0415
    from captum_lrpx.sva.evaluation import Settings, evaluate, processes  # noqa: PLC0415

    if options.ablate is not None and options.layout == "paper":
        raise ValueError("--layout paper compares the paper's methods, --ablate compares rules.")
    if options.ablate is not None and options.methods:
        raise ValueError("--ablate compares rules, --methods compares methods: give one of them.")
    contenders = _contenders(options)
    reference = _require_what_results_need(options, contenders)
    samples = _samples(options)
    silence_transformers()
    if options.tensor_parallel > 1 and options.device is not None:
        raise ValueError(
            "--tensor-parallel puts a model where its processes are: leave out --device."
        )
    here = processes(options.tensor_parallel)
    names = options.models or zoo.names()
    if len(set(map(_display_name, names))) < len(names):
        raise ValueError(f"Models must have different names: {', '.join(names)}.")
    for name in names:
        source_of(name)  # a misspelt name fails now, not after the models before it
    found = evaluate(
        {_display_name(name): partial(_load, name, options) for name in names},
        samples,
        contenders,
        Settings(
            options.first_token,
            options.batch_tokens,
            options.include_wrong,
            options.faithfulness,
            options.dtype,
        ),
        output=options.output,
        resume=options.resume,
        processes=here,
    )
    if here.is_main:
        _show(found, options, reference)
    here.end()


def _require_what_results_need(
    options: argparse.Namespace, contenders: Sequence[Contender]
) -> Reference | None:
    """Fail early if an output cannot be written; read the published values."""
    from captum_lrpx.sva.evaluation import (  # noqa: PLC0415
        PAPER_METHODS,
        parquet,
        plot,
        read_reference,
    )

    if options.layout == "paper" and not {each.name for each in contenders} & {*PAPER_METHODS}:
        raise ValueError(f"--layout paper has rows for {', '.join(PAPER_METHODS)} only.")
    for file, form in ((options.plot, plot), (options.parquet, parquet)):
        if not file:
            continue
        form.require()
        check_writable(file)
    if options.plot:
        plot.check_format(options.plot)
    check_folder(options.output)
    return read_reference(options.reference) if options.reference else None


def _display_name(name: str) -> str:
    """Name of a model in tables: the last part of a path."""
    path = Path(name)
    return path.name if path.exists() else name


def _load(name: str, options: argparse.Namespace) -> tuple[Any, Any]:
    import torch  # noqa: PLC0415

    from captum_lrpx.loading import load_model  # noqa: PLC0415

    loaded = load_model(name, tensor_parallel=options.tensor_parallel)
    wanted: dict[str, Any] = {}
    if options.device is not None:
        wanted["device"] = options.device
    if options.dtype is not None:
        wanted["dtype"] = getattr(torch, options.dtype)
    # A quantized model must not be moved, not even by an empty call.
    return loaded.model.to(**wanted) if wanted else loaded.model, loaded.tokenizer


def _contenders(options: argparse.Namespace) -> tuple[Contender, ...]:
    from captum_lrpx.sva.evaluation import (  # noqa: PLC0415
        DEFAULT_METHODS,
        PAPER_METHODS,
        ablation,
        contenders,
    )

    if options.ablate is not None:
        return ablation(options.ablate)
    default = PAPER_METHODS if options.layout == "paper" else DEFAULT_METHODS
    methods = options.methods or default
    return contenders(methods, options_by_method(methods, options.option))


def _samples(options: argparse.Namespace) -> list[Sample]:
    import random  # noqa: PLC0415

    from captum_lrpx.sva import generate, read_jsonl  # noqa: PLC0415

    if options.sentences is not None and options.sentences < 1:
        raise ValueError(f"--sentences must be at least 1, not {options.sentences}.")
    if options.samples is None:
        return generate(options.sentences or SENTENCES, "test", options.seed, ATTRACTORS)
    samples = read_jsonl(options.samples)
    if options.sentences is None or options.sentences >= len(samples):
        return samples
    chosen = random.Random(options.seed).sample(range(len(samples)), options.sentences)  # noqa: S311
    return [samples[index] for index in sorted(chosen)]


def _show(found: Evaluation, options: argparse.Namespace, reference: Reference | None) -> None:
    from captum_lrpx.sva.evaluation import PaperLayout, Report  # noqa: PLC0415

    report = Report(found, reference)
    if options.output:
        report.write(options.output)
    if options.plot:
        report.plot(options.plot)
    if options.parquet:
        report.write_parquet(options.parquet)
    shown: Report | PaperLayout = report
    if options.layout == "paper":
        shown = PaperLayout(found, report.scores, reference)
    if options.format == "table":
        print_all(*shown.tables())
    else:
        print(getattr(shown, f"to_{options.format}")(), end="")  # noqa: T201
