"""The Python blocks of the README and of the pages in docs run, top to bottom."""

import ast
import doctest
import re
from pathlib import Path

import pytest

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


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", *ROOT.glob("docs/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
