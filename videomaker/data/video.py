"""Frame-exact reading of clips with PyAV: the right way up, with square pixels, nothing damaged."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.stream import Disposition

from videomaker.media import MAX_PIXELS, local_url

from .errors import ClipError, unexpected
from .geometry import Geometry, geometry_of
from .manifest import MAX_RATE

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ClipError", "Video", "VideoInfo", "open_video", "probe"]

VideoSource = str | os.PathLike | io.BytesIO

_FORMAT_OPTIONS = {"fflags": "genpts"}  # AVI and the like store no presentation timestamps
# Refuse what is damaged, where a decoder would otherwise guess the missing picture; and pictures of absurd sizes.
_CODEC_OPTIONS = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
_SEEKABLE = ("mp4", "matroska")  # whose index finds a frame by its presentation timestamp
_HIDDEN_FRAMES = ("vp8",)  # packets that show nothing
_VARIABLE = 1.5  # times the usual step: a longer one means a variable frame rate, a shorter one rounded timestamps


@dataclass(frozen=True)
class VideoInfo:
    """What a manifest records of a video, as it is shown."""

    num_frames: int
    fps: float
    width: int
    height: int


class Video:
    """An open video. Frame `i` is the i-th in presentation order, whatever the frame rate or the B-frames do.

    The container's packets are listed once, without decoding, for their timestamps; a read seeks to the key
    frame before the first wanted timestamp and decodes from there. Containers that seek by decoding time (MPEG-TS and
    the like) are decoded from the start, and where packets have no timestamps of their own (AVI with B-frames), the
    frames are counted.
    """

    def __init__(self, source: VideoSource):
        self._source = source
        self._container = _open(source)
        self._select()

    def _select(self) -> None:
        """The film among the streams; a cover picture is one, too."""
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            # A container closed before its first frame may have no streams at all.
            raise ClipError("not a video" if self._container.streams else "no frames", "it has no video stream")
        self._stream = streams[0]
        context = self._stream.codec_context
        if context is None:
            raise ClipError("unknown codec", "FFmpeg has no decoder for it")
        context.thread_count = 1  # the parallelism is that of the loader's workers
        context.options = _CODEC_OPTIONS

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def _rewind(self) -> None:
        """Opens the file anew: the one seek to the first frame that every container has."""
        self._container.close()
        self._container = _open(self._source)
        self._select()

    @cached_property
    def _packets(self) -> list[int | None]:
        """Presentation timestamps of the packets that are shown, in the order of the file."""
        packets = [packet for packet in self._container.demux(self._stream) if packet.size]
        return [packet.pts for packet in packets if not packet.is_discard]

    @cached_property
    def timestamps(self) -> list[int] | None:
        """Presentation timestamps of all frames, ascending, in the stream's time base; None: there are none."""
        known = [pts for pts in self._packets if pts is not None]
        return sorted(known) if len(set(known)) == len(self._packets) else None

    @property
    def num_frames(self) -> int:
        """The number of frames that can be asked for."""
        return len(self._packets)

    @property
    def trusted(self) -> bool:
        """Whether the list of packets tells the frames; else only decoding does (see `verify`)."""
        seekable = any(name in self._container.format.name for name in _SEEKABLE)
        return seekable and self._stream.codec_context.name not in _HIDDEN_FRAMES and self.timestamps is not None

    @property
    def variable_rate(self) -> bool:
        """Whether frames are shown for different times, so that only timestamps tell where a moment is."""
        times = np.asarray(self.timestamps or [])
        if len(times) < 2:
            return False
        steps, even = np.diff(times), np.linspace(times[0], times[-1], len(times))
        gap = steps.max() > _VARIABLE * max(np.median(steps), 1)
        return bool(gap or np.abs(times - even).max() > max(steps.mean(), 1))  # quick in one part, slow in another

    def info(self) -> VideoInfo:
        """What the manifest records; the first frame is decoded, since only frames say how they are shown."""
        num_frames, rate = self.count(), self._declared_rate()
        width, height = self.geometry.size
        return VideoInfo(num_frames, rate, width, height)

    def _declared_rate(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        if not rate or rate > MAX_RATE:
            raise ClipError("broken", f"{float(rate):g} frames a second" if rate else "no frame rate")
        return float(rate)

    def count(self) -> int:
        """The number of frames, by MP4's index where there is one, so that the packets need not be read.

        Raises:
            ClipError: there are none.
        """
        num_frames = self._count_by_index() or self.num_frames
        if not num_frames:
            raise ClipError("no frames")
        return num_frames

    def _count_by_index(self) -> int:
        """0: there is no whole index."""
        entries = self._stream.index_entries if "mp4" in self._container.format.name else ()
        whole = len(entries) == self._stream.frames
        return sum(not entry.is_discard for entry in entries) if whole else 0

    @cached_property
    def geometry(self) -> Geometry:
        """How the stored pictures are turned and stretched to be shown."""
        self._rewind()
        for frame in self._container.decode(self._stream):
            return geometry_of(frame, self._stream.sample_aspect_ratio)
        raise ClipError("no frames")

    @property
    def rate(self) -> float:
        """Frames a second, on average; of a variable rate by the timestamps."""
        times = self.timestamps
        if self.variable_rate and times and self._stream.time_base:
            return float((len(times) - 1) / ((times[-1] - times[0]) * self._stream.time_base))
        return self._declared_rate()

    def window(self, position: float, *, num_frames: int, stride: float) -> list[int]:
        """The indices of `num_frames` frames, `stride` apart.

        With a variable frame rate a stride is the time of so many average frames, and a frame that is shown longer
        comes twice.

        Args:
            position: where the window starts, as a fraction in [0, 1) of the possible starts.
            num_frames: of the window.
            stride: frames from one to the next; with a fraction the nearest frames are taken.

        Raises:
            ClipError: the video is too short.
        """
        steps = [round(k * stride) for k in range(num_frames)]
        span = steps[-1] + 1
        num_starts = self.num_frames - span + 1
        if num_starts < 1:
            raise ClipError("too short", f"{self.num_frames} frames, {span} needed")
        start = int(position * num_starts)
        indices = [start + step for step in steps]
        if not self.variable_rate:
            return indices
        times = np.asarray(self.timestamps)
        average = (times[-1] - times[0]) / (self.num_frames - 1)
        # Half an average frame later than its start: the moment lies well inside the frame that is shown then.
        moments = times[0] + (np.array(indices) + 0.5) * average
        return (np.searchsorted(times, moments, side="right") - 1).tolist()

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Decodes the frames of ascending `indices`, which may repeat, as RGB images.

        Raises:
            ClipError: there are fewer frames than the last index needs, or one does not decode.
        """
        if indices[-1] >= self.num_frames:
            raise ClipError("too short", f"{self.num_frames} frames, {indices[-1] + 1} needed")
        wanted = sorted(set(indices))
        times = self.timestamps
        found = self._read_by_order(wanted) if times is None else self._read_by_time(wanted, times)
        if len(found) < len(wanted):
            missing = len(wanted) - len(found)
            raise ClipError("broken", f"{missing} of {len(wanted)} frames do not decode")
        return [found[index] for index in indices]

    def _read_by_time(self, wanted: Sequence[int], times: list[int]) -> dict[int, Image.Image]:
        index_of = {times[index]: index for index in wanted}
        for seconds in (0, 1) if self.trusted else ():
            # It may land in an open group of pictures, whose first frames need earlier ones.
            start = times[max(0, wanted[0] - round(seconds * (self._stream.average_rate or 25)))]
            self._container.seek(start, stream=self._stream, backward=True)
            with suppress(av.FFmpegError):
                found = dict(self._decode(index_of))
                if len(found) == len(wanted):
                    return found
        self._rewind()
        return dict(self._decode(index_of))

    def _decode(self, index_of: dict[int, int]) -> Iterator[tuple[int, Image.Image]]:
        """Yields the wanted frames, given by timestamp, that are whole; the decoder gives them as they are shown."""
        last = max(index_of)
        for frame in self._container.decode(self._stream):
            if frame.pts is None:
                continue
            if frame.pts in index_of and not frame.is_corrupt:
                yield index_of[frame.pts], self._show(frame)
            if frame.pts >= last:
                return

    def _read_by_order(self, wanted: Sequence[int]) -> dict[int, Image.Image]:
        self._rewind()
        frames = zip(range(wanted[-1] + 1), self._container.decode(self._stream), strict=False)
        chosen = set(wanted)
        return {index: self._show(frame) for index, frame in frames if index in chosen and not frame.is_corrupt}

    def _show(self, frame: av.VideoFrame) -> Image.Image:
        geometry = geometry_of(frame, self._stream.sample_aspect_ratio)
        # One thread: a converter with more that is freed in a forked worker of the loader waits for them for ever.
        return geometry.apply(frame.to_image(threads=1))

    def verify(self) -> None:
        """Decodes everything.

        Raises:
            ClipError: a frame is damaged, or the frames are not those that the packets promise.
        """
        times, expected, size = self.timestamps, self.num_frames, None
        self._rewind()
        count = 0
        for frame in self._container.decode(self._stream):
            if frame.is_corrupt:
                raise ClipError("broken", f"frame {count} is damaged")
            if times is not None and (count >= expected or frame.pts != times[count]):
                raise ClipError("unsteady", f"frame {count} is not at its packet's time; {_REWRITE}")
            if size not in (None, (frame.width, frame.height)):
                raise ClipError("unsteady", f"frame {count} has another size than those before it; {_REWRITE}")
            size = (frame.width, frame.height)
            count += 1
        if count != expected:
            raise ClipError("unsteady" if count else "no frames", f"{expected} packets, {count} frames; {_REWRITE}")


_REWRITE = "rewrite it with `ffmpeg -i IN OUT.mp4`"


def _open(source: VideoSource) -> av.container.InputContainer:
    if isinstance(source, io.BytesIO):
        source.seek(0)
        return av.open(source, "r", options=_FORMAT_OPTIONS, metadata_errors="replace")
    return av.open(local_url(source), "r", options=_FORMAT_OPTIONS, metadata_errors="replace")


@contextmanager
def open_video(source: VideoSource) -> Iterator[Video]:
    """Opens a file, or the bytes of one.

    Raises:
        ClipError: missing, not a video, no frames, or broken; also for what PyAV raises inside the block.
    """
    if not isinstance(source, io.BytesIO) and not Path(source).is_file():
        raise ClipError("missing", str(source))
    try:
        video = Video(source)
    except av.FFmpegError as error:
        raise ClipError("not a video", error.strerror or "unreadable") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        raise unexpected(error) from error
    try:
        yield video
    except av.FFmpegError as error:
        raise ClipError("broken", error.strerror or "unreadable") from None
    finally:
        video.close()


def probe(source: VideoSource) -> VideoInfo:
    """What the manifest records of a video; where packets do not tell the frames, it is decoded whole.

    Raises:
        ClipError: it cannot be used.
    """
    try:
        with open_video(source) as video:
            info = video.info()
            if not video.trusted:
                video.verify()
            return info
    except ClipError:
        raise
    except Exception as error:  # see `unexpected`
        raise unexpected(error) from error
