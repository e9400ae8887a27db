"""From embeddings and flow to numbers: the paper's measures in numpy, nothing else.

F frames, E the width of an embedding; embeddings need not be normalised.
"""

from __future__ import annotations

import numpy as np

TOP_SHARE = 0.05  # of a flow field's pixels, the fastest ones (VBench's dynamic degree)


def cosines(embeddings: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Cosine of each of `[F, E]` with `[E]`, as `[F]`; negative ones stay negative."""
    return _unit(embeddings) @ _unit(target)


def consecutive_cosines(embeddings: np.ndarray) -> np.ndarray:
    """Cosine of each of `[F, E]` with the next one, as `[F - 1]`."""
    unit = _unit(embeddings)
    return (unit[:-1] * unit[1:]).sum(axis=-1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def flow_stride(fps: float, rate: int) -> int:
    """Every how many frames flow is measured: VBench's `max(1, round(fps / rate))`; a rate of 0 takes every frame."""
    return max(1, round(fps / rate)) if rate else 1


def top_flow(magnitudes: np.ndarray) -> float:
    """Mean of the largest 5 % of the lengths `[H, W]` of a flow field, in pixels (at least one of them)."""
    count = max(1, int(TOP_SHARE * magnitudes.size))
    return float(np.partition(magnitudes.ravel(), -count)[-count:].mean(dtype=np.float64))


def flow_threshold(height: int, width: int) -> float:
    """Above how many pixels a pair of frames moves."""
    return 6 * min(height, width) / 256


def is_dynamic(flows: np.ndarray, *, height: int, width: int) -> bool:
    """Whether a video moves: of its N frames, N - 1 values of `top_flow`, `round(4·N/16)` are above the threshold."""
    needed = max(1, round(4 * (len(flows) + 1) / 16))
    return int((np.asarray(flows) > flow_threshold(height, width)).sum()) >= needed
