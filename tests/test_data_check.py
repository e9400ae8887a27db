"""`videomaker data check`: every problem listed, the rest written."""

from dataclasses import replace

import pytest
from clips import SIZE, damage, write_lines, write_video
from PIL import Image

from videomaker.data import check
from videomaker.data import manifest as manifests
from videomaker.data.check import check_manifest, write_clean
from videomaker.data.dataset import DataConfig, build_dataset
from videomaker.data.shards import write_shards
from videomaker.data.video import Video
from videomaker.errors import InputError


def test_check_lists_every_problem_and_writes_the_rest(tmp_path):
    write_video(tmp_path / "good.mp4", 20)
    write_video(tmp_path / "claims.mp4", 20)
    damage(write_video(tmp_path / "damaged.mp4", 20, options={"g": "1"}))
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    path = write_lines(
        tmp_path / "manifest.jsonl",
        [
            {"video": "good.mp4", "caption": "x"},
            "{",
            {"video": "gone.mp4", "caption": "x"},
            {"video": "claims.mp4", "caption": "x", "num_frames": 21},
            {"video": "damaged.mp4", "caption": "x"},
            {"id": "small mask", "video": "good.mp4", "caption": "x", "refs": [{"frame": 0, "mask": "mask.png"}]},
        ],
    )
    report = check_manifest(path)
    assert [clip.id for clip in report.good] == ["good"]
    assert [(where, reason) for where, reason, _ in sorted(report.problems)] == [
        (f"{path}:2", "bad line"),
        (f"{path}:3", "missing"),
        (f"{path}:4", "too short"),
        (f"{path}:5", "broken"),
        (f"{path}:6", "bad reference"),
    ]
    assert "the mask has 8x8 pixels, its picture 32x32" in sorted(report.problems)[-1][2]
    write_clean(report, path, tmp_path / "clean.jsonl")
    assert manifests.read_manifest(tmp_path / "clean.jsonl") == report.good
    with pytest.raises(InputError, match="are relative to its folder"):
        write_clean(report, path, tmp_path / "elsewhere" / "clean.jsonl")


def test_one_damaged_clip_never_costs_the_others(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"{name}.mp4", 10)
    (tmp_path / "b.mp4").write_bytes((tmp_path / "b.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    lines = [{"video": f"{name}.mp4", "caption": "x"} for name in ("a", "b", "c")]
    infinite = '{"video": "a.mp4", "id": "box", "caption": "x", "refs": [{"frame": 0, "box": [0, 0, Infinity, 9]}]}'
    path = write_lines(tmp_path / "manifest.jsonl", [*lines, infinite])
    report = check_manifest(path)
    assert [clip.id for clip in report.good] == ["a", "c"]
    assert report.counts["bad line"] == 1
    clean = write_lines(tmp_path / "clean.jsonl", lines)
    assert write_shards(clean, tmp_path / "shards")[0] == 2
    (tmp_path / "shards" / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan.json is damaged"):
        write_shards(clean, tmp_path / "shards")

    def explode(*_):
        raise AttributeError("a library's own mistake")

    monkeypatch.setattr(Video, "verify", explode)
    report = check_manifest(clean)
    assert report.counts == {"broken": 2, "unknown codec": 1} or report.counts == {"broken": 3}


@pytest.mark.parametrize(
    ("kind", "reason"), [("black", "empty mask"), ("white", "full mask"), ("small", "bad reference")]
)
def test_masks_that_show_no_subject_are_counted(tmp_path, kind, reason):
    write_video(tmp_path / "a.mp4", 10)
    size = (8, 8) if kind == "small" else (SIZE, SIZE)
    Image.new("L", size, 0 if kind == "black" else 3).save(tmp_path / "mask.png")
    lines = [{"video": "a.mp4", "caption": "x", "refs": [{"frame": 0, "mask": "mask.png"}]}]
    assert check_manifest(write_lines(tmp_path / "manifest.jsonl", lines)).counts == {reason: 1}


def three_clips(folder, damaged="b"):
    for name in ("a", "b", "c"):
        write_video(folder / f"{name}.mp4", 30, options={"g": "5"})
    content = bytearray((folder / f"{damaged}.mp4").read_bytes())
    content[-60:-20] = bytes(40)
    (folder / f"{damaged}.mp4").write_bytes(content)
    lines = [{"video": f"{name}.mp4", "caption": "x"} for name in ("a", "b", "c")]
    return write_lines(folder / "manifest.jsonl", lines)


def test_an_interrupted_check_goes_on(tmp_path, monkeypatch):
    path = three_clips(tmp_path)
    seen = []
    verify = Video.verify

    def note(self):
        seen.append(self._source.name)
        if self._source.name == "c.mp4" and len(seen) == 3:
            raise KeyboardInterrupt
        verify(self)

    monkeypatch.setattr(Video, "verify", note)
    monkeypatch.setattr(check, "THREADS", 1)
    with pytest.raises(KeyboardInterrupt):
        check_manifest(path)
    with (tmp_path / "manifest.jsonl.checked").open("a") as file:
        file.write('{"id": "c", "sta')  # killed while it wrote
    assert [clip.id for clip in check_manifest(path).good] == ["a", "c"]
    assert seen == ["a.mp4", "b.mp4", "c.mp4", "c.mp4"]
    check_manifest(path)  # a finished one begins anew: a disk may have lost bytes since
    assert len(seen) == 7


def test_training_does_not_read_what_the_check_refused(tmp_path):
    path = three_clips(tmp_path)
    config = DataConfig(manifest=str(path), num_frames=2, frame_stride=1, height=16, width=16, highlight=False)
    assert len(build_dataset(config, seed=0)) == 3
    assert check_manifest(path).counts == {"broken": 1}
    with pytest.raises(InputError, match=r"1 of 3 .* \(broken: 1\).*found by `videomaker data check`"):
        build_dataset(config, seed=0)
    skipping = build_dataset(replace(config, bad_clips="skip"), seed=0)
    assert {skipping[epoch, index]["ids"] for epoch in range(5) for index in range(3)} == {"a", "c"}
    write_video(tmp_path / "b.mp4", 31)  # mended
    assert len(build_dataset(config, seed=0)) == 3


def test_a_sample_is_the_same_each_time(tmp_path):
    path = three_clips(tmp_path)
    first, again = check_manifest(path, sample=2), check_manifest(path, sample=2)
    assert first == again and (first.num_looked, first.num_clips) == (2, 3)
    assert len(first.good) + len(first.problems) == 2
    assert not path.with_name("manifest.jsonl.checked").exists()
