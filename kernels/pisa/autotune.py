"""Finds the fastest configuration of every kernel for given tensors on this GPU, and keeps it on disk."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import triton
from torch import Tensor
from triton.runtime.errors import TritonError

from ..accuracy import error_band, errors, evaluate, evaluate_naive, failures, largest_score
from .configs import KERNELS, Config, is_refused, store_tuned, tuned_configs, tuning_key
from .op import Problem, pisa_triton, run_backward_key, run_backward_query, run_forward, run_row_statistics


@torch.inference_mode(False)  # gradients are checked too, wherever the call comes from
@torch.enable_grad()
def autotune(
    q: Tensor, k: Tensor, v: Tensor, *, num_frames: int, num_ref_tokens: int, scale: float | None = None
) -> dict[str, Config]:
    """Times all candidates of every kernel on these tensors; later calls with such shapes use the fastest.

    A candidate must compile without spills and be as exact as the tests demand, on two of the frames against float64.
    Takes minutes. Arguments are those of `pisa_attention`; the tensors must be on a GPU. Returns the configurations by
    kernel, which `configs.tuning_file()` now holds.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = Problem(q.detach(), k.detach(), v.detach(), num_frames, num_ref_tokens, scale)
    is_exact = _exactness_check(problem)
    found = {}
    for kernel in KERNELS:
        seconds = {
            config: _median_seconds(problem, kernel, config) if is_exact(kernel, config) else math.inf
            for config in candidates(kernel)
        }
        best = min(seconds, key=seconds.__getitem__)
        if math.isfinite(seconds[best]):
            found[kernel] = best
    store_tuned({_key(problem, kernel): config for kernel, config in found.items()})
    return found


def autotune_once(q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float) -> None:
    """`autotune`, unless such shapes were tuned before, a CUDA graph is being captured or there is no GPU."""
    if q.device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return
    key = _key(Problem(q, k, v, num_frames, num_ref_tokens, scale), "forward")
    if key not in tuned_configs() and key not in _begun:
        _begun.add(key)
        autotune(q, k, v, num_frames=num_frames, num_ref_tokens=num_ref_tokens, scale=scale)


_begun: set[str] = set()


def candidates(kernel: str) -> Iterator[Config]:
    """Every configuration worth a try."""
    blocks = ((64, 32), (64, 64), (64, 128), (128, 64), (32, 64))
    splits = (True,) if kernel.startswith("backward") else (True, False)
    for (block_q, block_k), *rest in itertools.product(blocks, (4, 8), (2, 3), (None, 128, 168), splits):
        yield Config(block_q, block_k, *rest)


def _exactness_check(problem: Problem) -> Callable[[str, Config], bool]:
    """A test of one configuration: output and gradients of the first video's first two frames."""
    num_frames = min(problem.num_frames, 2)
    tensors = [_first_frames(x, problem, num_frames) for x in (problem.q, problem.k, problem.v)]
    tensors.append(torch.randn_like(tensors[0], memory_format=torch.contiguous_format))
    options = {"num_frames": num_frames, "num_ref_tokens": problem.num_ref_tokens, "scale": problem.scale}
    exact = evaluate_naive(*tensors, **options)
    naive = errors(evaluate_naive(*tensors, **options, dtype=problem.q.dtype), exact, problem.num_ref_tokens)
    band = error_band(problem.q.dtype, largest_score(*tensors[:2], problem.scale))

    def is_exact(kernel: str, config: Config) -> bool:
        with _trial(_key(problem, kernel), config):
            try:
                if kernel == "forward":  # the gradients' forward is another kernel
                    with torch.no_grad():
                        results = [pisa_triton(*tensors[:3], **options)]
                else:
                    results = evaluate(pisa_triton, *tensors, **options)
            except TritonError:  # does not compile, or needs more than the GPU has
                return False
        spills = is_refused(kernel, problem.q.shape[3], config)
        return not spills and not failures(errors(results, exact, problem.num_ref_tokens), naive, band)

    return is_exact


def _first_frames(x: Tensor, problem: Problem, num_frames: int) -> Tensor:
    """`[1, num_frames·N + M, H, D]` of the first video, with the token stride of `x`."""
    kept = num_frames * problem.num_tokens
    first = x[:1]
    tokens = torch.cat([first[:, :kept], first[:, problem.num_frames * problem.num_tokens :]], dim=1)
    return torch.empty_strided(tokens.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tokens)


@contextmanager
def _trial(key: str, config: Config) -> Iterator[None]:
    """Uses a configuration for the time being."""
    tuned = tuned_configs()
    previous = tuned.get(key)
    tuned[key] = config
    try:
        yield
    finally:
        del tuned[key]
        if previous is not None:
            tuned[key] = previous


def _median_seconds(problem: Problem, kernel: str, config: Config) -> float:
    return triton.testing.do_bench(_launch(problem, kernel, config), return_mode="median") / 1000


def _launch(problem: Problem, kernel: str, config: Config) -> Callable[[], object]:
    """A launch of one kernel with a configuration on the whole tensors."""
    if kernel in ("forward", "forward_training"):
        return functools.partial(run_forward, problem, kernel == "forward_training", config)
    out, reference_outputs, lse = run_forward(problem, True, problem.config("forward_training"))
    out_gradient = torch.randn_like(out)
    statistics = run_row_statistics(problem, out, out_gradient, reference_outputs, lse)
    run = run_backward_query if kernel == "backward_query" else run_backward_key
    return functools.partial(run, problem, out_gradient, statistics, config)


def _key(problem: Problem, kernel: str) -> str:
    return tuning_key(
        kernel, problem.q.device, problem.q.dtype, problem.q.shape[3], problem.num_tokens, problem.num_ref_tokens
    )
