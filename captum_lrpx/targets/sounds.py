"""Audio as an input of models: reading it, and the cells that are entries of a record."""

from __future__ import annotations

import wave
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from captum_lrpx.targets.images import png_in_base64
from captum_lrpx.targets.media import Layout, Medium

if TYPE_CHECKING:
    from torch import Tensor


_ROWS, _COLUMNS = 8, 32
"""Largest number of frequency bands and of time spans of audio in a record."""

_HOP: Final = 0.01
"""Seconds from frame to frame of a spectrogram, unless its extractor declares them."""

_DRAWN: Final = (128, 512)
"""Height and width of the picture of a wave."""

_RESAMPLE: Final = "resample it, as with `ffmpeg -i in.wav -ar {rate} -ac 1 out.wav`"


# Reading ------------------------------------------------------------------------------------------


def _opened(part: Any, audio: Any) -> tuple[Any, dict[str, Any]]:
    """Samples ``[S]``, and their rate as an argument of the extractor."""
    samples, rate = _samples(audio)
    expected = int(part.sampling_rate)
    if rate != expected:
        raise ValueError(
            f"The audio has {rate} samples per second, and {type(part).__name__} reads {expected}: "
            f"{_RESAMPLE.format(rate=expected)}."
        )
    return samples, {"sampling_rate": rate}


def _samples(audio: Any) -> tuple[np.ndarray, int]:
    """Samples ``[S]`` between -1 and 1, and their number per second."""
    if isinstance(audio, (str, Path)):
        samples, rate = _read(Path(audio))
    elif isinstance(audio, Mapping) and {"array", "sampling_rate"} <= audio.keys():
        samples, rate = audio["array"], audio["sampling_rate"]
    elif isinstance(audio, tuple) and len(audio) == 2:
        samples, rate = audio
    else:
        raise TypeError(
            "Audio is the path of a WAV file or a pair of samples [S] and their number per second, "
            f"`audio=(samples, 16000)`, not {type(audio).__name__}."
        )
    if isinstance(rate, bool) or not isinstance(rate, (int, np.integer)) or rate <= 0:
        raise TypeError(f"The number of samples per second is a positive integer, not {rate!r}.")
    found = np.asarray(samples, dtype=np.float32)
    if found.ndim != 1 or not found.size:
        raise ValueError(
            f"Audio has one channel of samples [S], and at least one: these are {found.shape}."
        )
    if not np.isfinite(found).all():
        raise ValueError("The audio has samples that are infinite or not a number.")
    return found, int(rate)


def _read(path: Path) -> tuple[np.ndarray, int]:
    """Read a WAV file, averaging its channels."""
    if not path.is_file():
        raise ValueError(f"There is no audio {str(path)!r}.")
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(
            f"{str(path)!r} is no WAV file of integer samples ({error}): convert it, as with "
            "`ffmpeg -i in.mp3 -c:a pcm_s16le out.wav`."
        ) from error
    return _as_floats(data, width).reshape(-1, channels).mean(1), rate


def _as_floats(data: bytes, width: int) -> np.ndarray:
    """Integers of a width in bytes as numbers between -1 and 1; single bytes are unsigned."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    of_bytes = np.frombuffer(data, np.uint8).reshape(-1, width)
    padded = np.zeros((len(of_bytes), 4), np.uint8)
    padded[:, 4 - width :] = of_bytes
    numbers: np.ndarray = padded.view("<i4").reshape(-1).astype(np.float32) / 2**31
    return numbers


# Entries ------------------------------------------------------------------------------------------


def _layout(
    _model: Any, part: Any, _made: dict[str, Any], numbers: Tensor, samples: np.ndarray
) -> Layout:
    if numbers.ndim == 2 and len(numbers) == 1:
        return _of_wave(part, numbers)
    bins = int(getattr(part, "num_mel_bins", part.feature_size))
    first = numbers.ndim == 3 and numbers.shape[1] == bins
    last = numbers.ndim == 3 and numbers.shape[2] % bins == 0  # several frames may be merged
    if len(numbers) != 1 or first == last:
        raise ValueError(
            f"The extractor makes features {tuple(numbers.shape)} of the audio, and it is unknown "
            f"where in time and frequency they are: give LRPx a forward function of the features."
        )

    def planes(features: Tensor) -> Tensor:
        """Planes with high frequencies first, as they are drawn."""
        turned = features if first else features.reshape(1, -1, bins).transpose(1, 2)
        return turned.flip(1).unsqueeze(1)

    hop = getattr(part, "hop_length", None) or int(_HOP * part.sampling_rate)
    spectrogram = planes(numbers)[0]
    width = min(spectrogram.shape[-1], -(-len(samples) // hop))
    cell = (-(-bins // _ROWS), -(-width // _COLUMNS))
    seconds = cell[1] * hop / part.sampling_rate

    def label(name: str, row: int, column: int) -> str:
        top = bins - row * cell[0]
        return f"{name} {column * seconds:.2f} s, mel {max(top - cell[0], 0)}-{top - 1}"

    drawn = spectrogram[..., :width]
    taller = max(1, round(width / (4 * bins)))
    picture = png_in_base64(-drawn.repeat_interleave(taller, dim=1))
    return Layout(planes, ("audio",), cell, label, (picture,), width)


def _of_wave(part: Any, numbers: Tensor) -> Layout:
    size = -(-numbers.shape[1] // _COLUMNS)
    seconds = size / part.sampling_rate
    return Layout(
        lambda wave: wave[:, None, None],
        ("audio",),
        (1, size),
        lambda name, _row, column: f"{name} {column * seconds:.2f} s",
        (_picture_of_wave(numbers[0]),),
    )


def _picture_of_wave(samples: Tensor) -> str:
    """The extent of a wave ``[S]`` over time."""
    height, width = _DRAWN
    wave_ = samples.detach().float().cpu()
    parts = torch.tensor_split(wave_ / wave_.abs().max().clamp(min=1e-12), min(width, len(wave_)))
    low, high = (torch.stack([getattr(each, end)() for each in parts]) for end in ("min", "max"))
    rows = torch.linspace(1, -1, height)[:, None]
    inside = (rows >= low - 1 / height) & (rows <= high + 1 / height)
    return png_in_base64(-inside.float()[None])


AUDIO: Final = Medium(
    name="audio",
    one="audio",
    many="audio",
    inputs=("input_features", "input_values"),
    part="feature_extractor",
    keyword="audio",
    loader="AutoFeatureExtractor",
    opened=_opened,
    layout=_layout,
)
"""Audio: a WAV file, or samples ``[S]`` with their number per second."""
