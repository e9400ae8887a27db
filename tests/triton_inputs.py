"""Small inputs of the Triton backend, for the tests of its operator, launches and tuning."""

import torch
from torch import Tensor
from videomaker.kernels.pisa import op

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
