"""What a call of the attention costs on the host: Python and the dispatcher, the launches replaced by nothing.

    TRITON_INTERPRET=0 python bench/host.py

Microseconds of one core for (64, 160), the smallest layer of Stable Diffusion 1.5, where a GPU waits for the host; the
least of many repeats, so that other work on the machine counts little. Needs no GPU. Last, one line of JSON.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial

if __name__ == "__main__":  # not where it is imported by a test, whose kernels are interpreted
    os.environ.pop("TRITON_INTERPRET", None)  # read when triton is imported

import torch
from measure import environment
from videomaker.kernels import pisa_attention, reference_attention
from videomaker.kernels.pisa import launch, op

REPEATS, CALLS = 200, 20
FRAMES, TOKENS, HEADS, HEAD_DIM = 16, 64, 8, 160


class NoLaunch:
    """In place of a kernel."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *arguments, **constants: None


def least(call: Callable[[], object]) -> float:
    """Microseconds of processor time a call, the least of REPEATS averages over CALLS."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        for _ in range(CALLS):
            call()
        times.append((time.process_time() - start) / CALLS)
    return min(times) * 1e6


def main() -> int:
    """Prints a line for each path and direction."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in ("pisa_forward", "pisa_backward_query", "pisa_backward_key", "pisa_row_statistics", "sum_groups"):
        setattr(launch, name, NoLaunch())
    op.triton_unavailable_reason = lambda q: None
    torch.set_num_threads(1)
    results = {}
    for name, attend, frames in (("pisa", pisa_attention, FRAMES + 1), ("reference", reference_attention, FRAMES)):
        q, k, v = torch.randn(1, frames * TOKENS, 3, HEADS, HEAD_DIM).half().unbind(2)
        pisa = {"num_ref_tokens": TOKENS} if name == "pisa" else {}
        inputs = (q, k, v) if pisa else (q, k, v, k[:, :TOKENS], v[:, :TOKENS])
        run = partial(attend, num_frames=FRAMES, backend="triton", **pisa)
        leaves = [x.detach().requires_grad_() for x in inputs]
        gradient = torch.empty(q.shape, dtype=q.dtype)
        with torch.no_grad():
            results[f"{name}, forward"] = least(lambda: run(*inputs))  # noqa: B023
        both = lambda: torch.autograd.grad(run(*leaves), leaves, gradient)  # noqa: B023
        results[f"{name}, forward and backward"] = least(both)
    for name, microseconds in results.items():
        print(f"{name:<32}{microseconds:>6.0f} us")
    print(json.dumps({"environment": environment(torch.device("cpu")), "microseconds": results}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
