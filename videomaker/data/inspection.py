"""What is wrong with one clip: as far as headers tell, or by decoding all that a training may read."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from .errors import ClipError, unexpected
from .manifest import Clip, Reference
from .reference import crop_to_box, mask_on_white
from .remote import is_there
from .shards import clip_file, load_mask, reference_picture
from .video import Video, open_video


def find_problem(clip: Clip, root: Path) -> ClipError | None:
    """What makes a clip unusable as far as headers tell. Clips of shards were checked when those were written."""
    try:
        if clip.shard:
            if not is_there(root / clip.shard):
                raise ClipError("missing", str(root / clip.shard))
            return None
        with open_video(root / clip.video) as video:
            num_frames = video.count()
            for ref in clip.refs:
                if not ref.image and ref.frame is not None and ref.frame >= num_frames:
                    raise ClipError("bad reference", f"frame {ref.frame} of a video of {num_frames} frames")
                # Only a decoded frame tells how it is shown: for the size of its mask, one is worth the time.
                size = _picture_size(root / ref.image) if ref.image else video.geometry.size if ref.mask else None
                if ref.mask and _picture_size(root / ref.mask) != size:
                    raise ClipError("bad reference", f"the mask {ref.mask} and its picture have different sizes")
    except ClipError as error:
        return error
    except Exception as error:  # see `unexpected`
        return unexpected(error)
    return None


def inspect_clip(clip: Clip, root: Path) -> bool:
    """Decodes every frame, and every reference with its mask and box; returns whether the frame rate varies.

    Raises:
        ClipError: training could not use the clip.
    """
    try:
        with open_video(clip_file(root, clip, clip.video)) as video:
            if video.num_frames < (clip.num_frames or 0):
                raise ClipError("too short", f"{video.num_frames} frames, {clip.num_frames} in the manifest")
            video.info()
            video.verify()
            for ref in clip.refs:
                _inspect_reference(ref, clip, root, video)
            return video.variable_rate
    except ClipError:
        raise
    except ValueError as error:
        raise ClipError("bad reference", str(error)) from error
    except Exception as error:  # see `unexpected`
        raise unexpected(error) from error


def _inspect_reference(ref: Reference, clip: Clip, root: Path, video: Video) -> None:
    image = reference_picture(root, clip, ref, video)
    if ref.mask:
        mask = load_mask(root, clip, ref.mask)
        if mask.size == image.size and not mask.getextrema()[1]:
            raise ClipError("empty mask", f"{ref.mask} keeps nothing of its picture")
        if mask.size == image.size and mask.getextrema()[0]:
            raise ClipError("full mask", f"{ref.mask} keeps all of its picture, background included")
        mask_on_white(image, mask)
    if ref.box:
        crop_to_box(image, ref.box)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ClipError("missing", str(path))


def _picture_size(path: Path) -> tuple[int, int]:
    """Width and height as the header tells, the right way up."""
    _require_file(path)
    try:
        with Image.open(path) as image:
            on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size[::-1] if on_its_side else image.size
    except OSError as error:
        raise ClipError("bad reference", str(error)) from error
