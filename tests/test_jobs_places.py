"""Nothing of the user's is lost: what a result may not replace, known before the work."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner
from videomaker.train.export import _export_partial, _is_export

from videomaker.cli import app
from videomaker.compiled import artifacts
from videomaker.data.cache import build_cache
from videomaker.data.check import check_clean_place
from videomaker.data.highlight import highlight_manifest
from videomaker.data.index import build_manifest
from videomaker.data.manifest import Clip, write_manifest
from videomaker.data.manifest import check_place as check_manifest_place
from videomaker.data.shards import write_shards
from videomaker.errors import InputError
from videomaker.evaluation.plan import Plan, write_plan
from videomaker.evaluation.plan import check_place as check_report_place
from videomaker.evaluation.protocol import protocol_named
from videomaker.evaluation.run import run_suite
from videomaker.evaluation.sprite_study import check_place as check_study_place
from videomaker.evaluation.suite import Prompt, Subject, Suite
from videomaker.files import atomic_directory, atomic_path, check_replaceable
from videomaker.jobs.places import check_places
from videomaker.jobs.prepare import Prepared
from videomaker.jobs.request import Job
from videomaker.jobs.resolved import ResolvedOutput, ResolvedRecipe, ResolvedSettings
from videomaker.sprites.dataset import write_dataset


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
    old = {"record_version": 2, "video": "x.mp4", "prompt": "a", "seed": 0, "settings": {}, "video_sha256": "0"}
    (tmp_path / "x.json").write_text(json.dumps(old))
    with pytest.raises(InputError, match=r"that of 'x\.mp4'"):
        check_places([job(tmp_path / "x.gif")], "gif")
    check_places([job(tmp_path / "x.mp4")], "mp4")
    check_places([job(tmp_path / "x.gif")], "gif", fetched=True)
    (tmp_path / "x.mp4").touch()
    with pytest.raises(InputError, match=r"that of 'x\.mp4'"):
        check_places([job(tmp_path / "x.gif")], "gif", fetched=True)


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


@pytest.mark.parametrize("name", ["report.md", "videos.csv", "plan.json"])
def test_a_report_replaces_no_file_of_others(tmp_path, name):
    (tmp_path / name).write_text('{"mine": 1}')
    suite = Suite((Subject("fox", tmp_path / "fox.png", "fox"),), {"fox": (Prompt("a fox"),)}, (0,), 8)
    plan = Plan(suite, "paper", tmp_path / "videos")
    for write in (lambda: check_report_place(tmp_path), lambda: write_plan(plan, tmp_path)):
        with pytest.raises(InputError, match="not of this command"):
            write()
    assert (tmp_path / name).read_text() == '{"mine": 1}'
    write_plan(plan, tmp_path / "new")
    (tmp_path / "new" / "report.md").write_text("ours")
    write_plan(plan, tmp_path / "new")


def test_a_plan_stays_where_videos_were_made_otherwise(tmp_path):
    """It says how they were made, so the refusal comes before it is written."""
    suite = Suite((Subject("fox", tmp_path / "fox.png", "fox"),), {"fox": (Prompt("a fox"),)}, (0,), 8)
    plan = Plan(suite, "paper", tmp_path / "videos", {"steps": 30})
    write_plan(plan, tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "fox.png")
    (plan.videos / "fox" / plan.items()[0].name).mkdir(parents=True)
    before = (tmp_path / "plan.json").read_bytes()
    settings = ResolvedSettings(
        steps=2, guidance=1.0, negative_prompt="", width=16, height=16, frames=2, fps=8, fit="pad"
    )
    prepared = Prepared(None, ResolvedRecipe(settings=settings, output=ResolvedOutput(upscale=1)), {})
    with pytest.raises(InputError, match="exists without its record"):
        run_suite(prepared, suite, tmp_path, None, protocol_named("paper"))
    assert (tmp_path / "plan.json").read_bytes() == before


def test_a_study_replaces_no_file_of_others(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(InputError, match="not of this command"):
        check_study_place(tmp_path)
    (tmp_path / "seed-0").mkdir()
    (tmp_path / "seed-0" / "results.json").touch()
    check_study_place(tmp_path)


def test_a_manifest_replaces_manifests_alone(tmp_path):
    clip = Clip(video="x.mp4", captions=["x"])
    write_manifest(tmp_path / "all.jsonl", [clip])
    write_manifest(tmp_path / "all.jsonl", [clip, clip])
    with pytest.raises(InputError, match="the manifest that is read"):
        check_manifest_place(tmp_path / "all.jsonl", source=tmp_path / "all.jsonl")
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(InputError, match="is no manifest"):
        write_manifest(tmp_path / "config.yaml", [clip])
    assert (tmp_path / "config.yaml").read_text() == "steps: 3\n"


def test_a_file_and_a_link_in_a_folders_place_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    for name in ("file", "link", "dangling"):
        with pytest.raises(InputError, match="is not a folder"), atomic_directory(tmp_path / name, ours=lambda _: True):
            pass
    assert (tmp_path / "file").read_text() == "mine" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("check", "ours"),
    [
        (artifacts.check_place, {"key.json": '{"architecture": "x", "sha256": "y"}', "compiled.bin": ""}),
        (
            lambda path: check_replaceable(path, _is_export),
            {"README.md": "---\nlibrary_name: videomaker\n---\n", "model_index.json": "{}"},
        ),
    ],
    ids=["warmup --save", "export --pipeline"],
)
def test_what_the_command_made_and_nothing_more_is_replaced(tmp_path, check, ours):
    check(tmp_path)  # empty
    for name, text in ours.items():
        (tmp_path / name).write_text(text)
    check(tmp_path)
    (tmp_path / "mine.jpg").touch()
    with pytest.raises(InputError, match="not this command's"):
        check(tmp_path)
    (tmp_path / "mine.jpg").unlink()
    (tmp_path / next(iter(ours))).write_text("{}")  # a user's file that bears the name
    with pytest.raises(InputError, match="not this command's"):
        check(tmp_path)


def test_an_export_of_weights_needs_its_own_name(tmp_path):
    with pytest.raises(InputError, match=r"end it in \.safetensors"):
        _export_partial(None, {}, tmp_path / "weights.md", "bf16", "card")
    (tmp_path / "weights.md").write_text("mine")
    with pytest.raises(InputError, match="it is another file"):
        _export_partial(None, {}, tmp_path / "weights.safetensors", "bf16", "card")
    (tmp_path / "weights.md").unlink()
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(InputError, match="without its model card"):
        _export_partial(None, {}, tmp_path / "weights.safetensors", "bf16", "card")


@pytest.fixture
def two_manifests(tmp_path):
    """One of two clips, another of a third; the third's video is there."""
    for name in "abc":
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    write_manifest(tmp_path / "mine.jsonl", [Clip(video="c.mp4", captions=["c"])])
    write_manifest(tmp_path / "all.jsonl", [Clip(video=f"{name}.mp4", captions=[name]) for name in "ab"])
    return tmp_path


def test_a_manifest_of_other_clips_stays(two_manifests):
    folder = two_manifests
    with pytest.raises(InputError, match=r"of other clips, such as c\.mp4"):
        check_clean_place(folder / "all.jsonl", folder / "mine.jsonl")
    drafts = [({"id": name, "video": folder / f"{name}.mp4"}, name) for name in "ab"]
    with pytest.raises(InputError, match=r"of other clips, such as c\.mp4"):
        build_manifest((drafts, Counter()), folder / "mine.jsonl")
    with pytest.raises(InputError, match=r"of other clips, such as c\.mp4"):
        highlight_manifest(folder / "all.jsonl", folder / "mine.jsonl", None, None, prompt="dog")
    write_manifest(folder / "clean.jsonl", [Clip(video="a.mp4", captions=["a"])])
    check_clean_place(folder / "all.jsonl", folder / "clean.jsonl")  # what an earlier call left
    (folder / "c.mp4").unlink()
    check_clean_place(folder / "all.jsonl", folder / "mine.jsonl")  # nothing is lost


def test_folders_of_data_replace_no_manifest_of_others(two_manifests):
    folder = two_manifests / "out"
    folder.mkdir()
    mine = folder / "manifest.jsonl"
    write_manifest(mine, [Clip(video="c.mp4", captions=["c"])])
    for write in (lambda: write_dataset(folder, clips=1), lambda: write_shards(two_manifests / "all.jsonl", folder)):
        with pytest.raises(InputError, match="not of this command"):
            write()
    assert "c.mp4" in mine.read_text() and list(folder.iterdir()) == [mine]
    mine.unlink()
    for clips in (2, 1):  # its own is replaced
        write_dataset(folder, clips=clips)
    assert len(mine.read_text().splitlines()) == 1


def test_a_folder_of_results_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file" / "x")
    for place in (tmp_path / "link", tmp_path / "file", tmp_path / "file" / "out"):
        for check in (check_report_place, check_study_place):
            with pytest.raises(InputError, match="not a folder"):
                check(place)


def test_masks_and_a_cache_of_others_stay(two_manifests):
    folder = two_manifests
    (folder / "out-masks" / "a").mkdir(parents=True)
    (folder / "out-masks" / "a" / "0.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="not this command's"):
        highlight_manifest(folder / "all.jsonl", folder / "out.jsonl", None, None, prompt="dog")
    (folder / "cache.json").write_text('{"mine": 1}')
    with pytest.raises(InputError, match="not of this command"):
        build_cache(None, None, folder)
    assert (folder / "cache.json").read_text() == '{"mine": 1}'
