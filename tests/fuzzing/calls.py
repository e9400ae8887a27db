"""Arguments of the pipeline's call in Python: refused before the first step, or finite videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .case import Case, Rng
from .world import World

NAN, INF = float("nan"), float("inf")
T = torch.zeros
# Argument: values that are refused.
BAD: dict[str, tuple[Any, ...]] = {
    "prompt": ([], ["a", 5], 5, b"a fox", {"a": 1}, ("a",), ["a", None], "\udcff"),
    "reference_image": (
        None, "missing.png", "", 5, [], [None], np.full((8, 8, 3), NAN), np.full((8, 8, 3), 2.0),
        np.zeros((8, 8, 3), int),
        np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8, 3), np.uint8), np.zeros((8,), np.uint8), T(3, 8, 8) - 1,
        T(3, 8, 8) + INF, T(2, 8, 8), T(3, 0, 8), np.array(["a"]), np.array([None]), {"a": 1}, b"", b"x",
        T(3, 8, 8, dtype=torch.complex64), np.zeros((8, 8, 3), bool), T(1, 1, 1, 1, 1),
    ),
    "num_frames": (0, -1, 2.5, "2", True, 10**30, NAN, [2], 10**6),
    "height": (0, -2, 15, 16.0, "16", True, 10**30, NAN, [16]),
    "width": (0, 17, 16.5, None.__class__, INF, (16,)),
    "num_inference_steps": (0, -1, 1.5, "1", True, 10**30, [1], NAN),
    "guidance_scale": (NAN, INF, "2", [1.0, 2.0], None.__class__, [NAN], -INF, 1j, [], True, [None]),
    "negative_prompt": (5, b"x", ["a", "b", "c"], [5], {"a": 1}),
    "num_videos_per_prompt": (0, -1, 1.5, "1", None, True, NAN),
    "eta": (NAN, -1.0, INF, "x", [0.0], None),
    "generator": (5, "x", (torch.Generator(),), [], [torch.Generator()] * 3, [None], torch.Generator),
    "latents": (5, "x", T(1, 4, 3, 8, 8), T(1, 4, 2, 8), T(1, 4, 2, 8, 8, dtype=torch.int64), T(1, 4, 2, 8, 8) + NAN,
                [1]),
    "reference_image_embeds": (T(1, 4, 1, 8, 8), T(1, 4, 1, 9, 8), T(1, 4, 8, 8) + NAN, 5, "x"),
    "prompt_embeds": (T(1, 77, 16), T(1, 77, 15), T(77, 16), 5, "x", T(1, 77, 16) + NAN),
    "negative_prompt_embeds": (T(1, 77, 15), T(3, 77, 16), 5, "x", T(1, 77, 16) + NAN),
    "output_type": ("gif", "", 5, "PIL", ["pil"], None),
    "cross_attention_kwargs": (5, "x", [1], {5: 6}),
    "clip_skip": (-1, 2, 9, 1.5, "1", NAN, [1]),
    "callback_on_step_end": (5, "x", [1]),
    "callback_on_step_end_tensor_inputs": (["nonsense"], "latents", 5, [5], ["scheduler"]),
    "decode_chunk_size": (0, -1, 1.5, "1", True, [1]),
    "ip_adapter_image": (Image.new("RGB", (8, 8)), "x", 5),
    "ip_adapter_image_embeds": ([T(1, 1, 16)], 5, "x", T(2, 2)),
}  # fmt: skip
GOOD: dict[str, tuple[Any, ...]] = {
    "prompt": ("", [""], "a fox", ["a fox"], "🦊", "x" * 400),
    "reference_image": (
        np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), np.ones((9, 8, 4)), T(3, 8, 8), T(1, 8, 8),
        T(4, 8, 8),
        T(3, 8, 8, dtype=torch.uint8), [Image.new("L", (8, 8))], Image.new("RGBA", (8, 8)), np.zeros((8, 8, 1)),
        T(2, 3, 8, 8), np.ones((8, 8, 3), np.float16), T(3, 8, 8).half(), np.zeros((16, 8, 3), np.uint8)[::2],
    ),
    "num_frames": (1, 2, 31, None), "height": (16, 18, None), "width": (16, 20, None), "num_inference_steps": (1, 2),
    "guidance_scale": (0, 1, 1.0, 7.5, [2.0], None, -1.0, 30), "negative_prompt": ("bad", "", ["bad"], None),
    "num_videos_per_prompt": (1, 2), "eta": (0.0, 1.0, 0), "clip_skip": (None, 0, 1), "return_dict": (True, False),
    "generator": (None, torch.Generator(), [torch.Generator()]),
    "latents": (T(1, 4, 2, 8, 8), T(1, 4, 2, 8, 8).double()),
    "decode_chunk_size": (None, 1, 100), "cross_attention_kwargs": (None, {}, {"scale": 0.5}),
    "callback_on_step_end": (None, lambda *_: {}), "callback_on_step_end_tensor_inputs": (["latents"], [], None),
}  # fmt: skip


def case(rng: Rng, world: World, folder: Path) -> Case:
    """One or two arguments of the call."""
    names = rng.sample(list(BAD), rng.choices((1, 2), (4, 1))[0])
    given, bad = {}, False
    for name in names:
        wrong = name not in GOOD or rng.random() < 0.7
        given[name] = rng.pick(BAD[name] if wrong else GOOD[name])
        bad = bad or wrong
    what = ", ".join(f"{name}={_shown(value)}" for name, value in given.items())
    expect = "refused" if bad else "works" if len(given) == 1 else "either"
    return Case(f"call: {what}", lambda: _run(given), expect)


def _shown(value: Any) -> str:
    kind = type(value).__name__
    size = f"{tuple(value.shape)} {value.dtype}" if hasattr(value, "dtype") else repr(value)[:40]
    return f"{kind} {size}"


def _run(given: dict[str, Any]) -> None:
    from tiny import tiny_pipeline

    pipe = tiny_pipeline()
    settings = {
        "prompt": "a fox", "reference_image": Image.new("RGB", (16, 16), "red"), "num_frames": 2, "height": 16,
        "width": 16, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt",
    }  # fmt: skip
    made = pipe(**{**settings, **given})
    frames = made[0] if isinstance(made, tuple) else made.frames
    assert isinstance(frames, list) or (torch.is_tensor(frames) and frames.isfinite().all()), "frames are not finite"
