"""Attention of frames or images over [own ‖ reference], where the reference is stored once and asks nothing."""

from .api import choose_reference_backend, reference_attention

__all__ = ["choose_reference_backend", "reference_attention"]
