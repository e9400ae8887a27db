"""Decoding: the frames that were asked for, of every container, or a reason."""

import io
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
from clips import SIZE, damage, encode, index_picture, picture_index, write_video
from PIL import Image

from videomaker.data.video import ClipError, open_video, probe


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("b-frames.mp4", {"options": {"g": "12", "bf": "3"}}),
        ("open-gop.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}}),
        ("variable-rate.mp4", {"pts": [i + i * i // 7 for i in range(60)]}),
        ("no-timestamps.avi", {"codec": "mpeg4", "options": {"bf": "2", "q": "2"}}),
        ("no-count.mkv", {}),
    ],
)
@pytest.mark.parametrize("start", [0, 17, 35])
def test_frames_are_exact(tmp_path, name, settings, start):
    path = write_video(tmp_path / name, 60, **settings)
    wanted = list(range(start, start + 25, 8))
    for source in (path, io.BytesIO(path.read_bytes())):
        with open_video(source) as video:
            assert video.num_frames == 60
            assert [picture_index(frame) for frame in video.read(wanted)] == wanted
            assert [picture_index(frame) for frame in video.read([3])] == [3]
    assert (probe(path).num_frames, probe(path).width) == (60, SIZE)


@pytest.mark.parametrize("kind", ["missing", "not a video", "only sound", "no frames", "broken", "too short"])
def test_unusable_videos_say_why(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    if kind == "not a video":
        path.write_text("hello")
    elif kind == "only sound":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(8000))
    elif kind != "missing":
        write_video(path, 0 if kind == "no frames" else 30)
    if kind == "broken":
        damage(path)
    with pytest.raises(ClipError) as error, open_video(path) as video:
        video.info()
        video.read(range(30 if kind == "broken" else 31))
    assert error.value.reason == ("not a video" if kind == "only sound" else kind)


def test_an_absurd_frame_rate_is_a_reason(tmp_path):
    """The manifest takes none such, so the clip is left out when it is looked at, not when its line is written."""
    with pytest.raises(ClipError, match="2e\\+06 frames a second"):
        probe(write_video(tmp_path / "clip.mp4", 10, rate=2_000_000))


CONTAINERS = {
    "b-frames.ts": {"options": {"g": "12", "bf": "3"}},
    "mpeg2.ts": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2", "q": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "options": {"g": "12", "bf": "2", "q": "2"}},
    "mpeg1.mpg": {"codec": "mpeg1video", "options": {"g": "12", "bf": "2", "q": "2"}},
    "b-frames.avi": {"options": {"g": "12", "bf": "3"}},
    "mpeg4.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2", "q": "2"}},
    "open-gop.mkv": {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}},
    "b-frames.mov": {"options": {"g": "12", "bf": "3"}},
    "fragments.mp4": {"options": {"g": "12", "bf": "3"}, "fragments": True},
    "hidden.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "4", "b": "4M"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "crf": "4", "b": "4M"}},
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_window_of_every_container_decodes_or_the_file_is_left_out(tmp_path, name):
    path = write_video(tmp_path / name, 40, **CONTAINERS[name])
    assert probe(path).num_frames == 40
    for start in range(0, 40 - 16 + 1, 3):
        with open_video(path) as video:
            assert [picture_index(frame) for frame in video.read(range(start, start + 16))] == list(
                range(start, start + 16)
            )


CORNER = np.zeros((16, 32, 3), np.uint8)
CORNER[:8, :16] = 255  # white top left


@pytest.mark.parametrize(
    ("degrees", "white"), [(0, (0, 0)), (90, (1, 0)), (180, (1, 1)), (-90, (0, 1))], ids=lambda value: str(value)
)
def test_phone_videos_stand_upright(tmp_path, degrees, white):
    """The display matrix turns counterclockwise by so many degrees."""
    path = encode(tmp_path / "phone.mp4", [CORNER] * 5, rotation=degrees)
    size = (16, 32) if degrees % 180 else (32, 16)
    assert (probe(path).width, probe(path).height) == size
    with open_video(path) as video:
        (image,) = video.read([2])
    assert image.size == size
    quarters = np.asarray(image.convert("L").resize((2, 2), Image.Resampling.BOX))
    assert np.unravel_index(quarters.argmax(), (2, 2)) == white


def test_pixels_become_square(tmp_path):
    wide = encode(tmp_path / "wide.mp4", [CORNER] * 5, aspect=Fraction(2))
    assert (probe(wide).width, probe(wide).height) == (64, 16)
    tall = encode(tmp_path / "tall.mkv", [CORNER] * 5, aspect=Fraction(8, 9), rotation=90)
    assert (probe(tall).width, probe(tall).height) == (18, 32)
    with open_video(tall) as video:
        assert video.read([0])[0].size == (18, 32)
    with pytest.raises(ClipError, match="turned oddly: by 45 degrees"):
        probe(encode(tmp_path / "tilted.mp4", [CORNER] * 5, rotation=45))


def test_cover_art_is_not_the_film(tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as container:
        cover, film = container.add_stream("png", rate=25), container.add_stream("libx264", rate=25)
        cover.disposition = av.stream.Disposition.attached_pic
        cover.pix_fmt, film.pix_fmt = "rgb24", "yuv420p"
        cover.width = cover.height = film.width = film.height = SIZE
        pictures = [av.VideoFrame.from_ndarray(index_picture(i).copy(), format="rgb24") for i in range(10)]
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 99, np.uint8), format="rgb24")))
        for number, picture in enumerate(pictures):
            picture.pts = number
            container.mux(film.encode(picture))
        container.mux(film.encode())
    assert probe(path).num_frames == 10
    with open_video(path) as video:
        assert [picture_index(frame) for frame in video.read([0, 9])] == [0, 9]


def test_a_stride_is_a_time_where_the_frame_rate_varies(tmp_path):
    """Twenty frames at 25 a second, then ten at 5: a second of the average rate is a second everywhere."""
    times = [*range(20), *range(20, 70, 5)]
    path = write_video(tmp_path / "phone.mp4", 30, pts=times)
    with open_video(path) as video:
        assert video.variable_rate
        for position in (0.0, 0.5, 0.99):
            window = video.window(position, num_frames=5, stride=4)
            assert [picture_index(frame) for frame in video.read(window)] == window
            moments = np.array([times[index] for index in window])
            average = times[-1] / 29
            assert np.abs(np.diff(moments) - 4 * average).max() <= 5  # at most a frame's own time away
    steady = write_video(tmp_path / "steady.mkv", 30)  # timestamps in whole milliseconds: 40, 40, …
    with open_video(steady) as video:
        assert video.window(0.5, num_frames=5, stride=4) == [7, 11, 15, 19, 23]


def test_a_codec_that_nobody_knows_is_a_reason(tmp_path):
    path = write_video(tmp_path / "clip.mp4", 5)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(ClipError) as error:
        probe(path)
    assert error.value.reason in ("unknown codec", "broken", "not a video")


def test_damage_in_the_middle_is_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), np.uint8)
    path = encode(tmp_path / "clip.mp4", list(noise), options={"g": "12"})
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (len(content) - content.index(b"mdat")) // 2
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    with open_video(path) as video:
        assert len(video.read([0, 5])) == 2 and len(video.read([59])) == 1  # both ends are whole
        with pytest.raises(av.FFmpegError):
            video.verify()
