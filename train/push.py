"""An export as a folder of the Hugging Face hub: diffusers' names, the card, the newest samples; and its upload."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from videomaker.errors import InputError, first_line
from videomaker.files import atomic_directory

from .export import LORA_FILE

DIFFUSERS_LORA = "pytorch_lora_weights.safetensors"
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def hub_folder(run: Path, exported: Path, out: Path) -> Path:
    """Writes what the hub shall hold: weights, `README.md`, and under `samples/` the run's newest sample videos.

    Args:
        run: the training run's folder.
        exported: what `export_run` made of it: a pipeline folder, adapters, or a partial checkpoint.
        out: the folder to write; replaced if it is there.
    """
    with atomic_directory(out) as temporary:
        if exported.is_dir():
            shutil.copytree(exported, temporary, dirs_exist_ok=True)
            card = temporary / "README.md"
        else:
            name = DIFFUSERS_LORA if exported.name == LORA_FILE else exported.name
            shutil.copyfile(exported, temporary / name)
            card = temporary / "README.md"
            shutil.copyfile(exported.with_suffix(".md"), card)
        if samples := sorted((run / "samples").glob("step-*")):
            shutil.copytree(samples[-1], temporary / "samples")
            text = card.read_text(encoding="utf-8").rstrip()
            title = f"Samples of {samples[-1].name}"  # which need not be the step of the weights
            card.write_text(f"{text}\n\n## {title}\n\n![{title}](samples/sheet.png)\n", "utf-8")
    return out


def check_repository(name: str) -> None:
    """Refuses what is no `OWNER/NAME`.

    Raises:
        InputError: so.
    """
    if not _REPOSITORY.fullmatch(name):
        raise InputError(f"--push {name!r} is no repository of the hub: write OWNER/NAME")


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Uploads a folder with the token that `hf auth login` left; returns the address.

    Raises:
        InputError: the hub refused it or cannot be reached; the folder stays for another try.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    check_repository(repository)
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload an export"))
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = first_line(error)
        raise InputError(f"--push {repository}: {reason}; the folder is ready in {folder}, try again") from error
