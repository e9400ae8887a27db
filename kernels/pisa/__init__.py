"""PISA attention: every frame attends to itself and the reference, the reference to every frame."""

from .api import available_backends, choose_backend, pisa_attention

__all__ = ["available_backends", "choose_backend", "pisa_attention"]
