"""Nothing of the user's is lost: what a result may not replace, known before the work."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.errors import InputError
from videomaker.files import atomic_directory, atomic_path
from videomaker.jobs.places import check_places
from videomaker.jobs.request import Job


def job(path: Path) -> Job:
    return Job((path.parent / "subject.png",), "a fox", 0, path)


def test_a_folder_of_other_files_stays(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("mine")
    nothing_is_ours = lambda folder: False
    with (
        pytest.raises(InputError, match="not this command's"),
        atomic_directory(tmp_path / "photos", ours=nothing_is_ours),
    ):
        pass
    assert (tmp_path / "photos" / "mine.jpg").read_text() == "mine"


def test_warmup_keeps_a_users_folder(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").write_text("mine")
    result = CliRunner().invoke(app, ["warmup", "--save", str(tmp_path / "photos")])
    assert result.exit_code == 2 and "not this command's" in " ".join(result.stderr.split())
    assert (tmp_path / "photos" / "mine.jpg").read_text() == "mine"


def test_an_empty_folder_and_an_own_one_are_replaced(tmp_path):
    (tmp_path / "new").mkdir()
    for _ in range(2):
        with atomic_directory(tmp_path / "new", ours=lambda folder: (folder / "key").exists()) as temporary:
            (temporary / "key").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize("record", ["{}", "not json", json.dumps({"mine": 1})])
def test_a_users_json_beside_the_output_is_no_record(tmp_path, record):
    (tmp_path / "config.json").write_text(record)
    with pytest.raises(InputError, match="it is no record"):
        check_places([job(tmp_path / "config.mp4")], "mp4")


def test_the_record_of_another_result(tmp_path):
    old = {"record_version": 2, "video": "x.mp4", "prompt": "a", "settings": {}}
    (tmp_path / "x.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"that of 'x\.mp4'"):
        check_places([job(tmp_path / "x.gif")], "gif")
    check_places([job(tmp_path / "x.mp4")], "mp4")


def test_outputs_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    os.symlink("loop.mp4", tmp_path / "loop.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("folder.mp4", "loop.mp4", "pipe.mp4", "x" * 252 + ".mp4", "x" * 251 + ".mp4"):
        with pytest.raises(InputError):
            check_places([job(tmp_path / name)], "mp4")
    (tmp_path / "subject.gif").touch()
    with pytest.raises(InputError, match="one of the inputs"):
        check_places([job(tmp_path / "subject.gif")], "gif", inputs=[tmp_path / "subject.gif"])


def test_a_sheet_that_is_a_users_picture(tmp_path):
    (tmp_path / "x.sheet.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(InputError, match="no contact sheet"):
        check_places([job(tmp_path / "x.mp4")], "mp4", sheet=tmp_path / "x.sheet.png")


def test_names_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("x" * 246 + ".mp4")
    check_places([job(path)], "mp4")
    with atomic_path(path) as temporary:
        temporary.touch()
    assert path.exists()
