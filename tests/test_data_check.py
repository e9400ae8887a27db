"""`videomaker data check`: every problem listed, the rest written."""

import pytest
from clips import damage, write_lines, write_video
from PIL import Image

from videomaker.data import manifest as manifests
from videomaker.data.check import check_manifest, write_clean
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
