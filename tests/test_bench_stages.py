"""The cases of `make gpu`: what comes first, what fits the time of a lent GPU, and what is compiled again and again."""

import importlib
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
