"""Outputs are complete or absent."""

from __future__ import annotations

import pytest

from videomaker.errors import InputError
from videomaker.files import atomic_directory, atomic_path, check_file_name, check_writable


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_a_failed_file_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "video.mp4"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".mp4"
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_finished_file_takes_its_name_and_makes_folders(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    with atomic_path(path) as temporary:
        temporary.write_text("{}")
        assert not path.exists()
    assert path.read_text() == "{}" and list(path.parent.iterdir()) == [path]


def test_a_folder_replaces_the_old_one_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"
    with atomic_directory(path) as temporary:
        (temporary / "a").write_text("1")
    with pytest.raises(KeyboardInterrupt), atomic_directory(path) as temporary:
        (temporary / "b").write_text("2")
        raise KeyboardInterrupt
    assert [p.name for p in path.iterdir()] == ["a"]
    with atomic_directory(path) as temporary:
        (temporary / "b").write_text("2")
    assert [p.name for p in path.iterdir()] == ["b"] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("check", [check_writable, check_file_name])
def test_a_place_that_is_no_text_is_refused_before_the_work(tmp_path, check):
    for place in (tmp_path / "\udcff", tmp_path / "\udcff" / "a.mp4"):
        with pytest.raises(InputError, match="is not UTF-8: give another name"):
            check(place)
    assert not list(tmp_path.iterdir())
