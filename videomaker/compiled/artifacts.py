"""What `torch.compile` made, in a folder: a process that loads it starts without compiling.

torch's caches, and the libraries that the C++ compiler made of a CPU's kernels, which those leave out. Nothing of it
depends on weights. It is tied to the device, the versions, the precision and the architecture, and is refused where one
of them differs. It is machine code and pickles, as torch writes them: whoever can write the folder can run code in the
process that loads it. The checksums find damage, not malice: a folder that everybody may write to is refused, and you
should load only what you made.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import stat
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch._inductor.runtime.cache_dir_utils import cache_dir

from videomaker.digests import sha256
from videomaker.environment import machine, versions
from videomaker.errors import InputError
from videomaker.files import atomic_directory, atomic_path, check_replaceable, read_json

logger = logging.getLogger(__name__)

KEY_FILE = "key.json"
CODE_FILE = "compiled.bin"
LIBRARIES = "libraries"  # a folder laid out as inductor's cache


def save(folder: str | os.PathLike, pipe: DiffusionPipeline, mode: str = "default") -> Path:
    """Writes what this process compiled, after `pipe.compile` with the same `mode`.

    Raises:
        InputError: nothing has been compiled, or the folder holds other files.
        OSError: the folder cannot be written.
    """
    check_place(folder)
    saved = torch.compiler.save_cache_artifacts()
    if saved is None:
        raise InputError("nothing was compiled in this process; call compile() before saving")
    with atomic_directory(folder, ours=_is_ours) as temporary:
        (temporary / CODE_FILE).write_bytes(saved[0])
        for library in _libraries():
            place = temporary / LIBRARIES / library.relative_to(cache_dir())
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(library, place)
        sums = {str(path.relative_to(temporary)): sha256(path.read_bytes()) for path in _code_files(temporary)}
        (temporary / KEY_FILE).write_text(json.dumps({**describe(pipe, mode), "sha256": sums}, indent=2) + "\n")
    return Path(folder)


def _libraries() -> list[Path]:
    """Those that this process has loaded, and the small ones by which the compiler was asked what the CPU can do."""
    cache = Path(cache_dir())
    loaded = (Path(getattr(module, "__file__", None) or "") for module in list(sys.modules.values()))
    asked = (path for path in cache.glob("*/*.so") if not path.name.endswith(".main.so"))
    return [path for path in (*loaded, *asked) if path.suffix == ".so" and path.is_relative_to(cache)]


def _code_files(folder: Path) -> list[Path]:
    return [folder / CODE_FILE, *sorted((folder / LIBRARIES).rglob("*.so"))]


def check_place(folder: str | os.PathLike) -> None:
    """Refuses a folder that holds anything but artifacts: to be called before compiling.

    Raises:
        InputError: it holds other files.
    """
    check_replaceable(Path(folder), _is_ours)


def _is_ours(folder: Path) -> bool:
    files = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    if files != {folder / KEY_FILE, *_code_files(folder)}:
        return False
    try:
        return {"architecture", "sha256"} <= read_json(folder / KEY_FILE).keys()
    except InputError:
        return False


def load(folder: str | os.PathLike, pipe: DiffusionPipeline, mode: str = "default") -> str:
    """Hands the folder's code to torch's caches, for `pipe.compile` with the same `mode`.

    Returns:
        `"loaded"`, or `"refused: …"` with the reason; then everything is compiled as without a folder.
    """
    reason = _read(Path(folder), describe(pipe, mode))
    if reason is None:
        return "loaded"
    logger.warning("compiled code in %s is refused: %s; compiling instead", folder, reason)
    return f"refused: {reason}"


def _read(folder: Path, expected: dict[str, Any]) -> str | None:
    if not folder.is_dir():
        return "there is no such folder, make it with videomaker warmup --save"
    try:
        key = json.loads((folder / KEY_FILE).read_text())
        code = {str(path.relative_to(folder)): path.read_bytes() for path in _code_files(folder)}
        if any(path.stat().st_mode & stat.S_IWOTH for path in (folder, *folder.rglob("*"))):
            return "everybody may write to it"
    except (OSError, ValueError) as error:
        return f"it cannot be read ({error})"
    for name, value in expected.items():
        if key.get(name) != value:
            return f"it was made for {name} {key.get(name)!r}, here it is {value!r}"
    if {name: sha256(content) for name, content in code.items()} != key.get("sha256"):
        return "it is damaged, its checksums differ"
    if torch.compiler.load_cache_artifacts(code.pop(CODE_FILE)) is None:
        return "torch cannot read it"
    for name, content in code.items():
        place = Path(cache_dir(), Path(name).relative_to(LIBRARIES))
        if not place.exists():
            with atomic_path(place) as temporary:
                temporary.write_bytes(content)
    return None


def describe(pipe: DiffusionPipeline, mode: str) -> dict[str, Any]:
    """What compiled code depends on."""
    device = pipe.device
    configs = [pipe.unet.config, pipe.vae.config, pipe.text_encoder.config.to_dict()]
    architecture = json.dumps([dict(config) for config in configs], sort_keys=True, default=str)
    return {
        "device": device.type,
        "processor": machine(device)["processor"] if device.type == "cuda" else _cpu(),
        "capability": list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None,
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "cuda": torch.version.cuda or torch.version.hip,
        **versions(),
        "dtype": str(pipe.unet.dtype),
        "vae_dtype": str(pipe.vae.dtype),
        "mode": mode,
        "architecture": sha256(architecture)[:16],
    }


def _cpu() -> str:
    """The CPU's model and instruction sets: code made with -march=native stops on a CPU that lacks one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = dict(line.split(":", 1) for line in lines if line.startswith(("model name", "flags", "Features")))
    named = {name.strip(): value.strip() for name, value in named.items()}
    flags = named.get("flags") or named.get("Features", "")
    return f"{named.get('model name', platform.machine())} {sha256(flags)[:8]}"
