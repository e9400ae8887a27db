"""The checks of `make gpu`, except for the benchmarks, one a process: `python bench/gpu_checks.py CHECK`.

Each prints what it checks as it goes, exits with 1 when something is wrong, and with `--dry-run` uses tiny shapes on a
CPU.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from attn import DTYPES, Case, Gate, draw, save
from fuzz import NAMES, Video
from gpu_stages import FEATURES, HELD_SEEDS, KERNELS
from rivals import Rival
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from videomaker.kernels import pisa_attention, reference_attention
from videomaker.kernels.accuracy import (
    error_band,
    errors,
    evaluate,
    failures,
    largest_score,
    poisoned_memory,
    relative_error,
)
from videomaker.kernels.pisa import autotune
from videomaker.kernels.pisa.configs import Config, tuning_file
from videomaker.kernels.pisa.naive import pisa_naive
from videomaker.kernels.pisa.op import pisa_triton

triton_attention = partial(pisa_attention, backend="triton")
# Compiling takes most of the time, so the fuzz draws sizes freely but kernels from these.
FUZZ_KERNELS = [
    *((head_dim, "bfloat16") for head_dim in (8, 16, 24, 40, 72, 80, 128, 160, 256)),
    *((head_dim, "float16") for head_dim in (37, 64, 160)),
    *((head_dim, "float32") for head_dim in (24, 40, 80, 100)),
]

TUNE_STEP = 16  # candidates that are compiled side by side, checked and timed before the best is stored


def pisa(options: argparse.Namespace) -> list[str]:
    """One shape in one dtype, output and gradients, by the kernels and by the portable backend."""
    gate = Gate(options.case, DTYPES[options.dtype], options.device)
    wrong = []
    for backend in ("triton", "sdpa"):
        why = gate.wrong(Rival(backend, partial(pisa_attention, backend=backend)))
        wrong += report(f"{backend}, {options.case}, {options.dtype}", why)
    return wrong


def reference(options: argparse.Namespace) -> list[str]:
    """`reference_attention` of one shape, two of its frames, the last head of both videos against float64."""
    case, dtype = replace(options.case, num_frames=min(options.case.num_frames, 2)), DTYPES[options.dtype]
    tokens = case.num_frames * case.frame_tokens
    q, k, v, grad = (x[:, :tokens] for x in draw(case, dtype, options.device))
    k_ref, v_ref = (torch.randn_like(x[:1, : case.num_ref_tokens]) for x in (k, v))
    tensors = [x[:, :, -1:] for x in (q, k, v, k_ref, v_ref, grad)]
    usual = {"num_frames": case.num_frames, "use_reference": None, "reference_bias": None}
    exact, naive = (gradients(repeated, [x.to(t) for x in tensors], usual) for t in (torch.float64, dtype))
    run = partial(reference_attention, backend="triton")
    with poisoned_memory():
        found = gradients(run, [q, k, v, k_ref, v_ref, grad], {"num_frames": case.num_frames})
    band = error_band(dtype, largest_score(q, torch.cat([k.flatten(0, 1), k_ref.flatten(0, 1)]), q.shape[-1] ** -0.5))
    measured = [
        {name: relative_error(x[:, :, -1:], y) for name, x, y in zip(NAMES, results, exact, strict=True)}
        for results in (found, naive)
    ]
    return report(f"reference, {case}, {options.dtype}", "; ".join(failures(*measured, band)) or None)


def gradients(attend: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, object]) -> list[Tensor]:
    """Output and gradients of the five inputs."""
    *inputs, grad = (x.detach() for x in tensors)
    inputs = [x.requires_grad_() for x in inputs]
    out = attend(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def repeated(*tensors: Tensor, **options: object) -> Tensor:
    """The usual form, as in bench/fuzz.py."""
    return torch.stack([(x.weights @ x.v.transpose(1, 2)).transpose(1, 2).flatten(0, 1)
                        for x in Video.all_of(*tensors, **options)])  # fmt: skip


def fuzz(options: argparse.Namespace) -> list[str]:
    """Random sizes, strides and magnitudes; a shape can be drawn again from its seed."""
    seeds = range(options.first, options.first + options.count)
    return [failure for seed in seeds for failure in report(*fuzz_one(seed, options.device))]


def fuzz_one(seed: int, device: torch.device) -> tuple[str, str | None]:
    """What was drawn from the seed, and what is wrong with it."""
    kernel = seed // HELD_SEEDS % len(FUZZ_KERNELS)
    head_dim, dtype_name = FUZZ_KERNELS[kernel]
    draw = random.Random(-1 - kernel)
    batch, heads, layout = draw.randint(1, 3), draw.randint(1, 4), draw.choice(list(LAYOUTS))
    draw = random.Random(seed)
    most_frames, most_tokens = (2, 20) if device.type == "cpu" else (9, 300)
    num_frames, size = draw.randint(1, most_frames), draw.choice([0.1, 1.0, 1.0, 4.0])
    tokens = draw.randint(2, most_tokens)
    references = draw.choice([0, tokens, tokens, draw.randint(1, tokens), 4 * tokens])
    torch.manual_seed(seed)
    fused = torch.randn(batch, num_frames * tokens + references, 3, heads, head_dim, device=device) * size
    tensors = [LAYOUTS[layout](x) for x in fused.to(DTYPES[dtype_name]).unbind(2)]
    tensors.append(torch.randn(tensors[0].shape, device=device).to(tensors[0].dtype))
    options = {"num_frames": num_frames, "num_ref_tokens": references, "scale": head_dim**-0.5}
    label = f"seed {seed}: batch {batch}, {num_frames} frames of {tokens} + {references}, {heads} heads of {head_dim}"
    try:
        why = compare(tensors, options)
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    return f"{label}, {dtype_name} {layout} times {size}", why


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "fused": lambda x: x,
    "separate": lambda x: x.contiguous(),
    "heads first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "batch last": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}


def compare(tensors: list[Tensor], options: dict[str, float]) -> str | None:
    """The Triton kernels against float64, by the rule of videomaker.kernels.accuracy."""
    q, k, *_ = tensors
    references = options["num_ref_tokens"]
    exact = evaluate(pisa_naive, *(x.double() for x in tensors), **options)
    naive = errors(evaluate(pisa_naive, *tensors, **options), exact, references)
    with poisoned_memory():
        found = errors(evaluate(triton_attention, *tensors, **options), exact, references)
    return "; ".join(failures(found, naive, error_band(q.dtype, largest_score(q, k, options["scale"])))) or None


def feature(options: argparse.Namespace) -> list[str]:
    """One thing that PyTorch does around an operator, which must not change its bits."""
    checks = {
        "deterministic": deterministic,
        "checkpointing": partial(checkpointing, use_reentrant=False),
        "reentrant": partial(checkpointing, use_reentrant=True),
        "reentrant, D = 160": partial(checkpointing, use_reentrant=True),
        "compiled": compiled,
        "tf32 switch": tf32_switch,
        "other shapes": other_shapes,
        "CUDA graph": cuda_graph,
        "other stream": other_stream,
        "other device": other_device,
    }
    assert tuple(checks) == FEATURES
    head_dim = 160 if "160" in options.case else 40
    return report(options.case, checks[options.case](*problem(options.device, head_dim)))


def problem(device: torch.device, head_dim: int = 40) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The attention of one video of odd sizes, and its q, k, v and gradient."""
    num_frames, tokens, heads = (2, 9, 1) if device.type == "cpu" else (5, 333, 4)
    head_dim = min(head_dim, 16) if device.type == "cpu" else head_dim
    shape, dtype = (1, (num_frames + 1) * tokens, heads, head_dim), torch.float16
    tensors = [torch.randn(shape, device=device, dtype=dtype) for _ in range(4)]
    return partial(triton_attention, num_frames=num_frames, num_ref_tokens=tokens), tensors


def differs(found: list[Tensor], expected: list[Tensor]) -> str | None:
    """Which of output, dq, dk and dv have other bits."""
    names = ("output", "dq", "dk", "dv")
    other = [name for name, x, y in zip(names, found, expected, strict=True) if not torch.equal(x, y)]
    return f"other bits in {', '.join(other)}" if other else None


def deterministic(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """The same again, often enough on a GPU for a race to show."""
    first = evaluate(attend, *tensors)
    again = (differs(evaluate(attend, *tensors), first) for _ in range(20 if first[0].is_cuda else 1))
    return next(filter(None, again), None)


def checkpointing(attend: Callable[..., Tensor], tensors: list[Tensor], *, use_reentrant: bool) -> str | None:
    """The forward computed again in the backward."""
    *qkv, grad = tensors
    qkv = [x.detach().requires_grad_() for x in qkv]
    out = checkpoint(attend, *qkv, use_reentrant=use_reentrant)
    out.backward(grad)  # autograd.grad cannot pass through a reentrant checkpoint
    return differs([out.detach(), *(x.grad for x in qkv)], evaluate(attend, *tensors))


def compiled(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """No graph break, forward and backward."""
    backend = "inductor" if tensors[0].is_cuda else "aot_eager"
    return differs(
        evaluate(torch.compile(attend, fullgraph=True, backend=backend), *tensors), evaluate(attend, *tensors)
    )


def tf32_switch(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """PyTorch's newer switch, after which the older one cannot be read, says nothing about half precision."""
    expected = evaluate(attend, *tensors)
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    return differs(evaluate(attend, *tensors), expected)


def other_shapes(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """What was called before, partial tiles and whole ones, does not matter."""
    tokens = 16 if not tensors[0].is_cuda else 256
    whole = [x.repeat(1, 2, 1, 1)[:, : 2 * tokens] for x in tensors]
    options = {"num_frames": 1, "num_ref_tokens": tokens}
    before = evaluate(triton_attention, *whole, **options)
    evaluate(attend, *tensors)
    return differs(evaluate(triton_attention, *whole, **options), before)


def cuda_graph(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """Forward and backward captured once, replayed on other numbers."""
    others = [torch.randn_like(x) for x in tensors]
    expected = evaluate(attend, *others)
    torch.cuda.synchronize()
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(stream):
        evaluate(attend, *tensors)  # what is compiled or loaded on first use
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            results = evaluate(attend, *tensors)
    torch.cuda.synchronize()
    for static, other in zip(tensors, others, strict=True):
        static.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    return differs(results, expected)


def other_stream(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """Inputs that arrive late, on a stream that is not the default one."""
    expected = evaluate(attend, *tensors)
    late = [torch.zeros_like(x) for x in tensors]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)
        for x, y in zip(late, tensors, strict=True):
            x.copy_(y)
        found = evaluate(attend, *late)
    torch.cuda.synchronize()
    return differs(found, expected)


def other_device(attend: Callable[..., Tensor], tensors: list[Tensor]) -> str | None:
    """Tensors on the second GPU while the first is current."""
    found = evaluate(attend, *(x.to("cuda:1") for x in tensors))
    return differs([x.to(tensors[0].device) for x in found], evaluate(attend, *tensors))


def small(options: argparse.Namespace) -> list[str]:
    """A forward and a backward with partial tiles, for compute-sanitizer to watch."""
    num_frames, tokens, references, head_dim = (2, 9, 5, 8) if options.dry_run else (2, 70, 33, 40)
    shape = (1, num_frames * tokens + references, 1, head_dim)
    tensors = [torch.randn(shape).half().to(options.device) for _ in range(4)]
    evaluate(triton_attention, *tensors, num_frames=num_frames, num_ref_tokens=references)
    q, k, v, grad = (x[:, : num_frames * tokens] for x in tensors)
    inputs = [q, k, v, *(x[:, -references:] for x in tensors[1:3]), grad]
    gradients(partial(reference_attention, backend="triton"), inputs, {"num_frames": num_frames})
    return []


def tune(options: argparse.Namespace) -> list[str]:
    """One kernel on one shape, some candidates at a time; the best so far goes where XDG_CACHE_HOME says.

    Time that is up, or a kill, costs one step: the record says where the next run goes on.
    """
    start, step = time.monotonic(), 1 if options.dry_run else TUNE_STEP
    if options.dry_run:  # nothing to measure without a GPU: two candidates by the clock
        autotune._median_seconds = _seconds_once
    case, dtype = options.case, torch.float16 if options.dry_run else torch.bfloat16
    q, k, v, _ = draw(case, dtype, options.device)
    known = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    progress = {"kernel": options.kernel, "tried": 0, "left": math.inf, "best": None, "configs": {}} | known
    every = autotune.candidates
    autotune.candidates = lambda *arguments: _some_candidates(list(every(*arguments)), progress, step, options)
    while progress["left"]:
        found = autotune.autotune(pisa_triton, q, k, v, kernels=[options.kernel], **case.options)
        progress["best"] = asdict(found[options.kernel]) if options.kernel in found else None
        progress["tried"] += step
        progress["configs"] = json.loads(tuning_file().read_text()) if tuning_file().exists() else {}
        save(progress, options.json)
        if time.monotonic() - start > options.seconds:
            break
    print(f"{options.kernel}, {case}: {progress['best']}, {progress['left']} candidates left")
    return [] if progress["best"] or progress["left"] else [f"{options.kernel}: no candidate is exact"]


def _some_candidates(every: list[Config], progress: dict, step: int, options: argparse.Namespace) -> list[Config]:
    """The best so far, which is timed again beside the next ones, and those."""
    every = every[:2] if options.dry_run else every
    progress["left"] = max(0, len(every) - progress["tried"] - step)
    best = [Config(**progress["best"])] if progress["best"] else []
    return list(dict.fromkeys(best + every[progress["tried"] :][:step]))


def _seconds_once(problem: object, kernel: str, config: object) -> float:
    start = time.perf_counter()
    autotune._launch(problem, kernel, config)()
    return time.perf_counter() - start


def report(label: str, why: str | None) -> list[str]:
    """Print one outcome; a failure comes back as a list of one."""
    print(f"{'ok    ' if why is None else 'FAILED'} {label}{'' if why is None else ': ' + why}", flush=True)
    return [] if why is None else [f"{label}: {why}"]


def main() -> int:
    """Run one check."""
    checks = {check.__name__: check for check in (pisa, reference, fuzz, feature, small, tune)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=checks)
    parser.add_argument("--case", help="B,F,N,M,D; of features, a name", metavar="TEXT")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--kernel", choices=KERNELS, default="forward")
    parser.add_argument("--first", type=int, default=0, help="seed of the random shapes")
    parser.add_argument("--count", type=int, default=200, help="of random shapes")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no more candidates are tried")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what is known of the candidates; goes on")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU; needs TRITON_INTERPRET=1")
    options = parser.parse_args()
    options.device = torch.device("cpu" if options.dry_run else "cuda:0")
    if options.check in ("pisa", "reference", "tune"):
        numbers = (int(number) for number in options.case.split(","))
        options.case = replace(Case(*numbers), num_heads=1 if options.dry_run else 8)
    torch.manual_seed(0)
    wrong = checks[options.check](options)
    print(f"{options.check}: {f'{len(wrong)} failed, first: {wrong[0]}' if wrong else 'all right'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
