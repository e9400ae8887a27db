"""The Triton backend as an operator: what PyTorch may do with it.

Parity with the reference is in test_parity.py. Without a GPU the kernels run in Triton's interpreter.
"""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from triton_inputs import DEVICE, OPTIONS, attend, fused_inputs, output_and_gradients
from videomaker.kernels.accuracy import poisoned_memory
from videomaker.kernels.pisa import configs, launch, op


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


@pytest.mark.parametrize("head_dim", [8, 160])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing(use_reentrant: bool, head_dim: int) -> None:
    """Reentrant checkpointing computes the first forward as inference does."""
    tensors = fused_inputs(head_dim=head_dim, dtype=torch.float16)

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


@pytest.mark.parametrize("family", configs.TABLE)
def test_a_recomputed_forward_has_the_bits_of_inference(family: str) -> None:
    for head_dim in range(1, 257):
        first, again = (
            [config.arithmetic for config in configs.table_configs(kernel, family, head_dim, torch.bfloat16)]
            for kernel in ("forward", "forward_training")
        )
        assert first == again, head_dim


def test_only_the_gradients_that_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    for name in ("run_backward_query", "run_backward_key"):
        run = getattr(op, name)
        monkeypatch.setattr(op, name, lambda *a, run=run, name=name, **k: ran.append(name) or run(*a, **k))
    q, k, v = fused_inputs()
    torch.autograd.grad(attend(q, k.detach(), v.detach()).sum(), q)
    assert ran == ["run_backward_query"]
    torch.autograd.grad(attend(q.detach(), k.detach(), v).sum(), v)
    assert ran == ["run_backward_query", "run_backward_key"]


@pytest.mark.parametrize("switch", ["matmul", "everything"])
def test_either_switch_for_tf32(switch: str) -> None:
    """Once the newer switch was used, reading the older one raises."""
    owner = torch.backends.cuda.matmul if switch == "matmul" else torch.backends
    before = owner.fp32_precision
    try:
        owner.fp32_precision = "tf32"
        assert attend(*fused_inputs(dtype=torch.float16)).isfinite().all()
        assert launch.float32_precision() == "tf32"
        owner.fp32_precision = "ieee"
        assert launch.float32_precision() == "ieee"
    finally:
        owner.fp32_precision = before


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
