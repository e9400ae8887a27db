"""One video to its measures: values per frame, by the protocol, in a file beside those of the others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videomaker import media
from videomaker.files import atomic_path, sha256, to_json
from videomaker.jobs.record import file_digest

from . import metrics
from .faces import Face, FaceNetwork, largest_face
from .flow import Dis, Raft
from .kit import ALL_GROUPS, Networks
from .networks import Clip, Dino, MissingNetwork
from .opens2v import OPENS2V_GROUPS, VideoNetwork
from .protocol import Protocol
from .suite import Item, Subject
from .videos import read_video, through_gif, video_rate

# 2: a GIF's frames are as many as it shows; the authors' protocol goes through their GIF; CLIP and DINO
# compute in float32.
MEASURES_VERSION = 2


@dataclass
class ReferencePicture:
    """A subject's picture, as generation used it, with what the networks say of it: each asked once."""

    path: Path
    networks: Networks
    protocol: Protocol
    texts: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def image(self) -> Image.Image:
        """RGB."""
        return media.load_reference(self.path)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return sha256(self.path)

    @cached_property
    def clip(self) -> np.ndarray:
        """Its CLIP embedding."""
        return self.networks.present["clip"].pictures([self.image])[0]

    @cached_property
    def dino(self) -> np.ndarray:
        """Its DINO embedding."""
        return self.networks.present["dino"].pictures([self.image])[0]

    @cached_property
    def face(self) -> Face | None:
        """Its face, as the protocol chooses it."""
        side = self.protocol.reference_face_side
        picture = self.image.resize((side, side), Image.Resampling.BICUBIC) if side else self.image
        faces = self.networks.present["face"].faces(np.asarray(picture))
        return largest_face(faces) if self.protocol.reference_face == "largest" else next(iter(faces), None)


@dataclass(frozen=True)
class Measurer:
    """Measures the videos of one suite.

    Args:
        protocol: how.
        networks: of `open_networks`.
        references: each subject's picture, as generation used it.
        fps: of videos that do not tell.
    """

    protocol: Protocol
    networks: Networks
    references: dict[str, ReferencePicture]
    fps: float

    def measure(self, item: Item, video: Path, out: Path) -> dict[str, Any]:
        """Measures a video into `out`; what is there from the same video, reference and network is kept.

        Raises:
            InputError: the video or the reference cannot be read.
        """
        other = self._other(item.subject)
        made_from: dict[str, Any] = {
            "version": MEASURES_VERSION,
            "protocol": self.protocol.name,
            "video_sha256": file_digest(video),
            "reference_sha256": self.references[item.subject.name].digest,
            "other_reference_sha256": other and other.digest,
            "prompt": item.prompt.text,
            "fps": video_rate(video, self.fps),
        }
        about: dict[str, Any] = {
            "subject": item.subject.name,
            "prompt_index": item.index,
            "prompt": item.prompt.text,
            "kind": item.prompt.kind,
            "seed": item.seed,
        }
        old = read_measures(out)
        old = old if old and old["made_from"] == made_from else None
        if old and all(self._kept(old, group) for group in ALL_GROUPS):
            result = old | about  # a heading of prompts may have another name by now
            return result if result == old else _write(out, result)
        frames = read_video(video, fps=self.fps)
        parts: dict[str, Any] = {"networks": {}, "metrics": {}, "still": {}, "other_subject": {}}
        result = {**about, "num_frames": len(frames), "made_from": made_from, **parts}
        measuring = _Measuring(self, frames, made_from["fps"], self.references[item.subject.name], other)
        for group, names in ALL_GROUPS.items():
            if old and self._kept(old, group):
                _take(result, old, group)
            elif group in self.networks.present:
                measuring.run(group, item.prompt.text, result)
            elif group in self.networks.missing:
                result["metrics"] |= {name: _without(self.networks.missing[group]) for name in names}
        return _write(out, result)

    def _kept(self, old: dict[str, Any], group: str) -> bool:
        """Whether an earlier measurement stands: by the same network, or by one that is not at hand any more."""
        if group in self.networks.missing:
            before = old["metrics"].get(ALL_GROUPS[group][0], {})
            return group in old["networks"] or before.get("reason") == self.networks.missing[group]
        if group not in self.networks.present:  # not asked for now
            return True
        return old["networks"].get(group) == self.networks.digest(group)

    def _other(self, subject: Subject) -> ReferencePicture | None:
        """The reference of the next subject: what a video that ignores its subject is about as near to."""
        names = list(self.references)
        if len(names) < 2:
            return None
        return self.references[names[(names.index(subject.name) + 1) % len(names)]]


@dataclass(frozen=True)
class _Measuring:
    """One video being measured."""

    measurer: Measurer
    frames: np.ndarray
    fps: float
    reference: ReferencePicture
    other: ReferencePicture | None

    def run(self, group: str, prompt: str, result: dict[str, Any]) -> None:
        network = self.measurer.networks.present[group]
        result["networks"][group] = network.digest
        try:
            if group == "clip":
                self._clip(network, prompt, result)
            elif group == "dino":
                self._dino(network, result)
            elif group == "face":
                self._face(network, result)
            elif group in OPENS2V_GROUPS:
                self._opens2v(network, OPENS2V_GROUPS[group], prompt, result)
            else:
                self._flow(network, result)
        except MissingNetwork as error:  # the network is there and cannot take these frames
            result["metrics"] |= {name: _without(str(error)) for name in ALL_GROUPS[group]}

    def _pictures(self) -> list[Image.Image]:
        return [Image.fromarray(frame) for frame in self.frames]

    def _clip(self, network: Clip, prompt: str, result: dict[str, Any]) -> None:
        embeddings, reference = network.pictures(self._pictures()), self.reference.clip
        texts = self.reference.texts
        if prompt not in texts:
            texts[prompt] = network.text(prompt)
        result["metrics"]["clip_t"] = _values(metrics.cosines(embeddings, texts[prompt]))
        result["metrics"]["clip_i"] = _values(metrics.cosines(embeddings, reference))
        result["metrics"]["t_cons"] = (
            _values(metrics.consecutive_cosines(embeddings)) if len(self.frames) > 1 else _without("one frame only")
        )
        still = np.stack([reference, reference])
        result["still"]["clip_t"] = float(metrics.cosines(still, texts[prompt]).mean())
        result["still"]["clip_i"] = float(metrics.cosines(still, reference).mean())
        result["still"]["t_cons"] = float(metrics.consecutive_cosines(still).mean())
        if self.other:
            result["other_subject"]["clip_i"] = float(metrics.cosines(embeddings, self.other.clip).mean())

    def _dino(self, network: Dino, result: dict[str, Any]) -> None:
        embeddings, reference = network.pictures(self._pictures()), self.reference.dino
        result["metrics"]["dino_i"] = _values(metrics.cosines(embeddings, reference))
        result["still"]["dino_i"] = float(metrics.cosines(reference[None], reference)[0])
        if self.other:
            result["other_subject"]["dino_i"] = float(metrics.cosines(embeddings, self.other.dino).mean())

    def _face(self, network: FaceNetwork, result: dict[str, Any]) -> None:
        if self.reference.face is None:
            result["metrics"]["face"] = _without("the reference shows no face that the detector finds")
            return
        faces = [largest_face(network.faces(frame)) for frame in self.frames]
        result["metrics"]["face"] = _face_values(faces, self.reference.face)
        result["still"]["face"] = float(
            metrics.cosines(self.reference.face.embedding[None], self.reference.face.embedding)[0]
        )
        if self.other and self.other.face:
            value = _face_values(faces, self.other.face)["value"]
            result["other_subject"] |= {} if value is None else {"face": value}

    def _opens2v(self, network: VideoNetwork, names: tuple[str, ...], prompt: str, result: dict[str, Any]) -> None:
        scored = network.score(self.frames, prompt)
        result["metrics"] |= {name: {"value": scored.value, "frames": scored.frames} for name in names}

    def _flow(self, network: Raft | Dis, result: dict[str, Any]) -> None:
        protocol = self.measurer.protocol
        frames = through_gif(self.frames) if protocol.flow_through_gif else self.frames
        frames = frames[:: metrics.flow_stride(self.fps, protocol.flow_rate)]
        if len(frames) < 2:
            result["metrics"]["dd"] = _without("one frame only")
            return
        height, width = frames.shape[1:3]
        flows = np.array([metrics.top_flow(lengths) for lengths in network.magnitudes(frames)])
        moves = metrics.is_dynamic(flows, height=height, width=width)
        threshold = metrics.flow_threshold(height, width)
        result["metrics"]["dd"] = {"value": float(moves), "frames": flows.tolist(), "threshold": threshold}
        picture = np.asarray(self.reference.image.resize((width, height), Image.Resampling.LANCZOS))
        (still,) = [metrics.top_flow(lengths) for lengths in network.magnitudes(np.stack([picture, picture]))]
        stills = np.full(len(flows), still)
        result["still"]["dd"] = float(metrics.is_dynamic(stills, height=height, width=width))


def _values(per_frame: np.ndarray) -> dict[str, Any]:
    return {"value": float(per_frame.mean()), "frames": per_frame.tolist()}


def _without(reason: str) -> dict[str, Any]:
    return {"value": None, "frames": [], "reason": reason}


def _face_values(faces: list[Face | None], reference: Face) -> dict[str, Any]:
    """Frames without a face are null and not averaged."""
    per_frame = [
        None if face is None else float(metrics.cosines(face.embedding[None], reference.embedding)[0]) for face in faces
    ]
    found = [value for value in per_frame if value is not None]
    if not found:
        return {"value": None, "frames": per_frame, "reason": "no frame shows a face that the detector finds"}
    return {"value": float(np.mean(found)), "frames": per_frame}


def _take(result: dict[str, Any], old: dict[str, Any], group: str) -> None:
    """Copies a group's values from an earlier measurement."""
    if group in old["networks"]:
        result["networks"][group] = old["networks"][group]
    for part in ("metrics", "still", "other_subject"):
        result[part] |= {name: old[part][name] for name in ALL_GROUPS[group] if name in old[part]}


def _write(out: Path, measures: dict[str, Any]) -> dict[str, Any]:
    with atomic_path(out) as temporary:
        temporary.write_text(to_json(measures, indent=1) + "\n", encoding="utf-8")
    return measures


def measures_path(out: Path, item: Item) -> Path:
    """Where the measures of a video lie: `OUT/measures/SUBJECT/PROMPT-SEED.json`."""
    return out / "measures" / item.subject.name / f"{item.name}.json"


def read_measures(path: Path) -> dict[str, Any] | None:
    """The measures of a video; None when they are not there or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    needed = {"metrics", "networks", "still", "other_subject", "made_from"}
    return found if isinstance(found, dict) and needed <= found.keys() else None
