"""The house: imports run one way, importing is cheap, the public names are these."""

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import captum_lrpx

PACKAGE = Path(captum_lrpx.__file__).parent

# Each part may import those before it, and itself.
ORDER = [
    ["characters", "extras", "notices"],
    [
        "_version",
        "_captum",
        "batching",
        "compilation",
        "decoding",
        "files",
        "gguf_header",
        "module_tree",
        "names",
        "onlookers",
        "training",
        "words",
        "visualization",
    ],
    ["frozen", "models", "parallel", "segments", "structure", "architectures"],
    ["rules"],
    ["module_patches"],
    ["recipes", "coverage", "wrappers"],
    ["linear_rules", "memory"],
    ["trace"],
    ["hints", "graph_rules"],
    ["rule_words"],
    ["fast"],
    ["alti", "targets"],
    ["forms"],
    ["traced"],
    ["propagation"],
    ["explanation"],
    ["attr"],
    ["conservation"],
    ["methods", "metrics"],
    ["sva"],
    ["components", "plugins"],
    ["zoo", "compare", "certification"],
    ["loading", "explainer", "leave_one_out"],
    ["chat", "draw", "view"],
    ["cli"],
    ["__main__", "__init__"],
]
TYPES = {"visualization": {"explanation", "targets"}}
"""Parts that another one imports for its types alone: views draw the record that shows itself."""

RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}
MODULES = sorted(PACKAGE.rglob("*.py"))
PARTS = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in MODULES}


def part_of(path):
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path):
    """The parts that a module imports, except for the types that it may name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        node
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "captum_lrpx":
            parts = node.module.split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            allowed = TYPES.get(part_of(path), set()) if node in for_types else set()
            yield from (name for name in names if name in PARTS and name not in allowed)


def test_every_part_has_its_place():
    assert set(RANK) == PARTS


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    for other in imported(path):
        assert other == part or RANK[other] < RANK[part], f"{part} imports {other}"


def test_declarations_need_neither_torch_nor_transformers():
    path = PACKAGE / "architectures.py"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        assert not {"torch", "transformers"} & {name.split(".")[0] for name in names}, path


def test_importing_the_package_does_not_import_transformers_and_patches_nothing():
    """Classes of torch and transformers are the same objects, with the same forwards, after it."""
    code = """
import importlib, pkgutil, sys, torch

def state(kinds):
    functions = dict(vars(torch.nn.functional))
    return [(kind.forward, kind.__call__) for kind in kinds], functions

kinds = [torch.nn.Linear, torch.nn.LayerNorm, torch.nn.Module]
before = state(kinds)
from captum_lrpx import *
import captum_lrpx, captum_lrpx.sva
zoo.path(zoo.DEFAULT)
assert "transformers" not in sys.modules
assert state(kinds) == before

from transformers.models.llama.modeling_llama import LlamaRMSNorm
kinds.append(LlamaRMSNorm)
before = state(kinds)
for module in pkgutil.walk_packages(captum_lrpx.__path__, "captum_lrpx."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert state(kinds) == before
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_public_names_exist_and_are_documented():
    for name in captum_lrpx.__all__:
        value = getattr(captum_lrpx, name)
        if callable(value):
            assert value.__doc__, name


# Code lines: those that are not blank, a comment, or part of a docstring.
MOST_LINES_OF_A_FILE = 300
MOST_LINES_OF_A_FUNCTION = 49


def code_lines(source, tree):
    """Numbers of the lines with code."""
    ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*ignored, tokenize.ENDMARKER):
            found.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found.difference_update(range(node.lineno, node.end_lineno + 1))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_neither_files_nor_functions_are_long(path):
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = code_lines(source, tree)
    assert len(lines) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own = lines.intersection(range(node.lineno, node.end_lineno + 1))
            assert len(own) <= MOST_LINES_OF_A_FUNCTION, node.name


def test_no_two_modules_have_one_name():
    names = [path.name for path in MODULES if path.name != "__init__.py"]
    assert len(names) == len(set(names)), {name for name in names if names.count(name) > 1}
