"""The checks of `make gpu`, except for the benchmark: `python bench/gpu_checks.py tests|shapes|fuzz|features|small`.

Each prints what it checks as it goes, exits with 1 when something is wrong, and with `--dry-run` uses tiny shapes on a
CPU.
"""

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from attn import DTYPES, SD15, Case, Gate
from rivals import Rival
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from videomaker.kernels import pisa_attention
from videomaker.kernels.accuracy import error_band, errors, evaluate, failures, largest_score, poisoned_memory
from videomaker.kernels.pisa.naive import pisa_naive

triton_attention = partial(pisa_attention, backend="triton")
ROOT = Path(__file__).resolve().parents[1]
# Compiling takes most of the time, so pytest runs in parts side by side, ...
TEST_PARTS = (
    "test_parity and triton and float32",
    "test_parity and triton and not float32",
    "not (test_parity and triton)",
)
# ... and the fuzz draws sizes freely but kernels, for which heads and strides are constants too, from these.
FUZZ_KERNELS = [
    *((head_dim, "bfloat16") for head_dim in (8, 16, 24, 40, 72, 80, 128, 160, 256)),
    *((head_dim, "float16") for head_dim in (37, 64, 160)),
    *((head_dim, "float32") for head_dim in (24, 40, 80, 100)),
]


def tests(options: argparse.Namespace) -> list[str]:
    """The repository's tests of the kernels, on this device."""
    pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/test_parity.py"]
    pytest += [] if options.dry_run else ["tests/test_triton.py"]
    parts = ("strides or autocast",) if options.dry_run else TEST_PARTS
    run = partial(subprocess.run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    wrong = []
    with ThreadPoolExecutor() as pool:
        for part, result in zip(parts, pool.map(run, ([*pytest, "-k", part] for part in parts)), strict=True):
            print(result.stdout, flush=True)
            wrong += report(f"tests: {part}", f"exit code {result.returncode}" if result.returncode else None)
    return wrong


def shapes(options: argparse.Namespace) -> list[str]:
    """SD 1.5's layers in every dtype, forward and backward, against float64."""
    cases = [Case(2, 16, tokens, tokens, head_dim) for tokens, head_dim in SD15]
    cases = [Case(1, 2, 9, 9, 16, num_heads=1)] if options.dry_run else cases
    with workers(options, most=len(cases)) as pool:
        found = pool.map(shapes_one, cases, [options.device] * len(cases))
        return [failure for outcomes in found for label, why in outcomes for failure in report(label, why)]


def shapes_one(case: Case, device: torch.device) -> list[tuple[str, str | None]]:
    """One layer in every dtype, by both backends."""
    outcomes = []
    for dtype_name, dtype in DTYPES.items():
        gate = Gate(case, dtype, device)
        for backend in ("triton", "sdpa"):
            why = gate.wrong(Rival(backend, partial(pisa_attention, backend=backend)))
            outcomes.append((f"{backend}, {case}, {dtype_name}", why))
    return outcomes


def workers(options: argparse.Namespace, most: int) -> ProcessPoolExecutor:
    """Processes that share the GPU, because compiling keeps a core busy for longer than the GPU."""
    count = 1 if options.dry_run else max(1, min(most, (os.cpu_count() or 2) // 2))
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))


def fuzz(options: argparse.Namespace) -> list[str]:
    """Random sizes, strides and magnitudes; a shape can be drawn again from its seed."""
    check = partial(fuzz_one, count=options.count, device=options.device, deadline=time.time() + options.seconds)
    with workers(options, most=8) as pool:
        # Neighbouring seeds share their kernels: chunks of them keep the workers from compiling the same ones.
        found = list(pool.map(check, range(options.count), chunksize=6))
    done = [outcome for outcome in found if outcome is not None]
    wrong = [failure for label, why in done for failure in report(label, why)]
    print(f"{len(done)} of {options.count} random shapes checked{', then time was up' * (len(done) < options.count)}")
    return wrong or ([] if done else ["no shape was checked in time"])


def fuzz_one(seed: int, *, count: int, device: torch.device, deadline: float) -> tuple[str, str | None] | None:
    """What was drawn from the seed, and what is wrong with it; None when time is up."""
    if time.time() > deadline:
        return None
    kernel = seed * len(FUZZ_KERNELS) // count
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


def features(options: argparse.Namespace) -> list[str]:
    """What PyTorch does around an operator must not change its bits."""
    checks = {
        "deterministic": deterministic,
        "checkpointing": partial(checkpointing, use_reentrant=False),
        "reentrant checkpointing": partial(checkpointing, use_reentrant=True),
        "torch.compile, full graph": compiled,
    }
    if options.device.type == "cuda":
        checks |= {"CUDA graph": cuda_graph, "another stream": other_stream}
        checks |= {"another device": other_device} if torch.cuda.device_count() > 1 else {}
    wrong = []
    for name, check in checks.items():
        try:
            why = check(*problem(options.device))
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
        wrong += report(name, why)
    return wrong


def problem(device: torch.device) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """The attention of one video of odd sizes, and its q, k, v and gradient."""
    num_frames, tokens, heads, head_dim = (2, 9, 1, 16) if device.type == "cpu" else (5, 333, 4, 40)
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
    for num_frames, tokens, references, head_dim in [(2, 9, 5, 8)] if options.dry_run else [(2, 70, 33, 40)]:
        shape = (1, num_frames * tokens + references, 1, head_dim)
        tensors = [torch.randn(shape).half().to(options.device) for _ in range(4)]
        evaluate(triton_attention, *tensors, num_frames=num_frames, num_ref_tokens=references)
    return []


def report(label: str, why: str | None) -> list[str]:
    """Print one outcome; a failure comes back as a list of one."""
    print(f"{'ok    ' if why is None else 'FAILED'} {label}{'' if why is None else ': ' + why}", flush=True)
    return [] if why is None else [f"{label}: {why}"]


def main() -> int:
    """Run one check."""
    checks = {check.__name__: check for check in (tests, shapes, fuzz, features, small)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=checks)
    parser.add_argument("--count", type=int, default=200, help="of random shapes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="after which no random shape is begun")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the failures here as JSON")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on a CPU; needs TRITON_INTERPRET=1")
    options = parser.parse_args()
    options.device = torch.device("cpu" if options.dry_run else "cuda:0")
    torch.manual_seed(0)
    wrong = checks[options.check](options)
    if options.record:
        options.record.write_text(json.dumps({"failures": wrong}))
    print(f"{options.check}: {f'{len(wrong)} failed, first: {wrong[0]}' if wrong else 'all right'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
