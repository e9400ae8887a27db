"""Finds the fastest configuration of every kernel for given tensors on this GPU, and keeps it on disk.

It stands on the launches and is handed the function that it checks, so that the operators can stand on it.
"""

import functools
import itertools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
import triton
from torch import Tensor

from ..accuracy import error_band, errors, evaluate, evaluate_naive, failures, largest_score
from ..transforms import is_readable
from .configs import KERNELS, Config, gpu_family, store_tuned, table_configs, tuned_configs, tuning_key
from .launch import Problem, run_backward_key, run_backward_query, run_forward, run_row_statistics, warm_up
from .plans import forget_plans

CHECKED_TOKENS = 4096  # of a frame and of the reference: float64 scores of one head are then at most 1.6 GiB
MAX_STACK = 16  # bytes of spilled registers outside the inner loop, which cost nothing

logger = logging.getLogger(__name__)
_begun: set[str] = set()
_tuning = threading.Lock()  # one at a time, and none within another: its check calls the operator, too
Attention = Callable[..., Tensor]


@torch.inference_mode(False)  # gradients are checked too, wherever the call comes from
@torch.enable_grad()
def autotune(
    attention: Attention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    num_frames: int,
    num_ref_tokens: int,
    scale: float | None = None,
    kernels: Sequence[str] | None = None,
) -> dict[str, Config]:
    """Times all candidates of every kernel on these tensors; later calls with such shapes use the fastest.

    A candidate must compile, spill next to nothing and be as exact as the tests demand, on two frames against float64.
    Each kernel's result is stored as soon as it is known, so that a run that is stopped loses the last one only.

    Args:
        attention: what is tuned and checked, `pisa_triton`.
        q, k, v, num_frames, num_ref_tokens, scale: as of `pisa_attention`; the tensors on a GPU.
        kernels: those of KERNELS to tune, in its order; all when None.

    Returns:
        The configurations by kernel, those tuned before included, which `configs.tuning_file()` now holds. Takes
        minutes.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    problem = Problem.of_pisa(q.detach(), k.detach(), v.detach(), num_frames, num_ref_tokens, scale)
    own_numbers = torch.random.fork_rng([q.device] if q.is_cuda else [])  # a seeded program draws what it always does
    with _tuning, own_numbers, torch.cuda.device_of(q):
        checked = _checked_part(problem)
        is_exact = _exactness_check(attention, checked)
        keys = {kernel: _key(problem, kernel) for kernel in KERNELS}
        found = {kernel: tuned_configs()[key] for kernel, key in keys.items() if key in tuned_configs()}
        for kernel in KERNELS if kernels is None else kernels:
            if best := _fastest(problem, checked, kernel, is_exact, found):
                found[kernel] = best
                store_tuned({keys[kernel]: best})
                forget_plans()
    return found


def autotune_once(
    attention: Attention, q: Tensor, k: Tensor, v: Tensor, num_frames: int, num_ref_tokens: int, scale: float
) -> None:
    """`autotune`, unless such shapes were tuned before or this is no moment for it.

    None is: without a GPU, while a CUDA graph is captured, where a compiler or a transform looks on, within the tuning
    of other shapes. Too little memory leaves the table's configurations.
    """
    if q.device.type != "cuda" or torch.cuda.is_current_stream_capturing() or not is_readable(q) or _tuning.locked():
        return
    key = _key(Problem.of_pisa(q, k, v, num_frames, num_ref_tokens, scale), "forward")
    if key in tuned_configs() or key in _begun:
        return
    _begun.add(key)
    try:
        autotune(attention, q, k, v, num_frames=num_frames, num_ref_tokens=num_ref_tokens, scale=scale)
    except torch.OutOfMemoryError as error:
        logger.warning("autotune: the usual tiles stay, there is too little memory to try others: %s", error)


def candidates(
    kernel: str, head_dim: int, found: dict[str, Config] | None = None, usual: tuple[Config, ...] = ()
) -> Iterator[Config]:
    """Every configuration worth a try, the table's (`usual`) first.

    `found` are the kernels tuned already: the forward of training computes in the tiles of the forward of inference, so
    that a recomputed forward has the bits of the first.
    """
    like = (found or {}).get("forward")
    for config in dict.fromkeys((*usual, *_combinations(kernel, head_dim))):
        if kernel != "forward_training" or like is None or config.arithmetic == like.arithmetic:
            yield config


def _combinations(kernel: str, head_dim: int) -> Iterator[Config]:
    """Those whose warps all have rows of their own; wide heads need more registers than the least that are tried."""
    blocks = ((64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128), (32, 64), (32, 128), (16, 64), (16, 128))
    is_forward = kernel.startswith("forward")
    caps = (None,) if torch.version.hip is not None else (None, 168) if head_dim > 128 else (None, 128, 168)
    switches = ((True, False), (False, True)) if is_forward else ((True,), (False,))
    for (block_q, block_k), *rest in itertools.product(blocks, (4, 8), (2, 3), caps, *switches):
        config = Config(block_q, block_k, *rest)
        if not config.repeats_work(kernel):
            yield config


def _fastest(
    problem: Problem,
    checked: Problem,
    kernel: str,
    is_exact: Callable[[str, Config], bool],
    found: dict[str, Config],
) -> Config | None:
    """The fastest exact candidate; those that do not even compile are gone before the first is timed."""
    head_dim = problem.q.shape[-1]
    usual = table_configs(kernel, gpu_family(problem.q.device), head_dim, problem.q.dtype)
    compiled = _compilable((problem, checked), kernel, list(candidates(kernel, head_dim, found, usual)))
    seconds = {}
    for config in compiled:
        try:
            seconds[config] = _median_seconds(problem, kernel, config) if is_exact(kernel, config) else math.inf
        except Exception as error:  # a launch that needs more than the GPU has must not end the user's call
            logger.info("autotune: %s with %s cannot run: %s", kernel, config, error)
    best = min(seconds, key=seconds.__getitem__, default=None)
    return best if best is not None and math.isfinite(seconds[best]) else None


def _compilable(problems: Sequence[Problem], kernel: str, configs: list[Config]) -> list[Config]:
    """The configurations that compile and do not spill, compiled side by side: ptxas runs outside Python's lock.

    Of several problems, as they may split their frames otherwise.
    """
    device = problems[0].q.device
    if device.type != "cuda":
        return configs

    def compiles(config: Config) -> bool:
        try:
            with torch.cuda.device(device):
                return all(_spilled_bytes(warm_up(x.geometry, kernel, config)) <= MAX_STACK for x in problems)
        except Exception as error:  # TritonError, or RuntimeError from a pass that fails
            logger.info("autotune: %s with %s does not compile: %s", kernel, config, str(error).splitlines()[:1])
            return False

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [config for config, good in zip(configs, pool.map(compiles, configs), strict=True) if good]


def _spilled_bytes(compiled: Any) -> int:
    """Stack of a compiled kernel. Triton knows it once the kernel is loaded, in words of four bytes."""
    compiled._init_handles()
    return 4 * compiled.n_spills


def _checked_part(problem: Problem) -> Problem:
    """The first video's first two frames and the reference, cut to CHECKED_TOKENS where they are long.

    So the check's memory has a bound; whole tiles stay whole.
    """
    num_frames, num_ref_tokens = min(problem.num_frames, 2), min(problem.geometry.num_ref_tokens, CHECKED_TOKENS)
    q, k, v = (_first_frames(x, problem, num_frames) for x in (problem.q, problem.k, problem.v))
    return Problem.of_pisa(q, k, v, num_frames, num_ref_tokens, problem.scale)


def _exactness_check(attention: Attention, checked: Problem) -> Callable[[str, Config], bool]:
    """A test of one configuration: output and gradients on `_checked_part` of the problem."""
    tensors = [checked.q, checked.k, checked.v]
    tensors.append(torch.randn_like(tensors[0], memory_format=torch.contiguous_format))
    num_ref_tokens, scale = checked.geometry.num_ref_tokens, checked.scale
    options: dict[str, Any] = {"num_frames": checked.num_frames, "num_ref_tokens": num_ref_tokens, "scale": scale}
    exact = evaluate_naive(*tensors, **options)
    naive = errors(evaluate_naive(*tensors, **options, dtype=checked.q.dtype), exact, num_ref_tokens)
    band = error_band(checked.q.dtype, largest_score(tensors[0], tensors[1], scale))

    def is_exact(kernel: str, config: Config) -> bool:
        with _trial(_key(checked, kernel), config):
            if kernel == "forward":  # the gradients' forward is another kernel
                with torch.no_grad():
                    results = [attention(*tensors[:3], **options)]
            else:
                results = evaluate(attention, *tensors, **options)
        return not failures(errors(results, exact, num_ref_tokens), naive, band)

    return is_exact


def _first_frames(x: Tensor, problem: Problem, num_frames: int) -> Tensor:
    """`[1, num_frames·N + M, H, D]` of the first video, N and M cut, with the token stride of `x` if it has one."""
    geometry = problem.geometry
    frame_tokens, num_ref_tokens = (min(n, CHECKED_TOKENS) for n in (geometry.num_tokens, geometry.num_ref_tokens))
    first = x[:1]
    frames = first[:, : num_frames * geometry.num_tokens].unflatten(1, (num_frames, -1))[:, :, :frame_tokens]
    reference = first[:, geometry.num_frames * geometry.num_tokens :][:, :num_ref_tokens]
    tokens = torch.cat([frames.flatten(1, 2), reference], dim=1)
    if 0 in x.stride()[1:]:  # expanded: nothing can be written there
        return tokens
    return torch.empty_strided(tokens.shape, x.stride(), dtype=x.dtype, device=x.device).copy_(tokens)


@contextmanager
def _trial(key: str, config: Config) -> Iterator[None]:
    """Uses a configuration for the time being."""
    tuned = tuned_configs()
    previous = tuned.get(key)
    tuned[key] = config
    forget_plans()
    try:
        yield
    finally:
        del tuned[key]
        if previous is not None:
            tuned[key] = previous
        forget_plans()


def _median_seconds(problem: Problem, kernel: str, config: Config) -> float:
    return triton.testing.do_bench(_launch(problem, kernel, config), return_mode="median") / 1000


def _launch(problem: Problem, kernel: str, config: Config) -> Callable[[], object]:
    """A launch of one kernel with a configuration on the whole tensors."""
    if kernel in ("forward", "forward_training"):
        return functools.partial(run_forward, problem, kernel == "forward_training", config)
    out, reference_outputs, lse = run_forward(problem, True)
    out_gradient = torch.randn_like(out)
    statistics = run_row_statistics(problem, out, out_gradient, reference_outputs, lse)
    run = run_backward_query if kernel == "backward_query" else run_backward_key
    return functools.partial(run, problem, out_gradient, statistics, config)


def _key(problem: Problem, kernel: str) -> str:
    geometry = problem.geometry
    sizes = (geometry.shape[3], geometry.num_tokens, geometry.num_ref_tokens)
    return tuning_key(kernel, geometry.device, geometry.dtype, *sizes, geometry.ref_queries)
