"""Audio
=====

A sound classifier: which parts of a recording, in time and frequency, decide? The model, an audio
spectrogram transformer, is trained here in seconds to tell a rising tone from a falling and a
steady one, in noise. One of the hub is explained in the same way, ``explain(model, extractor,
None, audio="dog.wav")``; so is one that writes down speech (Whisper), with what it has ``written``
so far.
"""

# %%
# Two seconds of noise with a short tone in them, and a small model that learns which it is.

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers

from captum_lrpx import Target, explain

RATE = 16_000
KINDS = {"rising": (600, 2400), "falling": (2400, 600), "steady": (1200, 1200)}
generator = np.random.default_rng(0)


def sound(kind: str) -> np.ndarray:
    """A tone of half a second somewhere in two seconds of noise."""
    low, high = KINDS[kind]
    length = RATE // 2
    frequencies = np.geomspace(low, high, length) * generator.uniform(0.9, 1.1)
    tone = np.sin(2 * np.pi * np.cumsum(frequencies) / RATE) * np.hanning(length)
    samples = 0.02 * generator.standard_normal(2 * RATE)
    start = generator.integers(0, 2 * RATE - length)
    samples[start : start + length] += 0.5 * tone
    return samples.astype("float32")


names = tuple(KINDS)
extractor = transformers.ASTFeatureExtractor(max_length=224, num_mel_bins=32)
torch.manual_seed(0)
model = transformers.ASTForAudioClassification(
    transformers.ASTConfig(
        max_length=224,
        num_mel_bins=32,
        patch_size=16,
        frequency_stride=16,
        time_stride=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.1,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
classes = torch.as_tensor(generator.integers(0, 3, 320))
heard = [sound(names[number]) for number in classes]
spectrograms = extractor(heard, sampling_rate=RATE, return_tensors="pt")["input_values"]
for _ in range(120):
    some = torch.as_tensor(generator.integers(0, 320, 32))
    outputs = model(input_values=spectrograms[some], labels=classes[some])
    optimizer.zero_grad()
    outputs.loss.backward()
    optimizer.step()
model.eval()
print(f"loss {outputs.loss.item():.3f}")

# %%
# The relevance of the spectrogram, high frequencies on top. Audio is a WAV file, or samples with
# their sampling rate. The extractor pads two seconds to the input length of the model:
# ``(padding)``.

recording = sound("rising")
found = explain(model, extractor, None, audio=(recording, RATE), method="lrpx")
print(found.target, found.sums, found.certificate.holds)
found

# %%
# The recording and its relevance.

part = found.parts[0]
grid = np.reshape(found.relevances[part.first : part.stop], part.grid)
figure, axes = plt.subplots(2, 1, figsize=(6, 3), sharex=True, layout="constrained")
axes[0].specgram(recording, Fs=RATE)
axes[0].set_ylim(0, 4000)
axes[0].set_ylabel("Hz")
limit = abs(grid).max()
axes[1].imshow(grid, cmap="bwr", vmin=-limit, vmax=limit, aspect="auto", extent=(0, 2, 0, 1))
axes[1].set_yticks([])
axes[1].set_ylabel("relevance")
axes[1].set_xlabel("seconds")

# %%
# Why rising, and not falling?

explain(model, extractor, None, Target("rising", contrast="falling"), audio=(recording, RATE))
