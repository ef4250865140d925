"""The public names: imported when first used, known to editors, and none of them hidden."""

import ast
import pickle
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import captum_lrpx

HEAVY = {"torch", "captum", "transformers", "matplotlib", "numpy", "rich"}
FUNCTIONS_WITH_A_MODULE_OF_THEIR_NAME = {"compare", "draw", "leave_one_out", "propagation", "view"}


def outcome(*words):
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, encoding="utf-8"
    )


def python(code):
    """What code prints in a process of its own, where nothing has been imported."""
    result = outcome("-c", code)
    assert result.returncode == 0, result.stderr
    return result.stdout


def places():
    """Name -> module that defines it, as ``__init__.pyi`` says; modules of the package are None."""
    stub = Path(captum_lrpx.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    return {alias.name: each.module for each in ast.parse(stub).body for alias in each.names}


NAMES = {name: module for name, module in places().items() if module}


def test_all_names_are_seen_by_editors_and_listed():
    assert sorted(captum_lrpx.__all__) == sorted(places()) == sorted(dir(captum_lrpx))
    stub = Path(captum_lrpx.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    for name in places():
        assert f"{name} as {name}" in stub, "only such an import is public for a type checker"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_name_is_what_its_module_defines(name):
    module = import_module(f"captum_lrpx.{NAMES[name]}")
    assert getattr(captum_lrpx, name) is getattr(module, name)


@pytest.mark.parametrize(
    "code",
    [
        "import captum_lrpx",
        "import captum_lrpx; dir(captum_lrpx); hasattr(captum_lrpx, 'no_such_name')",
        "import captum_lrpx; captum_lrpx.zoo.names()",
        "import captum_lrpx.cli",
    ],
)
def test_importing_loads_next_to_nothing(code):
    assert python(f"{code}\nimport sys; print(*{HEAVY!r} & sys.modules.keys())") == "\n"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["explain", "--help"], 0),
        (["evaluate", "--help"], 0),
        (["explane"], 2),
        (["explain", "--no-such-option"], 2),
    ],
)
def test_help_and_wrong_words_need_neither_torch_nor_captum(words, status):
    code = (
        "import sys; from captum_lrpx import cli\n"
        f"try: cli.main({words!r})\n"
        "except SystemExit as stop: print('exit', stop.code)\n"
        "print('loaded', *{'torch', 'captum', 'transformers', 'matplotlib'} & sys.modules.keys())"
    )
    *_, stopped, loaded = python(code).splitlines()
    assert (stopped, loaded) == (f"exit {status}", "loaded")


def test_a_function_is_not_replaced_by_the_module_of_its_name():
    modules = {each.name for each in pkgutil.iter_modules(captum_lrpx.__path__)}
    assert modules & NAMES.keys() == FUNCTIONS_WITH_A_MODULE_OF_THEIR_NAME
    names = sorted(FUNCTIONS_WITH_A_MODULE_OF_THEIR_NAME)
    code = "import captum_lrpx\n"
    for name in names:
        code += f"import captum_lrpx.{name}\n"  # binds the module to the package
        code += f"from captum_lrpx import {name}; print(type({name}).__name__)\n"
        code += f"from captum_lrpx.{name} import {name} as same; assert same is {name}\n"
    assert python(code).split() == ["function"] * len(names)


def test_all_names_are_imported_by_a_star():
    code = "from captum_lrpx import *\nprint(AttnLRPx.__name__, callable(explain), zoo.DEFAULT)"
    assert python(code).split() == ["AttnLRPx", "True", captum_lrpx.zoo.DEFAULT]


def test_modules_are_attributes_without_an_import_of_their_own():
    code = "import captum_lrpx\nprint(captum_lrpx.targets.Target is captum_lrpx.Target)"
    assert python(code).strip() == "True"


@pytest.mark.parametrize("name", ["explian", "__wrapped__", "no_such_module"])
def test_an_unknown_name_is_an_ordinary_error(name):
    with pytest.raises(AttributeError, match=f"No captum_lrpx attribute {name}"):
        getattr(captum_lrpx, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}' from 'captum_lrpx'"):
        exec(f"from captum_lrpx import {name}")  # noqa: S102


def test_what_a_module_lacks_is_not_called_a_missing_name():
    """Without captum the error is about captum, not about an attribute."""
    code = "import sys; sys.modules['captum'] = None\nimport captum_lrpx\n"
    for expression in ("captum_lrpx.LRPx", "captum_lrpx.attr"):
        result = outcome("-c", code + expression)
        assert "ModuleNotFoundError" in result.stderr, result.stderr
        assert "captum" in result.stderr.splitlines()[-1]
        assert "AttributeError" not in result.stderr


def test_what_is_pickled_is_found_again_in_a_new_process(tmp_path):
    path = tmp_path / "pickled"
    values = (captum_lrpx.LRP, captum_lrpx.Target("are"), captum_lrpx.compare)
    path.write_bytes(pickle.dumps(values))
    code = (
        "import pickle\nfrom pathlib import Path\n"
        f"recipe, target, function = pickle.loads(Path({str(path)!r}).read_bytes())\n"
        "import captum_lrpx\n"
        "print(recipe == captum_lrpx.LRP, target == captum_lrpx.Target('are'), "
        "function is captum_lrpx.compare)"
    )
    assert python(code).split() == ["True"] * 3
