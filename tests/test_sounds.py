"""Audio explained as it is used: speech that is written down, sounds that are classified."""

import base64
import inspect
import io
import json
import wave
from functools import partial

import numpy as np
import pytest
import torch
from byte_tokenizers import byte_level
from state import snapshot
from tiny_models import build, config_class, small_config

from captum_lrpx import (
    AttnLRPx,
    DecoderLogits,
    Explanation,
    LRPx,
    Target,
    compare,
    explain,
    ledger,
)
from captum_lrpx.cli import main

transformers = pytest.importorskip("transformers")

RATE, MEL = 16_000, 16
WRITTEN = "the keys"
METHODS = pytest.mark.parametrize("method", ["lrpx", "attnlrpx"])
TIME = np.arange(RATE) / RATE
SOUND = (0.5 * np.sin(2 * np.pi * 440 * TIME) * ((TIME > 0.2) & (TIME < 0.4))).astype("float32")
WAVES = (
    "wav2vec2",
    "wav2vec2-conformer",
    *(
        pytest.param(kind, marks=pytest.mark.slow)
        for kind in ("data2vec-audio", "hubert", "sew", "unispeech", "wavlm")
    ),
)


class Processor:
    """An extractor of features and a tokenizer, as processors of speech have them."""

    def __init__(self, feature_extractor, tokenizer):
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer


def write_wav(path, samples=SOUND, rate=RATE, width=2, channels=1):
    """Integer samples of so many bytes, the same in each channel."""
    top = 2 ** (8 * width - 1)
    numbers = np.round(np.clip(samples, -1, 1 - 1 / top) * top).astype("<i8")
    numbers += 128 * (width == 1)
    data = numbers[:, None].repeat(channels, 1).reshape(-1, 1).view("u1")[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_wav(tmp_path_factory.mktemp("audio") / "tone.wav")


def whisper(mapping="SPEECH_SEQ_2_SEQ", **options):
    tokens = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": 0}
    return build(
        "whisper",
        mapping,
        vocab_size=len(byte_level()),
        num_mel_bins=MEL,
        max_source_positions=100,
        **tokens,
        **options,
    )


@pytest.fixture(scope="module")
def reader():
    """Spectrograms of two seconds."""
    return transformers.WhisperFeatureExtractor(feature_size=MEL, chunk_length=2)


@pytest.fixture(scope="module")
def processor(reader):
    return Processor(reader, byte_level())


@pytest.fixture(scope="module")
def model():
    return whisper()


@pytest.fixture(scope="module")
def listener():
    """A spectrogram transformer with three classes, and its extractor."""
    size = {"max_length": 128, "num_mel_bins": 32}
    model = build("audio-spectrogram-transformer", "AUDIO_CLASSIFICATION", patch_size=8, **size)
    return model, transformers.ASTFeatureExtractor(**size)


def features(reader):
    return reader(SOUND, sampling_rate=RATE, return_tensors="pt")["input_features"]


# Speech -------------------------------------------------------------------------------------------


@METHODS
def test_the_next_token_is_explained_by_audio_and_what_has_been_written(
    model, processor, path, method
):
    tokenizer = processor.tokenizer
    sound = features(processor.feature_extractor)
    written = torch.tensor([[0, *tokenizer(WRITTEN).input_ids]])
    logits = model(input_features=sound, decoder_input_ids=written).logits[0, -1].detach()
    token = tokenizer.convert_tokens_to_ids("Ġare")
    before = snapshot(model)
    found = explain(model, processor, None, "are", audio=path, written=WRITTEN, method=method)
    assert snapshot(model) == before
    assert found.certificate.holds
    assert found.text == f"<|start|>{WRITTEN}"
    assert found.labels[-3:] == ("<|start|>", *WRITTEN.split())
    assert found.position == len(found.tokens) - 1
    assert found.rank == 1 + int((logits > logits[token]).sum())
    assert list(found.sums) == ["audio", "padding", "written"]
    kind = {"lrpx": LRPx, "attnlrpx": AttnLRPx}[method]
    of_sound, of_written = kind(DecoderLogits(model)).attribute((sound, written), target=token)
    expected = {
        "audio": of_sound[..., :100].sum(),  # a second of two
        "padding": of_sound[..., 100:].sum(),
        "written": of_written.sum(),
    }
    close = {"abs": 1e-3}  # samples of 16 bits
    assert found.sums == pytest.approx({k: float(v) for k, v in expected.items()}, **close)
    assert min(map(abs, found.sums.values())) > 1e-3


def test_cells_are_sums_over_bands_and_spans_and_all_of_them_the_value(processor):
    model = whisper(dtype=torch.float64, biases=False)
    with torch.no_grad():
        for each in (model.model.encoder, model.model.decoder):
            each.embed_positions.weight.zero_()
    found = explain(model, processor, None, 7, audio=(SOUND, RATE), written=WRITTEN, method="lrpx")
    assert found.delta == pytest.approx(0.0, abs=1e-6)
    sound = features(processor.feature_extractor).double()
    written = torch.tensor([[0, *processor.tokenizer(WRITTEN).input_ids]])
    relevance, _ = LRPx(DecoderLogits(model)).attribute((sound, written), target=7)
    drawn = relevance[0, :, :100].flip(0)  # high frequencies first
    expected = drawn.reshape(8, 2, 25, 4).sum((1, 3)).flatten()
    cells = torch.tensor(found.relevances[:200], dtype=torch.float64)
    torch.testing.assert_close(cells, expected, rtol=0, atol=1e-9)
    assert found.parts[0].grid == (8, 25)
    assert found.tokens[0] == "audio 0.00 s, mel 14-15"
    assert found.tokens[199] == "audio 0.96 s, mel 0-1"
    assert found.tokens[200] == "(padding)"


def test_both_inputs_close_the_ledger(model, reader):
    written = torch.tensor([[0, 5, 6]])
    book = ledger(AttnLRPx(DecoderLogits(model)), (features(reader), written), 7)
    assert book.closes(1e-4)


def test_what_is_written_may_be_generated_or_ids(model, processor):
    ids = [0]
    for _ in range(3):
        logits = model(
            input_features=features(processor.feature_extractor),
            decoder_input_ids=torch.tensor([ids]),
        ).logits
        ids.append(int(logits[0, -1].argmax()))
    found = explain(model, processor, None, audio=(SOUND, RATE), written=3, certify=False)
    assert list(found.ids[-4:]) == ids
    again = explain(model, processor, None, audio=(SOUND, RATE), written=ids[1:], certify=False)
    assert again.relevances == found.relevances
    # The tokenizer of Whisper begins its labels with the start token.
    again = explain(model, processor, None, audio=(SOUND, RATE), written=ids, certify=False)
    assert again.ids == found.ids
    nothing = explain(model, processor, None, audio=(SOUND, RATE), certify=False)
    assert nothing.labels[-1] == "<|start|>"


def test_features_with_time_first_are_turned():
    tokenizer = byte_level()
    model = build(
        "speech_to_text",
        "SPEECH_SEQ_2_SEQ",
        vocab_size=len(tokenizer),
        max_source_positions=200,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    reader = transformers.Speech2TextFeatureExtractor()
    found = explain(
        model, Processor(reader, tokenizer), None, "are", audio=(SOUND, RATE), written=WRITTEN
    )
    assert found.certificate.holds
    assert list(found.sums) == ["audio", "written"]
    assert found.parts[0].grid == (8, 25)
    features = reader(SOUND, sampling_rate=RATE, return_tensors="pt")["input_features"]
    written = torch.tensor([[0, *tokenizer(WRITTEN).input_ids]])
    relevance, _ = AttnLRPx(DecoderLogits(model)).attribute(
        (features, written), target=tokenizer.convert_tokens_to_ids("Ġare")
    )
    top = relevance[0, :4, 70:].sum()  # the first span of time, the highest of the bands
    assert found.relevances[0] == pytest.approx(float(top), abs=1e-6)


def test_frames_that_are_read_together_are_told_apart():
    model = build("wav2vec2-bert", "AUDIO_CLASSIFICATION")
    reader = transformers.SeamlessM4TFeatureExtractor()  # two frames of 80 bands in a row
    found = explain(model, reader, None, 1, audio=(SOUND, RATE))
    assert found.certificate.holds
    assert found.parts[0].grid == (8, 25)
    given = reader(SOUND, sampling_rate=RATE, return_tensors="pt")
    relevance = AttnLRPx(
        lambda x: model(x, attention_mask=given["attention_mask"]).logits, model
    ).attribute(given["input_features"], target=1)[0]
    halves = relevance.unflatten(1, (2, 80))  # a span is four frames, two rows
    top = halves[:2, :, 70:].sum()
    assert found.relevances[0] == pytest.approx(float(top), rel=1e-3, abs=1e-6)
    assert found.sum == pytest.approx(float(relevance.sum()), rel=1e-3)


# Classifiers --------------------------------------------------------------------------------------


@METHODS
def test_a_class_is_explained_by_a_spectrogram(listener, path, method):
    model, reader = listener
    before = snapshot(model)
    found = explain(model, reader, None, "LABEL_1", audio=path, method=method)
    assert snapshot(model) == before
    assert found.certificate.holds
    assert list(found.sums) == ["audio", "padding"]
    assert found.parts[0].grid == (8, 25)
    (standing,) = found.standings
    assert standing.name == "LABEL_1"


def test_a_classifier_of_whisper_writes_nothing(reader):
    model = whisper("AUDIO_CLASSIFICATION")
    found = explain(model, reader, None, audio=(SOUND, RATE))
    assert found.certificate.holds
    assert list(found.sums) == ["audio", "padding"]


@pytest.mark.parametrize("kind", WAVES)
def test_a_class_is_explained_by_a_wave(kind):
    model = build(kind, "AUDIO_CLASSIFICATION")
    reader = transformers.Wav2Vec2FeatureExtractor()
    found = explain(model, reader, None, 1, audio=(SOUND, RATE))
    assert found.certificate.holds
    assert list(found.sums) == ["audio"]
    assert found.parts[0].grid == (1, 32)
    samples = reader(SOUND, sampling_rate=RATE, return_tensors="pt")["input_values"]
    relevance = AttnLRPx(lambda x: model(x).logits, model).attribute(samples, target=1)
    expected = relevance.reshape(32, 500).sum(1)
    torch.testing.assert_close(torch.tensor(found.relevances), expected, rtol=1e-3, atol=1e-5)
    assert found.tokens[1] == "audio 0.03 s"


@METHODS
def test_the_next_token_is_explained_by_audio_and_text(method):
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|AUDIO|>"]})
    mark = tokenizer.convert_tokens_to_ids("<|AUDIO|>")
    text = small_config(
        config_class("qwen2"), vocab_size=len(tokenizer), max_position_embeddings=128
    )
    sound = small_config(
        config_class("qwen2_audio_encoder"), num_mel_bins=MEL, max_source_positions=100
    )
    model = build(
        "qwen2_audio",
        "SEQ_TO_SEQ_CAUSAL_LM",
        text_config=text,
        audio_config=sound,
        audio_token_index=mark,
        audio_token_id=mark,
    )
    processor = transformers.Qwen2AudioProcessor(
        transformers.WhisperFeatureExtractor(feature_size=MEL, chunk_length=2),
        tokenizer,
        chat_template=None,
        audio_token="<|AUDIO|>",
        audio_bos_token="",
        audio_eos_token="",
    )
    found = explain(model, processor, "the keys to", " are", audio=(SOUND, RATE), method=method)
    assert found.certificate.holds
    assert list(found.sums) == ["audio", "padding", "text"]
    assert "the keys to" in found.text  # among what the chat template writes
    assert "<|AUDIO|>" not in found.tokens
    assert min(abs(found.sums[name]) for name in ("audio", "text")) > 1e-3


# Reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_is_its_samples(listener, tmp_path, width, channels):
    file = write_wav(tmp_path / "tone.wav", width=width, channels=channels)
    model, reader = listener
    seen = []
    hook = model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["input_values"].detach()), with_kwargs=True
    )
    try:
        explain(model, reader, None, 0, audio=file, certify=False)
    finally:
        hook.remove()
    top = 2 ** (8 * width - 1)
    samples = np.round(np.clip(SOUND, -1, 1 - 1 / top) * top) / top
    expected = reader(samples.astype("float32"), sampling_rate=RATE, return_tensors="pt")
    torch.testing.assert_close(seen[0], expected["input_values"], rtol=0, atol=1e-4)


def test_audio_is_a_file_a_pair_or_a_dictionary(listener, path):
    model, reader = listener
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(RATE), "<i2").astype("float32") / 2**15
    answers = [
        explain(model, reader, None, 0, audio=audio, certify=False).relevances
        for audio in (
            path,
            str(path),
            (samples, RATE),
            (torch.tensor(samples), RATE),
            {"array": samples, "sampling_rate": RATE, "path": None},
        )
    ]
    assert all(each == answers[0] for each in answers)


# Views --------------------------------------------------------------------------------------------


def test_a_record_keeps_the_spectrogram(model, processor, tmp_path):
    png = pytest.importorskip("PIL.Image")
    found = explain(model, processor, None, "are", audio=(SOUND, RATE), written=WRITTEN)
    assert Explanation.from_json(found.to_json()) == found
    picture = png.open(io.BytesIO(base64.b64decode(found.parts[0].picture)))
    assert picture.size == (100, MEL * 2)
    loud, silent = (picture.getpixel((at, MEL * 2 - 3))[0] for at in (30, 70))
    assert loud < silent - 50  # the tone is low and dark
    page = found.to_html()
    assert f"data:image/png;base64,{found.parts[0].picture}" in page
    assert page.count("<rect x=") == 2 * 200
    assert f"audio 0.00 s, mel 14-15 {found.relevances[0]:+.6g}" in page
    for overlay in (True, False):
        found.to_png(tmp_path / "heat.png", overlay=overlay)
        assert min(png.open(tmp_path / "heat.png").size) >= 64
    assert found.words().sums == pytest.approx(found.sums)
    assert f"audio {found.sums['audio']:+.4f}   padding" in str(found)


def test_targets_and_comparisons(listener):
    model, reader = listener

    def of(target, **options):
        return explain(model, reader, None, target, audio=(SOUND, RATE), certify=False, **options)

    one, other = of(0), of(1)
    assert of(Target(0, contrast=1)).value == pytest.approx(one.value - other.value)
    assert (one - other).sums["audio"] == pytest.approx(one.sums["audio"] - other.sums["audio"])
    assert compare([one, of(0, method="lrpx")]).to_html().count("<svg ") == 4


# Errors -------------------------------------------------------------------------------------------


def test_what_does_not_belong_together_is_refused(
    model, processor, listener, loaded, path, tmp_path, monkeypatch
):
    ast, reader = listener
    gpt2, tokenizer = loaded["sva-gpt2"]
    (tmp_path / "no.wav").write_text("no audio")
    slow = write_wav(tmp_path / "slow.wav", rate=8000)
    empty = write_wav(tmp_path / "empty.wav", samples=SOUND[:0])
    wave2vec, mute = build("wav2vec2", "CTC"), processor.feature_extractor
    undefined = np.full_like(SOUND, np.nan)

    def ran(*_args, **_keywords):
        raise RuntimeError("something was computed")

    for each in (model, ast, gpt2):
        monkeypatch.setattr(each, "forward", _with_signature_of(each.forward, ran))
    for error, message, (kind, part, text, audio), options in [
        (ValueError, "reads audio: pass it as `audio`", (model, tokenizer, "the keys", None), {}),
        (ValueError, "reads audio: pass it as `audio`", (ast, tokenizer, "the keys", None), {}),
        (ValueError, "reads no audio: leave", (gpt2, tokenizer, "the keys", path), {}),
        (TypeError, "reads no audio: pass the proc", (ast, tokenizer, None, path), {}),
        (TypeError, "writes no text: give the proc", (model, mute, None, path), {}),
        (ValueError, "reads audio and no text", (ast, reader, "a cat", path), {}),
        (ValueError, "reads audio and no text", (model, processor, "the keys", path), {}),
        (ValueError, "There is no audio", (ast, reader, None, tmp_path / "cat.wav"), {}),
        (ValueError, "is no WAV file of integer", (ast, reader, None, tmp_path / "no.wav"), {}),
        (ValueError, "8000 samples .* reads 16000: resample", (ast, reader, None, slow), {}),
        (ValueError, "8000 samples per second", (ast, reader, None, (SOUND, 8000)), {}),
        (TypeError, "a pair of samples", (ast, reader, None, SOUND), {}),
        (TypeError, "is a positive integer", (ast, reader, None, (SOUND, None)), {}),
        (ValueError, "has one channel", (ast, reader, None, (SOUND[None], RATE)), {}),
        (ValueError, "at least one", (ast, reader, None, empty), {}),
        (ValueError, "infinite or not", (ast, reader, None, (undefined, RATE)), {}),
        (ValueError, "There is no class 'cat'", (ast, reader, None, path), {"target": "cat"}),
        (ValueError, "does not know", (model, processor, None, path), {"written": [10_000]}),
        (ValueError, "`written` is for an enc", (ast, reader, None, path), {"written": "the"}),
        (ValueError, "explains one text", (ast, reader, None, path), {"method": "occlusion"}),
        (ValueError, "at once", (ast, reader, None, path), {"image": path}),
        (ValueError, "reads no images", (ast, reader, None, None), {"image": path}),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            explain(kind, part, text, audio=audio, **options)
    with pytest.raises(ValueError, match="more than one row"):
        explain(wave2vec, transformers.Wav2Vec2FeatureExtractor(), None, audio=path)


def _with_signature_of(forward, function):
    """Another forward method with the same arguments."""
    function = partial(function)
    function.__signature__ = inspect.signature(forward)
    return function


def test_features_of_unknown_places_are_refused(listener):
    class Strided:
        model_input_names = ("input_values",)
        sampling_rate, feature_size = RATE, 80

        def __call__(self, *_, **__):
            return {"input_values": torch.zeros(1, 49, 150)}

    with pytest.raises(ValueError, match="unknown where in time and frequency"):
        explain(listener[0], Strided(), None, audio=(SOUND, RATE))


def test_the_command(listener, path, tmp_path, capsys):
    model, reader = listener
    for each in (model, reader):
        each.save_pretrained(tmp_path / "model")
    files = [tmp_path / f"found.{kind}" for kind in ("json", "png", "html")]
    record, picture, page = map(str, files)
    arguments = ["explain", "--audio", str(path), "--model", str(tmp_path / "model")]
    assert not main([*arguments, "--json", record, "--png", picture, "--html", page])
    assert "audio " in capsys.readouterr().out
    found = Explanation.from_json(files[0])
    expected = explain(model, reader, None, audio=path)
    assert found.relevances == pytest.approx(expected.relevances, abs=1e-6)
    assert json.loads(files[0].read_text())["parts"][0]["name"] == "audio"
    assert all(each.stat().st_size for each in files)
    assert main(["explain", "the keys", *arguments[-2:]]) == 2
    assert "reads audio and no text: `captum-lrpx explain --audio" in capsys.readouterr().err
    assert main([*arguments, "--compare", "lrpx", "attnlrpx", "--png", picture]) == 2
