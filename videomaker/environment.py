"""What this machine has: versions, devices, attention backends. Needs torch alone."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from videomaker.kernels import available_backends, choose_backend

_PACKAGES = (
    "videomaker", "torch", "triton", "diffusers", "transformers", "safetensors", "numpy", "pillow", "av", "deepspeed",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def dtype_option(dtype: Any) -> dict[str, Any]:
    """A dtype as diffusers' `from_pretrained` takes it: before 0.40 as `torch_dtype`, of which later ones warn.

    None leaves it to diffusers.
    """
    major, minor = map(int, metadata.version("diffusers").split(".")[:2])
    return {} if dtype is None else {"dtype" if (major, minor) >= (0, 40) else "torch_dtype": dtype}


def machine(device: torch.device) -> dict[str, Any]:
    """What of this machine can change the bits of a result."""
    cuda = device.type == "cuda"
    return {
        "platform": platform.platform(),
        "processor": torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def devices() -> list[dict[str, Any]]:
    """The devices that torch can use, the preferred one first."""
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "device": f"cuda:{index}",
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU"})
    cpu = {"device": "cpu", "name": platform.processor() or platform.machine()}
    return [*found, {**cpu, "capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}]


def describe() -> dict[str, Any]:
    """Versions, platform, devices, and the attention backend that would run here with the reason."""
    chosen, reason = choose_backend()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "devices": devices(),
        "attention": {"chosen": chosen, "reason": reason, "unavailable": available_backends()},
    }
