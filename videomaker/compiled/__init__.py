"""Compiled inference: the static step, its processors and sampler, the graphs, and what is kept of them on disk."""

from .graphs import Bucket, CompiledPipeline, CompileReport, StaticGraph, compile_pipeline
from .sampler import Approximations, StaticSampler

__all__ = [
    "Approximations",
    "Bucket",
    "CompileReport",
    "CompiledPipeline",
    "StaticGraph",
    "StaticSampler",
    "compile_pipeline",
]
