"""Where a model's name leads: a folder, a single file, or a model of the hub with the revision that was taken."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from videomaker.errors import InputError, first_line

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")
_HUB_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = ["*.json", "*.txt", "*.safetensors", "*.bin"]
_UNUSED = ["*non_ema*", "*flax*", "*.onnx*", "safety_checker/*", "*ckpt*", "*openvino*"]
_WEIGHTS = re.compile(
    r"(diffusion_pytorch_model|model|pytorch_model)(?P<variant>\.\w+)?\.(safetensors|bin)(\.index\.json)?"
)


def is_single_file(source: str) -> bool:
    """Whether a source names a file of weights rather than a folder or a model of the hub."""
    return source.lower().endswith(SUFFIXES)


def is_hub_name(source: str) -> bool:
    """Whether a source can only be a model of the hub: `OWNER/NAME` or `OWNER/NAME@REVISION`, and no such path."""
    return not os.path.exists(source) and _HUB_NAME.fullmatch(source) is not None


def pin(source: str) -> str:
    """A hub's name with the commit that it leads to now, as records hold it; anything else as it is.

    Raises:
        InputError: the model is neither in the cache nor to be had.
    """
    if not is_hub_name(source):
        return source
    match = _HUB_NAME.fullmatch(source)
    assert match is not None, source
    return f"{match['name']}@{local_path(source).name}"


def local_path(source: str) -> Path:
    """The folder or file of a source; a model of the hub comes from the cache, or from the network into it.

    Raises:
        InputError: a hub's model is neither in the cache nor to be had.
    """
    if not is_hub_name(source):
        return Path(source)
    from huggingface_hub import snapshot_download

    match = _HUB_NAME.fullmatch(source)
    assert match is not None, source
    wanted: dict[str, Any] = {"repo_id": match["name"], "revision": match["revision"]}
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except Exception as error:  # not in the cache, whatever the reason
        not_cached = error
    try:
        return Path(snapshot_download(**wanted, allow_patterns=_FILES, ignore_patterns=_UNUSED))
    except Exception as error:  # offline, unknown, gated: the library has an exception for each
        raise InputError(
            f"{source!r} is no folder or file here, not in the hub's cache, and could not be fetched "
            f"({first_line(error)}): give a local folder"
        ) from not_cached


def variant_of(folder: Path) -> str | None:
    """The variant, such as "fp16", of a component's weights where no plain ones lie beside; None for plain ones."""
    if not folder.is_dir():
        return None
    variants = {match["variant"] for file in folder.iterdir() if (match := _WEIGHTS.fullmatch(file.name))}
    if not variants or None in variants:
        return None
    return sorted(variants, key=lambda variant: (variant != ".fp16", variant))[0].removeprefix(".")
