"""Everything `make lint` checks: style, format, types, the order of the rooms, and that no imports run in a circle.

mypy and import-linter do not follow `package_dir` in an editable install, so the package is laid out as a regular
installation has it, of symbolic links, under build/lint.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).resolve().parent.parent
MAPPED = {"kernels": "kernels", "train": "train"}  # as package_dir in setup.py
KERNELS_MAY_IMPORT = {"torch", "triton", "numpy"}


def lay_out(root: Path, place: Path) -> Path:
    """Links in `place` that look like a regular installation of the package under `root`."""
    package = place / "videomaker"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    targets = {child.name: child for child in (root / "videomaker").iterdir() if child.name != "__pycache__"}
    for name, target in {**targets, **{name: root / folder for name, folder in MAPPED.items()}}.items():
        (package / name).symlink_to(os.path.relpath(target, package))
    return place


def import_graph(place: Path) -> grimp.ImportGraph:
    """Who imports whom in `place`, imports inside functions and those for types alone included."""
    sys.path.insert(0, str(place))
    try:
        return grimp.build_graph("videomaker", include_external_packages=True, cache_dir=None)
    finally:
        sys.path.remove(str(place))


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of modules that import one another, directly or by detours."""
    arrows = ((name, other) for name in graph.modules for other in graph.find_modules_directly_imported_by(name))
    groups = networkx.strongly_connected_components(networkx.DiGraph(arrows))
    return sorted(sorted(group) for group in groups if len(group) > 1)


def foreign_to_kernels(graph: grimp.ImportGraph) -> list[str]:
    """Imports of the kernels that are neither theirs nor of the few packages that they may need."""
    allowed = KERNELS_MAY_IMPORT | sys.stdlib_module_names
    return sorted(
        f"{name} imports {other}"
        for name in graph.modules
        if name.startswith("videomaker.kernels")
        for other in graph.find_modules_directly_imported_by(name)
        if other.partition(".")[0] not in allowed and not other.startswith("videomaker.kernels")
    )


def check_graph(place: Path) -> bool:
    """Prints what the graph shows; True when it is as it should be."""
    graph = import_graph(place)
    found, foreign = circles(graph), foreign_to_kernels(graph)
    for line in [" ↔ ".join(group) for group in found] + foreign:
        print(f"  {line}")
    print(f"{len(graph.modules)} modules, {len(found)} import circles, {len(foreign)} foreign imports of the kernels")
    return not found and not foreign


def commands(place: Path) -> Iterator[tuple[list[str], Path]]:
    """The tools, each with the folder that it runs in."""
    python = [sys.executable, "-P", "-m"]
    yield [*python, "ruff", "check", "."], ROOT
    yield [*python, "ruff", "format", "--check", "."], ROOT
    yield [str(Path(sys.executable).with_name("lint-imports")), str(ROOT / "pyproject.toml")], place
    yield [*python, "mypy"], ROOT


def main() -> int:
    """Runs every check, also after one has failed; 0 when all passed."""
    place = lay_out(ROOT, ROOT / "build" / "lint")
    if sys.argv[1:] == ["--lay-out"]:  # for mkdocs, which reads docstrings there
        return 0
    passed = check_graph(place)
    for command, folder in commands(place):
        begun = time.monotonic()
        done = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": str(place)})
        print(
            f"[{time.monotonic() - begun:.1f} s, {'passed' if done.returncode == 0 else 'FAILED'}] {' '.join(command)}"
        )
        passed &= done.returncode == 0
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
