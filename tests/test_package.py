"""The package as a stranger installs it: light to import, complete as a regular wheel."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run_python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    env = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy(tmp_path):
    heavy = run_python(
        "import sys, videomaker, videomaker.cli; print([m for m in ('torch', 'diffusers', 'av') if m in sys.modules])",
        cwd=tmp_path,
    )
    assert heavy.strip() == "[]"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the source archive, built from a copy so that the tree stays clean."""
    out = tmp_path_factory.mktemp("dist")
    source = tmp_path_factory.mktemp("source") / "videomaker"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_every_module_imports_from_the_wheel(built, tmp_path):
    wheel = zipfile.ZipFile(next(built.glob("*.whl")))
    assert "videomaker/py.typed" in wheel.namelist()  # its types are for users too
    wheel.extractall(tmp_path / "site")
    code = (
        "import importlib.util, pkgutil, videomaker\n"
        "assert 'site' in videomaker.__file__, videomaker.__file__\n"
        "names = [m.name for m in pkgutil.walk_packages(videomaker.__path__, 'videomaker.')]\n"
        "skipped = {'__main__'} | (set() if importlib.util.find_spec('ray') else {'ray_app'})\n"
        "[importlib.import_module(n) for n in names if n.rpartition('.')[2] not in skipped]\n"
        "assert videomaker.default_model_path().joinpath('model_index.json').is_file()\n"
        "print(*names, sep='\\n')"
    )
    names = run_python(code, cwd=tmp_path, path=tmp_path / "site").split()
    assert {"videomaker.pipeline", "videomaker.kernels.pisa.naive", "videomaker.train"} <= set(names)


def test_source_archive_holds_what_the_wheel_needs(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.py", "constraints.txt", "LICENSE", "kernels/pisa/naive.py", "train/__init__.py"} <= names
    assert "videomaker/default_model/model_index.json" in names
