"""Latents and text embeddings computed once, for runs that would compute the same ones every epoch.

A cache freezes what a run without one draws anew: `starts` windows of each clip, spread evenly, and one draw from the
VAE's posterior for each. References are augmented before the VAE, so they are never cached. An entry's name is a hash
of everything that its content depends on: settings, weights, the video's bytes and the captions.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import CLIPTextModel

from videomaker.digests import blake2b_of_all
from videomaker.errors import InputError
from videomaker.files import atomic_path, check_results_folder, read_json

from .check import describe_counts, map_files
from .dataset import DataConfig, decode_window
from .encode import Encoders, encode_latents, tokenize
from .manifest import Clip, read_manifest
from .remote import local_manifest
from .shards import clip_file
from .video import ClipError, open_video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INDEX = "cache.json"


@dataclass(frozen=True)
class LatentCache:
    """An opened cache; `entries` maps a clip's id to its file's stem, or to why the clip has none."""

    folder: Path
    entries: dict[str, dict[str, str]]

    def read(self, clip: Clip, *, caption: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        """Float32 "latents" `[C, F, h, w]` of one of the cached windows and "prompt_embeds" `[L, E]` of the caption.

        Raises:
            ClipError: the clip could not be cached.
        """
        entry = self.entries[clip.id]
        if "key" not in entry:
            raise ClipError(entry["reason"], "when the cache was made")
        with safe_open(self.folder / f"{entry['key']}.safetensors", framework="pt") as tensors:
            latents, prompt_embeds = tensors.get_slice("latents"), tensors.get_slice("prompt_embeds")
            window = int(rng.integers(latents.get_shape()[0]))
            return {
                "latents": latents[window : window + 1][0].to(torch.float32),
                "prompt_embeds": prompt_embeds[caption : caption + 1][0].to(torch.float32),
            }


def cache_settings(
    config: DataConfig,
    *,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
    starts: int,
) -> dict[str, Any]:
    """What all entries of a cache depend on."""
    sizes = {name: getattr(config, name) for name in ("num_frames", "frame_stride", "height", "width")}
    return {
        **sizes,
        **({"fps": config.fps} if config.fps else {}),  # older caches do not know it
        "starts": starts,
        "vae": fingerprint(vae),
        "scaling_factor": vae.config.scaling_factor,
        "text_encoder": fingerprint(text_encoder),
        "tokenizer": _hash(json.dumps(sorted(tokenizer.get_vocab().items())).encode()),
        "max_tokens": tokenizer.model_max_length,
    }


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of a module's weights, the same for fp32 weights and for the same ones loaded as bf16."""
    weights = sorted(module.state_dict().items())
    return blake2b_of_all(
        part
        for name, tensor in weights
        for part in (name, tensor.detach().cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy())
    )


def build_cache(config: DataConfig, encoders: Encoders, out: Path, *, starts: int = 1) -> tuple[int, dict[str, int]]:
    """Encodes every clip of the manifest, all splits; after an interruption, the same call goes on.

    Args:
        config: the manifest, the window (frames and stride) and the size.
        encoders: used on the device where they are.
        out: the cache's folder.
        starts: windows of each clip.

    Returns:
        The number of clips cached, and the number of those that cannot be, by reason.

    Raises:
        InputError: the manifest is wrong, no clip can be encoded, or `out` holds a `cache.json` that is no cache's.
    """
    check_results_folder(out, [INDEX], _is_ours)
    models = {"vae": encoders.vae, "text_encoder": encoders.text_encoder, "tokenizer": encoders.tokenizer}
    settings = cache_settings(config, **models, starts=starts)
    manifest = only_manifest(config)
    root, clips = manifest.parent, read_manifest(manifest)
    entries = {}
    for clip in tqdm(clips, desc="encoding clips", unit="clip", disable=None):
        entry = {"stamp": _stamp(clip, root), "captions": _hash_captions(clip)}
        try:
            entry["key"] = _encode_once(clip, root, out, config, encoders, settings)
        except ClipError as error:
            entry["reason"] = error.reason
        entries[clip.id] = entry
    reasons = [entry["reason"] for entry in entries.values() if "reason" in entry]
    if len(reasons) == len(entries):
        raise InputError(f"no clip of {manifest} can be encoded ({describe_counts(reasons)}); {out} is not written")
    with atomic_path(out / INDEX) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "entries": entries}))
    return len(entries) - len(reasons), dict(collections.Counter(reasons))


def _is_ours(out: Path) -> bool:
    """Whether a folder's `cache.json` is that of a cache."""
    try:
        return read_json(out / INDEX, max_bytes=2**32).keys() == {"settings", "entries"}
    except InputError:
        return False


def open_cache(
    config: DataConfig,
    *,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerBase,
) -> LatentCache:
    """Opens the cache `config.cache` if it is what encoding now would give.

    A video whose size and time of change are those of the cache counts as the same; otherwise its bytes are compared.

    Raises:
        InputError: there is none, it is unfinished, or it is stale: other settings, weights, videos or captions.
    """
    folder, manifest = Path(config.cache), only_manifest(config)
    remedy = f"make it with `videomaker data cache {manifest} --model MODEL --out {folder}`, or set data.cache="
    try:
        index = json.loads((folder / INDEX).read_text())
        then, entries = index["settings"], index["entries"]
    except (OSError, ValueError, KeyError):
        raise InputError(f"{folder} holds no finished cache; {remedy}") from None
    now = cache_settings(config, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, starts=then.get("starts", 1))
    names = [name for name in {**now, **then} if then.get(name) != now.get(name)]
    changed = [f"{name} was {then.get(name, 'not set')}, is {now.get(name, 'not set')}" for name in names]
    if changed:
        raise InputError(f"the cache {folder} is stale: {'; '.join(changed)}; {remedy}")
    clips = read_manifest(manifest, split=config.split)
    _check_entries(clips, manifest.parent, LatentCache(folder, entries), now, remedy)
    return LatentCache(folder, entries)


def only_manifest(config: DataConfig) -> Path:
    """The manifest of a cache, on this machine.

    Raises:
        InputError: there are several, or several sizes.
    """
    if len(config.manifests) != 1 or config.buckets:
        raise InputError("a cache holds one manifest in one size: give one data.manifest and no data.buckets")
    return local_manifest(config.manifests[0], config.downloads)


def _check_entries(
    clips: Sequence[Clip], root: Path, cache: LatentCache, settings: dict[str, Any], remedy: str
) -> None:
    problems = map_files(lambda clip: _stale(clip, root, cache, settings), clips, "checking the cache")
    stale = [(clip.id, problem) for clip, problem in zip(clips, problems, strict=True) if problem]
    if stale:
        clip_id, problem = stale[0]
        raise InputError(
            f"the cache {cache.folder} is stale for {len(stale)} of {len(clips)} clips, "
            f"first {clip_id!r}: {problem}; {remedy}"
        )


def _stale(clip: Clip, root: Path, cache: LatentCache, settings: dict[str, Any]) -> str:
    """Why the clip's entry is not of the clip as it is now, or nothing."""
    entry = cache.entries.get(clip.id)
    if entry is None:
        return "it is not in the cache"
    if entry["captions"] != _hash_captions(clip):
        return "its captions changed"
    if "key" in entry and not (cache.folder / f"{entry['key']}.safetensors").is_file():
        return "its file is gone"
    if entry["stamp"] == _stamp(clip, root):
        return ""
    try:
        return "" if entry.get("key") == _key(clip, root, settings) else "its video changed"
    except (ClipError, OSError) as error:
        return str(error)


def _encode_once(
    clip: Clip,
    root: Path,
    out: Path,
    config: DataConfig,
    encoders: Encoders,
    settings: dict[str, Any],
) -> str:
    """Writes the clip's entry unless it is there; returns its name."""
    try:
        key = _key(clip, root, settings)
    except OSError as error:
        raise ClipError("missing", str(error)) from error
    file = out / f"{key}.safetensors"
    if not file.exists():
        tensors = _encode(clip, root, config, encoders, settings["starts"])
        halves = {name: tensor.to(torch.float16).cpu().contiguous() for name, tensor in tensors.items()}
        with atomic_path(file) as temporary:
            save_file(halves, temporary)
    return key


@torch.no_grad()
def _encode(clip: Clip, root: Path, config: DataConfig, encoders: Encoders, starts: int) -> dict[str, torch.Tensor]:
    """Latents `[starts, C, F, h, w]`, scaled, and prompt embeddings `[captions, L, E]`."""
    device = encoders.vae.device
    latents = []
    with open_video(clip_file(root, clip, clip.video)) as video:
        for window in range(starts):
            pixels = decode_window(video, config, position=(window + 0.5) / starts)
            latents.append(encode_latents(encoders.vae, pixels[None].to(device), [(window,)], f"cache {clip.id}")[0])
    token_ids = tokenize(encoders, clip.captions, device)
    return {"latents": torch.stack(latents), "prompt_embeds": encoders.text_encoder(token_ids)[0]}


def _key(clip: Clip, root: Path, settings: dict[str, Any]) -> str:
    """The name of the clip's entry. Raises `OSError` or `ClipError` when the video cannot be read."""
    source = clip_file(root, clip, clip.video)
    content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    about = {"settings": settings, "id": clip.id, "captions": clip.captions}
    return _hash(json.dumps(about, sort_keys=True).encode(), content)


def _hash_captions(clip: Clip) -> str:
    return _hash(json.dumps(clip.captions).encode())


def _hash(*parts: bytes) -> str:
    return blake2b_of_all(piece for part in parts for piece in (len(part).to_bytes(8), part))


def _stamp(clip: Clip, root: Path) -> str:
    """Size and time of change of the file that holds the video."""
    try:
        status = (root / (clip.shard or clip.video)).stat()
    except OSError:
        return "missing"
    return f"{status.st_size}-{status.st_mtime_ns}"
