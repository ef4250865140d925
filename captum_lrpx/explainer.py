"""``explain()``: one call from a text to an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx.attr.checks import check_model, check_model_and_tokenizer
from captum_lrpx.certification import certified, with_gradients
from captum_lrpx.explanation import Explanation
from captum_lrpx.explanation.provenance import provenance
from captum_lrpx.methods import Option, attribute, check_several_inputs, options_of
from captum_lrpx.models import find_model
from captum_lrpx.targets import Target, encode
from captum_lrpx.targets.decoder import is_encoder_decoder
from captum_lrpx.targets.head import ReadOnce
from captum_lrpx.targets.images import IMAGE
from captum_lrpx.targets.media import media_scene
from captum_lrpx.targets.scene import sequence_scene
from captum_lrpx.targets.sounds import AUDIO
from captum_lrpx.targets.standing import standings

if TYPE_CHECKING:
    from torch import nn

    from captum_lrpx.certification import Certify
    from captum_lrpx.recipes import Recipe
    from captum_lrpx.targets.encoding import Encoding
    from captum_lrpx.targets.inputs import Given, TokenIds
    from captum_lrpx.targets.media import Medium
    from captum_lrpx.targets.outputs import Choice
    from captum_lrpx.targets.scene import Scene
    from captum_lrpx.targets.standing import Standing


def explain(
    model: nn.Module,
    tokenizer: Any,
    text: Given | None,
    target: Target | Choice | None = None,
    *,
    method: str = "attnlrpx",
    recipe: Recipe | None = None,
    first_token: str | None = None,
    truncate: bool | int = False,
    model_name: str | None = None,
    certify: Certify = True,
    written: str | TokenIds | int | None = None,
    image: Any = None,
    audio: Any = None,
    **options: Option,
) -> Explanation:
    """Explain the prediction of a Hugging Face model for a text.

    Args:
        model: A model with a head: causal or masked language model, classifier (of images and audio
            as well), question answering, encoder-decoder, language model that reads images or
            audio. For a module around one (an adapter, a prompt, a function of the logits) its own
            outputs are explained.
        tokenizer: Its (fast) tokenizer; for images and audio its processor.
        text: A text; a pair of texts, as a tuple (question and context, premise and hypothesis);
            chat messages, a list of ``{"role": ..., "content": ...}``, which the tokenizer's
            template writes as one text, up to where the answer begins; token ids ``[T]`` or
            ``[1, T]``; or the tokenizer's output for one text. A causal language model is
            explained at its end, a masked one at its mask token, which is appended if a text
            has none. No start token is doubled. None for a model that reads an image or audio
            alone.
        target: The value to explain; a word, token or class stands for ``Target(word)``.
            Default: the model's prediction.
        method: A name in :data:`captum_lrpx.methods.METHODS`.
        recipe: Rules other than the method's own.
        first_token: A special token to prepend, for a model trained with one that its
            tokenizer does not add.
        truncate: Cut a text that is too long, to the context of the model or to this number of
            tokens: a causal model loses the beginning, others the end, in a pair of the second
            text. Default: refuse it.
        model_name: Name for the record. Default: where the model was loaded from.
        certify: Whether to check the explanation and record the findings in
            :attr:`Explanation.certificate`, for the methods with rules and ALTI-Logit; others
            have no checks. Each explanation is compared with a forward pass without rules;
            coverage, ledger and a second computation of the relevances are audited at the first
            explanation of a form (model, method, rules, kinds of inputs), or at each with
            ``"full"``. A failed check is a warning, not an error.
        written: For an encoder-decoder, the decoder's text so far: a text, token
            ids without the start token, or a number of tokens to generate first, greedily.
            Default: nothing, so the first token is explained. Both the text and this get relevance,
            with ``lrpx`` and ``attnlrpx``. A model that transcribes speech is an encoder-decoder
            too.
        image: For a model that reads images, one: its path, an image of Pillow, or an array or
            tensor ``[3, H, W]``. Relevance is computed for patches, with ``lrpx`` and ``attnlrpx``.
        audio: For a model that reads audio: the path of a WAV file, a pair of samples ``[S]`` and
            their number per second, or these as a dictionary (``array``, ``sampling_rate``).
            Relevance is computed, with ``lrpx`` and ``attnlrpx``, for spans of time, and for bands
            of frequency if the model reads a spectrogram.
        **options: Options of the method (``n_steps=100``), the keyword arguments of its function in
            :mod:`captum_lrpx.methods.functions`.

    Returns:
        The explanation.

    Raises:
        ValueError: If the text, the target, the method or an option cannot be used; the message
            names the reason.
        IndexError: If an id or position is out of range.
        TypeError: If model, tokenizer, ``text`` or ``audio`` is something else, or the first two
            are swapped.

    Examples:
        >>> from captum_lrpx import Target, explain, zoo
        >>> model, tokenizer = zoo.load("sva-gpt2")
        >>> explain(model, tokenizer, "the keys to the cabinet", Target("are", contrast="is"))
        >>> explain(model, tokenizer, "the keys to the cabinet")  # the predicted token
    """
    options_of(method)  # refuses an unknown method early
    if not isinstance(target, Target):
        target = Target(target)
    scene = _scene(model, tokenizer, text, method, written, {IMAGE: image, AUDIO: audio})
    if scene is not None and (first_token is not None or truncate):
        raise ValueError("`first_token` and `truncate` are for a single text.")
    hugging_face = find_model(model)
    encoding = (
        encode(hugging_face, tokenizer, text, first_token, truncate=truncate)  # type: ignore[arg-type]
        if scene is None
        else scene.entries
    )
    return explain_encoding(
        model,
        tokenizer,
        encoding,
        target,
        method=method,
        recipe=recipe,
        model_name=model_name,
        certify=certify,
        options=options,
        scene=scene,
    )


def explain_encoding(
    model: nn.Module,
    tokenizer: Any,
    encoding: Encoding,
    target: Target,
    *,
    method: str,
    recipe: Recipe | None,
    model_name: str | None,
    certify: Certify,
    options: dict[str, Option],
    scene: Scene | None = None,
) -> Explanation:
    """Explain the prediction of a model for an encoded text.

    Args:
        model: As for :func:`explain`, likewise the others.
        tokenizer: Its tokenizer.
        encoding: The text.
        target: The value to explain.
        method: A name in :data:`captum_lrpx.methods.METHODS`.
        recipe: Rules other than the method's own.
        model_name: Name for the record.
        certify: Whether, and how, to check the explanation.
        options: Options of the method.
        scene: Several inputs, or an image; None for a single text.

    Raises:
        ValueError: If the target, the method or an option cannot be used.
        IndexError: If an id or position is out of range.
    """
    once = ReadOnce(lambda: with_gradients(find_model(model), of_tokens=scene is None))
    places: tuple[Standing, ...] = ()
    with once:
        query = target.ask(model, tokenizer, encoding) if scene is None else scene.ask(target)
        (terms,) = query.terms
        if terms is not None and scene is not None:
            places = scene.standings(terms)
        elif terms is not None:
            places = standings(model, target.outputs(model), encoding, terms)
    found = attribute(method, query, recipe, options)
    explanation = Explanation(
        relevances=tuple(found.relevances[0].double().tolist()),
        value=float(found.values[0]),
        target=query.descriptions[0],
        position=query.positions[0],
        method=method,
        recipe=found.recipe,
        options=options_of(method) | options,
        convergence_delta=None if found.deltas is None else float(found.deltas[0]),
        standings=places,
        parts=None if scene is None else scene.parts,
        **provenance(encoding, model, model_name),
    )
    if not certify:
        return explanation
    return certified(explanation, query, recipe, full=certify == "full", once=once)


def _scene(
    model: nn.Module,
    tokenizer: Any,
    text: Given | None,
    method: str,
    written: str | TokenIds | int | None,
    media: dict[Medium, Any],
) -> Scene | None:
    """Scene of a model with several inputs, or an image or audio; None for a single text."""
    given = [medium for medium, value in media.items() if value is not None]
    if len(given) > 1:
        raise ValueError("An image and audio at once are not explained: give one of them.")
    if given:
        check_model(model)
    else:
        check_model_and_tokenizer(model, tokenizer)
    hugging_face = find_model(model)
    for medium in media:
        if not given and medium.is_needed(hugging_face):
            raise ValueError(
                f"{type(hugging_face).__name__} reads {medium.one}: pass it as `{medium.name}`."
            )
    if given:
        check_several_inputs(method, texts=False)
        return media_scene(given[0], hugging_face, tokenizer, media[given[0]], text, written)
    if is_encoder_decoder(hugging_face):
        check_several_inputs(method, texts=True)
        return sequence_scene(hugging_face, tokenizer, text, "" if written is None else written)
    if written is not None:
        raise ValueError(
            f"{type(hugging_face).__name__} is no encoder-decoder: append what has been written "
            "so far to the text itself."
        )
    return None
