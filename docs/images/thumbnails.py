"""Draws the gallery's thumbnails that are no figure of their example; needs shapiq.

python docs/images/thumbnails.py docs/images
"""

import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from captum_lrpx import draw
from captum_lrpx.explanation.figures import settings

GALLERY, FOLDER = Path(__file__).parents[1] / "gallery", Path(sys.argv[1])

first = runpy.run_path(str(GALLERY / "01_first_explanation.py"))
draw(first["explanation"], FOLDER / "first_explanation.svg", width=2.0)
with settings():
    runpy.run_path(str(GALLERY / "11_interactions.py"))
    plt.savefig(FOLDER / "interactions.svg", metadata={"Date": None})
