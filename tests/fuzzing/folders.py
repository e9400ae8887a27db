"""Model folders: files that are gone, cut, of another kind; configurations and weights that cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from .case import WRONG_CONTENTS, Case, Rng, flipped, truncated
from .documents import damaged_text, dump, places, value_at, with_value, without, wrong_value
from .world import World

JSON_FILES = ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json")
DEFAULTS = {
    "num_frames": 4, "fps": 8, "height": 32, "width": 32, "num_inference_steps": 2, "guidance_scale": 2.0,
    "negative_prompt": "bad", "fit": "pad", "note": "a note",
}  # fmt: skip
# Without these files a model still is whole.
SPARE = ("generation_config.json", "special_tokens_map.json", "tokenizer_config.json", "README.md")


def case(rng: Rng, world: World, folder: Path) -> Case:
    """A model's folder with one thing wrong, for `generate`."""
    model = world.copy_model(folder)
    make = rng.choices((_gone, _content, _config, _config_text, _tensors, _defaults, _index), (3, 3, 5, 2, 4, 4, 2))[0]
    what, expect = make(rng, model)
    words = ["generate", "--model", str(model), "-r", str(world.picture), "-p", "a fox", "-o", str(folder / "out.mp4")]
    small = ["--steps", "1", "--frames", "2"] if make is not _defaults else []
    return Case(f"model: {what}", [*words, *small], expect)


def _files(model: Path) -> list[Path]:
    return sorted(path for path in model.rglob("*") if path.is_file())


def _gone(rng: Rng, model: Path) -> tuple[str, str]:
    if rng.random() < 0.25:
        part = rng.pick([path for path in sorted(model.iterdir()) if path.is_dir()])
        shutil.rmtree(part)
        return f"no {part.name}/", "refused"
    file = rng.pick(_files(model))
    file.unlink()
    way = rng.pick(("gone", "a folder", "a dangling link", "a loop"))
    if way == "a folder":
        file.mkdir()
    elif way == "a dangling link":
        file.symlink_to("gone")
    elif way == "a loop":
        file.symlink_to(file)
    return f"{file.relative_to(model)} is {way}", "either" if file.name in SPARE else "refused"


def _content(rng: Rng, model: Path) -> tuple[str, str]:
    file = rng.pick(_files(model))
    name = str(file.relative_to(model))
    way = rng.pick(("cut", "changed", "wrong"))
    if way == "cut":
        file.write_bytes(truncated(file.read_bytes(), rng))
        return f"{name} cut short", "either" if file.name in SPARE else "refused"
    if way == "changed":
        file.write_bytes(flipped(file.read_bytes(), rng))
        return f"{name} with changed bytes", "either"
    what = rng.pick(WRONG_CONTENTS)
    file.write_bytes(WRONG_CONTENTS[what])
    return f"{what} as {name}", "either" if file.name in SPARE else "refused"


def _config(rng: Rng, model: Path) -> tuple[str, str]:
    file = model / rng.pick(JSON_FILES)
    config = json.loads(file.read_text())
    place = rng.pick(places(config))
    if rng.random() < 0.2:
        file.write_text(dump(without(config, place)))
        return f"{file.parent.name} without {place}", "either"
    old = value_at(config, place)
    odd = (0, -1, 10**9, 10**30) if isinstance(old, int) else ()
    value = rng.pick((*odd, wrong_value(config, place, rng)))
    file.write_text(dump(with_value(config, place, value)))
    return f"{file.parent.name}'s {place} is {str(value)[:40]!r}", "either"


def _config_text(rng: Rng, model: Path) -> tuple[str, str]:
    file = model / rng.pick((*JSON_FILES, "model_index.json", "tokenizer/tokenizer.json"))
    what, content = damaged_text(file.read_text(), rng)
    file.write_bytes(content)
    return f"{file.relative_to(model)}: {what}", "refused"


def _tensors(rng: Rng, model: Path) -> tuple[str, str]:
    file = rng.pick([path for path in _files(model) if path.suffix == ".safetensors"])
    tensors = load_file(file)
    name = rng.pick(sorted(tensors))
    what = rng.pick(("nan", "inf", "int8", "bool", "complex64", "gone", "another shape", "renamed", "empty"))
    value = tensors.pop(name)
    if what in ("nan", "inf"):
        if not value.is_floating_point():
            value = value.float()
        value.reshape(-1)[0] = float(what)
        tensors[name] = value
    elif what in ("int8", "bool", "complex64"):
        tensors[name] = value.to(getattr(torch, what))
    elif what == "another shape":
        tensors[name] = torch.cat([value.reshape(-1), value.reshape(-1)])
    elif what == "renamed":
        tensors[f"{name}.x"] = value
    elif what == "empty":
        tensors[name] = value.reshape(-1)[:0].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    # Constants, which files have or not: left out, they are made anew.
    buffer = "position_ids" in name or (name.endswith(".pe") and what in ("gone", "renamed"))
    return f"{file.parent.name}'s {name}: {what}", "either" if buffer else "refused"


def _defaults(rng: Rng, model: Path) -> tuple[str, str]:
    """`generation.json`."""
    document, expect, what = dict(DEFAULTS), "works", "as it may be"
    place = (rng.pick(DEFAULTS),)
    way = rng.pick(("wrong", "absent", "unknown", "odd", "text"))
    if way == "wrong":
        value = wrong_value(document, place, rng)
        expect = (
            "either" if value is None or (value in (5, 1.5) and place[0] in ("fps", "guidance_scale")) else "refused"
        )
        document, what = with_value(document, place, value), f"{place[0]} is {str(value)[:40]!r}"
    elif way == "absent":
        document, what = without(document, place), f"without {place[0]}"
        expect = "either" if place[0] in ("num_frames", "num_inference_steps") else "works"
    elif way == "unknown":
        document["stepz"], expect, what = 3, "refused", "an unknown key"
    elif way == "odd":
        name = rng.pick(("num_frames", "fps", "height", "width", "num_inference_steps"))
        value = rng.pick((0, -1, 10**9, 33, 1e30))
        document[name], what = value, f"{name} is {value}"
        expect = (
            "works" if (name, value) in {("fps", 33), ("num_inference_steps", 33), ("num_frames", 33)} else "refused"
        )
    else:
        what, content = damaged_text(dump(document), rng)
        (model / "generation.json").write_bytes(content)
        return f"generation.json: {what}", "refused"
    (model / "generation.json").write_text(dump(document))
    return f"generation.json: {what}", expect


def _index(rng: Rng, model: Path) -> tuple[str, str]:
    file = model / "model_index.json"
    index = json.loads(file.read_text())
    place = rng.pick(places(index))
    value = rng.pick((wrong_value(index, place, rng), "os", "subprocess", "../x", "NoSuchClass"))
    file.write_text(dump(with_value(index, place, value)))
    return f"model_index.json's {place} is {str(value)[:40]!r}", "either"
