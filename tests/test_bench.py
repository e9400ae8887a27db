"""The benchmarks run without a GPU as far as they can."""

import importlib
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


def test_a_compiled_rival_compiles_once(bench: None) -> None:
    attn, rivals = importlib.import_module("attn"), importlib.import_module("rivals")
    compilations = []

    def backend(graph: torch.fx.GraphModule, _: object):
        compilations.append(graph)
        return graph.forward

    case = attn.Case(1, 2, 8, 8, 8, num_heads=1)
    usual = torch.compile(rivals.rivals(torch.device("cpu"), torch.float32)[1].attend, backend=backend)
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
    naive, *others = (rivals.layer(rival, *inputs, num_heads=2, **case.options) for rival in paths)
    for other in others:
        torch.testing.assert_close(other, naive)
