"""The Python blocks of the README and of the pages in docs run, top to bottom."""

import ast
import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import captum_lrpx

ROOT = Path(__file__).parents[1]
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    if "```python" in path.read_text()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page):
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)  # noqa: S102


@pytest.mark.parametrize(
    "page", sorted(ROOT.glob("docs/errors/[!i]*.md")), ids=lambda page: page.stem
)
def test_an_error_reads_as_its_page_says(page):
    blocks = re.findall(r"^```pycon\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, page.stem, str(page), 0)
    report: list[str] = []
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(examples, out=report.append)
    assert not result.failed, "".join(report)


def test_messages_that_the_pages_quote_are_messages_of_the_package():
    """Quotations are code of at least four words; dots stand for what varies."""
    messages = "\n".join(_texts(ROOT / "captum_lrpx")).replace("`", "")
    for page in ROOT.glob("docs/errors/*.md"):
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for quoted in re.findall(r"`([^`]+)`", prose):
            words = quoted.split()
            for part in " ".join(words).split("...") if len(words) > 3 else []:
                assert part.strip(" .:") in messages, f"{page.name}: {quoted}"


def _texts(folder):
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (getattr(part, "value", "") for part in node.values)
                yield "".join(part if isinstance(part, str) else "\0" for part in parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_readme_has_two_commands():
    section = re.search(
        r"^## Quick start$(.*?)(?=^## )", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    assert len(re.findall(r"^```bash$", section.group(1), re.MULTILINE)) == 2


LINKED = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    text = _without_blocks(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if "://" in link:
            continue  # the tests have no network
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if target.name == "index.md" and target.parent.name == "examples":
            continue  # written from the gallery when the pages are built
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def _without_blocks(page):
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def _anchors(page):
    """The anchors of the headings of a page, as GitHub and MyST make them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", _without_blocks(page), re.MULTILINE)
    }


def test_the_files_that_contributors_are_sent_to_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:captum_lrpx|tests|docs|\.ci|\.github)/[\w./-]+)`", text)
    assert len(paths) > 40
    for path in paths:
        assert (ROOT / path).exists(), path


def test_words_are_spelt_as_in_the_dictionary():
    pytest.importorskip("codespell_lib")
    found = subprocess.run(
        [sys.executable, "-m", "codespell_lib"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, ""), found.stdout


def test_a_release_has_one_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == captum_lrpx.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE).group(1) == captum_lrpx.__version__


def test_the_oldest_versions_are_those_declared():
    """``constraints-oldest.txt`` pins the lower bounds of pyproject.toml."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = re.search(r"^dependencies = \[(.*?)^\]", project, re.MULTILINE | re.DOTALL).group(1)
    bounds = [Requirement(each) for each in re.findall(r'"([^"]+)"', declared)]
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    for bound, pin in zip(bounds, pinned, strict=True):
        (at_least,), (exactly,) = bound.specifier, pin.specifier
        assert (bound.name, at_least.operator, exactly.operator) == (pin.name, ">=", "==")
        assert f"{exactly.version}.0".startswith(f"{at_least.version}."), bound.name
