"""Arguments of the attention functions: shapes, kinds of numbers and scalars that do not fit, and odd ones that do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from videomaker.kernels import pisa_attention, reference_attention

from videomaker.errors import InputError

from .case import Case, Rng
from .world import World

Tensors = dict[str, Any]
BAD_SCALARS: dict[str, tuple[Any, ...]] = {
    "num_frames": (0, -1, 3, 10**9, 2.5, "2", None, float("nan"), [2], 10**30),
    "scale": (0, -1.0, float("nan"), float("inf"), "x", [1.0], 1j),
    "backend": ("", "flash", "SDPA", 5, "../x", ["sdpa"]),
}
BAD_REFERENCE = {
    "use_reference": ([True], torch.ones(3, dtype=torch.bool), torch.ones(2), torch.ones(2, 2, dtype=torch.bool), "x"),
    "reference_bias": (
        float("nan"), float("inf"), "x", torch.ones(3), torch.ones(2, 9), [0.0], torch.tensor(float("inf")),
        torch.full((2,), float("nan")), torch.tensor([0.0, float("inf")]), torch.ones(2, dtype=torch.int64),
        torch.ones(2).to_sparse(), torch.ones(2, device="meta"), 1j, np.array([0.0, 1.0]),
    ),
}  # fmt: skip


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A call of `pisa_attention` or of `reference_attention`."""
    pisa = rng.random() < 0.5
    batch, frames, tokens, heads, dim = 2, 2, rng.randint(1, 5), rng.randint(1, 3), rng.pick((1, 2, 8, 40, 256))
    memory = rng.randint(0, 4)
    generator = torch.Generator().manual_seed(rng.getrandbits(30))
    normal = lambda length: torch.randn(batch, length, heads, dim, generator=generator)
    length = frames * tokens + (memory if pisa else 0)
    tensors: Tensors = {name: normal(length) for name in "qkv"}
    if not pisa:
        tensors |= {"k_ref": normal(memory), "v_ref": normal(memory)}
    options: dict[str, Any] = {"num_frames": frames, "backend": rng.pick(("auto", "naive", "sdpa"))}
    if pisa:
        options["num_ref_tokens"] = memory
    change = rng.choices((_scalar, _tensor, _layout, _nothing), (4, 5, 2, 1))[0]
    what, expect = change(rng, pisa, tensors, options)
    function = pisa_attention if pisa else reference_attention
    return Case(f"{function.__name__}: {what}", lambda: _call(function, tensors, options), expect)


def _call(function: Any, tensors: Tensors, options: dict[str, Any]) -> None:
    """Refusals of the kernels are ValueErrors, for they stand alone."""
    try:
        out = function(*tensors.values(), **options)
    except (ValueError, NotImplementedError) as error:
        raise InputError(str(error)) from error
    exact = function(*(x.double() for x in tensors.values()), **{**options, "backend": "naive"})
    assert out.shape == tensors["q"].shape and out.dtype == tensors["q"].dtype
    bad = ~exact.isfinite().all(-1)
    assert (~out.isfinite().all(-1) == bad).all() or out.dtype == torch.float16, "NaN in other rows than in the exact"
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4}.get(out.dtype, 0.05)
    close = torch.allclose(
        out.double()[~bad],
        exact[~bad],
        rtol=tolerance,
        atol=tolerance * (1 + exact[~bad].abs().max().item() if (~bad).any() else 1),
    )
    assert close or out.dtype == torch.float16, "other numbers than the exact"


def _scalar(rng: Rng, pisa: bool, tensors: Tensors, options: dict[str, Any]) -> tuple[str, str]:
    choices = {**BAD_SCALARS, **({"num_ref_tokens": (-1, 10**9, 1.5, "1", None)} if pisa else BAD_REFERENCE)}
    name = rng.pick(choices)
    value = rng.pick(choices[name])
    options[name] = value
    divides = name == "num_frames" and value == 3 and tensors["q"].shape[1] % 3 == 0
    pisa_divides = pisa and name == "num_frames" and value == 3
    return f"{name} is {str(value)[:40]!r}", "either" if divides or pisa_divides else "refused"


def _tensor(rng: Rng, pisa: bool, tensors: Tensors, options: dict[str, Any]) -> tuple[str, str]:
    name = rng.pick(tensors)
    value = tensors[name]
    changes = {
        "None": None, "a list": value.tolist(), "an array": value.numpy(), "a number": 5.0,
        "int64": value.long(), "bool": value > 0, "complex": value.to(torch.complex64), "float64": value.double(),
        "three dimensions": value[0], "five dimensions": value[None], "one head more": torch.cat([value, value], 2),
        "no batch": value[:0], "another batch": torch.cat([value, value]), "on meta": value.to("meta"),
        "sparse": value.to_sparse(), "another width": torch.cat([value, value], 3), "fewer tokens": value[:, :-1],
        "uint8": value.to(torch.uint8), "float8": value.to(torch.float8_e4m3fn),
        "strided": torch.cat([value, value], 3)[..., ::2],
    }  # fmt: skip
    what = rng.pick(changes)
    tensors[name] = changes[what]
    either = (
        what == "strided"
        or value.shape[1] == 0
        or (name == "q" and what in ("float64",))
        or (not pisa and what == "fewer tokens")
    )
    return f"{name} is {what}", "either" if either else "refused"


def _layout(rng: Rng, pisa: bool, tensors: Tensors, options: dict[str, Any]) -> tuple[str, str]:
    """Odd, and right."""
    what = rng.pick(("heads first", "NaN", "inf", "half", "bfloat16", "huge", "tiny", "needs gradient", "float64"))
    for name, value in tensors.items():
        tensors[name] = {
            "heads first": value.transpose(1, 2).contiguous().transpose(1, 2),
            "half": value.half(),
            "bfloat16": value.bfloat16(),
            "float64": value.double(),
            "huge": value * 1e18,
            "tiny": value * 1e-30,
            "needs gradient": value.clone().requires_grad_(),
        }.get(what, value)
    if what in ("NaN", "inf"):
        name = rng.pick(tensors)
        if tensors[name].numel():
            tensors[name].view(-1)[rng.randrange(tensors[name].numel())] = float(what)
    return what, "either" if what in ("huge", "inf") else "works"


def _nothing(rng: Rng, pisa: bool, tensors: Tensors, options: dict[str, Any]) -> tuple[str, str]:
    return "as it should be", "works"
