"""A question about an image
=========================

A vision-language model answers a question about an image: which color has the frame, and which
the square? The answer is explained by the patches of the image and by the words of the question.
The model, a LLaVA, is trained here in seconds; one of the hub is explained in the same way:
``explain(model, processor, "What is on the table?", image="table.png")``.
"""

# %%
# A square in a frame, two questions answered by one word, and the parts of a LLaVA: a vision tower,
# a language model, and a processor that writes a token for each patch.

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

from captum_lrpx import Target, explain

COLORS = {"red": (220, 50, 40), "green": (40, 200, 70), "blue": (50, 90, 220)}
QUESTIONS = ("<image> what color has the square ?", "<image> what color has the frame ?")
generator = np.random.default_rng(0)


def picture(square: str, frame: str) -> Image.Image:
    """A square in a frame."""
    pixels = np.full((32, 32, 3), COLORS[frame], dtype="uint8")
    pixels[3:-3, 3:-3] = 230
    top, left = generator.integers(6, 18, 2)
    pixels[top : top + 8, left : left + 8] = COLORS[square]
    return Image.fromarray(pixels)


def asked() -> tuple[Image.Image, str, str]:
    """An image, a question, and its answer."""
    colors = [str(color) for color in generator.choice(list(COLORS), 2, replace=False)]
    number = generator.integers(0, 2)
    return picture(*colors), QUESTIONS[number], colors[number]


words = ["<pad>", "<unk>", *" ".join(QUESTIONS).split(), *COLORS]
vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", extra_special_tokens=["<image>"]
)
size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
size |= {"num_attention_heads": 4, "initializer_range": 0.1}
torch.manual_seed(0)
model = transformers.LlavaForConditionalGeneration(
    transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=len(vocabulary), num_key_value_heads=4, max_position_embeddings=64, **size
        ),
        vision_config=transformers.CLIPVisionConfig(image_size=32, patch_size=8, **size),
        image_token_id=vocabulary["<image>"],
        vision_feature_layer=-1,
    )
)
processor = transformers.LlavaProcessor(
    transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ),
    tokenizer,
    patch_size=8,
    vision_feature_select_strategy="default",
    image_token="<image>",
    num_additional_image_tokens=1,
)

# %%
# It learns to answer, from the last word of the question on.

optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(120):
    images, questions, answers = zip(*(asked() for _ in range(32)), strict=True)
    given = processor(images=list(images), text=list(questions), return_tensors="pt")
    logits = model(**given).logits[:, -1]
    right = torch.tensor([vocabulary[answer] for answer in answers])
    loss = torch.nn.functional.cross_entropy(logits, right)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
print(f"loss {loss.item():.3f}, right {(logits.argmax(1) == right).float().mean():.2f}")

# %%
# For one question the square has most of the relevance, for the other a part of the frame; ``sums``
# has the contributions of image and words.

image = picture("green", "red")
of_square = explain(model, processor, QUESTIONS[0], "green", image=image, method="lrpx")
print(of_square.sums, of_square.certificate.holds)
of_square

# %%
of_frame = explain(model, processor, QUESTIONS[1], "red", image=image, method="lrpx")
print(of_frame.sums)
of_frame

# %%
# The image and both explanations side by side.

figure, axes = plt.subplots(1, 3, figsize=(7, 2.6), layout="constrained")
axes[0].imshow(image)
axes[1].set_title("color of the square")
axes[2].set_title("color of the frame")
for axis, found in zip(axes[1:], (of_square, of_frame), strict=True):
    part = found.parts[0]
    grid = np.reshape(found.relevances[part.first : part.stop], part.grid)
    axis.imshow(grid, cmap="bwr", vmin=-abs(grid).max(), vmax=abs(grid).max())
for axis in axes:
    axis.set_axis_off()

# %%
# Why green, and not red? Support for one color opposes the other.

explain(model, processor, QUESTIONS[0], Target("green", contrast="red"), image=image)
