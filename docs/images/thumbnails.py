"""Draws the gallery's thumbnails that are no figure of their example; needs shapiq.

python docs/images/thumbnails.py docs/images
"""

import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from captum_lrpx.visualization.paper import heat_map_figure, settings

GALLERY, FOLDER = Path(__file__).parents[1] / "gallery", Path(sys.argv[1])

with settings():
    first = runpy.run_path(str(GALLERY / "01_first_explanation.py"))
    figure = heat_map_figure(first["explanation"], 2.0)
    figure.axes[0].texts[-1].remove()  # the legend
    figure.savefig(FOLDER / "first_explanation.svg", metadata={"Date": None})
    runpy.run_path(str(GALLERY / "11_interactions.py"))
    plt.savefig(FOLDER / "interactions.svg", metadata={"Date": None})
