"""Attention of frames or images over [own ‖ reference], where the reference is stored once and asks nothing."""

from .api import reference_attention

__all__ = ["reference_attention"]
