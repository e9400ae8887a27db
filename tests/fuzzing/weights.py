"""Checkpoints: damaged, of other kinds of numbers, other shapes, other names, and what is none."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .case import WRONG_CONTENTS, Case, Rng, flipped, no_file, truncated
from .world import World

Tensors = dict[str, torch.Tensor]


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A checkpoint, for `generate --weights` or `convert`."""
    make = rng.choices((_numbers, _shapes, _names, _damaged, _content, _no_file, _torch_file), (4, 3, 4, 3, 2, 1, 3))[0]
    what, path, expect = make(rng, world, folder)
    if rng.random() < 0.3:
        words = ["convert", str(path), str(folder / "out.safetensors"), "--model", str(world.model)]
        return Case(f"convert: {what}", words, expect)
    return Case(f"weights: {what}", world.generate("--weights", path, "-o", folder / "out.mp4"), expect)


def _one(tensors: Tensors, rng: Rng) -> str:
    return rng.pick(sorted(tensors))


def _save(tensors: Tensors, folder: Path) -> Path:
    save_file(tensors, folder / "x.safetensors")
    return folder / "x.safetensors"


def _numbers(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    """Numbers that are none, or of a kind that no weight has."""
    tensors = load_file(world.weights)
    names = [_one(tensors, rng)] if rng.random() < 0.7 else list(tensors)
    what = rng.pick(
        ("int8", "bool", "complex64", "int64", "nan", "inf", "float64", "float16", "float8_e4m3fn", "uint8")
    )
    for name in names:
        value = tensors[name]
        if what in ("nan", "inf"):
            value.view(-1)[rng.randrange(value.numel())] = float(what)
        else:
            tensors[name] = value.to(getattr(torch, what))
    expect = "works" if what in ("float64", "float16") else "either" if what.startswith("float8") else "refused"
    return f"{what} in {len(names)} tensors", _save(tensors, folder), expect


def _shapes(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    tensors = load_file(world.weights)
    name = _one(tensors, rng)
    value = tensors[name]
    what = rng.pick(("doubled", "flat", "one dimension more", "empty", "a scalar", "other rows"))
    tensors[name] = {
        "doubled": torch.cat([value, value]),
        "flat": value.reshape(-1, 1),
        "one dimension more": value[None],
        "empty": value[:0],
        "a scalar": value.reshape(-1)[0],
        "other rows": value[: max(1, len(value) // 2)].contiguous(),
    }[what].contiguous()
    same = tensors[name].shape == value.shape
    return f"{name} is {what}", _save(tensors, folder), "works" if same else "refused"


def _names(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    """Wrappers' prefixes and parts are taken; another architecture's names are not."""
    tensors = load_file(world.weights)
    what = rng.pick(
        ("module.", "unet.", "_orig_mod.", "module.unet.", "part", "other", "none", "more", "one", "student.net.")
    )
    expect = "works"
    if what.endswith("."):
        tensors = {what + name: value for name, value in tensors.items()}
    elif what == "part":
        tensors = {name: value for name, value in tensors.items() if "motion_modules" in name}
    elif what == "one":
        name = _one(tensors, rng)
        tensors, expect = {name: tensors[name]}, "either"
    elif what == "other":
        tensors, expect = {f"transformer.h.{i}.weight": torch.zeros(4, 4) for i in range(20)}, "refused"
    elif what == "none":
        tensors, expect = {}, "refused"
    elif what == "more":
        tensors, expect = {**tensors, **{f"lora_{i}.weight": torch.zeros(4) for i in range(9)}}, "either"
    return f"names: {what}", _save(tensors, folder), expect


def _damaged(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    content, path = world.weights.read_bytes(), folder / "x.safetensors"
    what = rng.pick(("cut short", "changed header", "changed data", "long header", "header of nonsense", "more bytes"))
    if what == "cut short":
        content = truncated(content, rng)
    elif what == "changed header":
        content = flipped(content[:400], rng) + content[400:]
    elif what == "changed data":
        content = content[:-2000] + flipped(content[-2000:], rng)
    elif what == "long header":
        content = struct.pack("<Q", rng.pick((2**62, 2**32, 10**9))) + content[8:]
    elif what == "header of nonsense":
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
        content = struct.pack("<Q", len(header)) + header
    else:
        content += bytes(100)
    path.write_bytes(content)
    return what, path, "either" if what.startswith("changed") else "refused"


def _content(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    what, suffix = rng.pick(WRONG_CONTENTS), rng.pick((".safetensors", ".bin", ".pt", ".ckpt", ".txt"))
    path = folder / f"x{suffix}"
    path.write_bytes(WRONG_CONTENTS[what])
    return f"{what} as {suffix}", path, "refused"


def _no_file(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    what, path = no_file(folder, rng, rng.pick(("x.safetensors", "x.bin")))
    return what, path, "refused"


class Hostile:
    """Runs code when it is unpickled in the usual way."""

    def __reduce__(self) -> tuple:
        return Path.touch, (Path("out-of-the-pickle"),)


def _torch_file(rng: Rng, world: World, folder: Path) -> tuple[str, Path, str]:
    tensors, path = load_file(world.weights), folder / "x.bin"
    what = rng.pick(("plain", "state_dict", "hostile", "a list", "texts", "a tensor", "cut short", "numbers", "nested"))
    value = {
        "state_dict": {"state_dict": tensors, "epoch": 3},
        "hostile": {**tensors, "x": Hostile()},
        "a list": list(tensors.values()),
        "texts": {name: "x" for name in tensors},
        "a tensor": torch.zeros(3),
        "numbers": {**tensors, "epoch": 3},
        "nested": {"unet": tensors, "vae": {}},
    }.get(what, tensors)
    torch.save(value, path)
    if what == "cut short":
        path.write_bytes(truncated(path.read_bytes(), rng))
    expect = {"plain": "works", "state_dict": "works", "numbers": "either", "nested": "either"}.get(what, "refused")
    return f"a torch file: {what}", path, expect
