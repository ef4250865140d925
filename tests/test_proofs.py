"""Every proof of the paper has a test that is marked with it, and docs/trust.md lists them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from captum_lrpx import rules

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "trust.md"

PROOFS = {"D.1", "D.2", "D.3", "D.4", "D.5", "D.6", "2.7"}
"""Sections of Arras et al. 2025 that prove a rule to be a modified Gradient x Input."""


def proof_of(decorator):
    """The proof that a decorator names, if it is the marker."""
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.proof":
        return ast.literal_eval(decorator.args[0])
    return None


def marked():
    """``(proof, file::test)`` for every test that is marked with a proof."""
    for path in TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found = {proof_of(each) for each in node.decorator_list} - {None}
                yield from ((proof, f"{path.name}::{node.name}") for proof in found)


def listed():
    """The cells of the page's rows by their proof, code taken out of its quotes."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0] in PROOFS:
            yield cells[0], [re.findall(r"`([^`]+)`", cell) for cell in cells]


def test_every_proof_has_a_test_and_the_page_names_it():
    tests = set(marked())
    assert {proof for proof, _ in tests} == PROOFS
    assert tests == {(proof, test) for proof, cells in listed() for test in cells[-1]}


def test_every_proof_has_a_formula_and_a_rule_of_the_package():
    rows = list(listed())
    assert sorted(proof for proof, _ in rows) == sorted(PROOFS)
    for proof, (*_, formula, _layer, named, _tests) in rows:
        assert formula, proof
        assert named, proof
        assert set(named) <= set(rules.__all__), proof
