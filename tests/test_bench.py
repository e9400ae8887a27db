"""The benchmarks run without a GPU as far as they can."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """bench's modules importable as when one runs as a script."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))


def test_a_wrong_path_is_not_timed(bench: None) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    gate = attn.Gate(attn.Case(1, 2, 8, 8, 8, num_heads=1), torch.float32, torch.device("cpu"))
    right = rivals.rivals(torch.device("cpu"), torch.float32)
    assert [gate.wrong(rival) for rival in right] == [None] * 3
    without_reference = rivals.Rival("frames only", lambda q, k, v, **_: rivals.usual(q, k, v, num_frames=1,
        num_ref_tokens=0, scale=8**-0.5, kernel=None))  # fmt: skip
    assert "out of frames" in gate.wrong(without_reference)
    assert "cannot run" in gate.wrong(rivals.Rival("broken", lambda *_, **__: 1 / 0))


def test_the_hosts_cost_has_a_help(bench: None, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["host.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        importlib.import_module("host").main()
    assert "TRITON_INTERPRET=0 python bench/host.py" in capsys.readouterr().out


def test_a_compiled_rival_compiles_once(bench: None) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    compilations = []

    def backend(graph: torch.fx.GraphModule, _: object):
        compilations.append(graph)
        return graph.forward

    case = attn.Case(1, 2, 8, 8, 8, num_heads=1)
    found = {rival.name: rival.attend for rival in rivals.rivals(torch.device("cpu"), torch.float32)}
    usual = torch.compile(found["usual"], backend=backend)
    rival = rivals.Rival("compiled", usual, compiled=True)
    assert attn.Gate(case, torch.float32, torch.device("cpu")).wrong(rival) is None
    once = len(compilations)
    inputs, grad_out = attn.inputs_of(case, torch.float32, torch.device("cpu"))
    attn.calls(rival, case, inputs, grad_out)["both"]()
    assert len(compilations) == once > 0


def test_whole_layers_agree(bench: None) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    case = attn.Case(2, 3, 8, 5, 8, num_heads=2, projections=True)
    inputs, _ = attn.inputs_of(case, torch.float64, torch.device("cpu"))
    paths = rivals.rivals(torch.device("cpu"), torch.float32)
    first, *others = (rivals.layer(rival, *inputs, num_heads=2, **case.options) for rival in paths)
    for other in others:
        torch.testing.assert_close(other, first)


def test_ours_is_timed_first_and_what_compiles_for_minutes_last(bench: None) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    for device, dtype in (("cuda", torch.bfloat16), ("cuda", torch.float32), ("cpu", torch.float32)):
        found = rivals.rivals(torch.device(device), dtype)
        assert found[0].name == attn.ours(torch.device(device))
        assert sorted(found, key=lambda rival: rival.slow_start) == found


@pytest.mark.parametrize(("broken", "ended"), [("sys.exit(3)", False), ("os._exit(3)", True)])
def test_a_rival_that_ends_the_process_costs_no_earlier_row(tmp_path: Path, broken: str, ended: bool) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(ROOT / "bench")!r})
import attn
from rivals import Rival, rivals
attn.rivals = lambda *x: [rivals(*x)[0], Rival("broken", lambda *_, **__: {broken}), rivals(*x)[1]]
sys.exit(attn.main(["--device", "cpu", "--case", "1,2,8,8,8", "--seconds", "0.01", "--json", "x.json"]))
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == (3 if ended else 0)
    found = json.loads((tmp_path / "x.json").read_text())["results"]
    timed = [row["path"] for row in found if "median_ms" in row]
    assert timed == ["sdpa"] * 3 + ["usual"] * 3 * (not ended)
    (reason,) = (row["not_timed"] for row in found if row["path"] == "broken")
    assert reason == ("begun, and ended the process or was stopped" if ended else "cannot run: SystemExit: 3")


@pytest.mark.parametrize("folder", ["kernels", "videomaker", "train", "bench"])
def test_a_result_of_changed_code_is_not_told_as_the_commits(folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    measure = importlib.import_module("measure")
    monkeypatch.setattr(measure, "__file__", str(tmp_path / "bench" / "measure.py"))
    file = tmp_path / folder / "code.py"
    file.parent.mkdir()
    file.write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    assert len(measure._commit()) == 40
    file.write_text("another")
    assert measure._commit().endswith("+changes")
