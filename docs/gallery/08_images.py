"""An image classifier
===================

A vision transformer that says which color a square has, among gray ones, and where it looks. The
model is trained here in a few seconds; one of the hub is explained in the same way, with its
processor: ``explain(model, processor, None, image="cat.png")``.
"""

# %%
# Pictures of a colored square among gray ones, and a small model that learns to name its color.

import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from PIL import Image

from captum_lrpx import Target, explain

COLORS = {"red": (220, 50, 40), "green": (40, 200, 70), "blue": (50, 90, 220)}
generator = np.random.default_rng(0)


def picture(color: tuple[int, int, int]) -> Image.Image:
    """One colored square among four gray ones."""
    pixels = np.full((32, 32, 3), 10, dtype="uint8")
    for shade in [*[(gray,) * 3 for gray in generator.integers(90, 220, 4)], color]:
        top, left = generator.integers(0, 25, 2)
        pixels[top : top + 8, left : left + 8] = shade
    return Image.fromarray(pixels)


names = tuple(COLORS)
processor = transformers.ViTImageProcessorPil(size={"height": 32, "width": 32})
torch.manual_seed(0)
model = transformers.ViTForImageClassification(
    transformers.ViTConfig(
        image_size=32,
        patch_size=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        initializer_range=0.15,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
for _ in range(100):
    classes = torch.as_tensor(generator.integers(0, 3, 32))
    pictures = [picture(COLORS[names[number]]) for number in classes]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    loss = model(pixel_values=pixels, labels=classes).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()

# %%
# The explanation: the predicted class, and the contribution of each patch of the image. The image
# is gray under the colors of relevance.

seen = picture(COLORS["green"])
found = explain(model, processor, None, image=seen, method="lrpx")
found

# %%
# The same as numbers, in percent of the total. The patches of the colored square have the largest.

grid = torch.tensor(found.relevances).reshape(found.parts[0].grid)
print(found.target, found.certificate.holds)
print((100 * grid / grid.abs().sum()).round().int())
figure, axes = plt.subplots(1, 2, figsize=(5, 2.6), layout="constrained")
axes[0].imshow(seen)
axes[1].imshow(grid, cmap="bwr", vmin=-grid.abs().max(), vmax=grid.abs().max())
for axis in axes:
    axis.set_axis_off()

# %%
# Why green, and not red?

explain(model, processor, None, Target("green", contrast="red"), image=seen)
