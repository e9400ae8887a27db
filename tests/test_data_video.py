"""Decoding: the frames that were asked for, of every container, or a reason."""

import io
import wave

import pytest
from clips import SIZE, damage, picture_index, write_video

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
