"""Configuration of the documentation: ``python -m sphinx -W -b html docs docs/_build/html``."""

from importlib.util import find_spec
from typing import cast

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator
from transformers.utils import logging

from captum_lrpx import __version__

logging.disable_progress_bar()  # the examples load a model each
logging.set_verbosity_error()

project = "captum_lrpx"
author = "The captum_lrpx developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "images"]

html_theme = "furo"
html_title = f"captum_lrpx {version}"
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
html_math_renderer = "mathml"  # what a browser shows by itself, without a script from elsewhere

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # pages link to headings of each other, as on GitHub

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
autoclass_content = "both"  # arguments are described at __init__
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of data classes are members already
napoleon_use_rtype = False

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    # The example of interactions is shown without its results where shapiq is not installed.
    "filename_pattern": r"\.py$" if find_spec("shapiq") else r"(?<!interactions)\.py$",
    "within_subsection_order": "FileNameSortKey",
    "abort_on_example_error": True,
    "capture_repr": ("_repr_html_",),
    "download_all_examples": False,
    "plot_gallery": True,
    "remove_config_comments": True,
    "reset_modules": ("matplotlib",),
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
}


def setup(app: Sphinx) -> None:
    """Connect what is done to docstrings, and how formulas are shown."""
    app.add_html_math_renderer("mathml", (_formula, None), (_formula, None))
    app.connect("autodoc-process-docstring", _without_torch)


def _without_torch(*event: object) -> None:
    """Leave out what ``torch.nn.Module`` says about its constructor, which classes inherit."""
    lines = cast("list[str]", event[-1])
    for index, line in enumerate(lines):
        if line.startswith("Initialize internal Module state"):
            del lines[index:]
            break


def _formula(writer: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML."""
    writer.body.append(tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block)))
    raise nodes.SkipNode
