"""The networks at hand: what a folder of models holds, and for the rest one line on what to put where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videomaker.errors import InputError

from .faces import Dlib, InsightFace
from .flow import Dis, Raft
from .networks import Clip, Dino, MissingNetwork
from .opens2v import OPENS2V_GROUPS, Aesthetic, Farneback, Gme
from .protocol import Protocol

# What each network measures; its folder below the folder of models has the key's name, flow's is "raft".
GROUPS = {"clip": ("clip_t", "clip_i", "t_cons"), "dino": ("dino_i",), "face": ("face",), "flow": ("dd",)}
ALL_GROUPS = GROUPS | OPENS2V_GROUPS
GROUP_OF = {name: group for group, names in ALL_GROUPS.items() for name in names}


@dataclass(frozen=True)
class Networks:
    """The networks at hand, by the keys of `ALL_GROUPS`, and for the others one line on what to put where.

    Groups that nobody asked for are in neither.
    """

    present: dict[str, Any]
    missing: dict[str, str]

    def digest(self, group: str) -> str | None:
        """What tells a network from others; None for a missing one."""
        return self.present[group].digest if group in self.present else None


def open_networks(
    models: Path | None,
    protocol: Protocol,
    *,
    flow: str = "raft",
    face: str = "insightface",
    device: str = "cpu",
    opens2v: bool = False,
) -> Networks:
    """Loads what the folder of models holds: `clip/`, `dino/`, `face/`, `raft/`.

    Args:
        models: the folder.
        protocol: says the order of a face's channels.
        flow: `"raft"`, or `"dis"` of OpenCV, which needs no folder.
        face: `"insightface"`, or `"dlib"`, which brings its own weights.
        device: of torch.
        opens2v: also OpenS2V-Eval's, `aesthetic/` and `gme/`.

    Raises:
        InputError: a folder is there and cannot be used, or `models` is not a folder.
    """
    if models is not None and not models.is_dir():
        raise InputError(f"--models {models} is not a folder: it should hold clip/, dino/, face/, raft/")
    loaders: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
        "clip": ("clip", Clip.HINT, lambda folder: Clip(folder, device)),
        "dino": ("dino", Dino.HINT, lambda folder: Dino(folder, device)),
        "face": ("face", InsightFace.HINT, lambda folder: InsightFace(folder, device, protocol.face_channels)),
        "flow": ("raft", Raft.HINT, lambda folder: Raft.from_folder(folder, device)),
    }
    without_folder: dict[str, Callable[[], Any] | None] = {
        "face": Dlib if face == "dlib" else None,
        "flow": Dis if flow == "dis" else None,
    }
    if opens2v:
        loaders |= {
            "aesthetic": ("aesthetic", Aesthetic.HINT, lambda folder: Aesthetic(folder, device)),
            "farneback": ("", "", lambda folder: Farneback()),
            "gme": ("gme", Gme.HINT, lambda folder: Gme(folder, device)),
        }
        without_folder["farneback"] = Farneback
    present, missing = {}, {}
    for group, (name, hint, load) in loaders.items():
        try:
            if own := without_folder.get(group):
                present[group] = own()
            elif models is None:
                raise MissingNetwork(f"no folder of models: give --models FOLDER with {name}/ in it; {hint}")
            elif not (models / name).is_dir():
                raise MissingNetwork(f"the folder of models has no {name}/: {hint}")
            else:
                present[group] = load(models / name)
        except MissingNetwork as error:
            missing[group] = str(error)
    return Networks(present, missing)
