"""Checkpoints of the method: published and own, full or partial, with the names of diffusers' UNetMotionModel."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNetMotionModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from videomaker.attention import is_spatial_self_attention
from videomaker.errors import InputError, first_line
from videomaker.files import atomic_path
from videomaker.model_files import check_fetched

from .left_out import check_left_out, is_another_model
from .numbers import LARGEST, check_usable, is_usable

# What wrappers put in front of parameter names: DistributedDataParallel and DeepSpeed, pipelines, torch.compile.
_PREFIXES = ("module.", "unet.", "_orig_mod.", "model.")
# What wrappers put into names: torch.compile, FSDP, activation checkpointing; and PEFT around a layer with a LoRA.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer")
_LORA = ("lora_", "hada_", "lokr_")
_OTHER_HALF = ("vision_model.", "visual_projection.", "text_projection.", "logit_scale")
_MAX_LISTED = 3

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CoverageReport:
    """How many of a UNet's parameters a checkpoint holds, by group: `{group: (found, expected)}`."""

    groups: dict[str, tuple[int, int]]

    @property
    def found(self) -> int:
        """Parameters that the checkpoint gave."""
        return sum(found for found, _ in self.groups.values())

    @property
    def complete(self) -> bool:
        """Whether all parameters that the method trains were found."""
        return all(found == expected for name, (found, expected) in self.groups.items() if name != _FROZEN)

    def __str__(self) -> str:
        return "\n".join(f"{name}: {found} of {expected} tensors" for name, (found, expected) in self.groups.items())


_SPATIAL, _MOTION, _FROZEN = "spatial attn1", "motion modules", "frozen base"


def _group(name: str) -> str:
    if is_spatial_self_attention(name):
        return _SPATIAL
    return _MOTION if "motion_modules" in name.split(".") else _FROZEN


def read_state_dict(path: str | os.PathLike, *, strip: bool = True) -> dict[str, torch.Tensor]:
    """Reads a checkpoint, `.safetensors` or a torch file, and strips the prefixes of wrappers from its names.

    Torch files are read with `weights_only=True`: code in them never runs. `strip=False` keeps the names.

    Raises:
        InputError: no such file, not a checkpoint, or something in it is not a tensor.
    """
    path = Path(path)
    if not os.path.exists(path):  # Path.exists raises for a name that is too long
        raise InputError(f"checkpoint {str(path)[:200]} does not exist; give a .safetensors or .bin file")
    check_fetched(path)
    try:
        state: Mapping[str, Any] = load_file(path) if path.suffix == ".safetensors" else _load_torch_file(path)
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(f"checkpoint {path} cannot be read: {first_line(error)}") from error
    for container in ("state_dict", "module"):
        if isinstance(state.get(container), Mapping):
            state = state[container]
    if bad := [name for name, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise InputError(f"checkpoint {path} holds {bad[0]!r}, which is not a tensor; give a plain state dict")
    if not strip:
        return dict(state)
    names: dict[str, str] = {}
    for name in state:
        if (twin := names.setdefault(_strip(name), name)) != name:
            raise InputError(f"checkpoint {path} holds {twin!r} and {name!r}, which are one tensor: keep one of them")
    return {plain: state[name] for plain, name in names.items()}


def _load_torch_file(path: Path) -> Mapping:
    from pickle import UnpicklingError

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ValueError("not a torch file of plain tensors, or it asks to run code") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"it holds a {type(state).__name__}, not a state dict")
    return state


def _strip(name: str) -> str:
    name = ".".join(part for part in str(name).split(".") if part not in _WRAPPERS)
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


def check_state_dict(unet: UNetMotionModel, state: Mapping[str, torch.Tensor]) -> CoverageReport:
    """Compares a checkpoint's names and shapes with `unet`, and counts what it covers.

    Raises:
        InputError: more than a few names that `unet` does not know, a shape that differs, or nothing that the method
            trains. A few unknown names are left out with a warning that names them.
    """
    expected = {_strip(name): value for name, value in unet.state_dict().items() if not _is_lora(name)}
    if lora := [name for name in state if _is_lora(name)]:
        raise InputError(
            f"the checkpoint holds {len(lora)} tensors of a LoRA, such as {_listed(lora)}: load it with "
            "load_lora_weights, or merge it before saving"
        )
    unknown = [name for name in state if name not in expected]
    if is_another_model(len(unknown), len(state)):
        raise InputError(
            f"the checkpoint has {len(unknown)} tensors that this UNet has not, such as {_listed(unknown)}; "
            "it belongs to another architecture"
        )
    if unknown:
        logger.warning("left out of the checkpoint, since this UNet does not know them: %s", ", ".join(unknown))
    wrong = [
        f"{name} {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in state.items()
        if name in expected and value.shape != expected[name].shape
    ]
    if wrong:
        raise InputError(f"{len(wrong)} tensors have another shape: {_listed(wrong)}; give the model it was trained on")
    _check_values(state, expected)
    # Buffers, such as the motion modules' position tables, may be in a checkpoint or not: they are constants.
    parameters = [_strip(name) for name, _ in unet.named_parameters() if not _is_lora(name)]
    groups = {
        group: (
            sum(_group(name) == group and name in state for name in parameters),
            sum(_group(name) == group for name in parameters),
        )
        for group in (_SPATIAL, _MOTION, _FROZEN)
    }
    if groups[_SPATIAL][0] + groups[_MOTION][0] == 0:
        raise InputError(
            f"none of the {groups[_SPATIAL][1] + groups[_MOTION][1]} trained tensors (spatial attn1, motion modules) "
            "is in the checkpoint; is it one of this method?"
        )
    return CoverageReport(groups)


def _is_lora(name: str) -> bool:
    return any(part.startswith(_LORA) for part in name.split("."))


def _check_values(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Refuses weights that are no floating numbers, or not finite in the model's precision, or larger than any is."""
    state = {name: value for name, value in state.items() if name in expected}
    kinds = [f"{name} of {value.dtype}" for name, value in state.items() if _is_other_kind(value, expected[name])]
    if kinds:
        raise InputError(f"{len(kinds)} tensors are not floating numbers: {_listed(kinds)}; give weights that are")
    bad = [name for name, value in state.items() if not is_usable(value.to(expected[name].dtype))]
    if bad:
        raise InputError(
            f"{len(bad)} tensors are not finite in {expected[bad[0]].dtype}, or hold numbers above {LARGEST:,.0f}: "
            f"{_listed(bad)}; the training that made them broke, the file is damaged, or they need a wider dtype"
        )


def _is_other_kind(value: torch.Tensor, expected: torch.Tensor) -> bool:
    """A parameter in less than two bytes a number is a quantised one, without its scales."""
    if not expected.is_floating_point():
        return value.dtype != expected.dtype
    return not value.is_floating_point() or value.element_size() < 2


def load_into(unet: UNetMotionModel, state: Mapping[str, torch.Tensor]) -> CoverageReport:
    """Loads a full or partial checkpoint into `unet`; `unet` is untouched when the checkpoint does not fit.

    Raises:
        InputError: as `check_state_dict`.
    """
    state = aligned(state, unet)
    report = check_state_dict(unet, state)
    actual = {_strip(name): name for name in unet.state_dict() if not _is_lora(name)}
    if any(getattr(module, "merged_adapters", None) for module in unet.modules()):
        raise InputError("a LoRA is fused into this UNet: unfuse_lora() and unload it before loading weights")
    unet.load_state_dict({actual[name]: value for name, value in state.items() if name in actual}, strict=False)
    return report


def aligned(state: Mapping[str, torch.Tensor], unet: UNetMotionModel) -> Mapping[str, torch.Tensor]:
    """The checkpoint without what some wrapper put before all of its names, if that makes them the UNet's."""
    expected = {_strip(name) for name in unet.state_dict()}
    first = next((name for name in state if name not in expected), None)
    if first is None:
        return state
    parts = first.split(".")
    prefixes = (".".join(parts[:count]) + "." for count in range(1, len(parts)))
    prefix = next((prefix for prefix in prefixes if first.removeprefix(prefix) in expected), None)
    if prefix is None or not all(name.startswith(prefix) for name in state):
        return state
    return {name.removeprefix(prefix): value for name, value in state.items()}


def load_text_encoder(folder: str | os.PathLike, **options: Any) -> CLIPTextModel:
    """transformers' `CLIPTextModel.from_pretrained`, which by itself fills tensors that the file lacks at random.

    Raises:
        InputError: the file lacks tensors, holds many that the configuration has no place for, or damaged numbers.
    """
    if variant := options.get("variant"):
        # As diffusers does for every other part: where a file of the variant is absent, the plain one is taken.
        names = (f"model.{variant}.", f"pytorch_model.{variant}.", f"model.safetensors.index.{variant}.")
        if not any(path.name.startswith(names) for path in Path(folder).iterdir()):
            options = {**options, "variant": None}
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report of many lines gives way to the one below
    try:
        text_encoder, report = CLIPTextModel.from_pretrained(folder, output_loading_info=True, **options)
    finally:
        transformers_logging.set_verbosity(verbosity)
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]}: fetch the whole folder again")
    # A whole CLIP holds the text encoder as well; its other half is left out on purpose.
    unknown = [name for name in report["unexpected_keys"] if not name.startswith(_OTHER_HALF)]
    check_left_out(Path(folder), unknown, len(text_encoder.state_dict()) + len(unknown))
    check_usable(text_encoder, folder)
    return text_encoder


def save_partial(
    state: Mapping[str, torch.Tensor],
    path: str | os.PathLike,
    *,
    dtype: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors checkpoint, complete or not at all.

    Args:
        state: names of a UNetMotionModel and their tensors.
        path: the file to write.
        dtype: floating tensors are cast to it; `None` keeps theirs.
        metadata: strings for the file's header.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {
        # clone: safetensors refuses tensors that share memory, such as views of one flat training buffer
        name: value.detach().to("cpu", dtype if value.is_floating_point() else None).clone().contiguous()
        for name, value in state.items()
    }
    try:
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt", **(metadata or {})})
    except SafetensorError as error:  # a full disk, as an error of the library's own
        raise OSError(f"{path} cannot be written: {first_line(error)}") from error


def _listed(items: Iterable[str]) -> str:
    items = list(items)
    rest = f" and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return "; ".join(items[:_MAX_LISTED]) + rest
