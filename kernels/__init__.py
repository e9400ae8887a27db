"""Attention kernels of VideoMaker. Needs torch (and Triton on a GPU), nothing else."""

from .pisa import available_backends, choose_backend, pisa_attention
from .reference import choose_reference_backend, reference_attention

__all__ = [
    "available_backends",
    "choose_backend",
    "choose_reference_backend",
    "pisa_attention",
    "reference_attention",
]
