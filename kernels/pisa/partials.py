"""Backend "sdpa": PISA through torch's own attention."""

from torch import Tensor

from .naive import pisa_naive


def pisa_partials(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float
) -> Tensor:
    """See `pisa_attention`."""
    return pisa_naive(q, k, v, num_frames=num_frames, num_ref_tokens=num_ref_tokens, scale=scale)
