"""A model's folder looked over before anything of it is loaded. Light: loads no tensor library."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from videomaker.errors import InputError, first_line
from videomaker.files import is_lfs_pointer, read_json
from videomaker.generation import read_generation_defaults

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_CONFIGS = {
    "unet": "config.json",
    "vae": "config.json",
    "text_encoder": "config.json",
    "scheduler": "scheduler_config.json",
    "tokenizer": "tokenizer_config.json",
}
_NAMED = ("unet", "vae", "scheduler")  # diffusers' parts
_WEIGHTS = (".safetensors", ".bin", ".json", ".txt", ".model")
_MOST_LAYERS, _MOST = 128, 10**7  # of a block; of anything else in a configuration
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_FLOATING, _COUNTS = ("F64", "F32", "F16", "BF16"), ("position_ids", "num_batches_tracked")


class ModelSizes(NamedTuple):
    """What the configurations say of a model's frames."""

    factor: int  # pixels to a latent, along a side
    side: int  # pixels of the usual frame
    positions: int | None  # frames and references that the motion modules can tell apart; None: they do not say


def read_sizes(folder: Path, motion_adapter: Path | None = None) -> ModelSizes:
    """The sizes of the model in `folder`, or of its UNet with another adapter's motion modules.

    Raises:
        InputError: a configuration is missing, or says no such size.
    """
    unet, vae = (read_json(folder / part / "config.json") for part in ("unet", "vae"))
    motion = read_json(motion_adapter / "config.json") if motion_adapter else unet
    try:
        factor, positions = 2 ** (len(vae["block_out_channels"]) - 1), motion.get("motion_max_seq_length")
        sizes = ModelSizes(factor, int(unet["sample_size"]) * factor, None if positions is None else int(positions))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the configurations of {folder} cannot be used: {error!r}") from error
    if sizes.side < 1:
        raise InputError(f"the configurations of {folder} cannot be used: sample_size {unet['sample_size']!r}")
    return sizes


def check_model_files(folder: Path, *, given: Collection[str] = ()) -> None:
    """Refuses a model's folder whose parts are absent, not fetched, or no JSON where JSON is wanted.

    Args:
        folder: in the diffusers format.
        given: parts that do not come from the folder.

    Raises:
        InputError: with the first reason; also for a `generation.json` that says what cannot be.
    """
    for part in PARTS:
        if part not in given:
            _check_part(folder / part, _CONFIGS[part])
    read_generation_defaults(folder)


def _check_part(folder: Path, config: str) -> None:
    if not folder.is_dir():
        raise InputError(f"model {folder.parent} has no {folder.name}/: fetch the whole folder again")
    for file in folder.iterdir():
        if file.suffix in _WEIGHTS:
            check_fetched(file)
        if file.suffix == ".safetensors":
            check_numbers(file, safetensors_header(file))
    if (folder / config).exists():
        values = read_json(folder / config)
        check_sizes(folder / config, values)
        if folder.name in _NAMED and "_class_name" not in values:  # all else would be filled in with defaults
            raise InputError(f"{folder / config} does not say what it configures (_class_name): fetch the file again")
    elif folder.name != "tokenizer":
        raise InputError(f"model {folder.parent} cannot be loaded: it has no {folder.name}/{config}")
    if folder.name == "tokenizer":
        check_tokenizer(folder)


def check_sizes(file: Path, config: dict) -> None:
    """A loader would build whatever a configuration says, for hours or until the memory is full.

    Raises:
        InputError: a number of layers or channels is beyond any model's.
    """
    for name, value in config.items():
        most = _MOST_LAYERS if "layers" in name else _MOST
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(number, int) and abs(number) > most for number in numbers):
            raise InputError(f"{file}: {name} is {str(value)[:60]}, which no model has: fetch the file again")


def check_tokenizer(folder: Path) -> None:
    """Refuses a tokenizer's folder without its vocabulary, which loads in silence and knows no word.

    Raises:
        InputError: it is absent, or no JSON.
    """
    one, two = (folder / "tokenizer.json").is_file(), (folder / "vocab.json").is_file()
    if not one and not (two and (folder / "merges.txt").is_file()):
        raise InputError(
            f"{folder} has neither tokenizer.json nor vocab.json with "
            "merges.txt, so no prompt would be read: fetch the whole folder again"
        )
    for name in ("tokenizer.json", "vocab.json", "special_tokens_map.json"):
        if (folder / name).exists():
            read_json(folder / name, max_bytes=2**28)


def check_fetched(file: Path) -> None:
    """Refuses what Git LFS leaves in place of a file that was not fetched, and what is no regular file.

    Raises:
        InputError: with the reason.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a regular file")
    with file.open("rb") as opened:
        if is_lfs_pointer(opened.read(64)):
            raise InputError(f"{file} is a Git LFS pointer, not the file itself: fetch it with git lfs pull")


def safetensors_header(file: Path) -> dict[str, dict]:
    """What a safetensors file says about its tensors: `{name: {"dtype", "shape", "data_offsets"}}`.

    Raises:
        InputError: it is another kind of file, or its end is missing.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\xff"))
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise InputError(f"{file} is no safetensors file, or cut short: fetch it again")
        try:
            header = json.loads(opened.read(length))
            tensors = {name: about for name, about in header.items() if name != "__metadata__"}
            end = max((int(about["data_offsets"][1]) for about in tensors.values()), default=0)
        except (ValueError, RecursionError, TypeError, AttributeError, KeyError, IndexError) as error:
            raise InputError(f"{file} is no safetensors file, its header is damaged: fetch it again") from error
    if 8 + length + end > size:
        raise InputError(f"{file} is cut short, {8 + length + end - size:,} bytes are missing: fetch it again")
    return tensors


def check_numbers(file: Path, tensors: dict[str, dict]) -> None:
    """Refuses weights that are no floating numbers, of which a loader casts whatever it finds.

    Whole numbers are weights that were quantised, without their scales.

    Args:
        file: a safetensors file; one of a variant may be for another program.
        tensors: its header.

    Raises:
        InputError: with the first such tensor.
    """
    if "." in file.stem:  # of a variant, which may be for another program
        return
    for name, about in tensors.items():
        kind = about.get("dtype")
        if kind not in _FLOATING and not (name.endswith(_COUNTS) and kind in ("I64", "I32")):
            raise InputError(f"{file} holds {name} as {str(kind)[:20]}, not as floating numbers: give such weights")


def load_whole(kind: Any, folder: Path, **options: Any) -> Any:
    """Any class of transformers from a local folder; of a model every tensor, since what is not there would be random.

    Args:
        kind: a model, a processor or a tokenizer, "Auto" ones included.
        folder: in the transformers format.
        options: of `from_pretrained`.

    Raises:
        InputError: it cannot be loaded, or it lacks tensors; the message is one line.
    """
    is_model = hasattr(kind, "config_class") or "ModelFor" in kind.__name__
    told = {"output_loading_info": True} if is_model else {}
    try:
        found = kind.from_pretrained(folder, local_files_only=True, **told, **options)
    except Exception as error:  # missing, damaged or another model's: each loader complains in its own way
        reason = first_line(error)
        raise InputError(f"{folder} cannot be loaded as {kind.__name__}: {reason}") from error
    if not is_model:
        return found
    model, report = found
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{folder} cannot be loaded as {kind.__name__}: it lacks {len(missing)} tensors, such as {missing[0]}; "
            "it may hold another model"
        )
    return model
