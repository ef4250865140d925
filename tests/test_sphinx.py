"""The documentation builds without a warning, and its gallery runs in the build."""

import ast
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

pytest.importorskip("sphinx")

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "docs" / "gallery").glob("*.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built from a copy: the gallery writes its pages beside the others."""
    folder = tmp_path_factory.mktemp("site")
    made = shutil.ignore_patterns("examples", "_build")
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=made)
    shutil.copy(ROOT / "README.md", folder)
    build = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "html"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert build.returncode == 0, build.stderr[-5000:]
    return folder / "html"


def test_the_site_has_its_pages(site):
    for page in ROOT.glob("docs/**/*.md"):
        html = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / html).is_file(), html
    assert "--contrast" in (site / "quickstart.html").read_text()  # it is a part of the README


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]*?(?:src|href)=\"(\w+:)?//", page.read_text())
        assert not loaded, page.name


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_of_the_gallery_ran(site, example):
    if "interactions" in example.stem:
        pytest.importorskip("shapiq")
    page = (site / "examples" / example.with_suffix(".html").name).read_text()
    assert "Total running time of the script" in page


@pytest.fixture(scope="module")
def described(site):
    """The last part of each name in the reference."""
    lines = (site / "objects.inv").read_bytes().split(b"\n", 4)  # four of them say what follows
    entries = zlib.decompress(lines[4]).decode().splitlines()
    return {entry.split(" ")[0].rsplit(".", 1)[-1] for entry in entries}


PUBLIC = """
attr architectures batching components conservation explanation methods metrics plugins.inseq
plugins.quantus recipes rules sva sva.evaluation sva.sources targets zoo zoo.programs
"""


@pytest.mark.parametrize(
    "module", ["captum_lrpx", *(f"captum_lrpx.{name}" for name in PUBLIC.split())]
)
def test_every_public_name_is_in_the_reference(described, module):
    package = importlib.import_module(module)
    names = {name for name in package.__all__ if not inspect.ismodule(getattr(package, name))}
    assert names - {"__version__"} <= described, names - described


def test_every_name_that_a_page_or_example_imports_is_in_the_reference(described):
    blocks = [(path, path.read_text(encoding="utf-8")) for path in EXAMPLES]
    for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        blocks += [(path, block) for block in found]
    assert len(blocks) > 100
    for path, block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("captum_lrpx"):
                names = {alias.name for alias in node.names} - {"zoo"}
                assert names <= described, f"{path.name}: {names - described}"


def test_every_example_has_a_picture_of_its_own(site):
    thumbnails = [
        site / "_images" / f"sphx_glr_{example.stem}_thumb{suffix}"
        for example in EXAMPLES
        for suffix in (".png", ".svg")
    ]
    pictures = [path.read_bytes() for path in thumbnails if path.is_file()]
    assert len(pictures) == len(set(pictures)) == len(EXAMPLES)
