"""Every backend of pisa_attention against the naive path in float64: the output and all gradients.

The limits are those of videomaker.kernels.accuracy. Triton runs in its interpreter where there is no GPU.
"""

import itertools
import logging
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from videomaker.kernels import available_backends, choose_backend, pisa_attention
from videomaker.kernels.accuracy import (
    error_band,
    errors,
    evaluate,
    evaluate_naive,
    failures,
    largest_score,
    poisoned_memory,
)
from videomaker.kernels.pisa import api, partials, torch_kernels
from videomaker.kernels.pisa.naive import pisa_naive

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF_AND_SINGLE = (torch.float32, torch.bfloat16)


class Shape(NamedTuple):
    """Batch, frames, tokens of a frame, tokens of the reference, heads, head dim."""

    B: int
    F: int
    N: int
    M: int
    H: int
    D: int

    def __str__(self) -> str:
        return "-".join(f"{name}{value}" for name, value in self._asdict().items())


SHAPES = [
    Shape(2, 4, 16, 16, 2, 8),
    Shape(1, 3, 63, 63, 2, 24),
    Shape(2, 2, 64, 64, 2, 40),
    Shape(1, 5, 33, 132, 1, 40),
    Shape(1, 2, 111, 17, 2, 72),
    Shape(1, 3, 32, 1, 1, 80),
    Shape(1, 1, 37, 37, 2, 160),
    Shape(2, 3, 25, 0, 2, 40),
]
TRITON_SHAPES = [
    Shape(1, 3, 16, 16, 1, 8),
    Shape(2, 2, 33, 17, 1, 40),
    Shape(1, 1, 21, 40, 2, 80),
    Shape(1, 2, 17, 33, 1, 160),
    Shape(1, 2, 20, 0, 1, 24),
]
CASES = [("sdpa", shape) for shape in SHAPES] + [("triton", shape) for shape in TRITON_SHAPES]


def inputs(shape: Shape, dtype: torch.dtype, size: float = 1.0) -> tuple[Tensor, ...]:
    """q, k, v as views of one fused projection `[B, T, 3, H, D]`, and a gradient; all of them values of `dtype`."""
    tokens = shape.F * shape.N + shape.M
    fused = torch.randn(shape.B, tokens, 3, shape.H, shape.D, device=DEVICE) * size
    grad = torch.randn(shape.B, tokens, shape.H, shape.D, device=DEVICE)
    return *fused.to(dtype).unbind(2), grad.to(dtype)


def require(backend: str, q: Tensor) -> None:
    reason = available_backends(q)[backend]
    if reason is not None:
        pytest.skip(f"{backend}: {reason}")


def shortfalls(attention: Callable[..., Tensor], tensors: tuple[Tensor, ...], shape: Shape) -> list[str]:
    """Where `attention` is less exact than it must be."""
    options = {"num_frames": shape.F, "num_ref_tokens": shape.M, "scale": shape.D**-0.5}
    exact = evaluate(pisa_naive, *(x.double() for x in tensors), **options)
    with poisoned_memory():
        found = errors(evaluate(attention, *tensors, **options), exact, shape.M)
    naive = errors(evaluate(pisa_naive, *tensors, **options), exact, shape.M)
    q, k, *_ = tensors
    return failures(found, naive, error_band(q.dtype, largest_score(q, k, options["scale"])))


def assert_parity(backend: str, tensors: tuple[Tensor, ...], shape: Shape) -> None:
    require(backend, tensors[0])
    assert not shortfalls(partial(pisa_attention, backend=backend), tensors, shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sdpa_is_exact_in_float64(shape: Shape) -> None:
    assert_parity("sdpa", inputs(shape, torch.float64), shape)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize(("backend", "shape"), CASES, ids=str)
def test_parity(backend: str, shape: Shape, dtype: torch.dtype) -> None:
    assert_parity(backend, inputs(shape, dtype), shape)


@pytest.mark.parametrize("dtype", HALF_AND_SINGLE, ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_large_logits(backend: str, dtype: torch.dtype) -> None:
    shape = Shape(1, 2, 33, 17, 1, 40)
    q, k, v, grad = inputs(shape, dtype)
    logits = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * shape.D**-0.5
    assert_parity(backend, (q * (80 / logits.abs().max()).to(dtype), k, v, grad), shape)


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_any_strides(backend: str) -> None:
    """Heads before tokens, tokens before batch, and rows that start off any alignment."""
    shape = Shape(2, 2, 18, 5, 2, 24)
    q, k, v, grad = inputs(shape, torch.float32)
    k = k.transpose(1, 2).contiguous().transpose(1, 2)
    v = v.transpose(0, 1).contiguous().transpose(0, 1)
    q = torch.nn.functional.pad(q, (1, 2))[..., 1:-2]
    assert_parity(backend, (q, k, v, grad), shape)


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_gradient_without_memory_of_its_own(backend: str) -> None:
    """`out.sum().backward()` passes one number expanded to the output's shape."""
    shape = Shape(1, 2, 17, 9, 1, 16)
    q, k, v, grad = inputs(shape, torch.float32)
    assert_parity(backend, (q, k, v, grad[:1, :1, :1, :1].expand_as(grad)), shape)


def test_naive_by_frame_and_head_is_naive() -> None:
    shape = Shape(2, 3, 7, 5, 2, 8)
    options = {"num_frames": shape.F, "num_ref_tokens": shape.M, "scale": 0.3}
    tensors = inputs(shape, torch.float64)
    pairs = zip(evaluate_naive(*tensors, **options), evaluate(pisa_naive, *tensors, **options), strict=True)
    for frame_by_frame, at_once in pairs:
        torch.testing.assert_close(frame_by_frame, at_once)


def test_a_wrong_kernel_fails() -> None:
    """The limits can tell: a kernel that misses one of 40 keys is beyond them in bfloat16."""
    shape = Shape(1, 2, 32, 8, 1, 16)

    def forgetful(q: Tensor, k: Tensor, v: Tensor, **options: float) -> Tensor:
        return pisa_naive(q, torch.cat([k[:, :-1], -10 * q.sum(dim=1, keepdim=True)], dim=1), v, **options)

    assert shortfalls(forgetful, inputs(shape, torch.bfloat16), shape)


@pytest.mark.parametrize("kernel", ["math", "cpu" if DEVICE == "cpu" else "efficient"])
def test_partials_in_groups_of_frames(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs: several frames in one call, here 3 and then 1; and the math kernel in slices of rows."""
    monkeypatch.setattr(partials, "groups", lambda frames, _: (slice(i, i + 3) for i in range(0, len(frames), 3)))
    monkeypatch.setattr(torch_kernels, "MATH_SCORES", 256)
    shape = Shape(2, 4, 16, 8, 2, 16)
    assert not shortfalls(partial(partials.pisa_partials, kernel=kernel), inputs(shape, torch.float32), shape)


@pytest.mark.parametrize("backend", ["naive", "sdpa", "triton"])
def test_autocast(backend: str) -> None:
    x = torch.randn(1, 13, 1, 8, device=DEVICE)
    require(backend, x)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert pisa_attention(x, x, x, num_frames=3, num_ref_tokens=4, backend=backend).dtype == torch.bfloat16


def test_sdpa_op_is_well_formed() -> None:
    shape = Shape(2, 3, 9, 5, 2, 8)
    q, k, v = (x.detach().requires_grad_() for x in inputs(shape, torch.float32)[:3])
    torch.library.opcheck(partials.partials_forward, (q, k, v, shape.F, shape.M, 0.3, "auto"))


@pytest.mark.parametrize("num_ref_tokens", [5, 0])
def test_sdpa_compiles_without_a_graph_break(num_ref_tokens: int) -> None:
    shape = Shape(2, 3, 9, num_ref_tokens, 2, 8)
    *qkv, grad = inputs(shape, torch.float32)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return pisa_attention(q * 2, k, v, num_frames=shape.F, num_ref_tokens=shape.M, backend="sdpa") + 1

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for found, expected in zip(evaluate(compiled, *qkv, grad), evaluate(attend, *qkv, grad), strict=True):
        torch.testing.assert_close(found, expected)


def peak_memory(shape: Shape) -> int:
    """Bytes held at most by a forward and a backward of the sdpa backend on a CPU."""
    *qkv, grad = (x.cpu() for x in inputs(shape, torch.float32))
    with torch.profiler.profile(profile_memory=True) as profile:
        evaluate(pisa_attention, *qkv, grad, num_frames=shape.F, num_ref_tokens=shape.M, backend="sdpa")
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def test_sdpa_holds_no_copies_of_the_reference() -> None:
    """Eight frames more cost less than half of eight copies of the reference, forward and backward."""
    few, many = (Shape(1, num_frames, 8, 256, 2, 16) for num_frames in (8, 16))
    copies = 4 * (many.F - few.F) * many.M * many.H * many.D
    assert peak_memory(many) - peak_memory(few) < copies / 2


WRONG = {
    "q must be [B, T, H, D]": {"q": torch.zeros(4, 2, 8)},
    "k has shape (1, 5, 2, 8)": {"k": torch.zeros(1, 5, 2, 8)},
    "v is torch.float16, q is torch.float32": {"v": torch.zeros(1, 7, 2, 8, dtype=torch.float16)},
    "k is on meta, q is on cpu": {"k": torch.zeros(1, 7, 2, 8, device="meta")},
    "q must be float16": {name: torch.zeros(1, 7, 2, 8, dtype=torch.int32) for name in "qkv"},
    "q is empty": {name: torch.zeros(1, 7, 0, 8) for name in "qkv"},
    "head dim must be at most 256, got 257": {name: torch.zeros(1, 7, 2, 257) for name in "qkv"},
    "v must be contiguous in its last dimension": {"v": torch.zeros(1, 7, 8, 2).transpose(2, 3)},
    "num_frames must be at least 1, got 0": {"num_frames": 0},
    "num_ref_tokens must not be negative, got -1": {"num_ref_tokens": -1},
    "T = 7 is not": {"num_frames": 3, "num_ref_tokens": 2},
    "num_ref_tokens = 7": {"num_ref_tokens": 7},
    "scale must be positive and finite, got -1.0": {"scale": -1.0},
    "unknown attention backend 'flash': choose from auto, naive, sdpa, triton": {"backend": "flash"},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    right = {name: torch.zeros(1, 7, 2, 8) for name in "qkv"} | {"num_frames": 3, "num_ref_tokens": 1}
    pisa_attention(**right)
    with pytest.raises(ValueError) as error:
        pisa_attention(**right | WRONG[message])
    assert message in str(error.value)


def test_a_backend_that_cannot_run_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_unavailable_reason", lambda backend, q: "no such chip" if backend == "triton" else None)
    q = torch.zeros(1, 7, 2, 8)
    assert available_backends(q) == {"naive": None, "sdpa": None, "triton": "no such chip"}
    with pytest.raises(ValueError, match="'triton' cannot run: no such chip"):
        choose_backend(q, "triton")


def test_auto_says_once_what_it_chose(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_announced", set())
    x = torch.zeros(1, 7, 2, 8)
    with caplog.at_level(logging.DEBUG, logger=api.logger.name):
        for _ in range(2):
            pisa_attention(x, x, x, num_frames=3, num_ref_tokens=1)
    assert [record.message for record in caplog.records] == [
        "attention backend sdpa: the device is cpu; triton needs a GPU"
    ]


@pytest.mark.parametrize("tokens", [(1, 0), (1, 1), (2, 1), (3, 0), (17, 16)], ids=str)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_broken_numbers_show_in_the_rows_where_they_belong(tokens, number):
    """torch's kernel for the CPU gives zeros where all scores of a row are NaN or -inf (pytorch#141128)."""
    frame_tokens, num_ref_tokens = tokens
    layout = {"num_frames": 2, "num_ref_tokens": num_ref_tokens}
    for seed, broken in itertools.product(range(8), range(3)):
        source = torch.Generator().manual_seed(seed)
        shape = (2, 2 * frame_tokens + num_ref_tokens, 2, 8)
        qkv = [torch.randn(shape, generator=source) for _ in range(3)]
        qkv[broken][0, seed % shape[1], 0, seed % 8] = number
        exact = pisa_attention(*(x.double() for x in qkv), **layout, backend="naive")
        ours = pisa_attention(*qkv, **layout, backend="sdpa").double()
        whole = exact.isfinite()
        assert torch.equal(ours.isfinite(), whole)  # an infinite value may come out as NaN: two parts were merged
        # Where numbers are is what counts here: float32 sums of at most 33 terms of size 1 err by far less.
        torch.testing.assert_close(ours[whole], exact[whole], rtol=1e-4, atol=1e-4)
