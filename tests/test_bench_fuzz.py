"""The random shapes' own measure: defined where a gradient is exactly zero, and blind to nothing."""

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
ONE_KEY = {"batch": 2, "num_frames": 3, "tokens": 1, "num_ref_tokens": 0, "heads": 2, "head_dim": 37}
DEVICE = torch.device("cpu")
SDPA = {"sdpa": (torch.float32,)}


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("fuzz")


def draw(fuzz: ModuleType, **fields):
    usual = {"seed": 0, "ref_batch": 1, "layouts": ("separate", "separate"), "use_reference": None}
    return fuzz.Draw(**{**usual, "bias": None, "size": 1.0, **ONE_KEY, **fields})


def test_one_key_has_no_gradient_of_its_query_and_passes(fuzz: ModuleType) -> None:
    call = draw(fuzz)
    tensors, options = call.tensors(), call.options(DEVICE)
    gradient = fuzz.evaluate(fuzz.repeated, tensors, options)[1]
    assert gradient.abs().max() < 1e-15
    assert fuzz.magnitudes(tensors, options)[1] > 1
    assert fuzz.check(call, {"naive": (torch.float64, torch.float32), **SDPA}, DEVICE) == {
        "naive, float64": [], "naive, float32": [], "sdpa, float32": [],
    }  # fmt: skip


def test_the_measure_is_the_relative_error_where_nothing_cancels(fuzz: ModuleType) -> None:
    """Half of what 60 shapes sum is within a third of the result: the measure is no excuse for a wrong kernel."""
    ratios = []
    for call in map(fuzz.Draw.of, range(60)):
        tensors, options = call.tensors(), call.options(DEVICE)
        exact = fuzz.evaluate(fuzz.repeated, tensors, options)
        sizes = fuzz.magnitudes(tensors, options)
        ratios += [s / x.norm().item() for s, x in zip(sizes, exact, strict=True) if x.norm() > 1e-9]
    assert torch.tensor(ratios).median() < 1.34


@pytest.mark.parametrize("share", [1e-4, 1e-2])
def test_a_gradient_that_is_a_little_off_fails(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    right = fuzz.reference_attention
    off = lambda q, *rest, **options: right(q + share * (q - q.detach()), *rest, **options)
    monkeypatch.setattr(fuzz, "reference_attention", off)
    wrong = fuzz.check(draw(fuzz, tokens=9, num_ref_tokens=7), SDPA, DEVICE)["sdpa, float32"]
    assert len(wrong) == 1
    assert wrong[0].startswith("dq: ")


def test_a_run_goes_on_where_it_was_stopped(fuzz: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "fuzz.json"
    first = fuzz.Progress(file, 5, DEVICE)
    first.add(fuzz.Draw.of(5), {"sdpa, float32": ["dq: other bits"]})
    again = fuzz.Progress(file, 5, DEVICE)
    assert again.next_seed == 6
    assert again.document["failures"] == [{"seed": 5, "backend": "sdpa, float32", "why": "dq: other bits"}]
    with pytest.raises(SystemExit, match="another commit"):
        fuzz.Progress(file, 0, DEVICE)


def test_seeds_in_a_row_share_their_kernels_which_take_seconds_to_compile(fuzz: ModuleType) -> None:
    def compilations(hold: int) -> int:
        script = [sys.executable, str(ROOT / "tests" / "pretended_gpu.py"), "90", "--count", "48", "--hold", str(hold)]
        compiled = {**os.environ, "TRITON_INTERPRET": "0"}
        done = subprocess.run(script, capture_output=True, text=True, check=False, env=compiled)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert compilations(hold=12) < 100 < 400 < compilations(hold=1)
    held = [fuzz.Draw.of(seed, 12) for seed in range(96)]
    assert {draw.head_dim for draw in held} == set(fuzz.HEAD_DIMS)
    assert len({(draw.tokens, draw.num_frames, draw.num_ref_tokens) for draw in held}) > 80
    assert held[12] != fuzz.Draw.of(12) == fuzz.Draw.of(12, 1)


def test_a_fuzz_whose_time_is_up_says_what_is_left_and_goes_on(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*options: str) -> dict:
        words = ["fuzz.py", "--count", "5", "--hold", "3", "--backends", "sdpa", "--json", str(tmp_path / "x.json")]
        monkeypatch.setattr(sys, "argv", [*words, *options])
        assert fuzz.main() == 0
        return json.loads((tmp_path / "x.json").read_text())

    clock = iter(range(100))
    monkeypatch.setattr(fuzz.time, "monotonic", lambda: next(clock))
    document = run("--seconds", "2")
    assert (document["shapes"], document["left"]) == (2, 3)
    document = run()
    assert (document["shapes"], document["left"]) == (5, 0)
    with pytest.raises(SystemExit, match="--hold"):
        run("--hold", "2")
    with pytest.raises(SystemExit, match="other backends"):  # naive has run none of the five
        run("--backends", "naive", "sdpa")


def test_a_fuzz_without_any_backend_does_not_pass(fuzz: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["fuzz.py", "--count", "1", "--backends", "triton"])
    monkeypatch.setattr(fuzz, "available_backends", lambda q: {"triton": "no GPU"})
    with pytest.raises(SystemExit, match="nothing is checked"):
        fuzz.main()
