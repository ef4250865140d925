"""``explain()``: one call from a text to an explanation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captum_lrpx._version import versions
from captum_lrpx.attr.checks import check_model, check_model_and_tokenizer
from captum_lrpx.certification import certified, with_gradients
from captum_lrpx.explanation import Explanation
from captum_lrpx.methods import Option, attribute, check_several_inputs, options_of
from captum_lrpx.models import find_model
from captum_lrpx.targets import Target, encode
from captum_lrpx.targets.decoder import is_encoder_decoder
from captum_lrpx.targets.head import ReadOnce
from captum_lrpx.targets.media import media_scene
from captum_lrpx.targets.pictures import IMAGE
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
    from captum_lrpx.targets.scene import Scene
    from captum_lrpx.targets.standing import Standing
    from captum_lrpx.targets.target import Choice

__all__ = ["explain", "explain_encoding"]


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
    """Explain what a Hugging Face model predicts for a text.

    Args:
        model: A model with a head: causal or masked language model, classifier (of images and audio
            as well), question answering, encoder-decoder, language model that reads images or
            audio.
            Of a module around one (an adapter, a prompt, a function of the logits) its own outputs
            are explained.
        tokenizer: Its (fast) tokenizer; for images and audio its processor.
        text: A text; a pair of texts, as a tuple (question and context, premise and hypothesis);
            chat messages, a list of ``{"role": ..., "content": ...}``, which the tokenizer's
            template writes as one text, up to where the answer begins; token ids ``[T]`` or
            ``[1, T]``; or what the tokenizer returns for one text. A causal language model is
            explained at its end, a masked one at its mask token, which is appended if a text has
            none. No start token is doubled. None for a model that reads an image or audio alone.
        target: What is explained; a word, token or class stands for ``Target(word)``. Default: what
            the model predicts.
        method: A name in :data:`captum_lrpx.methods.METHODS`.
        recipe: Rules other than the method's own.
        first_token: A special token that comes first, for a model that was trained with one that
            its tokenizer does not add.
        truncate: Cut a text that is too long, to the context of the model or to this number of
            tokens: a causal model loses the beginning, others the end, of a pair that of the second
            text. Default: it is refused.
        model_name: Name for the record. Default: where the model was loaded from.
        certify: Whether to check the explanation and record the findings in
            :attr:`Explanation.certificate`, for the methods with rules and ALTI-Logit; the others
            have nothing of the kind. Each is compared with a forward pass without rules; coverage,
            ledger and a second computation of the relevances are audited at the first explanation
            of a form (model, method, rules, kinds of inputs), or at each with ``"full"``. A check
            that fails is a warning, not an error.
        written: For an encoder-decoder, what it has written so far and goes on from: a text, token
            ids without the start token, or a number of tokens that it generates first, greedily.
            Default: nothing, so the first token is explained. Both the text and this get relevance,
            by ``lrpx`` and ``attnlrpx``. A model that writes down speech writes as well.
        image: For a model that reads images, one: its path, an image of Pillow, or an array or
            tensor ``[3, H, W]``. Its relevance, by ``lrpx`` and ``attnlrpx``, is that of patches.
        audio: For a model that reads audio: the path of a WAV file, a pair of samples ``[S]`` and
            their number per second, or these as a dictionary (``array``, ``sampling_rate``). Its
            relevance, by ``lrpx`` and ``attnlrpx``, is that of spans of time, and of bands of
            frequency where the model reads a spectrogram.
        **options: Options of the method (``n_steps=100``), the keyword arguments of its function in
            :mod:`captum_lrpx.methods.functions`.

    Returns:
        The explanation.

    Raises:
        ValueError: If the text, the target, the method or an option cannot be used; the message
            says why.
        IndexError: If an id or position is out of range.
        TypeError: If model, tokenizer, ``text`` or ``audio`` is something else, or the first two
            are swapped.

    Examples:
        >>> from captum_lrpx import Target, explain, zoo
        >>> model, tokenizer = zoo.load("sva-gpt2")
        >>> explain(model, tokenizer, "the keys to the cabinet", Target("are", contrast="is"))
        >>> explain(model, tokenizer, "the keys to the cabinet")  # whatever comes next
    """
    options_of(method)  # refuses an unknown method before anything else happens
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
    """Explain what a model predicts for a text that is encoded already.

    Args:
        model: As for :func:`explain`, likewise the others.
        tokenizer: Its tokenizer.
        encoding: The text.
        target: What is explained.
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
    hugging_face = find_model(model)
    once = ReadOnce(lambda: with_gradients(hugging_face, of_tokens=scene is None))
    with once:
        query = target.ask(model, tokenizer, encoding) if scene is None else scene.ask(target)
    parameter = next(hugging_face.parameters())
    places: tuple[Standing, ...] = ()
    (terms,) = query.terms
    if terms is not None:
        with once:
            if scene is None:
                places = standings(model, target.outputs(model), encoding, terms)
            else:
                places = scene.standings(terms)
    found = attribute(method, query, recipe, options)
    config: Any = hugging_face.config
    explanation = Explanation(
        text=encoding.text,
        tokens=encoding.tokens,
        ids=encoding.ids,
        offsets=encoding.offsets,
        special=encoding.special,
        relevances=tuple(found.relevances[0].double().tolist()),
        value=float(found.values[0]),
        target=query.descriptions[0],
        position=query.positions[0],
        method=method,
        recipe=found.recipe,
        model=model_name or str(getattr(hugging_face, "name_or_path", "") or type(model).__name__),
        dtype=str(parameter.dtype).removeprefix("torch."),
        versions=versions(),
        revision=getattr(config, "_commit_hash", None),
        options=options_of(method) | options,
        convergence_delta=None if found.deltas is None else float(found.deltas[0]),
        template=encoding.template,
        standings=places,
        parts=None if scene is None else scene.parts,
        regions=encoding.regions or None,
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
    """The inputs of a model that reads several, or an image or audio; None for a single text."""
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
                f"{type(hugging_face).__name__} reads {medium.one}: give it as `{medium.name}`."
            )
    if given:
        check_several_inputs(method)
        return media_scene(given[0], hugging_face, tokenizer, media[given[0]], text, written)
    if is_encoder_decoder(hugging_face):
        check_several_inputs(method)
        return sequence_scene(hugging_face, tokenizer, text, "" if written is None else written)
    if written is not None:
        raise ValueError(
            f"{type(hugging_face).__name__} is no encoder-decoder: append what has been written "
            "so far to the text itself."
        )
    return None
