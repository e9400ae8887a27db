"""Shards: the same samples, whole or absent."""

import itertools
import json

import pytest
import webdataset
from clips import assert_same_batches, config_of, masked_clips, take, write_lines, write_video

from videomaker.data import manifest as manifests
from videomaker.data import shards as shard_files
from videomaker.data.dataset import build_dataset
from videomaker.data.loader import build_loader, epoch_order
from videomaker.data.shards import write_shards
from videomaker.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture
def shards(folder, tmp_path):
    write_shards(folder / "manifest.jsonl", tmp_path / "shards", clips_per_shard=5)
    return tmp_path / "shards"


def test_shards_hold_the_same_samples(folder, shards):
    plain, packed = (build_dataset(config_of(root), seed=0) for root in (folder, shards))
    assert [path.name for path in sorted(shards.glob("*.tar"))] == [f"shard-{n:06d}.tar" for n in range(3)]
    assert [clip.id for clip in packed.clips] == [clip.id for clip in plain.clips]
    for index_ in (0, 6, 10):
        assert_same_batches([plain[0, index_]], [packed[0, index_]])
    with pytest.raises(InputError, match=r"missing: 1.*shard-000002.tar"):
        (shards / "shard-000002.tar").unlink()
        build_dataset(config_of(shards), seed=0)


def test_shards_are_read_one_after_the_other(shards):
    dataset = build_dataset(config_of(shards), seed=0)
    for epoch in range(3):
        order = [dataset.clips[i].shard for i in epoch_order(dataset.clips, seed=0, epoch=epoch)]
        assert len(list(itertools.groupby(order))) == 3
    loader = build_loader(dataset, batch_size=1, num_workers=1)
    whole = take(loader, 6)
    resumed = build_loader(dataset, batch_size=1)
    resumed.load_state_dict({**loader.state_dict(), "position": 4})
    assert_same_batches(take(resumed, 2), whole[4:])


def test_webdataset_reads_the_shards(shards):
    samples = list(webdataset.WebDataset(str(shards / "shard-{000000..000002}.tar"), shardshuffle=False))
    assert len(samples) == 12
    assert json.loads(samples[3]["json"])["id"] == "clip-3"
    assert {"mp4", "mask0.png", "mask1.png"} <= samples[3].keys()


def test_sharding_goes_on_after_an_interruption(folder, shards, tmp_path, monkeypatch):
    interrupted = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        pack = shard_files._pack
        patch.setattr(
            shard_files, "_pack", lambda clip, key, root: pack(clip, key, root) if key < "00000007" else 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            write_shards(folder / "manifest.jsonl", interrupted, clips_per_shard=5)
    assert sorted(path.name for path in interrupted.iterdir()) == ["plan.json", "shard-000000.tar"]
    first = (interrupted / "shard-000000.tar").stat().st_mtime_ns
    assert write_shards(folder / "manifest.jsonl", interrupted, clips_per_shard=5) == (12, {})
    assert (interrupted / "shard-000000.tar").stat().st_mtime_ns == first
    for path in shards.iterdir():
        assert (interrupted / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(InputError, match="holds shards of another manifest or size"):
        write_shards(folder / "manifest.jsonl", interrupted, clips_per_shard=6)


def test_sharding_leaves_bad_clips_out(tmp_path):
    write_video(tmp_path / "good.mp4", 20)
    (tmp_path / "bad.mp4").write_text("hello")
    names = ["bad", "good", "gone"]
    path = write_lines(tmp_path / "manifest.jsonl", [{"video": f"{name}.mp4", "caption": "x"} for name in names])
    assert write_shards(path, tmp_path / "out") == (1, {"not a video": 1, "missing": 1})
    assert [clip.id for clip in manifests.read_manifest(tmp_path / "out" / "manifest.jsonl")] == ["good"]


def test_shards_of_nothing_are_refused_and_not_left(tmp_path):
    write_lines(tmp_path / "manifest.jsonl", [{"video": f"{name}.mp4", "caption": "gone"} for name in "abc"])
    with pytest.raises(InputError, match="no clip of"):
        write_shards(tmp_path / "manifest.jsonl", tmp_path / "shards", clips_per_shard=2)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.jsonl"]
