"""The house's numbers: how long a function, a file of tests and the README may be; that public code says its types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST_FUNCTION, LONGEST_TEST_FILE = 60, 400
# What was longer when the rule came. Nothing is added; who shortens one takes it out.
LONG_FUNCTIONS = {
    "videomaker/cli/evaluate.py:run",
    "videomaker/cli/generate.py:generate",
    "videomaker/pipeline/pipeline.py:__call__",
    "videomaker/serve/migrations/versions/0001_the_first_tables.py:upgrade",
}
LONG_TEST_FILES: set[str] = set()
# Public, and without types.
UNTYPED = {
    "train/average.py:average_in_place",
    "train/average.py:average_left_out",
    "train/average.py:gather_trained",
    "train/average.py:has_average",
    "train/average.py:set_average",
    "train/best.py:offer",
    "train/checkpoint.py:save",
    "train/checkpoint_files.py:save",
    "train/checkpoint_files.py:write",
    "train/engine.py:initialize",
    "train/engine.py:plain_gradient_norm",
    "train/model.py:mixed_precision",
    "train/universal.py:load",
    "videomaker/serve/api/events.py:watching",
}


def sources() -> list[Path]:
    """The package's files; kernels are not among them, since a Triton program is one function."""
    return sorted(path for folder in ("videomaker", "train") for path in (ROOT / folder).rglob("*.py"))


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of code, without those of the docstring: what a caller reads is not what a reader has to follow."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(getattr(first.value, "value", None), str)
    documented = first.end_lineno - first.lineno + 1 if is_docstring else 0
    return node.end_lineno - node.lineno + 1 - documented


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
    found = {name for path in sources() for name, node in functions(path) if length(node) > LONGEST_FUNCTION}
    assert not found - LONG_FUNCTIONS


def test_test_files_are_short():
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "tests").glob("*.py")}
    assert {name for name, lines in lengths.items() if lines > LONGEST_TEST_FILE} <= LONG_TEST_FILES


def test_public_signatures_have_types():
    found = set()
    for path in [*sources(), *sorted((ROOT / "kernels").rglob("api.py"))]:
        for node in public_functions(ast.parse(path.read_text(encoding="utf-8"))):
            if is_untyped(node):
                found.add(f"{path.relative_to(ROOT).as_posix()}:{node.name}")
    assert not found - UNTYPED


@pytest.mark.parametrize(
    "code,lines", [("def f():\n    '''Says\n    much.'''\n    return 1\n", 2), ("def f():\n    return 1\n", 2)]
)
def test_a_docstring_does_not_count(code, lines):
    assert length(ast.parse(code).body[0]) == lines


def test_root_holds_no_surprises():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert folders == {"kernels", "train", "videomaker"}
    assert not (ROOT / "tests" / "__init__.py").exists()  # pytest would put the root, and so kernels/, on the path
