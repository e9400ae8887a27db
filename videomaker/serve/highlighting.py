"""The pictures of a request in the video's shape: as they are, or their subject on white, by the code of training.

A mask or a box is that of one picture. A word is looked for by Grounding DINO and SAM in this process, on the CPU, one
picture at a time.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from videomaker.digests import sha256
from videomaker.errors import InputError

from . import pictures
from .problems import ApiError
from .schema import VideoRequest

if TYPE_CHECKING:
    from videomaker.data.subject import Finder


@dataclass(frozen=True)
class Reference:
    """A picture as it is kept, the digest of what a client may send to get it again, and how it was made."""

    suffix: str
    file: bytes
    sha256: str
    story: dict[str, Any] | None = None


class Highlighter:
    """Puts subjects on white.

    Args:
        models: folder of `grounding-dino/` and `sam/`, for words; without it, masks and boxes alone.
        max_pixels: of a mask.
    """

    def __init__(self, models: Path | None, *, max_pixels: int):
        self.models, self.max_pixels = models, max_pixels
        self._finder: Finder | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """Whether a detector that is configured can be used.

        Raises:
            InputError: it is not there.
        """
        if self.models is None:
            return
        for name in ("grounding-dino", "sam"):
            if not (self.models / name / "config.json").is_file():
                raise InputError(f"highlight_models {self.models} has no {name}/ with config.json: put the model there")

    def fit(
        self, asked: VideoRequest, mask: bytes | None, uploads: list[pictures.Upload], request: dict[str, Any]
    ) -> list[Reference]:
        """The uploads as they are kept.

        Args:
            asked: tells how the subject is found.
            mask: a picture that was sent with it.
            uploads: as decoded.
            request: resolved: `width`, `height`, `fit`.

        Raises:
            ApiError: 400, the subject is not found so.
        """
        size = {"width": request["width"], "height": request["height"]}
        if not (asked.highlight or asked.box or mask):
            return [Reference(*pictures.to_file(upload, request), upload.sha256) for upload in uploads]
        param = "mask" if mask else "box" if asked.box else "highlight"
        if (asked.box or mask) and len(uploads) > 1:
            raise ApiError(400, f"a {param} is that of one picture, and {len(uploads)} are sent", param)
        try:
            return [self._on_white(upload, asked, mask, size) for upload in uploads]
        except InputError as error:
            raise ApiError(400, str(error).replace("--", ""), param) from error  # the command line's words

    def _on_white(
        self, upload: pictures.Upload, asked: VideoRequest, mask: bytes | None, size: dict[str, int]
    ) -> Reference:
        from videomaker.data.subject import Highlight, highlight_picture  # late: they load torch

        file = None if mask is None else io.BytesIO(mask)
        if file is not None:
            file.name = "that was sent"  # what messages call it
        highlight = Highlight.of(asked.highlight, file, asked.box or None)
        finder = self._find if highlight.word else None
        image, box = highlight_picture(upload.image, highlight, finder=finder, max_pixels=self.max_pixels, **size)
        story = {
            "word": asked.highlight,
            "mask_sha256": mask and sha256(mask),
            "box": list(box),
            "source_sha256": upload.sha256,
        }
        return Reference(pictures.PIXELS, pictures.to_ppm(image), sha256(pictures.to_png(image)), story)

    def _find(self, image: Image.Image, word: str) -> Any:
        if self.models is None:
            raise ApiError(
                400, "this server has no detector for words: send mask or box, or cut the subject out", "highlight",
                "no_detector",
            )  # fmt: skip
        from videomaker.data.subject import open_finder  # late: as above

        with self._lock:  # the models are large, and one picture takes all cores
            if self._finder is None:
                self._finder = open_finder(self.models)
            return self._finder(image, word)
