"""`reference_attention` against the form that repeats the reference for every frame, on this CPU: time and peak memory.

    OMP_NUM_THREADS=1 python bench/repeated.py
    python bench/repeated.py --frames 24 --tokens 4096 --dtype bfloat16 --json out.json

The two forms take turns, so that other work on the machine meets both alike; the ratio is the median over pairs of
neighbours. `cpu` counts the process's own time over all threads, which a busy machine disturbs least; `wall` is the
clock's. Peak memory is what the allocator handed out at most beyond what was there, by torch's profiler. The form that
repeats is torch's scaled_dot_product_attention on [own ‖ reference], with and without a copy before the concatenation.
Both are held against float64 first, by the rule of videomaker.kernels.accuracy.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as functional
from attn import DTYPES
from measure import environment, peak_memory
from torch import Tensor
from videomaker.kernels import reference_attention
from videomaker.kernels.accuracy import error_band, failures, largest_score, relative_error

CPU = torch.device("cpu")


def repeated(q: Tensor, k: Tensor, v: Tensor, k_ref: Tensor, v_ref: Tensor, *, num_frames: int, copy: bool) -> Tensor:
    """The usual form; `copy` repeats the reference before it is concatenated, as public code mostly does."""

    def frames(x: Tensor) -> Tensor:
        return x.unflatten(1, (num_frames, -1)).flatten(0, 1)  # [B·F, N, H, D]

    def joined(own: Tensor, reference: Tensor) -> Tensor:
        reference = reference.unsqueeze(1)
        every = reference.repeat(1, num_frames, 1, 1, 1) if copy else reference.expand(-1, num_frames, -1, -1, -1)
        return torch.cat([frames(own), every.flatten(0, 1)], dim=1).transpose(1, 2)  # [B·F, H, N + M, D]

    out = functional.scaled_dot_product_attention(frames(q).transpose(1, 2), joined(k, k_ref), joined(v, v_ref))
    return out.transpose(1, 2).reshape(q.shape)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of one call: of the process's own time, and by the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def wrong(usual: Callable[..., Tensor], ours: Callable[..., Tensor], inputs: list[Tensor]) -> list[str]:
    """Where ours is further from the usual form in float64 than the dtype allows."""
    q, k, *_, k_ref, _ = inputs
    exact = usual(*(x.double() for x in inputs))
    found, allowed = ({"out": relative_error(form(*inputs), exact)} for form in (ours, usual))
    keys = torch.cat([k.flatten(0, 1), k_ref.flatten(0, 1)])
    return failures(found, allowed, error_band(q.dtype, largest_score(q, keys, q.shape[-1] ** -0.5)))


def compare(usual: Callable[[], Tensor], ours: Callable[[], Tensor], pairs: int) -> dict[str, float]:
    """Milliseconds of both, the speed-up by each clock, and MiB at most."""
    usual(), ours()
    turns = [(timed(usual), timed(ours)) for _ in range(pairs)]
    result: dict[str, float] = {}
    for i, clock in enumerate(("cpu", "wall")):
        result[f"usual_{clock}_ms"] = 1000 * median(a[i] for a, _ in turns)
        result[f"ours_{clock}_ms"] = 1000 * median(b[i] for _, b in turns)
        result[f"speedup_{clock}"] = median(a[i] / b[i] for a, b in turns)
    result["usual_peak_mib"], result["ours_peak_mib"] = (peak_memory(call, CPU) for call in (usual, ours))
    result["peak_ratio"] = result["ours_peak_mib"] / result["usual_peak_mib"]
    return {name: round(value, 3) for name, value in result.items()}


def main() -> int:
    """Prints a line for each layout and form, and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("frames", 16), ("tokens", 1024), ("heads", 8), ("head-dim", 40), ("pairs", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the report here")
    options = parser.parse_args()
    torch.manual_seed(0)
    dtype, load_before, results = DTYPES[options.dtype], os.getloadavg(), []
    print(f"{'q, k, v':<10}{'usual form':<14}{'clock':<6}{'usual':>9}{'ours':>9}{'ours is':>9}   peak memory")
    for layout in ("separate", "fused"):
        shape = (1, options.frames * options.tokens, 3, options.heads, options.head_dim)
        own = [x.contiguous() if layout == "separate" else x for x in torch.randn(shape).to(dtype).unbind(2)]
        inputs = [*own, *torch.randn(2, 1, options.tokens, options.heads, options.head_dim).to(dtype)]
        ours = partial(reference_attention, num_frames=options.frames, backend="sdpa")
        for form in ("repeat, cat", "expand, cat"):
            usual = partial(repeated, num_frames=options.frames, copy=form.startswith("repeat"))
            with torch.no_grad():
                if why := wrong(usual, ours, inputs):
                    raise SystemExit(f"{layout}, {options.dtype}: {'; '.join(why)}")
                r = compare(partial(usual, *inputs), partial(ours, *inputs), options.pairs)
            results.append({"layout": layout, "usual_form": form, **r})
            memory = f"{r['ours_peak_mib']:.0f} of {r['usual_peak_mib']:.0f} MiB, {r['peak_ratio']:.2f}"
            for clock in ("cpu", "wall"):
                times = f"{r[f'usual_{clock}_ms']:>6.0f} ms{r[f'ours_{clock}_ms']:>6.0f} ms"
                print(f"{layout:<10}{form:<14}{clock:<6}{times}{r[f'speedup_{clock}']:>8.2f}x   {memory}", flush=True)
    sizes = {name: value for name, value in vars(options).items() if name != "json"}
    load = {"load_average_before": load_before, "load_average_after": os.getloadavg()}
    report = {"environment": environment(CPU), **load, "sizes": sizes, "results": results}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
