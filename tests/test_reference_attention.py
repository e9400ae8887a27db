"""reference_attention: every backend against the usual repeated form in float64, and what PyTorch may do with it."""

import functools
import importlib
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from videomaker.kernels import choose_reference_backend, reference_attention
from videomaker.kernels.pisa import partials as pisa_partials
from videomaker.kernels.reference import api, op, partials

B, F, N, M, H, D = 2, 3, 9, 5, 2, 8


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module("fuzz")


def inputs(ref_batch: int = B, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    own = [torch.randn(B, F * N, H, D, dtype=dtype, requires_grad=True) for _ in range(3)]
    return [*own, *(torch.randn(ref_batch, M, H, D, dtype=dtype, requires_grad=True) for _ in range(2))]


@pytest.mark.parametrize("seed", range(0, 60, 10))
def test_random_shapes(fuzz: ModuleType, seed: int) -> None:
    """A small part of `python bench/fuzz.py --count 1000`."""
    backends = {"naive": (torch.float64,), "sdpa": (torch.float64, torch.float32), "triton": (torch.float16,)}
    found = fuzz.check(fuzz.Draw.of(seed), backends, torch.device("cpu"))
    assert not any(found.values()), found


@pytest.mark.parametrize("backend", ["naive", "sdpa", "triton"])
def test_a_reference_that_is_left_out_may_be_anything(backend: str) -> None:
    q, k, v, k_ref, v_ref = (x.detach() for x in inputs())
    k_ref[1], v_ref[1] = math.nan, math.nan
    use = torch.tensor([True, False])
    out = reference_attention(q, k, v, k_ref, v_ref, num_frames=F, use_reference=use, backend=backend)
    alone = reference_attention(q, k, v, k_ref[:, :0], v_ref[:, :0], num_frames=F, backend=backend)
    torch.testing.assert_close(out[1], alone[1])
    assert not torch.allclose(out[0], alone[0])


@pytest.mark.parametrize("ref_batch", [1, B])
def test_operators_are_well_formed(ref_batch: int) -> None:
    tensors = inputs(ref_batch)
    bias = torch.tensor([[0.3, 0.1], [-math.inf, -math.inf]])
    torch.library.opcheck(op._forward, (*tensors, bias, F, 0.4, True))
    torch.library.opcheck(partials.partials_forward, (*tensors, bias, F, 0.4, "auto"))


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_compiles_without_a_graph_break(backend: str) -> None:
    tensors, use = inputs(1), torch.tensor([True, False])

    def attend(*x: Tensor) -> Tensor:
        return reference_attention(*x, num_frames=F, use_reference=use, reference_bias=0.5, backend=backend) + 1

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for x, y in zip(gradients(compiled, tensors), gradients(attend, tensors), strict=True):
        torch.testing.assert_close(x, y)


def gradients(attend, tensors: list[Tensor]) -> list[Tensor]:
    out = attend(*tensors)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), tensors)]


def test_numbers_of_a_bias_are_looked_at_where_they_are_there() -> None:
    """Not while compiling or in a transform, where the call still works; -inf leaves the reference out."""
    tensors, bias = [x.detach() for x in inputs()], torch.tensor([0.5, -math.inf])

    def attend(bias: Tensor) -> Tensor:
        return reference_attention(*tensors, num_frames=F, reference_bias=bias)

    right = attend(bias)
    assert right.isfinite().all()
    torch.testing.assert_close(torch.compile(attend, fullgraph=True, backend="aot_eager")(bias), right)
    each = torch.func.vmap(attend)(torch.stack([bias, bias + 1]))
    torch.testing.assert_close(each[0], right)


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
@pytest.mark.parametrize("ref_batch", [1, B])
def test_gradients_of_each_sample(backend: str, ref_batch: int) -> None:
    samples = [inputs(ref_batch) for _ in range(2)]

    def loss(*x: Tensor) -> Tensor:
        return reference_attention(*x, num_frames=F, backend=backend).sin().sum()

    stacked = [torch.stack([x.detach() for x in tensors]) for tensors in zip(*samples, strict=True)]
    found = torch.func.vmap(torch.func.grad(loss, tuple(range(5))))(*stacked)
    for i, tensors in enumerate(samples):
        for x, y in zip(found, torch.autograd.grad(loss(*tensors), tensors), strict=True):
            torch.testing.assert_close(x[i], y)


@pytest.mark.parametrize("backend", ["sdpa", "triton"])
def test_gradients_that_nobody_needs_are_not_computed(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the reference's where it is frozen, nor the frames' where only the reference learns."""
    asked: list[tuple[object, ...]] = []
    if backend == "triton":
        real = op.run_backward_key
        monkeypatch.setattr(
            op, "run_backward_key", lambda *x, **named: asked.append(tuple(named.values())) or real(*x, **named)
        )
    else:
        real = partials._add
        monkeypatch.setattr(partials, "_add", lambda *x: asked.append(tuple(t is not None for t in x[0])) or real(*x))
    expected = {
        "triton": {"own": [(True, False)], "reference": [(False, True)], "q": []},
        "sdpa": {
            "own": [(False, True, True)] * B,
            "reference": [(False, True, True)] * B,
            "q": [(True, False, False)] * 2 * B,
        },
    }[backend]
    for needed, places in {"own": (1, 2), "reference": (3, 4), "q": (0,)}.items():
        tensors = [x.detach().requires_grad_(i in places) for i, x in enumerate(inputs())]
        wanted = [tensors[i] for i in places]
        out = reference_attention(*tensors, num_frames=F, backend=backend)
        asked.clear()
        found = torch.autograd.grad(out.sin().sum(), wanted)
        assert asked == expected[needed]
        naive = reference_attention(*tensors, num_frames=F, backend="naive")
        for x, y in zip(found, torch.autograd.grad(naive.sin().sum(), wanted), strict=True):
            torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-4)


def test_a_reference_expanded_over_the_batch_is_stored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = inputs(1)
    seen: list[int] = []
    real = partials.reference_partials
    monkeypatch.setattr(partials, "reference_partials", lambda *x, **named: seen.append(len(x[3])) or real(*x, **named))
    expanded = [*tensors[:3], *(x.expand(B, -1, -1, -1) for x in tensors[3:])]

    def gradients_of(arguments: list[Tensor]) -> list[Tensor]:
        out = reference_attention(*arguments, num_frames=F, backend="sdpa")
        return list(torch.autograd.grad(out.sin().sum(), tensors))

    for x, y in zip(gradients_of(expanded), gradients_of(tensors), strict=True):
        assert torch.equal(x, y)
    assert seen == [1, 1]


@pytest.mark.parametrize("tokens", [(200, 130), (700, 30)], ids=str)
def test_numbers_do_not_depend_on_how_heads_and_frames_share_a_cpu(tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    """One head or all of them at once, and a last group of fewer frames: the bits of one frame after the other."""
    (own_tokens, ref_tokens), generator = tokens, torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5 * own_tokens, 3, 8, generator=generator)
    k_ref, v_ref = torch.randn(2, 1, ref_tokens, 3, 8, generator=generator)
    attend = functools.partial(reference_attention, backend="sdpa")
    frames = [x.unflatten(1, (5, own_tokens)).unbind(1) for x in (q, k, v)]
    expected = torch.cat([attend(*own, k_ref, v_ref, num_frames=1) for own in zip(*frames, strict=True)], dim=1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    for cache in (1, 1 << 30):
        monkeypatch.setattr(pisa_partials, "CPU_CACHE", cache)
        assert torch.equal(attend(q, k, v, k_ref, v_ref, num_frames=5), expected)


def test_auto_says_where_the_librarys_kernels_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "choose_backend", lambda q, backend: ("triton", "supported GPU"))
    q = torch.empty(1, 8192, 1, 128, device="meta")
    name, reason = choose_reference_backend(q, 1)
    assert name == "sdpa" and "published figures" in reason
    assert choose_reference_backend(q, 1, "triton")[0] == "triton"  # what is asked for is used
    assert choose_reference_backend(q, 2)[0] == choose_reference_backend(q[..., :80], 1)[0] == "triton"


WRONG = {
    "q must be [B, T, H, D]": {"q": torch.zeros(4, 2, 8)},
    "k has shape": {"k": torch.zeros(B, F * N - 1, H, D)},
    "v is torch.float16, q is torch.float32": {"v": torch.zeros(B, F * N, H, D, dtype=torch.float16)},
    "k_ref must be [B or 1, M, H, D]": {"k_ref": torch.zeros(M, H, D)},
    "k_ref must be a tensor": {"k_ref": [1.0]},
    "v_ref is on meta, q is on cpu": {"v_ref": torch.zeros(B, M, H, D, device="meta")},
    "k_ref is torch.float64, q is torch.float32": {"k_ref": torch.zeros(B, M, H, D, dtype=torch.float64)},
    "num_frames must be at least 1 and divide the 27 tokens of q, got 0": {"num_frames": 0},
    "use_reference is on meta": {"use_reference": torch.ones(B, dtype=torch.bool, device="meta")},
    "reference_bias must be floating": {"reference_bias": torch.zeros(B, dtype=torch.int32)},
    "unknown attention backend 'flash'": {"backend": "flash"},
    "k_ref must be [2 or 1, M, 2, 8]": {"k_ref": torch.zeros(3, M, H, D)},
    "v_ref has shape": {"v_ref": torch.zeros(1, M + 1, H, D)},
    "num_frames must be at least 1 and divide the 27 tokens": {"num_frames": 2},
    "use_reference must be bool of shape [2]": {"use_reference": torch.ones(2)},
    "reference_bias must be [], [2] or [2, 2]": {"reference_bias": torch.zeros(3)},
    "reference_bias must be finite": {"reference_bias": math.nan},
    "to leave the reference out, got [0.0, inf]": {"reference_bias": torch.tensor([0.0, math.inf])},
    "to leave the reference out, got [[nan, 1.0], [2.0, 3.0]]": {
        "reference_bias": torch.tensor([[math.nan, 1.0], [2.0, 3.0]])
    },
    "reference_bias must be a number or a tensor": {"reference_bias": [0.0]},
    "reference_bias has no gradient": {"reference_bias": torch.zeros(2, requires_grad=True)},
    "scale must be positive": {"scale": 0.0},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    names = ("q", "k", "v", "k_ref", "v_ref")
    right = dict(zip(names, inputs(), strict=True)) | {"num_frames": F}
    with pytest.raises(ValueError) as error:
        reference_attention(**right | WRONG[message])
    assert message in str(error.value)
