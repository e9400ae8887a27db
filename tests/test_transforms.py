"""What torch's transforms make of the attention: many gradients at once are those of one at a time, of any batch."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from videomaker.kernels import pisa_attention, reference_attention
from videomaker.kernels.pisa import op as pisa_op
from videomaker.kernels.reference import op as reference_op

F, N, M, H, D = 2, 3, 2, 2, 8
CALLS = ["pisa", "reference", "biased reference"]
BACKENDS = ["naive", "sdpa", "triton"]


def call(kind: str, backend: str, batch: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """An attention and its inputs."""
    generator = torch.Generator().manual_seed(batch)
    tokens = F * N + (M if kind == "pisa" else 0)
    own = [torch.randn(batch, tokens, H, D, generator=generator) for _ in range(3)]
    if kind == "pisa":
        return lambda *x: pisa_attention(*x, num_frames=F, num_ref_tokens=M, backend=backend), own
    bias = 0.7 if kind.startswith("biased") else None
    own += [torch.randn(batch, M, H, D, generator=generator) for _ in range(2)]
    return lambda *x: reference_attention(*x, num_frames=F, reference_bias=bias, backend=backend), own


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_gradients_at_once(backend: str, kind: str, batch: int) -> None:
    """By `torch.func.vmap` of a vjp, as jacrev does, and by `is_grads_batched`: every sample is the same one again."""
    attend, inputs = call(kind, backend, batch)
    out, vjp = torch.func.vjp(attend, *inputs)
    gradients = torch.randn(2, *out.shape)
    right = [torch.stack(x) for x in zip(*map(vjp, gradients), strict=True)]
    torch.testing.assert_close(list(torch.func.vmap(vjp)(gradients)), right)
    watched = [x.requires_grad_() for x in inputs]
    found = torch.autograd.grad(attend(*watched), watched, gradients, is_grads_batched=True)
    torch.testing.assert_close(list(found), right)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_queries_of_the_same_keys(backend: str, kind: str, batch: int) -> None:
    attend, (q, *others) = call(kind, backend, batch)
    queries = torch.stack([q, -q])
    found = torch.func.vmap(lambda q: attend(q, *others))(queries)
    torch.testing.assert_close(found, torch.stack([attend(q, *others) for q in queries]))


@pytest.mark.parametrize("kind", ["pisa", "reference"])
def test_what_was_saved_may_lie_in_any_order_of_memory(kind: str) -> None:
    _, inputs = call(kind, "triton", 2)
    operators, options = (pisa_op, (F, M, 0.3)) if kind == "pisa" else (reference_op, (None, F, 0.3))
    saved = operators._forward(*inputs, *options, True)
    needed = (True, True) if kind == "pisa" else (True, True, True)
    bias, options = ((), options) if kind == "pisa" else ((None,), options[1:])
    gradient = torch.randn_like(saved[0])

    def backward(saved: list[Tensor]) -> list[Tensor]:
        return list(operators._backward(gradient, *inputs, *bias, *saved, *options, *needed))

    moved = [x.mT.contiguous().mT for x in saved]
    torch.testing.assert_close(backward(moved), backward(list(saved)))


def test_an_interpreter_that_is_asked_for_too_late_is_told() -> None:
    program = (
        "import os, torch, triton; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from videomaker.kernels import pisa_attention\n"
        "x = torch.randn(1, 3, 1, 16)\n"
        "pisa_attention(x, x, x, num_frames=1, num_ref_tokens=1, backend='triton')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, env=environment)
    assert run.returncode == 1 and "set it before" in run.stderr.splitlines()[-1], run.stderr
