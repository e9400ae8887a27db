"""Calls of the operators on a GPU that is not there: Triton binds and compiles every launch, and none is run.

    TRITON_INTERPRET=0 python tests/pretended_gpu.py 90
    TRITON_INTERPRET=0 python tests/pretended_gpu.py 90 --count 48 --hold 12

Types, alignments, sizes of one and empty tensors reach the compiler as a GPU's would, which no interpreter shows.
Prints the kernels that were launched, or how many bench/fuzz.py with these options asks the compiler for.
"""

import sys
import types
from pathlib import Path

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from videomaker.kernels import pisa_attention, reference_attention
from videomaker.kernels.pisa import autotune, launch, op

launched: list[str] = []
SPILLED_WORDS = 3  # what the pretended driver says of every kernel


class Launcher:
    """In place of the function that starts a compiled kernel."""

    def __init__(self, source: object, metadata: object) -> None:
        self.name = metadata.name

    def __call__(self, *arguments: object) -> None:
        launched.append(self.name)


class Driver:
    """What Triton asks of a device, answered for tensors in the machine's memory."""

    launcher_cls = Launcher
    utils = types.SimpleNamespace(
        load_binary=lambda *_: (1, 1, 128, SPILLED_WORDS, 1024),
        get_device_properties=lambda _: {"max_shared_mem": 227 * 1024},
    )

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def main() -> None:
    """Forward and backward of each kind of call, then a compilation as the tuner asks for it."""
    driver.set_active(Driver(int(sys.argv[1])))
    op.triton_unavailable_reason = lambda q: None
    if "--hold" in sys.argv:
        print(compilations_of_fuzz(count=int(sys.argv[3]), hold=int(sys.argv[5])))
        return
    fused = torch.zeros(1, 2 * 16 + 5, 3, 1, 9, dtype=torch.float16, requires_grad=True)
    unaligned = fused[..., 1:].unbind(2)
    out = pisa_attention(*unaligned, num_frames=2, num_ref_tokens=5, backend="triton")
    torch.autograd.grad(out.sum(), fused)  # a gradient of stride 0
    ones = [torch.zeros(1, 1, 1, 8, dtype=torch.bfloat16, requires_grad=True) for _ in range(5)]
    out = reference_attention(*ones, num_frames=1, reference_bias=0.5, backend="triton")
    torch.autograd.grad(out.sum(), ones)
    x = torch.zeros(1, 3 * 64, 1, 16, dtype=torch.float16)
    whole = launch.Problem.of_pisa(x, x, x, 2, 64, 0.25).geometry
    spilled = autotune._spilled_bytes(launch.warm_up(whole, "forward"))
    assert spilled == 4 * SPILLED_WORDS, spilled
    print(*launched)


def compilations_of_fuzz(*, count: int, hold: int) -> int:
    """Different kernels that the first seeds want; none is compiled."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "bench"))
    import fuzz

    wanted: set[tuple[str, str]] = set()
    knobs.runtime.jit_cache_hook = lambda *, fn, key, **_: wanted.add((fn.name, key)) is None  # True: do not compile
    attend = lambda *tensors, **options: reference_attention(*tensors, backend="triton", **options)
    for draw in (fuzz.Draw.of(seed, hold) for seed in range(count)):
        for dtype in (*fuzz.TRITON_DTYPES, torch.bfloat16):
            tensors = fuzz._arranged(draw, [x.to(dtype) for x in draw.tensors()])
            fuzz.evaluate(attend, tensors, draw.options(torch.device("cpu")))
    return len(wanted)


if __name__ == "__main__":
    main()
