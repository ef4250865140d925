"""Train a model of the zoo from scratch, on one processor core in some minutes.

Run as ``python benchmarks/zoo_train.py sva-gpt2 --output FOLDER``. The same seed and versions
give the same weights. Models are trained with their language modelling loss alone; only
their accuracy at the right verb form is measured afterwards.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import safetensors.torch
import torch
import transformers
from tqdm import tqdm
from zoo_accuracy import SEED, evaluate
from zoo_models import RECIPES, Recipe

from captum_lrpx.sva import grammar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from captum_lrpx.sva.samples import Sample

Batch: TypeAlias = dict[str, torch.Tensor]
Row: TypeAlias = tuple[list[int], list[int]]

IGNORED = -100
"""Label of a position where nothing is predicted."""
_BUCKET = 16
"""Number of batches sorted by length at a time, which keeps padding small."""
_MASK_VERB = 0.9
_MASK_OTHER = 0.08
_WEIGHT_DECAY = 0.01
_BETAS = (0.9, 0.98)
_MAX_NORM = 1.0


def train(recipe: Recipe, progress: bool = True) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a model.

    Torch remains deterministic and single-threaded, as the training requires.

    Args:
        recipe: The recipe.
        progress: Whether to show a progress bar.

    Returns:
        The model in evaluation mode, in float32 with weights representable in float16, and its
        tokenizer.
    """
    if recipe.steps < 1:
        raise ValueError(f"steps must be at least 1, got {recipe.steps}")
    _make_deterministic(recipe.seed)
    tokenizer = recipe.tokenizer()
    model = recipe.model(tokenizer).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), recipe.learning_rate, betas=_BETAS, weight_decay=_WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, recipe))
    average = 0.0
    with tqdm(total=recipe.steps, disable=not progress, mininterval=1.0) as bar:
        for step, batch in enumerate(_curriculum(recipe, tokenizer), start=1):
            loss = _loss(model, batch)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_NORM)
            optimizer.step()
            schedule.step()
            average += (loss.item() - average) / min(step, 100)
            bar.set_postfix(loss=f"{average:.3f}", refresh=False)
            bar.update()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())  # as stored
    return model.eval(), tokenizer


def _loss(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    labels = batch.pop("labels")
    logits = model(**batch).logits
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED
    )


def _make_deterministic(seed: int) -> None:
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_num_threads(1)


def _rate(step: int, recipe: Recipe) -> float:
    """Return the learning rate of a step as a share of the greatest one."""
    rise = max(1, round(recipe.warmup * recipe.steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, recipe.steps - rise)))


def _curriculum(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[Batch]:
    """Yield the batches of the whole training, short sentences first."""
    easy = round(recipe.easy * recipe.steps)
    parts = ((easy, 0, 1), (recipe.steps - easy, 1, grammar.MAX_INTERVENING))
    for steps, part, most in parts:
        stream = batches(tokenizer, recipe.batch, 2 * recipe.seed + part, (0, most))
        yield from itertools.islice(stream, steps)


# Batches ----------------------------------------------------------------------------------------


def batches(
    tokenizer: PreTrainedTokenizerFast, size: int, seed: int, intervening: tuple[int, int]
) -> Iterator[Batch]:
    """Make training batches endlessly.

    A masked model (its tokenizer has a mask token) predicts the verb and a few other tokens, which
    are masked; a causal model predicts the whole sentence, closed by its end token.

    Args:
        tokenizer: The tokenizer of the model.
        size: Number of sentences of a batch.
        seed: Seed of the random numbers.
        intervening: Smallest and largest number of nouns between subject and verb.

    Yields:
        The arguments of the model's forward pass, and "labels": the token to predict at each
        position, or ``IGNORED``.
    """
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    masked = tokenizer.mask_token_id is not None
    sentences = grammar.stream("train", seed, None, intervening)
    while True:
        samples = list(itertools.islice(sentences, size * _BUCKET))
        rows = _masked(tokenizer, samples, dice) if masked else _causal(tokenizer, samples)
        rows.sort(key=lambda row: len(row[0]))
        bucket = [rows[start : start + size] for start in range(0, len(rows), size)]
        dice.shuffle(bucket)
        for batch in bucket:
            yield _tensors(batch, _id(tokenizer.pad_token_id))


def _causal(tokenizer: PreTrainedTokenizerFast, samples: list[Sample]) -> list[Row]:
    end = _id(tokenizer.eos_token_id)
    encoded = tokenizer([sample.sentence for sample in samples])["input_ids"]
    # Each position predicts the next token.
    return [(ids, [*ids[1:], end]) for ids in encoded]


def _masked(
    tokenizer: PreTrainedTokenizerFast, samples: list[Sample], dice: random.Random
) -> list[Row]:
    mask = _id(tokenizer.mask_token_id)
    encoded = tokenizer([sample.sentence for sample in samples])
    rows = []
    for index, sample in enumerate(samples):
        ids = list(encoded["input_ids"][index])
        verb = encoded.char_to_token(index, sample.verb_span[0])
        labels = [IGNORED] * len(ids)
        # The first and the last token are [CLS] and [SEP].
        for position in range(1, len(ids) - 1):
            if dice.random() < (_MASK_VERB if position == verb else _MASK_OTHER):
                labels[position], ids[position] = ids[position], mask
        rows.append((ids, labels))
    return rows


def _tensors(rows: list[Row], pad: int) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": _padded([ids for ids, _ in rows], width, pad),
        "attention_mask": _padded([[1] * len(ids) for ids, _ in rows], width, 0),
        "labels": _padded([labels for _, labels in rows], width, IGNORED),
    }


def _padded(rows: list[list[int]], width: int, filler: int) -> torch.Tensor:
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _id(value: object) -> int:
    """Narrow the type of a token id, which tokenizers may lack."""
    if not isinstance(value, int):
        raise TypeError(f"the tokenizer lacks a special token, its number is {value!r}")
    return value


# Result -----------------------------------------------------------------------------------------


def record(
    recipe: Recipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, n: int
) -> dict[str, Any]:
    """Describe a training and measure its result.

    Args:
        recipe: The recipe.
        model: The trained model.
        tokenizer: Its tokenizer.
        n: Number of held-out sentences for each number of attractors.
    """
    hyper = ("seed", "steps", "batch", "learning_rate", "warmup", "easy")
    return {
        "recipe": {name: getattr(recipe, name) for name in hyper},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "accuracy": {
            "split": "test",
            "seed": SEED,
            "sentences_per_number_of_attractors": n,
            "by_view_and_attractors": evaluate(model, tokenizer, n),
        },
        "licence": grammar.LICENCE,
    }


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    training: dict[str, Any],
) -> None:
    """Write a model with its tokenizer and ``training.json`` into a folder.

    Each file is written whole or not at all.

    Args:
        folder: Its folder; made if missing.
        model: The model.
        tokenizer: Its tokenizer.
        training: The result of :func:`record`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".training-", dir=folder))
    try:
        model.save_pretrained(temporary)
        _halve(temporary / "model.safetensors")
        tokenizer.save_pretrained(temporary)
        (temporary / "training.json").write_text(json.dumps(training, indent=2) + "\n", "utf-8")
        for file in sorted(temporary.iterdir()):
            # safetensors makes the weights private to their owner; an installation is shared.
            file.chmod(0o644)
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _halve(weights: Path) -> None:
    """Store weights in 16 bits; the config still says float32, in which they are loaded."""
    tensors = safetensors.torch.load_file(weights)
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    safetensors.torch.save_file(halves, weights, {"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a model and write it.

    Args:
        arguments: The command line, without the name of the program.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, help="instead of the recipe's number of batches")
    parser.add_argument("--seed", type=int, help="instead of the recipe's")
    parser.add_argument("-n", type=int, default=1000, help="test sentences per attractor number")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    for name, value in (("--steps", options.steps), ("-n", options.n)):
        if value is not None and value < 1:
            parser.error(f"{name} must be at least 1")
    recipe = RECIPES[options.name]
    recipe = replace(
        recipe,
        steps=recipe.steps if options.steps is None else options.steps,
        seed=recipe.seed if options.seed is None else options.seed,
    )
    start = time.monotonic()
    model, tokenizer = train(recipe, progress=not options.quiet)
    minutes = (time.monotonic() - start) / 60
    training = record(recipe, model, tokenizer, options.n)
    save(options.output, model, tokenizer, training)
    for view, row in training["accuracy"]["by_view_and_attractors"].items():
        print(f"{view}: " + ", ".join(f"{k} attractors {value:.2%}" for k, value in row.items()))
    print(f"trained in {minutes:.1f} minutes, written to {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
