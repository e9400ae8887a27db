"""kernels/ laid out as a Hugging Face `kernels` project, and loaded by path as that package does."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib.util
import json
import runpy
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from videomaker.kernels import reference_attention

LAY_OUT = Path(__file__).parents[1] / "kernels" / "hub" / "lay_out.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hub") / "project"
    runpy.run_path(str(LAY_OUT))["lay_out"](place)
    return place


def load(variant: Path) -> ModuleType:
    """As kernels 0.17's importer does: under the name that the metadata give."""
    identifier = json.loads((variant / "metadata.json").read_text())["id"]
    spec = importlib.util.spec_from_file_location(identifier, variant / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[identifier] = module
    spec.loader.exec_module(module)
    return module


def arguments() -> tuple[list[torch.Tensor], dict[str, int]]:
    tensors = [torch.randn(2, 9, 1, 8) for _ in range(3)] + [torch.randn(1, 5, 1, 8) for _ in range(2)]
    return [x.requires_grad_() for x in tensors], {"num_frames": 3}


@pytest.mark.parametrize(("backend", "operator"), [("sdpa", "reference_partials"), ("triton", "reference_forward")])
def test_two_builds_in_one_process_compute_the_same(place: Path, backend: str, operator: str) -> None:
    """Beside the installed package, whose operators keep their own namespace."""
    tensors, options = arguments()
    expected = reference_attention(*tensors, **options, backend=backend)
    before = torch.autograd.grad(expected.sin().sum(), tensors)
    for variant in ("torch-cpu", "torch-cuda"):
        module = load(place / "build" / variant)
        assert set(module.__all__) >= {"reference_attention", "pisa_attention"}
        out = module.reference_attention(*tensors, **options, backend=backend)
        for x, y in zip((out, *torch.autograd.grad(out.sin().sum(), tensors)), (expected, *before), strict=True):
            assert torch.equal(x, y)
        assert hasattr(getattr(torch.ops, module.__name__), operator)


def test_metadata_say_what_is_there(place: Path) -> None:
    for variant in (place / "build").glob("torch-*"):
        metadata = json.loads((variant / "metadata.json").read_text())
        assert variant.name == f"torch-{metadata['backend']['type']}"
        assert metadata["id"].isidentifier() and metadata["python-depends"] == []
        for name, digest in metadata["digest"]["files"].items():
            assert base64.b64encode(hashlib.sha256((variant / name).read_bytes()).digest()).decode() == digest
        files = {path.relative_to(variant).as_posix() for path in variant.rglob("*.py")}
        assert files == set(metadata["digest"]["files"])


def test_the_project_is_what_kernel_builder_takes(place: Path) -> None:
    build = tomllib.loads((place / "build.toml").read_text())
    assert build["general"]["edition"] == 5 and build["torch-noarch"] == {}
    package = place / "torch-ext" / build["general"]["name"].replace("-", "_")
    assert (package / "__init__.py").is_file() and not (package / "_ops.py").exists()  # it writes its own
    assert (place / "CARD.md").read_text().startswith("---\nlibrary_name: kernels\n")
    assert (place / "flake.nix").is_file()


def test_sources_import_only_what_a_kernel_may(place: Path) -> None:
    """Itself relatively, the standard library, torch and Triton: a build is not found under a name of its own."""
    allowed = {"torch", "triton"} | set(sys.stdlib_module_names)
    for path in (place / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_operators_are_registered_in_the_builds_namespace(place: Path) -> None:
    """kernel-builder reads the decorators: the name goes through its function, unwrapped, and without a fallback."""
    found = 0
    for path in (place / "torch-ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.library.custom_op":
                assert ast.unparse(node.args[0].func) == "add_op_namespace_prefix", path
                found += 1
    assert found == 8


def test_a_folder_that_holds_something_is_left_alone(place: Path) -> None:
    with pytest.raises(FileExistsError, match="is not empty"):
        runpy.run_path(str(LAY_OUT))["lay_out"](place)


def test_the_package_kernels_loads_it(place: Path) -> None:
    kernels = pytest.importorskip("kernels", reason="pip install kernels")
    module = kernels.get_local_kernel(place, backend="cpu")
    tensors, options = arguments()
    assert torch.equal(module.reference_attention(*tensors, **options), reference_attention(*tensors, **options))
