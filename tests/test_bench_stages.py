"""The cases of `make gpu`: what comes first, what fits the time of a lent GPU, and what is compiled again and again."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/gpu_stages.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("gpu_stages")


def cases_of(stages: ModuleType, stage: str) -> list:
    """The cases of a stage on a pretended H100."""
    return stages.cases_of(stage, stages.Device("H100", "sm_90"), Path("out"))


def rounds(stages: ModuleType) -> list[tuple[int, str, float]]:
    """Turn, stage and the most seconds that its cases take side by side, in the order in which a run takes them."""
    found = []
    for turn in range(3):
        for stage, workers in stages.STAGES.items():
            limits = [case.limit for case in cases_of(stages, stage) if case.turn == turn]
            longest = sum(max(limits[first : first + workers]) for first in range(0, len(limits), workers))
            found += [(turn, stage, longest)] if limits else []
    return found


def test_what_is_worth_most_comes_first_and_fits_the_time_of_a_lent_gpu(stages: ModuleType) -> None:
    found = rounds(stages)
    order = [(turn, stage) for turn, stage, _ in found]
    assert order[:4] == [(0, "parity"), (0, "features"), (0, "memcheck"), (0, "attention")]
    assert order.index((0, "tune")) < order.index((0, "fuzz")) < order.index((2, "attention"))
    assert order[-1] == (2, "compile")
    # If every case took all of its limit, the layers that the README quotes would still be measured.
    assert sum(seconds for _, _, seconds in found[:4]) <= 1700
    first = [case for stage in ("parity", "attention") for case in cases_of(stages, stage) if case.turn == 0]
    shapes = {f"2,16,{tokens},{tokens},{head_dim}" for tokens, head_dim in stages.LAYERS}
    assert {word for case in first for word in case.command if word.startswith("2,16,")} == shapes


def test_what_torch_itself_asks_in_vain_of_the_driver_is_no_finding(
    stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages.shutil, "which", lambda name, path=None: f"/cuda/{name}")
    for case in cases_of(stages, "memcheck"):
        words = " ".join(case.command)
        assert words.startswith(f"/cuda/compute-sanitizer --tool {case.name} ")
        assert "--error-exitcode 9 --report-api-errors no" in words


def test_a_case_that_goes_on_ends_by_itself_before_its_limit(stages: ModuleType) -> None:
    going = [case for stage in stages.STAGES for case in cases_of(stages, stage) if case.goes_on]
    assert {case.stage for case in going} >= {"fuzz"}
    for case in going:
        seconds = float(case.command[case.command.index("--seconds") + 1])
        assert 60 <= seconds <= case.limit - 30, case  # to import torch, and for the last step


def test_the_random_shapes_of_a_case_share_their_kernels(stages: ModuleType) -> None:
    cases = [case for case in cases_of(stages, "fuzz") if case.name.startswith("reference")]
    assert len(cases) == 4
    for case in cases:
        assert case.command[case.command.index("--hold") + 1] == "12"
        assert int(case.command[case.command.index("--first") + 1]) % 12 == 0


def test_what_the_kernels_compile_to_comes_back_with_the_result(stages: ModuleType) -> None:
    cases = [case for case in cases_of(stages, "compile") if case.name != "front end"]
    assert len(cases) == 5
    assert all(case.command[case.command.index("--output") + 1] == str(case.record) for case in cases)


def test_the_tuner_stores_its_best_after_every_step_and_goes_on(stages: ModuleType, tmp_path: Path) -> None:
    def tune(*options: str) -> dict:
        script = [sys.executable, str(ROOT / "bench" / "gpu_checks.py"), "tune", "--case", "1,2,9,9,16", "--dry-run"]
        variables = {"TRITON_INTERPRET": "1", "XDG_CACHE_HOME": str(tmp_path)}
        command = [*script, "--json", str(tmp_path / "x.json"), *options]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads((tmp_path / "x.json").read_text())

    first = tune("--seconds", "0")
    assert (first["tried"], first["left"]) == (1, 1)
    (key,) = first["configs"]
    assert first["configs"][key] == first["best"]
    second = tune()
    assert (second["tried"], second["left"]) == (2, 0)
    assert json.loads((tmp_path / "videomaker" / "pisa-configs.json").read_text()) == {key: second["best"]}


def test_the_tuner_s_candidates_are_all_tried_beside_the_best_so_far(
    stages: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = importlib.import_module("gpu_checks")
    every = [checks.Config(64, 64, num_stages=number) for number in range(40)]
    progress, options = {"tried": 0, "best": None}, checks.argparse.Namespace(dry_run=False)
    seen, best = [], None
    while progress.get("left", 1):
        found = checks._some_candidates(every, progress, 16, options)
        assert best in (None, found[0])
        seen += found
        best = found[3]
        progress |= {"tried": progress["tried"] + 16, "best": checks.asdict(best)}
    assert set(seen) == set(every)
    assert len(seen) == len(every) + 2


def test_times_with_what_was_tuned_wait_for_the_tuner(stages: ModuleType) -> None:
    cases = cases_of(stages, "tune")
    tuned = [case for case in cases if case.name.startswith("tuned")]
    assert [len(case.after) for case in tuned] == [4] * 3
    names = [case.name for case in cases]
    assert all(names.index(name) < names.index(case.name) for case in cases for name in case.after)
    assert all(case.after for case in cases if case.name.startswith("forward_training"))
