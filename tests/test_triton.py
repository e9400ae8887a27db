"""The Triton backend as an operator: what PyTorch may do with it, and how its kernels are configured.

Parity with the reference is in test_parity.py. Without a GPU the kernels run in Triton's interpreter.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from videomaker.kernels.accuracy import poisoned_memory
from videomaker.kernels.pisa import autotune, configs, op
from videomaker.kernels.pisa.naive import pisa_naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FRAMES, TOKENS, REFERENCE, SCALE = 3, 6, 5, 0.4
OPTIONS = (FRAMES, REFERENCE, SCALE)


def fused_inputs(*, head_dim: int = 8, dtype: torch.dtype = torch.float32, device: str = DEVICE) -> list[Tensor]:
    """q, k, v `[1, T, 2, D]` as views of one fused projection, requiring gradients."""
    fused = torch.randn(1, FRAMES * TOKENS + REFERENCE, 3, 2, head_dim, device=device, dtype=dtype)
    return list(fused.requires_grad_().unbind(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return op.pisa_triton(q, k, v, *OPTIONS)


def output_and_gradients(function, tensors: list[Tensor]) -> list[Tensor]:
    out = function(*tensors)
    weights = torch.arange(out.numel(), device=out.device, dtype=out.dtype).view_as(out).sin()
    return [out.detach(), *torch.autograd.grad(out, tensors, weights)]


def assert_same_bits(found: list[Tensor], expected: list[Tensor]) -> None:
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("save", [True, False])
def test_forward_is_a_well_formed_operator(save: bool) -> None:
    tensors = fused_inputs() if save else [x.detach() for x in fused_inputs()]
    torch.library.opcheck(op._forward, (*tensors, *OPTIONS, save))


def test_backward_is_a_well_formed_operator() -> None:
    tensors = [x.detach() for x in fused_inputs()]
    saved = op._forward(*tensors, *OPTIONS, True)
    torch.library.opcheck(op._backward, (torch.randn_like(saved[0]), *tensors, *saved, *OPTIONS))


def test_compiles_without_a_graph_break() -> None:
    tensors = fused_inputs()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    assert_same_bits(output_and_gradients(compiled, tensors), output_and_gradients(attend, tensors))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    tensors = fused_inputs()

    def recomputed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return checkpoint(attend, q, k, v, use_reentrant=use_reentrant)

    assert_same_bits(output_and_gradients_by_backward(recomputed, tensors), output_and_gradients(attend, tensors))


def output_and_gradients_by_backward(function, tensors: list[Tensor]) -> list[Tensor]:
    """Reentrant checkpointing refuses `torch.autograd.grad`."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(*leaves)
    out.backward(torch.arange(out.numel(), device=out.device, dtype=out.dtype).view_as(out).sin())
    return [out.detach(), *(x.grad for x in leaves)]


def test_two_runs_give_the_same_bits() -> None:
    tensors = fused_inputs(dtype=torch.float16)
    with poisoned_memory():
        first = output_and_gradients(attend, tensors)
        assert all(x.isfinite().all() for x in first)
        assert_same_bits(output_and_gradients(attend, tensors), first)


@pytest.mark.parametrize("groups", [1, 2, FRAMES])
def test_any_number_of_frame_groups(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "frame_groups", lambda **_: groups)
    tensors = fused_inputs()

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return pisa_naive(q, k, v, num_frames=FRAMES, num_ref_tokens=REFERENCE, scale=SCALE)

    found, expected = output_and_gradients(attend, tensors), output_and_gradients(naive, tensors)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_inference_saves_nothing() -> None:
    tensors = fused_inputs()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x), torch.no_grad():
        attend(*tensors)
    assert not saved
    _, reference_outputs, lse = op._forward(*(x.detach() for x in tensors), *OPTIONS, False)
    assert reference_outputs.numel() == lse.numel() == 0


def test_second_derivative_is_refused() -> None:
    q, k, v = fused_inputs()
    (gradient,) = torch.autograd.grad(attend(q, k, v).sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        gradient.sum().backward()


def test_float64_is_refused() -> None:
    assert "float64" in op.triton_unavailable_reason(torch.empty(1, 1, 1, 8, dtype=torch.float64, device=DEVICE))


def test_head_widths_cover_the_head() -> None:
    for head_dim in range(1, 257):
        main, tail = configs.head_widths(head_dim)
        whole, none = configs.head_widths(head_dim, split=False)
        assert main >= 16 and tail in (0, 16, 32, 64)
        assert head_dim <= main + tail <= whole and none == 0
    assert [configs.head_widths(d) for d in (8, 40, 64, 80, 160)] == [(16, 0), (32, 16), (64, 0), (64, 16), (128, 32)]


@pytest.mark.parametrize("family", configs.TABLE)
def test_table_covers_every_head_dim(family: str) -> None:
    for kernel in configs.KERNELS:
        for head_dim in range(1, 257):
            assert configs.table_config(kernel, family, head_dim, torch.bfloat16)


def test_long_problems_are_not_split_and_short_ones_are() -> None:
    def groups(tokens: int, block: int = 64) -> int:
        return configs.frame_groups(
            num_frames=16, num_tokens=tokens, num_ref_tokens=tokens, heads=16, block=block, slots=264
        )

    assert [groups(tokens) for tokens in (4096, 1024, 256, 64)] == [1, 1, 4, 16]


def test_tuned_configurations_are_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    try:
        shape = {"device": torch.device("cpu"), "dtype": torch.float16, "head_dim": 40}
        tokens = {"num_tokens": 100, "num_ref_tokens": 60}
        usual = configs.choose_config("forward", **shape, **tokens)
        tuned = dataclasses.replace(usual, block_k=32)
        configs.store_tuned({configs.tuning_key("forward", *shape.values(), *tokens.values()): tuned})
        configs.tuned_configs.cache_clear()
        assert configs.choose_config("forward", **shape, num_tokens=128, num_ref_tokens=64) == tuned
        assert configs.choose_config("forward", **shape, num_tokens=129, num_ref_tokens=64) == usual
        configs.tuning_file().write_text(json.dumps({"key": {"no such field": 1}}))
        configs.tuned_configs.cache_clear()
        assert configs.choose_config("forward", **shape, **tokens) == usual
    finally:
        configs.tuned_configs.cache_clear()


def test_autotune_takes_the_fastest_that_is_exact(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    configs.tuned_configs.cache_clear()
    usual, faster, wrong = configs.Config(32, 32), configs.Config(16, 32), configs.Config(32, 16)
    seconds = {usual: 3.0, faster: 2.0, wrong: 1.0}
    monkeypatch.setattr(autotune, "KERNELS", ("forward",))
    monkeypatch.setattr(autotune, "candidates", lambda kernel: list(seconds))
    monkeypatch.setattr(autotune, "_median_seconds", lambda problem, kernel, config: seconds[config])
    run_forward = op.run_forward

    def run_forward_wrong_for_one(problem: op.Problem, save: bool, config: configs.Config) -> tuple[Tensor, ...]:
        out, *saved = run_forward(problem, save, config)
        return out * (1.01 if config == wrong else 1), *saved

    monkeypatch.setattr(op, "run_forward", run_forward_wrong_for_one)
    try:
        q, k, v = fused_inputs()
        with torch.inference_mode():
            found = autotune.autotune(q * 1, k * 1, v * 1, num_frames=FRAMES, num_ref_tokens=REFERENCE)
        assert found == {"forward": faster}
        configs.tuned_configs.cache_clear()
        assert list(configs.tuned_configs().values()) == [faster]
    finally:
        configs.tuned_configs.cache_clear()


def test_spilling_configurations_are_not_chosen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "_refused", set())
    shape = {"device": torch.device("cpu"), "dtype": torch.bfloat16, "head_dim": 40, "num_tokens": 64}
    capped = configs.choose_config("forward", **shape, num_ref_tokens=64)
    assert capped.max_registers == 128
    configs.refuse("forward", 40, capped)
    assert configs.choose_config("forward", **shape, num_ref_tokens=64).max_registers is None


def test_hopper_kernels_use_wgmma_and_do_not_spill() -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, "bench/static.py", "--arch", "sm_90", "--head-dim", "40", "--json"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(done.stdout)["kernels"]
    assert {kernel["kernel"] for kernel in kernels if "wgmma" in kernel["matrix"]} == set(configs.KERNELS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_inside_a_cuda_graph() -> None:
    tensors = [x.detach() for x in fused_inputs(head_dim=40, dtype=torch.bfloat16)]
    expected = attend(*tensors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend(*tensors)
    out.zero_()
    graph.replay()
    assert_same_bits([out], [expected])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_another_stream() -> None:
    tensors = fused_inputs(head_dim=40, dtype=torch.bfloat16)
    expected = output_and_gradients(attend, tensors)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = output_and_gradients(attend, tensors)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(found, expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_a_device_that_is_not_current() -> None:
    tensors = fused_inputs(head_dim=40, dtype=torch.bfloat16)
    moved = [x.detach().to("cuda:1").requires_grad_() for x in tensors]
    found = [x.to(DEVICE) for x in output_and_gradients(attend, moved)]
    assert_same_bits(found, output_and_gradients(attend, tensors))
