"""The house's numbers: how long a function, a file of tests and the README may be; that public code says its types."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LONGEST_FUNCTION, LONGEST_TEST_FILE = 60, 400


def sources() -> list[Path]:
    """The package's files; kernels are not among them, since a Triton program is one function."""
    return sorted(path for folder in ("videomaker", "train") for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, the docstring among them."""
    return node.end_lineno - node.lineno + 1


def is_untyped(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    if every and every[0].arg in ("self", "cls"):
        every = every[1:]
    every += [argument for argument in (node.args.vararg, node.args.kwarg) if argument]
    return any(argument.annotation is None for argument in every) or (node.returns is None and node.name != "__init__")


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions of the module and methods of its public classes, constructors included."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            methods = (each for each in node.body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef)))
            yield from (each for each in methods if not each.name.startswith("_") or each.name == "__init__")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield node


def test_functions_are_short():
    assert not {name for path in sources() for name, node in functions(path) if length(node) > LONGEST_FUNCTION}


def test_test_files_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").glob("*.py")}
    assert not {name for name, lines in lengths.items() if lines > LONGEST_TEST_FILE}


def test_public_signatures_have_types():
    found = set()
    for path in [*sources(), *sorted((ROOT / "kernels").rglob("api.py"))]:
        for node in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            if is_untyped(node):
                found.add(f"{path.relative_to(ROOT).as_posix()}:{node.name}")
    assert not found


def test_mypy_overlooks_no_kind_of_error():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]
    assert not [each for each in [settings, *settings["overrides"]] if "disable_error_code" in each]


def test_root_holds_no_surprises():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders == {"kernels", "train", "videomaker"}
    assert not (ROOT / "tests" / "__init__.py").exists()  # pytest would put the root, and so kernels/, on the path
