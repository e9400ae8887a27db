"""The rest of the Python surface: loading, compiling, approximations, processors for other models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import tiny_pipeline, tiny_unet

from videomaker import (
    Approximations,
    Bucket,
    ReferenceBank,
    VideoMakerPipeline,
    install_pisa,
    install_reference_attention,
    install_style_aligned,
)

from .case import WRONG_CONTENTS, Case, Rng
from .world import World

NAN, INF = math.nan, math.inf
COUNTS: tuple[Any, ...] = (0, -1, 1.5, "2", None, NAN, [1], True, 10**30)
NUMBERS: tuple[Any, ...] = (NAN, INF, "x", [0.5], 1j)
BACKENDS: tuple[Any, ...] = ("", "flash", "SDPA", 5, None, ["sdpa"])
Call = Callable[[Any], Any]


def _bank(**options: Any) -> None:
    bank = ReferenceBank()
    bank.write(num_references=options.pop("num_references", 1))
    bank.states["a"] = torch.zeros(1, 2, 3)
    bank.read(**{"num_frames": 2, **options})


def _compile(**options: Any) -> None:
    small = {"num_frames": 2, "height": 16, "width": 16}
    tiny_pipeline().compile([Bucket(**{**small, **options})])


# What is called with a bad value, and the values.
CALLS: dict[str, tuple[Call, tuple[Any, ...]]] = {
    "guidance_until": (lambda x: Approximations(guidance_until=x), (-0.1, 1.1, None, *NUMBERS)),
    "reuse_every": (lambda x: Approximations(reuse_every=x), COUNTS),
    "Bucket's num_frames": (lambda x: _compile(num_frames=x), COUNTS),
    "Bucket's height": (lambda x: _compile(height=x), (15, *COUNTS)),
    "Bucket's width": (lambda x: _compile(width=x), (17, *COUNTS)),
    "Bucket's batch": (lambda x: _compile(batch=x), COUNTS),
    "Bucket's num_references": (lambda x: _compile(num_references=x), (-1, 1.5, "2", None, NAN, [1], 10**30)),
    "compile's buckets": (lambda x: tiny_pipeline().compile(x), (5, "x", [5], [None], [{"height": 8}])),
    "install_pisa's backend": (lambda x: install_pisa(tiny_unet(), backend=x), BACKENDS),
    "install_reference_attention's backend": (lambda x: install_reference_attention(tiny_unet(), backend=x), BACKENDS),
    "install_style_aligned's backend": (lambda x: install_style_aligned(tiny_unet(), backend=x), BACKENDS),
    "score_shift": (lambda x: install_style_aligned(tiny_unet(), score_shift=x), (True, *NUMBERS)),
    "blocks": (lambda x: install_reference_attention(tiny_unet(), blocks=x), ("", "down", None, 5)),
    "a bank's bias": (lambda x: _bank(bias=x), (True, *NUMBERS)),
    "a bank's num_frames": (lambda x: _bank(num_frames=x), COUNTS),
    "a bank's num_references": (lambda x: _bank(num_references=x), COUNTS),
    "weights": (
        lambda x: tiny_pipeline().load_videomaker_weights(x), ("", ".", "missing.bin", "/dev/null", "x" * 5000, "a\0b"),
    ),
    "a pipeline's folder": (VideoMakerPipeline.from_pretrained, ("", ".", "/dev/null", "/tmp")),
    "window_frames": (lambda x: _call(window_frames=x), tuple(x for x in COUNTS if x is not None)),
    "window_overlap": (
        lambda x: _call(num_frames=8, window_frames=4, window_overlap=x), (4, 5, -1, 1.5, "2", NAN, [1], True),
    ),
    "reference": (
        lambda x: _call(reference_image=x),
        (torch.zeros(1, 1, 3, 8, 8), np.zeros((1, 1, 8, 8, 3), np.uint8), [[[torch.zeros(3, 8, 8)]]], (), object(),
         torch.zeros(2, 3, 8, 8).to_sparse(), torch.zeros(3, 8, 8, device="meta"), np.zeros((8, 8, 3), "datetime64[s]"),
         [torch.zeros(3, 8, 8), None], [b""], 1.5, True, float("nan"), range(3)),
    ),
}  # fmt: skip
REPLACED: dict[str, Callable[[Any], Any]] = {
    "no tokenizer": lambda pipe: setattr(pipe, "tokenizer", None),
    "no scheduler": lambda pipe: setattr(pipe, "scheduler", None),
    "no VAE": lambda pipe: setattr(pipe, "vae", None),
    "another UNet's width": lambda pipe: setattr(pipe, "unet", tiny_unet(cross_attention_dim=8)),
    "a UNet of NaN": lambda pipe: pipe.unet.conv_out.weight.data.fill_(NAN),
    "a VAE of NaN": lambda pipe: pipe.vae.decoder.conv_out.weight.data.fill_(NAN),
    "half of the UNet in double": lambda pipe: pipe.unet.conv_in.double(),
}


def _call(**options: Any) -> None:
    settings = {
        "prompt": "a fox", "reference_image": torch.zeros(3, 16, 16), "num_frames": 2, "height": 16, "width": 16,
        "num_inference_steps": 1, "guidance_scale": 1.0,
    }  # fmt: skip
    tiny_pipeline()(**{**settings, **options})


def _replaced(what: str) -> None:
    pipe = tiny_pipeline()
    REPLACED[what](pipe)
    pipe("a fox", torch.zeros(3, 16, 16), num_frames=2, height=16, width=16, num_inference_steps=1)


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A call that cannot be made."""
    way = rng.choices(("value", "replaced", "weights"), (8, 1, 1))[0]
    if way == "replaced":
        what = rng.pick(REPLACED)
        late = "NaN" in what  # which only computing shows
        return Case(what, lambda: _late(what) if late else _replaced(what), "refused" if not late else "works")
    if way == "weights":
        what, path = rng.pick(WRONG_CONTENTS), folder / f"x{rng.pick(('.bin', '.safetensors', '.pt', ''))}"
        path.write_bytes(WRONG_CONTENTS[what])
        return Case(f"weights of {what}", lambda: tiny_pipeline().load_videomaker_weights(path), "refused")
    name = rng.pick(CALLS)
    call, values = CALLS[name]
    value = rng.pick(values)
    shown = f"{type(value).__name__} {tuple(value.shape)}" if hasattr(value, "shape") else repr(value)[:40]
    return Case(f"{name}: {shown}", lambda: call(value), "refused")


def _late(what: str) -> None:
    from videomaker.errors import InputError

    try:
        _replaced(what)
    except InputError as error:
        assert "overflow" in str(error)
        return
    raise AssertionError("a video of no numbers")
