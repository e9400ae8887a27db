"""The benchmarks run without a GPU as far as they can; `make gpu` is walked through in Triton's interpreter."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/gpu.py as a module, its neighbours importable as when it runs as a script."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("gpu")


def test_limits_of_make_gpu_are_below_nine_minutes(bench: ModuleType) -> None:
    assert sum(bench.LIMITS.values()) < 9 * 60


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_make_gpu_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--output", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "needs a CUDA device" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_stage_that_fails_or_hangs_leaves_the_others(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = {
        "tests": "print('fine')",
        "shapes": "print('before'); import os; os.abort()",
        "fuzz": "print('begun', flush=True); import time; time.sleep(600)",
    }
    monkeypatch.setattr(bench, "command", lambda name, *_: [sys.executable, "-c", programs[name]])
    monkeypatch.setattr(bench, "DRY_RUN_LIMIT", 5)
    code = bench.main(["--dry-run", "--output", str(tmp_path), "--stages", *programs])
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert code == 1
    assert [stage["status"] for stage in report["stages"].values()] == ["passed", "FAILED", "FAILED"]
    assert report["stages"]["shapes"]["output"] == ["before"]
    assert report["stages"]["fuzz"]["summary"] == "stopped at the limit of 5 s: begun"


def test_dry_run_of_make_gpu(tmp_path: Path) -> None:
    stages = ["fuzz", "features", "memcheck", "attn"]
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--dry-run", "--output", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--stages", *stages], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    assert {name: stage["status"] for name, stage in report["stages"].items()} == dict.fromkeys(stages, "passed")
    paths = {r["path"] for r in report["stages"]["attn"]["details"]["results"] if r["median_ms"] > 0}
    assert paths == {"naive", "usual", "sdpa"}


def test_a_wrong_path_is_not_timed(bench: ModuleType) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    gate = attn.Gate(attn.Case(1, 2, 8, 8, 8, num_heads=1), torch.float32, torch.device("cpu"))
    right = rivals.rivals(torch.device("cpu"), torch.float32)
    assert [gate.wrong(rival) for rival in right] == [None] * 3
    without_reference = rivals.Rival("frames only", lambda q, k, v, **_: rivals.usual(q, k, v, num_frames=1,
        num_ref_tokens=0, scale=8**-0.5, kernel=None))  # fmt: skip
    assert "out of frames" in gate.wrong(without_reference)
    assert "cannot run" in gate.wrong(rivals.Rival("broken", lambda *_, **__: 1 / 0))


def test_whole_layers_agree(bench: ModuleType) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    case = attn.Case(2, 3, 8, 5, 8, num_heads=2, projections=True)
    inputs, _ = attn.inputs_of(case, torch.float64, torch.device("cpu"))
    paths = rivals.rivals(torch.device("cpu"), torch.float32)
    naive, *others = (rivals.layer(rival, *inputs, num_heads=2, **case.options) for rival in paths)
    for other in others:
        torch.testing.assert_close(other, naive)
