"""Manifests: what a line may say, and what is refused."""

from types import SimpleNamespace

import pytest
from clips import masked_clips, write_lines

from videomaker.data import manifest as manifests
from videomaker.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_clips(tmp_path_factory.mktemp("clips"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "a.mp4", "caption": "x"', "EOF"),
        ('["a.mp4"]', "object"),
        ({"video": "a.mp4"}, "captions: Field required"),
        ({"caption": "x"}, "video: Field required"),
        ({"video": "a.mp4", "captions": []}, "captions"),
        ({"video": 3, "caption": "x"}, "video: Input should be a valid string, got 3"),
        (
            {"video": "a.mp4", "caption": "x", "num_frames": "16"},
            "num_frames: Input should be a valid integer, got '16'",
        ),
        ({"video": "a.mp4", "caption": "x", "fps": 0}, "fps: Input should be greater than 0"),
        ({"video": "a.mp4", "caption": "x", "fps": 1e300}, "fps: Input should be less than or equal to 1000000"),
        ({"video": "a.mp4", "caption": "x", "width": 10**30}, "width: Input should be less than or equal to 1000000"),
        ({"video": "a.mp4", "caption": "x", "num_frames": 10**30}, "num_frames: Input should be less than"),
        ({"video": "a.mp4", "caption": "x", "refs": [{"frame": 10**30}]}, "refs.0.frame: Input should be less than"),
        ({"video": "a.mp4", "caption": "x", "refs": [{}]}, "refs.0: a reference needs an 'image' or a 'frame'"),
        ({"video": "a.mp4", "caption": "x", "refs": [{"frame": 0, "box": [4, 0, 2, 9]}]}, "is empty"),
        ({"video": "a.mp4", "caption": "x", "categry": "y"}, "unknown field 'categry', did you mean 'category'?"),
        (
            {"video": "a.mp4", "caption": "x", "refs": [{"image": "b", "msk": "c"}]},
            "'refs.0.msk', did you mean 'mask'?",
        ),
        ({"video": "a.mp4", "captions": "x"}, "captions: Input should be a valid array, got 'x'"),
        ({"video": "first.mp4", "caption": "x"}, "id 'first' is already that of line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "m.jsonl", [{"video": "first.mp4", "caption": "x"}, line])
    with pytest.raises(InputError) as error:
        manifests.read_manifest(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe\x00", "cannot read"), (None, "no manifest at")],
)
def test_an_unusable_manifest_is_refused(tmp_path, content, message):
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        manifests.read_manifest(path)


def test_manifests_round_trip(tmp_path, folder):
    clips = manifests.read_manifest(folder / "manifest.jsonl")
    manifests.write_manifest(tmp_path / "copy.jsonl", clips)
    assert manifests.read_manifest(tmp_path / "copy.jsonl") == clips
    assert manifests.splits(tmp_path / "copy.jsonl") == {"train": 11, "val": 1}
    with pytest.raises(InputError, match="its splits are: train, val"):
        manifests.read_manifest(tmp_path / "copy.jsonl", split="test")


def test_long_captions_are_counted(folder):
    def tokenizer(captions, **_):
        return SimpleNamespace(input_ids=[caption.split() for caption in captions])

    clips = manifests.read_manifest(folder / "manifest.jsonl")
    manifests.check_captions(clips, tokenizer, max_tokens=3)
    with pytest.raises(InputError, match="24 captions are longer than 2 tokens, first that of clip 'clip-0'"):
        manifests.check_captions(clips, tokenizer, max_tokens=2)
