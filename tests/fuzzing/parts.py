"""What a model is put together from: LoRAs, VAEs, motion adapters and bases, each with one thing wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny import tiny_motion_adapter, tiny_scheduler, tiny_text_encoder, tiny_tokenizer, tiny_unet2d, tiny_vae

from .case import WRONG_CONTENTS, Case, Rng, flipped, truncated
from .documents import places, with_value, wrong_value
from .world import World

Tensors = dict[str, torch.Tensor]
DAMAGE = ("nan", "inf", "huge", "int8", "bool", "complex64", "gone", "longer", "renamed", "empty")


def case(rng: Rng, world: World, folder: Path) -> Case:
    """`generate` with another part."""
    make = rng.choices((_lora, _vae, _adapter, _base, _less), (5, 3, 3, 2, 3))[0]
    what, words, expect = make(rng, world, folder)
    return Case(what, world.generate(*words, "-o", folder / "out.mp4"), expect)


def _damaged(tensors: Tensors, rng: Rng) -> tuple[str, Tensors]:
    name, what = rng.pick(sorted(tensors)), rng.pick(DAMAGE)
    value = tensors.pop(name).clone()
    if what in ("nan", "inf", "huge"):
        value.view(-1)[rng.randrange(value.numel())] = {"huge": 1e30}.get(what) or float(what)
        tensors[name] = value
    elif what in ("int8", "bool", "complex64"):
        tensors[name] = value.to(getattr(torch, what))
    elif what == "longer":
        tensors[name] = torch.cat([value, value])
    elif what == "renamed":
        tensors[f"{name}.x"] = value
    elif what == "empty":
        tensors[name] = value[:0].contiguous()
    return f"{name}: {what}", tensors


def _lora(rng: Rng, world: World, folder: Path) -> tuple[str, list[object], str]:
    path = folder / "x.safetensors"
    layer = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"
    tensors = {
        f"{layer}.{name}.lora_{half}.weight": 0.01 * torch.randn(*shape)
        for name in ("to_q", "to_v")
        for half, shape in (("A", (2, 16)), ("B", (16, 2)))
    }
    way = rng.choices(("good", "scale", "damaged", "bytes", "content", "names"), (1, 3, 5, 3, 2, 2))[0]
    scale, expect, what = "", "refused", way
    if way == "good":
        expect = "works"
    elif way == "scale":
        scale = rng.pick((":nan", ":inf", ":1e9", ":-1e30", ":x", ":", ":1:1", ":0.5", ":-1", ":0"))
        expect, what = "works" if scale in (":0.5", ":-1", ":0") else "refused", f"scale {scale}"
    elif way == "damaged":
        what, tensors = _damaged(tensors, rng)
    elif way == "names":
        prefix = rng.pick(("lora_te2_", "transformer.", "a/", ""))
        tensors = {f"{prefix}{i}": x for i, x in enumerate(tensors.values())}
    save_file(tensors, path)
    if way == "bytes":
        good = path.read_bytes()
        what = rng.pick(("cut short", "changed"))
        path.write_bytes(truncated(good, rng) if what == "cut short" else flipped(good, rng))
        expect = "refused" if what == "cut short" else "either"
    elif way == "content":
        what = rng.pick(WRONG_CONTENTS)
        path.write_bytes(WRONG_CONTENTS[what])
    return f"a LoRA, {what}", ["--lora", f"{path}{scale}"], expect


def _changed_part(rng: Rng, part: Path) -> tuple[str, str]:
    """Damages a part in diffusers' format: a tensor, its configuration, or its bytes."""
    file, config = part / "diffusion_pytorch_model.safetensors", part / "config.json"
    way = rng.choices(("damaged", "config", "bytes"), (4, 3, 2))[0]
    if way == "damaged":
        what, tensors = _damaged(load_file(file), rng)
        save_file(tensors, file, metadata={"format": "pt"})
        return what, "either" if ".pe" in what else "refused"
    if way == "config":
        document = json.loads(config.read_text())
        place = rng.pick(places(document))
        value = rng.pick((0, -1, 10**9, wrong_value(document, place, rng)))
        config.write_text(json.dumps(with_value(document, place, value)))
        return f"{place} is {str(value)[:40]!r}", "either"
    file.write_bytes(flipped(file.read_bytes(), rng))
    return "changed bytes", "either"


def _vae(rng: Rng, world: World, folder: Path) -> tuple[str, list[object], str]:
    part = Path(shutil.copytree(world.model / "vae", folder / "vae"))
    what, expect = _changed_part(rng, part)
    return f"a VAE, {what}", ["--vae", part], expect


def _sd15(folder: Path) -> Path:
    pipe = StableDiffusionPipeline(
        tiny_vae(), tiny_text_encoder(), tiny_tokenizer(), tiny_unet2d(), tiny_scheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder / "base")
    return folder / "base"


def _with_adapter(folder: Path) -> tuple[list[object], Path]:
    torch.manual_seed(0)
    tiny_motion_adapter().save_pretrained(folder / "adapter")
    return ["--model", _sd15(folder), "--motion-adapter", folder / "adapter"], folder / "adapter"


def _adapter(rng: Rng, world: World, folder: Path) -> tuple[str, list[object], str]:
    words, part = _with_adapter(folder)
    what, expect = _changed_part(rng, part)
    return f"a motion adapter, {what}", words, expect


def _base(rng: Rng, world: World, folder: Path) -> tuple[str, list[object], str]:
    words, _ = _with_adapter(folder)
    part = rng.pick(("unet", "vae"))
    what, expect = _changed_part(rng, folder / "base" / part)
    return f"a base's {part}, {what}", words, expect


def _less(rng: Rng, world: World, folder: Path) -> tuple[str, list[object], str]:
    """A configuration of fewer layers than the file holds."""
    changes: dict[str, tuple[str, dict[str, object]]] = {
        "text encoder": ("text_encoder/config.json", {"num_hidden_layers": 1}),
        "UNet": ("unet/config.json", {"use_motion_mid_block": False}),
        "VAE": ("vae/config.json", {"mid_block_add_attention": False}),
    }
    what = rng.pick((*changes, "tokenizer", "nothing"))
    model = world.copy_model(folder)
    if what in changes:
        file, values = changes[what]
        (model / file).write_text(json.dumps({**json.loads((model / file).read_text()), **values}))
    elif what == "tokenizer":
        file = model / "tokenizer" / "tokenizer.json"
        document = json.loads(file.read_text())
        words = document["model"]["vocab"]
        document["model"]["vocab"] = {token: i for token, i in words.items() if not 300 <= i < 400}
        file.write_text(json.dumps(document))
    return f"less than the file holds: {what}", ["--model", model], "works" if what == "nothing" else "refused"
