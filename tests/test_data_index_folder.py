"""A plain folder of clips and captions: every video is a clip or is counted by its reason."""

import json
import shutil

import pytest
from clips import write_clips

from videomaker.data.index import build_manifest
from videomaker.data.index_folder import index_folder
from videomaker.data.manifest import read_manifest
from videomaker.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Six videos: two with text files (one in a folder below), one of a table, and three that cannot be used."""
    write_clips(tmp_path / "source")
    video = next((tmp_path / "source").rglob("*.mp4"))
    root = tmp_path / "mine"
    for name in ("a.mp4", "b/a.mp4", "listed.mp4", "bare.mp4", "latin.mp4", "a.mov"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, root / name)
    (root / "a.txt").write_text("a creature\n\na creature\nüber a meadow\n", encoding="utf-8")
    (root / "b" / "a.txt").write_text("another", encoding="utf-8")
    (root / "latin.txt").write_bytes("größer".encode("latin-1"))
    rows = [{"file_name": "listed.mp4", "text": "from the table"}, {"file_name": "gone.mp4", "text": "x"}]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root


def test_clips_and_counts_are_those_of_the_folder(folder, tmp_path):
    drafts = index_folder(folder, subject="creature")
    count, dropped = build_manifest(drafts, tmp_path / "manifest.jsonl")
    clips = {clip.id: clip for clip in read_manifest(tmp_path / "manifest.jsonl")}
    assert count == 3 and clips.keys() == {"a", "b-a", "listed"}
    assert clips["a"].captions == ("a creature", "über a meadow")
    assert clips["listed"].captions == ("from the table",)
    assert {clip.subject_phrase for clip in clips.values()} == {"creature"}
    assert dropped == {"no caption": 1, "caption is not UTF-8": 1, "same name": 1, "row without a video": 1}


def test_a_folder_without_videos_or_with_a_broken_table_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        index_folder(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no video"):
        index_folder(tmp_path / "empty")
    (folder / "metadata.jsonl").write_text('{"text": "x"}')
    with pytest.raises(InputError, match="without file_name"):
        index_folder(folder)
