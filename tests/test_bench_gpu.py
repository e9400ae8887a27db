"""`make gpu` without a GPU: its order of cases, its state, and the whole walk killed and resumed in the interpreter."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import bare_python
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
DRY_RUN = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--dry-run"]
GOOD, BAD = "print('fine')", "print('before'); import os; os.abort()"
HAS_ONE_LEFT = """
import json, pathlib, sys
file = next(pathlib.Path(sys.argv[1]).rglob("two"))
file.write_text(json.dumps({"left": json.loads(file.read_text())["left"] - 1}))
"""
HANGS = "print('begun', flush=True); import time; time.sleep(600)"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """bench/gpu.py as a module, its neighbours importable as when it runs as a script."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("gpu")


@pytest.fixture
def start(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, dict]]:
    """Runs `main` over programs in place of the stages' cases; exit code and report."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def run(
        programs: dict[str, str], *options: str, limit: int = 60, own: dict[str, dict] | None = None, **fields: object
    ) -> tuple[int, dict]:
        def cases(stage: str, *_: object) -> list:
            records, python = tmp_path / "cases", [sys.executable, "-c"]
            of_case = {name: fields | (own or {}).get(name, {}) for name in programs}
            return [
                gpu.Case(stage, name, [*python, program, str(tmp_path)], records / name, limit, **of_case[name])
                for name, program in programs.items()
                if stage == "parity"
            ]

        monkeypatch.setattr(gpu, "cases_of", cases)
        code = gpu.main(["--dry-run", "--out", str(tmp_path), *options])
        return code, json.loads((tmp_path / "run.json").read_text())["stages"].get("parity", {})

    return run


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_make_gpu_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "bench" / "gpu.py"), "--out", str(tmp_path / "x")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "needs a CUDA device" in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_case_that_fails_or_hangs_leaves_the_others(start: Callable) -> None:
    code, cases = start({"bad": BAD, "hangs": HANGS, "good": GOOD}, limit=5)
    assert code == 3  # although one failed
    assert [case["status"] for case in cases.values()] == ["FAILED", "stopped", "passed"]
    assert cases["bad"]["output"] == ["before"]
    assert cases["hangs"]["summary"] == "stopped at the limit of 5 s: begun"


@pytest.mark.parametrize(("again", "code", "status"), [(GOOD, 0, "passed"), (HANGS, 1, "FAILED")])
def test_what_was_stopped_is_tried_once_more_and_last(start: Callable, again: str, code: int, status: str) -> None:
    start({"hangs": HANGS}, limit=5)
    found, cases = start({"hangs": again, "other": GOOD}, "--resume", limit=5)
    assert (found, cases["hangs"]["status"], list(cases)) == (code, status, ["hangs", "other"])
    found, after = start({"hangs": BAD, "other": BAD}, "--resume", limit=5)
    assert (found, after) == (code, cases)


def test_what_was_known_of_a_case_stays_when_there_is_no_time_for_it(start: Callable, tmp_path: Path) -> None:
    step = f"import pathlib; pathlib.Path({str(tmp_path / 'cases' / 'one')!r}).write_text('{{\"left\": 5}}')"
    start({"one": step}, goes_on=True)
    code, cases = start({"one": step}, "--resume", "--deadline", "30", goes_on=True)
    assert (code, cases["one"]["status"], cases["one"]["details"]) == (3, "left", {"left": 5})


def test_a_failure_stands_until_it_is_tried_again(start: Callable, tmp_path: Path) -> None:
    record = f"import pathlib; pathlib.Path({str(tmp_path / 'cases' / 'one')!r}).open('x').write"
    fails = f"{record}('{{}}'); exit(1)"
    assert start({"one": fails, "two": GOOD}, goes_on=True)[0] == 1
    assert start({"one": GOOD, "two": BAD}, "--resume", goes_on=True)[0] == 1
    once = f"{record}('{{\"left\": 0}}')"
    code, cases = start({"one": once, "two": BAD}, "--resume", "--again", goes_on=True)
    assert (code, cases["one"]["details"], cases["two"]["status"]) == (0, {"left": 0}, "passed")


def test_a_case_waits_for_those_whose_results_it_needs(start: Callable, tmp_path: Path) -> None:
    step = f"import pathlib; pathlib.Path({str(tmp_path / 'cases' / 'one')!r}).write_text('{{\"left\": LEFT}}')"
    fields = {"goes_on": True, "own": {"two": {"after": ("one",)}}}
    code, cases = start({"one": step.replace("LEFT", "1"), "two": GOOD}, **fields)
    assert (code, cases["two"]) == (3, {"status": "left", "summary": "after one"})
    code, cases = start({"one": step.replace("LEFT", "0"), "two": GOOD}, "--resume", **fields)
    assert (code, cases["two"]["status"]) == (0, "passed")


def test_a_gpu_that_is_gone_ends_the_run_and_fails_nothing(
    gpu: ModuleType, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    h100 = gpu.Device("H100", "sm_90")
    found = iter([h100, None, h100, None, h100])
    monkeypatch.setattr(gpu.Device, "find", lambda *_, **__: next(found))
    programs = {"one": GOOD, "two": BAD, "three": GOOD}
    code, cases = start(programs)
    assert (code, list(cases), cases["two"]["status"]) == (3, ["one", "two"], "stopped")
    assert "does not answer" in cases["two"]["summary"]
    code, cases = start(programs, "--resume")  # the last of them now, and again
    assert (code, cases["three"]["status"], cases["two"]["status"]) == (1, "passed", "FAILED")


def test_what_does_not_fit_before_the_deadline_is_left_for_the_next_command(start: Callable) -> None:
    code, cases = start({"one": GOOD}, "--deadline", "30")
    assert (code, cases["one"]["status"]) == (3, "left")
    code, cases = start({"one": GOOD, "two": GOOD}, "--resume")
    assert (code, [case["status"] for case in cases.values()]) == (0, ["passed", "passed"])


def test_the_deadline_counts_from_the_command_s_start(
    gpu: ModuleType, start: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    find = gpu.Device.find

    def slow(*arguments: object, **options: object) -> object:
        clock[0] += 40  # to import torch from a cold disk
        return find(*arguments, **options)

    monkeypatch.setattr(gpu.Device, "find", slow)
    monkeypatch.setattr(gpu.time, "monotonic", lambda: clock[0])
    code, cases = start({"one": GOOD}, "--deadline", "90")
    assert (code, cases["one"]["summary"]) == (3, "needs up to 60 s, 50 s were left")


def test_a_case_that_ends_with_some_left_goes_on(start: Callable, tmp_path: Path) -> None:
    step = f"""
import json, pathlib
file = pathlib.Path({str(tmp_path / "cases" / "one")!r})
left = json.loads(file.read_text())["left"] - 1 if file.exists() else 2
file.write_text(json.dumps({{"left": left}}))
"""
    code, cases = start({"one": step}, goes_on=True)
    assert (code, cases["one"]["status"], cases["one"]["details"]) == (3, "left", {"left": 2})
    assert start({"one": step}, "--resume", goes_on=True)[0] == 3
    code, cases = start({"one": step}, "--resume", goes_on=True)
    assert (code, cases["one"]["status"], cases["one"]["details"]) == (0, "passed", {"left": 0})


def test_resume_repeats_nothing_and_no_run_is_overwritten(start: Callable, tmp_path: Path) -> None:
    once = f"import pathlib; pathlib.Path({str(tmp_path / 'once')!r}).open('x')"
    _, first = start({"once": once, "bad": BAD})
    code, again = start({"once": once, "bad": GOOD, "three": GOOD}, "--resume")
    assert code == 1  # a failure stands
    assert {name: again[name] for name in first} == first
    assert start({"once": GOOD})[0] == 2


def test_a_later_turn_follows_all_stages_of_an_earlier_one(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ran = []
    monkeypatch.setattr(gpu, "run_case", lambda run, case: ran.append((case.stage, case.turn)))
    monkeypatch.setattr(gpu, "cases_of", lambda stage, *_: [
        gpu.Case(stage, f"{turn}", ["true"], tmp_path / f"{stage}{turn}", 5, turn=turn) for turn in (1, 0)
    ])  # fmt: skip
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--stages", "compile,parity"]) == 3
    assert ran == [("parity", 0), ("compile", 0), ("parity", 1), ("compile", 1)]


def test_resume_starts_a_run_where_there_is_none(start: Callable) -> None:
    code, cases = start({"one": GOOD}, "--resume")
    assert (code, cases["one"]["status"]) == (0, "passed")


def test_a_copy_holds_everything_after_every_case_and_a_run_goes_on_from_it_alone(
    start: Callable, tmp_path: Path
) -> None:
    back = tmp_path / "back" / "run.json"  # emptied before every command
    record = f"import pathlib, shutil; shutil.copy({str(back)!r}, {str(tmp_path / 'seen')!r})"
    step = f"{record}; pathlib.Path({str(tmp_path / 'cases' / 'two')!r}).write_text('{{\"left\": 1}}')"
    code, _ = start({"one": GOOD, "two": step}, "--copy", str(back), goes_on=True)
    assert code == 3
    seen = json.loads((tmp_path / "seen").read_text())["stages"]["parity"]
    assert seen["one"]["status"] == "passed"
    assert json.loads(back.read_text()) == json.loads((tmp_path / "run.json").read_text())

    copy = back.read_text()
    shutil.rmtree(tmp_path / "cases")  # another machine, to which the copy was carried
    shutil.rmtree(back.parent)
    (tmp_path / "run.json").write_text(copy)
    code, cases = start({"one": BAD, "two": HAS_ONE_LEFT}, "--resume", "--copy", str(back), goes_on=True)
    assert (code, cases["two"]["status"]) == (0, "passed")
    assert json.loads(back.read_text())["stages"]["parity"] == cases


def test_what_was_tuned_comes_back_from_the_result(gpu: ModuleType, start: Callable, tmp_path: Path) -> None:
    start({"one": GOOD})
    report = json.loads((tmp_path / "run.json").read_text())
    tuned = [{"details": {"configs": {"a": {"block_q": 1}}}}, {"details": {"configs": {"b": {"block_q": 2}}}}, {}]
    report["stages"]["tune"] = {f"{place}": outcome for place, outcome in enumerate(tuned)}
    (tmp_path / "run.json").write_text(json.dumps(report))
    start({"one": GOOD}, "--resume")
    stages = importlib.import_module("gpu_stages")
    environment = stages.cases_of("tune", gpu.Device("H100", "sm_90"), tmp_path)[0].variables
    code = "from videomaker.kernels.pisa import configs; print(configs.tuning_file().read_text())"
    command = [sys.executable, "-P", "-c", code]
    found = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == {"a": {"block_q": 1}, "b": {"block_q": 2}}


def test_another_gpu_starts_anew_beside_what_is_known(
    gpu: ModuleType, start: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def device(name: str) -> None:
        monkeypatch.setattr(gpu.Device, "find", lambda *_, **__: gpu.Device(name, "sm_90", is_dry=True))

    device("H100")
    _, first = start({"one": GOOD})
    device("H200")
    code, second = start({"one": BAD}, "--resume")
    assert (code, second["one"]["status"]) == (1, "FAILED")
    report = json.loads((tmp_path / "run.json").read_text())
    assert (report["device"], report["other_devices"]) == ("H200", {"H100": {"parity": first}})
    device("H100")
    code, again = start({"one": BAD}, "--resume")
    assert (code, again) == (0, first)
    assert json.loads((tmp_path / "run.json").read_text())["other_devices"] == {"H200": {"parity": second}}


def test_what_goes_on_does_so_on_the_same_gpu(gpu: ModuleType, tmp_path: Path) -> None:
    files = [
        {case.record for case in gpu.cases_of("fuzz", gpu.Device(name, "sm_90"), tmp_path)}
        for name in ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
    ]
    assert not files[0] & files[1]


def test_what_is_missing_is_skipped_with_its_reason(start: Callable) -> None:
    code, cases = start({"one": BAD}, missing="not installed: deepspeed")
    assert code == 0
    assert cases["one"] == {"status": "skipped", "summary": "not installed: deepspeed"}


def test_every_case_of_a_gpu_fits_a_command_of_nine_minutes(gpu: ModuleType, tmp_path: Path) -> None:
    device = gpu.Device("H100", "sm_90")
    cases = [case for stage in gpu.STAGES for case in gpu.cases_of(stage, device, tmp_path)]
    assert {case.stage for case in cases} == set(gpu.STAGES)
    assert max(case.limit for case in cases) <= 300
    assert len({case.record for case in cases}) == len(cases)
    for case in cases:
        script = [word for word in case.command if word.endswith(".py")]
        assert script and all(Path(ROOT, word).exists() for word in script), case
        assert not any("--dry-run" in word for word in case.command)


def test_a_python_without_the_package_finds_it(gpu: ModuleType, tmp_path: Path) -> None:
    place = gpu.lay_out(tmp_path / "package")
    gpu.lay_out(place)  # again, by a run that goes on
    code = "import videomaker.kernels as k, videomaker.train.config as t; print(k.__file__, t.__file__)"
    environment = os.environ | {"PYTHONPATH": str(place)}
    found = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert all(name.startswith(str(place)) for name in found.stdout.split())


def test_a_dry_run_killed_halfway_keeps_what_is_done_and_resume_runs_the_rest(tmp_path: Path) -> None:
    command = [*DRY_RUN, "--out", str(tmp_path), "--stages", "memcheck,attention"]
    report = tmp_path / "run.json"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 600
    known: list[dict] = []
    while not any(known) and running.poll() is None and time.monotonic() < until:
        known += [json.loads(report.read_text())["stages"]] if report.exists() else []
        time.sleep(0.1)
    assert known[0] == {}  # a run that is killed within its first case can be resumed
    time.sleep(1)
    running.kill()
    running.wait()
    kept = json.loads(report.read_text())["stages"]
    assert list(kept["memcheck"]) == ["memcheck"]
    result = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    stages = json.loads(report.read_text())["stages"]
    assert stages["memcheck"]["memcheck"] == kept["memcheck"]["memcheck"]
    lines = [line for line in result.stdout.splitlines() if line.startswith("passed")]
    assert [line.split(": ")[1].split()[0] for line in lines] == ["racecheck", "1,2,16,16,16"]
    (attention,) = stages["attention"].values()
    assert {r["path"] for r in attention["details"]["results"] if r["median_ms"] > 0} == {"naive", "usual", "sdpa"}


def test_without_diffusers_and_deepspeed_their_stages_are_skipped_and_the_others_run(tmp_path: Path) -> None:
    bare = bare_python.environment(tmp_path / "hook")
    command = [*DRY_RUN, "--out", str(tmp_path / "run"), "--stages", "memcheck,inference,train"]
    result = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert {case["status"] for case in stages["memcheck"].values()} == {"passed"}
    assert stages["inference"]["ours"] == {
        "status": "skipped",
        "summary": "not installed: diffusers, transformers",
    }
    assert stages["train"]["step"]["summary"] == "not installed: diffusers, transformers, deepspeed"
    # The scripts of all other stages need no more than the two that ran.
    modules = "import static, attn, fuzz, gpu_checks"
    subprocess.run([sys.executable, "-c", modules], env=bare, cwd=ROOT / "bench", check=True)
