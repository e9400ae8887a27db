"""Manifests out of CelebV-Text's and VideoBooth's folders."""

import dataclasses
import json

import pytest
from clips import (
    SIZE,
    config_of,
    damage,
    take,
    write_video,
)
from layouts import write_celebv_text, write_mask, write_videobooth
from PIL import Image
from typer.testing import CliRunner

from videomaker.data import index
from videomaker.data import manifest as manifests
from videomaker.data.dataset import build_dataset
from videomaker.data.loader import build_loader
from videomaker.errors import InputError


@pytest.fixture
def celebv_text(tmp_path):
    return write_celebv_text(tmp_path)


def test_celebv_text_is_indexed(celebv_text, tmp_path):
    out = tmp_path / "manifests" / "people.jsonl"
    count, dropped = index.build_manifest(index.index_celebv_text(celebv_text), out)
    clips = {clip.id: clip for clip in manifests.read_manifest(out)}
    assert count == len(clips) == 4
    assert dropped == {"missing": 1, "no description": 1, "not a video": 1, "not in the JSON": 1}
    assert clips["0-5BrmyFsYM_0_1"].captions == ("A man with a beard.", "He talks.", "He smiles.")
    assert clips["0-5BrmyFsYM_1"].captions == ("The light is warm.",)
    assert clips["a_b_c_d_e_f_2_0"].captions == ("She is happy.",)
    first = clips["0-5BrmyFsYM_0_0"]
    assert first.video == "../CelebV-Text/videos/celebvtext_6/0-5BrmyFsYM_0_0.mp4"
    assert (first.num_frames, first.fps, first.width, first.height) == (20, 25, SIZE, SIZE)


def test_a_source_video_is_in_one_split(celebv_text, tmp_path):
    info = celebv_text / "celebvtext_info.json"
    info.write_text(json.dumps(json.loads(info.read_text())["clips"]))  # the other spelling of the file
    split_of = {}
    for fraction in (0.3, 0.6, 1.0):
        out = tmp_path / f"{fraction}.jsonl"
        index.build_manifest(index.index_celebv_text(celebv_text), out, val_fraction=fraction)
        for clip in manifests.read_manifest(out):
            assert split_of.setdefault((fraction, clip.id[:11]), clip.split) == clip.split
    assert {split for (fraction, _), split in split_of.items() if fraction == 1.0} == {"val"}


@pytest.fixture
def videobooth(tmp_path):
    return write_videobooth(tmp_path)


def test_videobooth_is_indexed(videobooth, tmp_path):
    out = tmp_path / "objects.jsonl"
    count, dropped = index.build_manifest(index.index_videobooth(videobooth, masks=videobooth / "parsing"), out)
    (clip,) = manifests.read_manifest(out)
    assert count == 1
    assert dropped == {"missing": 1, "no mask": 2, "bad mask.json": 2}
    assert (clip.id, clip.category, clip.subject_phrase) == ("dog-100", "dog", "dog")
    assert clip.captions == ("A dog runs; number 100",)
    mask = "VideoBooth/parsing/100/mask_1.png"
    assert clip.refs == (manifests.Reference(frame=0, mask=mask, box=(4.5, 2, 20, 24.9)),)
    config = dataclasses.replace(config_of(tmp_path, crop_to_subject=True), manifest=str(out))
    assert take(build_loader(build_dataset(config, seed=0), batch_size=1), 1)


def run(*arguments) -> str:
    from videomaker.cli import app

    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())


def later_commands_take(manifest, tmp_path, kept: int) -> None:
    out = manifest.with_name("clean.jsonl")
    run("check", manifest, "--out", out)
    assert len(manifests.read_manifest(out)) == kept
    assert f"{kept} clips in" in run("shard", out, "--out", tmp_path / "shards")
    config = config_of(tmp_path, highlight=False, num_frames=3, frame_stride=2)
    for path in (out, tmp_path / "shards" / "manifest.jsonl"):
        dataset = build_dataset(dataclasses.replace(config, manifest=str(path)), seed=0)
        ids = {batch["ids"][0] for batch in take(build_loader(dataset, batch_size=1), kept)}
        assert ids == {clip.id for clip in manifests.read_manifest(out)}


def test_what_goes_wrong_in_celebv_text_is_counted(tmp_path):
    root, texts = tmp_path / "CelebV-Text", tmp_path / "CelebV-Text" / "texts"
    good = ["plain_0", "ünïcode_Ж_1", "stream_2", "turned_3", "half_4"]
    bad = ["twice_5", "nodescription_6", "latin_7", "html_8", "notfetched_9", "cut_10", "nothing_11"]
    listed = ", ".join(f'"{name}": {{"ytb_id": "{name}"}}' for name in [*good, *bad, "plain_0"])
    (root / "videos" / "a").mkdir(parents=True)
    (root / "celebvtext_info.json").write_text(f'{{"clips": {{{listed}}}}}')
    for name in ["plain_0_0", "plain_0_1", "half_4", "twice_5_0", "nodescription_6", "latin_7_0", "notlisted_12_0"]:
        write_video(root / "videos" / "a" / f"{name}.mp4", 20)
    write_video(root / "videos" / "b" / "twice_5_0.mp4", 20)
    write_video(root / "videos" / "a" / "ünïcode_Ж_1_0.mp4", 20)
    write_video(root / "videos" / "a" / "stream_2_0.ts", 20)
    write_video(root / "videos" / "a" / "turned_3_0.mp4", 20, rotation=90)
    (root / "videos" / "a" / "html_8_0.mp4").write_text("<html>")
    cut = write_video(root / "videos" / "a" / "cut_10_0.mp4", 40, options={"g": "5"})
    damage(cut)
    write_video(root / "videos" / "a" / "nothing_11_0.mp4", 0)
    for name in [*good, "twice_5", "html_8", "notfetched_9", "cut_10", "nothing_11"]:
        path = texts / ("light_colot_temp" if name == "stream_2" else "emotion") / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} smiles.\n", encoding="utf-8")
    (texts / "emotion" / "latin_7.txt").write_bytes("Ein Lächeln.".encode("latin-1"))
    (texts / "light_colot_temp" / "half_4.txt").write_bytes("Grün.".encode("latin-1"))
    out = tmp_path / "people.jsonl"
    text = run("index", "--layout", "celebv-text", "--root", root, "--out", out, "--val-fraction", 0)
    expected = {
        "same id": 2, "missing": 1, "not in the JSON": 1, "no description": 1, "caption is not UTF-8": 2,
        "not a video": 1, "no frames": 1,
    }  # fmt: skip
    assert "8 clips in" in text
    for reason, count in expected.items():
        assert f"left out, {reason}: {count}" in text
    assert text.count("left out") == len(expected)
    clips = {clip.id: clip for clip in manifests.read_manifest(out)}
    assert clips["half_4"].captions == ("half_4 smiles.",)
    assert (clips["turned_3_0"].width, clips["turned_3_0"].height) == (SIZE, SIZE)
    later_commands_take(out, tmp_path, 7)  # all but the cut one, which only decoding finds


def test_what_goes_wrong_in_videobooth_is_counted(tmp_path):
    root = tmp_path / "VideoBooth"
    rows = {
        "1": "A dog runs, far", "1 again": "A dog runs, far", "2": "", "3": "Ein \udce4lterer Hund", "4": "A dog",
        "5": "A dog", "6": "A dog", "7": "Жучка бежит", "8": "A dog", "9": "A dog", "": "A dog",
    }  # fmt: skip
    lines = [f'{number.split()[0] if number else ""},pages,"{name}"' for number, name in rows.items()]
    (root / "dog").mkdir(parents=True)
    (root / "dog.csv").write_bytes("\n".join(["videoid,page_dir,name", *lines, "10"]).encode(errors="surrogateescape"))
    for number in range(1, 10):
        if number != 4:
            write_video(root / "videos" / "pages" / f"{number}.mp4", 20)
        (root / "dog" / str(number)).mkdir()
        box = "[4, 2, Infinity, 24]" if number == 5 else "[4, 2, 20, 24]"
        (root / "dog" / str(number) / "mask.json").write_text(f'[{{"value": 1, "label": "dog", "box": {box}}}]')
        if number != 6:
            write_mask(root / "dog" / str(number) / "mask_1.png", value=0 if number == 8 else 1)
    Image.new("L", (8, 8), 1).save(root / "dog" / "9" / "mask_1.png")
    out = tmp_path / "objects.jsonl"
    text = run("index", "--layout", "videobooth", "--root", root, "--out", out, "--val-fraction", 0)
    expected = {
        "same id": 1, "no caption": 1, "caption is not UTF-8": 1, "missing": 1, "bad mask.json": 1, "no mask": 1,
        "incomplete row": 2,
    }  # fmt: skip
    assert "4 clips in" in text
    for reason, count in expected.items():
        assert f"left out, {reason}: {count}" in text
    assert text.count("left out") == len(expected)
    later_commands_take(out, tmp_path, 2)  # the black mask and the one of another size go


@pytest.mark.parametrize("layout", ["celebv-text", "videobooth"])
def test_another_folder_is_refused(tmp_path, layout):
    with pytest.raises(InputError, match="--root"):
        index.build_manifest(index.LAYOUTS[layout](tmp_path), tmp_path / "m.jsonl")
    (tmp_path / "celebvtext_info.json").write_text("{}")
    (tmp_path / "dog.csv").write_text("videoid,page_dir,name\n")
    with pytest.raises(InputError, match="no clip can be used"):
        index.build_manifest(index.LAYOUTS[layout](tmp_path), tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()
