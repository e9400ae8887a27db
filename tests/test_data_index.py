"""Manifests out of CelebV-Text's and VideoBooth's folders."""

import dataclasses
import json

import pytest
from clips import (
    SIZE,
    config_of,
    take,
)
from layouts import write_celebv_text, write_videobooth

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
    assert dropped == {"missing": 1, "no description": 1, "not a video": 1}
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


@pytest.mark.parametrize("layout", ["celebv-text", "videobooth"])
def test_another_folder_is_refused(tmp_path, layout):
    with pytest.raises(InputError, match="--root"):
        index.build_manifest(index.LAYOUTS[layout](tmp_path), tmp_path / "m.jsonl")
    (tmp_path / "celebvtext_info.json").write_text("{}")
    (tmp_path / "dog.csv").write_text("videoid,page_dir,name\n")
    with pytest.raises(InputError, match="no clip can be used"):
        index.build_manifest(index.LAYOUTS[layout](tmp_path), tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()
