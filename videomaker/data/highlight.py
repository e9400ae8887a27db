"""Subject highlighting: a mask of the subject for every reference, by Grounding DINO and SAM.

The paper (arXiv 2412.19645, section 5.1) detects the subject by text, "head" for people or the class for objects,
segments it, and paints the rest white; clips with several people or a too small face are left out. It gives no
thresholds: those of `HighlightSettings` are Grounding DINO's defaults and this project's choices.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from videomaker.errors import InputError
from videomaker.files import atomic_directory, check_replaceable
from videomaker.model_files import load_whole

from .check import describe_counts
from .dataset import spread_frames
from .manifest import Clip, Reference, check_place, read_manifest, video_files, write_manifest
from .shards import claim, clip_file, is_claimed, reference_picture
from .sharing import WHOLE, Shard
from .video import ClipError, open_video

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
Detector = Callable[[Image.Image, str], tuple[np.ndarray, np.ndarray]]  # boxes [N, 4] and scores [N] of a text
Segmenter = Callable[[Image.Image, Box], np.ndarray]  # bool mask [H, W] of what a box frames

RESULT = "result.json"  # in a clip's folder of masks


@dataclass(frozen=True)
class HighlightSettings:
    """What counts as the one subject of a picture."""

    box_threshold: float = 0.35  # a detection's score
    text_threshold: float = 0.25  # the score of its words
    max_overlap: float = 0.5  # intersection over union above which the weaker of two boxes goes
    min_area: float = 0.02  # of the picture, for the box


class GroundingDino:
    """A text-prompted detector from a local folder in the transformers format."""

    def __init__(self, folder: Path, settings: HighlightSettings, *, device: str = "cpu"):
        from transformers import AutoModelForZeroShotObjectDetection

        self.processor, self.model = _load(AutoModelForZeroShotObjectDetection, folder, device)
        self.settings = settings

    @torch.inference_mode()
    def __call__(self, image: Image.Image, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Boxes `[N, 4]` in pixels and scores `[N]`. The prompt is lower case and ends in a full stop."""
        inputs = self.processor(images=image, text=prompt, return_tensors="pt").to(self.model.device)
        (found,) = self.processor.post_process_grounded_object_detection(
            self.model(**inputs),
            inputs.input_ids,
            threshold=self.settings.box_threshold,
            text_threshold=self.settings.text_threshold,
            target_sizes=[(image.height, image.width)],
        )
        return found["boxes"].float().cpu().numpy(), found["scores"].float().cpu().numpy()


class Sam:
    """A segmenter prompted by a box, from a local folder in the transformers format."""

    def __init__(self, folder: Path, *, device: str = "cpu"):
        from transformers import SamModel

        self.processor, self.model = _load(SamModel, folder, device)

    @torch.inference_mode()
    def __call__(self, image: Image.Image, box: Box) -> np.ndarray:
        """The mask `[H, W]` of the subject that the box frames, as bool."""
        inputs = self.processor(images=image, input_boxes=[[list(box)]], return_tensors="pt")
        prompts = {
            "pixel_values": inputs["pixel_values"].to(self.model.device),
            "input_boxes": inputs["input_boxes"].to(self.model.device, torch.float32),  # the processor gives float64
        }
        masks = self.processor.post_process_masks(
            self.model(**prompts, multimask_output=False).pred_masks.cpu(),
            inputs["original_sizes"],
            inputs["reshaped_input_sizes"],
        )
        return masks[0][0, 0].numpy()


def highlight_manifest(
    manifest: Path,
    out: Path,
    detector: Detector,
    segmenter: Segmenter,
    *,
    prompt: str = "",
    settings: HighlightSettings | None = None,
) -> tuple[int, dict[str, int]]:
    """Writes a manifest whose references have masks, and the masks beside it; goes on after an interruption.

    References that the manifest names are masked; a clip without any gets four frames spread over it. A clip is left
    out as soon as one of its pictures does not show exactly one subject, large enough.

    Args:
        manifest: the clips.
        out: the manifest to write, in the folder of `manifest`; the masks go into `<stem of out>-masks`.
        detector: such as `GroundingDino`.
        segmenter: such as `Sam`.
        prompt: what to detect; default: each clip's `subject_phrase` or `category`.
        settings: thresholds.

    Returns:
        The number of clips written, and the number left out by reason.

    Raises:
        InputError: the manifest is wrong, a clip says nothing to detect, `out` is elsewhere, a manifest of other
            clips, or has masks made otherwise or by others, or no clip is left.
    """
    kept: list[Clip] = []
    dropped: collections.Counter[str] = collections.Counter()
    for clip, result in _results(manifest, out, detector, segmenter, prompt, settings, WHOLE):
        if "reason" in result:
            dropped[result["reason"]] += 1
        else:
            kept.append(clip.model_copy(update={"refs": _placed(result["refs"], _masks(out), clip)}))
    if not kept:
        reasons = describe_counts(dropped.elements())
        raise InputError(f"no clip of {manifest} shows one subject ({reasons}); look at the prompt and the thresholds")
    write_manifest(out, kept)
    return len(kept), dict(dropped)


def highlight_part(
    manifest: Path,
    out: Path,
    detector: Detector,
    segmenter: Segmenter,
    shard: Shard,
    *,
    prompt: str = "",
    settings: HighlightSettings | None = None,
) -> int:
    """Makes the masks of some of the clips, which `highlight_manifest` then finds there: of how many clips.

    Raises:
        InputError: see `highlight_manifest`.
    """
    return sum(1 for _ in _results(manifest, out, detector, segmenter, prompt, settings, shard))


def _masks(out: Path) -> Path:
    return out.parent / f"{out.stem}-masks"


def _results(
    manifest: Path,
    out: Path,
    detector: Detector,
    segmenter: Segmenter,
    prompt: str,
    settings: HighlightSettings | None,
    shard: Shard,
) -> Iterator[tuple[Clip, dict[str, Any]]]:
    """The clips of a shard, each with what was found in it now or by an earlier call."""
    settings = settings or HighlightSettings()
    if out.parent.resolve() != manifest.parent.resolve():
        raise InputError(f"paths in a manifest are relative to its folder: put {out.name} into {manifest.parent}")
    clips = read_manifest(manifest)
    check_place(out, source=manifest, videos=video_files(manifest, clips))
    jobs = [(clip, _text(clip, prompt)) for clip in clips]
    folder = _masks(out)
    check_replaceable(folder, is_claimed)
    claim(folder, asdict(settings), "masks made with other thresholds")
    for clip, text in tqdm(shard.of(jobs), desc="highlighting", unit="clip", disable=None):
        result = _read_result(folder, clip, text)
        if result is None:
            with atomic_directory(folder / quote(clip.id, safe=""), ours=_is_result) as temporary:
                result = _highlight_clip(clip, text, manifest.parent, temporary, detector, segmenter, settings)
        yield clip, result


def _is_result(folder: Path) -> bool:
    """Whether a folder holds a clip's masks and nothing else."""
    return all(path.name == RESULT or path.suffix == ".png" for path in folder.iterdir())


def find_subject(image: Image.Image, text: str, detector: Detector, settings: HighlightSettings) -> Box:
    """The box of the one subject that the text describes.

    Raises:
        ClipError: there is none, there are several, or it is too small.
    """
    boxes, scores = detector(image, text)
    boxes = suppress(boxes, scores, max_overlap=settings.max_overlap)
    if len(boxes) != 1:
        raise ClipError("several subjects" if len(boxes) else "no subject")
    limits = (image.width, image.height, image.width, image.height)
    left, top, right, bottom = (float(np.clip(edge, 0, limit)) for edge, limit in zip(boxes[0], limits, strict=True))
    if (right - left) * (bottom - top) < settings.min_area * image.width * image.height:
        raise ClipError("small subject")
    return left, top, right, bottom


def suppress(boxes: np.ndarray, scores: np.ndarray, *, max_overlap: float) -> np.ndarray:
    """Non-maximum suppression: of two boxes `[N, 4]` with a larger intersection over union, the weaker one goes."""
    kept: list[np.ndarray] = []
    for box in boxes[np.argsort(-scores, kind="stable")]:
        if all(_overlap(box, stronger) <= max_overlap for stronger in kept):
            kept.append(box)
    return np.array(kept).reshape(-1, 4)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    shared = float(np.prod(np.maximum(sides, 0)))
    union = float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - shared
    return shared / union if union > 0 else 0.0


def _highlight_clip(
    clip: Clip,
    text: str,
    root: Path,
    folder: Path,
    detector: Detector,
    segmenter: Segmenter,
    settings: HighlightSettings,
) -> dict[str, Any]:
    """Writes the clip's masks, `<number of the reference>.png`, and its result into `folder`; returns the result."""
    result: dict[str, Any] = {"text": text}
    try:
        found = []
        for ref, image in _pictures(clip, root):
            box = find_subject(image, text, detector, settings)
            mask = segmenter(image, box)
            if not mask.any():
                raise ClipError("empty mask")
            found.append((ref.model_copy(update={"box": box}), mask))
        for number, (_, mask) in enumerate(found):
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}.png")
        result["refs"] = [ref.model_dump(exclude_defaults=True) for ref, _ in found]
    except ClipError as error:
        result["reason"] = error.reason
    (folder / RESULT).write_text(json.dumps(result))
    return result


def _pictures(clip: Clip, root: Path) -> Iterator[tuple[Reference, Image.Image]]:
    """The clip's references, or four frames spread over it, with their pictures."""
    with open_video(clip_file(root, clip, clip.video)) as video:
        for ref in clip.refs or spread_frames(video.num_frames):
            yield ref, reference_picture(root, clip, ref, video)


def _read_result(folder: Path, clip: Clip, text: str) -> dict[str, Any] | None:
    """What an earlier call found for the same text."""
    file = folder / quote(clip.id, safe="") / RESULT
    result = json.loads(file.read_text()) if file.exists() else {}
    return result if result.get("text") == text else None


def _placed(refs: list[dict[str, Any]], folder: Path, clip: Clip) -> tuple[Reference, ...]:
    """The references with their masks' paths as the manifest beside `folder` names them."""
    base = f"{folder.name}/{quote(clip.id, safe='')}"
    return tuple(Reference(**{**ref, "mask": f"{base}/{number}.png"}) for number, ref in enumerate(refs))


def _text(clip: Clip, prompt: str) -> str:
    """What to detect, as Grounding DINO wants it: lower case, ending in a full stop."""
    if clip.shard:
        raise InputError(f"clip {clip.id!r} is in the shard {clip.shard}; make masks before sharding")
    text = prompt or clip.subject_phrase or clip.category
    if not text:
        raise InputError(f"clip {clip.id!r} has neither subject_phrase nor category; say what to detect with --prompt")
    return text.strip().lower().rstrip(".") + "."


def _load(model_class: Any, folder: Path, device: str) -> tuple[Any, torch.nn.Module]:
    """The processor, of Pillow so that masks do not depend on the installation, and the model in eval mode and float32,
    whatever the file's type: pictures come in it.
    """
    from transformers import AutoProcessor

    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; give a model's local folder in the transformers format")
    model = load_whole(model_class, folder, dtype=torch.float32)
    return load_whole(AutoProcessor, folder, backend="pil"), model.to(device).eval()
