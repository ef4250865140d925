"""Draws the thumbnail of the gallery's interactions, for a build without shapiq.

python docs/images/interactions.py docs/images/interactions.svg
"""

import runpy
import sys
from pathlib import Path

import matplotlib.pyplot as plt

from captum_lrpx.visualization.paper import settings

with settings():
    runpy.run_path(str(Path(__file__).parents[1] / "gallery" / "11_interactions.py"))
    plt.savefig(sys.argv[1], metadata={"Date": None})
