"""Frame-exact reading of clips with PyAV."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import av

from videomaker.media import local_url

if TYPE_CHECKING:
    from PIL import Image

VideoSource = str | os.PathLike | io.BytesIO


class ClipError(Exception):
    """A clip cannot be used. `reason` is one of a few short phrases, to count by."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    """What a manifest records of a video."""

    num_frames: int
    fps: float
    width: int
    height: int


class Video:
    """An open video. Frame `i` is the i-th in presentation order, whatever the frame rate or the B-frames do.

    The container's packets are listed once, without decoding, for their timestamps; a read seeks to the key
    frame before the first wanted timestamp and decodes from there.
    """

    def __init__(self, container: av.container.InputContainer):
        self._container = container
        self._stream = container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # the parallelism is that of the loader's workers

    @cached_property
    def timestamps(self) -> list[int]:
        """Presentation timestamps of all frames, ascending, in units of the stream's time base."""
        packets = [packet for packet in self._container.demux(self._stream) if packet.size]
        times = [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
        if any(packet.pts is None for packet in packets):
            raise ClipError("broken", "packets without timestamps; rewrite it with `ffmpeg -i IN OUT.mp4`")
        return sorted(times)

    @property
    def num_frames(self) -> int:
        """The number of frames that can be asked for."""
        return len(self.timestamps)

    def info(self) -> VideoInfo:
        """Counts from the container's header, or from its packets where the header has none (WebM, Matroska)."""
        context, rate = self._stream.codec_context, self._stream.average_rate
        num_frames = self._stream.frames or self.num_frames
        if not num_frames:
            raise ClipError("no frames")
        if not context.width or not context.height or not rate:
            raise ClipError("broken", "no picture size or frame rate")
        return VideoInfo(num_frames, float(rate), context.width, context.height)

    def read(self, indices: Sequence[int]) -> list[Image.Image]:
        """Decodes the frames of ascending `indices` as RGB images.

        Raises:
            ClipError: there are fewer frames than the last index needs, or one does not decode.
        """
        if indices[-1] >= self.num_frames:
            raise ClipError("too short", f"{self.num_frames} frames, {indices[-1] + 1} needed")
        wanted = [self.timestamps[index] for index in indices]
        # From the start only if a seek lands in an open group of pictures, whose first frames it cannot decode.
        for start in (wanted[0], self.timestamps[0]):
            self._container.seek(start, stream=self._stream, backward=True)
            frames = [frame.to_image() for frame in self._decode(wanted)]
            if len(frames) == len(wanted):
                return frames
        raise ClipError("broken", f"{len(wanted) - len(frames)} of {len(wanted)} frames do not decode")

    def _decode(self, wanted: Sequence[int]) -> Iterator[av.VideoFrame]:
        """Yields the intact frames of the `wanted` timestamps; the decoder puts frames out in presentation order."""
        for frame in self._container.decode(self._stream):
            if frame.pts in wanted and not frame.is_corrupt:
                yield frame
            if frame.pts is not None and frame.pts >= wanted[-1]:
                return


@contextmanager
def open_video(source: VideoSource) -> Iterator[Video]:
    """Opens a file, or the bytes of one.

    Raises:
        ClipError: missing, not a video, no frames, or broken; also for what PyAV raises inside the block.
    """
    if not isinstance(source, io.BytesIO) and not Path(source).is_file():
        raise ClipError("missing", str(source))
    try:
        # genpts: AVI and the like store no presentation timestamps.
        file = source if isinstance(source, io.BytesIO) else local_url(source)
        container = av.open(file, options={"fflags": "genpts"})
    except av.FFmpegError as error:
        raise ClipError("not a video", error.strerror or "unreadable") from None
    with container:
        if not container.streams.video:
            # A container closed before its first frame may have no streams at all.
            raise ClipError("not a video" if container.streams else "no frames", "it has no video stream")
        try:
            yield Video(container)
        except av.FFmpegError as error:
            raise ClipError("broken", error.strerror or "unreadable") from None


def probe(source: VideoSource) -> VideoInfo:
    """Reads the header of a video. Raises `ClipError` when it cannot be used."""
    with open_video(source) as video:
        return video.info()
