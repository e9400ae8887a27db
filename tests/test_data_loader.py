"""Batches: their order, resuming, clips that cannot be used."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from clips import (
    SIZE,
    assert_same_batches,
    config_of,
    damage,
    masked_clips,
    take,
    write_lines,
    write_video,
)
from PIL import Image

from videomaker.data.dataset import build_dataset
from videomaker.data.loader import build_loader, epoch_order
from videomaker.data.reference import NONE
from videomaker.errors import InputError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return masked_clips(tmp_path_factory.mktemp("clips"))


def test_batches_hold_what_the_trainer_expects(folder):
    (batch,) = take(build_loader(build_dataset(config_of(folder), seed=0), batch_size=2), 1)
    assert batch["pixel_values"].shape == (2, 3, 3, SIZE, SIZE)
    assert batch["reference"].shape == (2, 3, 1, SIZE, SIZE)
    for key in ("pixel_values", "reference"):
        assert batch[key].dtype == torch.float32
        assert batch[key].abs().max() <= 1
    assert [caption.split()[1] for caption in batch["caption"]] == [name[5:] for name in batch["ids"]]


def test_the_number_of_workers_changes_nothing(folder):
    dataset = build_dataset(config_of(folder), seed=3)
    alone, helped = (take(build_loader(dataset, batch_size=2, num_workers=n), 6) for n in (0, 2))
    assert_same_batches(alone, helped)


def test_seed_and_epoch_change_everything(folder):
    config = config_of(folder)
    one, other = build_dataset(config, seed=0), build_dataset(config, seed=1)
    orders = {tuple(epoch_order(one.clips, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4
    references = [dataset[epoch, 0]["reference"] for dataset in (one, other) for epoch in (0, 1)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(references, 2))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_continues_the_stream(folder, num_workers):
    dataset = build_dataset(config_of(folder), seed=0)
    whole = take(build_loader(dataset, batch_size=2, num_workers=num_workers), 9)  # 11 clips: crosses an epoch
    first = build_loader(dataset, batch_size=2, num_workers=num_workers)
    assert_same_batches(take(first, 4), whole[:4])
    state = json.loads(json.dumps(first.state_dict()))
    assert (state["epoch"], state["position"]) == (0, 8)
    second = build_loader(dataset, batch_size=2, num_workers=num_workers)
    second.load_state_dict(state)
    assert_same_batches(take(second, 5), whole[4:])
    assert second.epoch == 1


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_every_epoch(folder, world_size):
    dataset = build_dataset(config_of(folder), seed=0)
    loaders = [build_loader(dataset, batch_size=1, rank=r, world_size=world_size) for r in range(world_size)]
    streams = [[batch["ids"][0] for batch in take(loader, 22)] for loader in loaders]
    together = list(itertools.chain.from_iterable(zip(*streams, strict=True)))
    for epoch in (0, 1):
        assert sorted(together[epoch * 11 : epoch * 11 + 11]) == sorted(clip.id for clip in dataset.clips)


def test_another_number_of_ranks_resumes_the_same_stream(folder):
    dataset = build_dataset(config_of(folder), seed=0)
    whole = [name for batch in take(build_loader(dataset, batch_size=2), 8) for name in batch["ids"]]
    pair = [build_loader(dataset, batch_size=1, rank=rank, world_size=2) for rank in range(2)]
    before = [
        name
        for batches in zip(*(take(loader, 3) for loader in pair), strict=True)
        for b in batches
        for name in b["ids"]
    ]
    assert pair[0].state_dict() == pair[1].state_dict()
    alone = build_loader(dataset, batch_size=2)
    alone.load_state_dict(pair[0].state_dict())
    after = [name for batch in take(alone, 5) for name in batch["ids"]]
    assert before + after == whole


def test_a_state_of_other_data_is_refused(folder):
    state = build_loader(build_dataset(config_of(folder), seed=0), batch_size=1).state_dict()
    with pytest.raises(InputError, match="11 clips then, 1 now"):
        build_loader(build_dataset(config_of(folder, split="val"), seed=0), batch_size=1).load_state_dict(state)
    with pytest.raises(InputError, match="has seed 0, not 1"):
        build_loader(build_dataset(config_of(folder), seed=1), batch_size=1).load_state_dict(state)


def test_bad_files_are_refused_before_the_first_step(tmp_path, folder):
    write_video(tmp_path / "good.mp4", 20)
    (tmp_path / "text.mp4").write_text("hello")
    write_video(tmp_path / "empty.mp4", 0)
    names = ["good", "text", "empty", "gone"]
    write_lines(tmp_path / "manifest.jsonl", [{"video": f"{name}.mp4", "caption": "x"} for name in names])
    config = config_of(tmp_path, highlight=False)
    with pytest.raises(InputError) as error:
        build_dataset(config, seed=0)
    expected = "3 of 4 clips cannot be used (not a video: 1, no frames: 1, missing: 1), first 'text'"
    assert str(error.value).startswith(expected)
    dataset = build_dataset(dataclasses.replace(config, bad_clips="skip"), seed=0)
    assert len(dataset) == 4


def test_references_must_fit_before_the_first_step(tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    Image.new("RGB", (20, 10)).save(tmp_path / "picture.jpg")
    Image.new("L", (10, 20)).save(tmp_path / "mask.png")
    ref = {"image": "picture.jpg", "mask": "mask.png"}
    write_lines(tmp_path / "manifest.jsonl", [{"video": "a.mp4", "caption": "x", "refs": [ref]}])
    with pytest.raises(InputError, match=r"bad reference: 1\), first 'a': .* mask.png and its picture have different"):
        build_dataset(config_of(tmp_path), seed=0)
    write_lines(tmp_path / "late.jsonl", [{"video": "a.mp4", "caption": "x", "refs": [{"frame": 20}]}])
    with pytest.raises(InputError, match="frame 20 of a video of 20 frames"):
        build_dataset(
            dataclasses.replace(config_of(tmp_path, highlight=False), manifest=str(tmp_path / "late.jsonl")), seed=0
        )
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned by 90 degrees
    Image.new("RGB", (20, 10)).save(tmp_path / "picture.jpg", exif=turned)
    with pytest.raises(InputError, match="16 clips in a row cannot be read"):
        take(build_loader(build_dataset(config_of(tmp_path), seed=0), batch_size=1), 1)  # the mask keeps nothing
    mask = np.zeros((20, 10), np.uint8)
    mask[:10] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (batch,) = take(build_loader(build_dataset(config_of(tmp_path, augmentation=NONE), seed=0), batch_size=1), 1)
    assert 0.2 < (batch["reference"] == -1).float().mean() < 0.3  # the upper half of the picture, which is half as wide


def test_bad_clips_are_replaced_and_counted(tmp_path, caplog):
    for name in ("a", "b", "c"):
        write_video(tmp_path / f"{name}.mp4", 20)
    write_video(tmp_path / "short.mp4", 5)
    damage(write_video(tmp_path / "damaged.mp4", 20, options={"g": "1"}))
    names = ["a", "b", "c", "short", "damaged"]
    write_lines(tmp_path / "manifest.jsonl", [{"video": f"{name}.mp4", "caption": "x"} for name in names])
    dataset = build_dataset(config_of(tmp_path, highlight=False, frame_stride=8), seed=0)
    loader = build_loader(dataset, batch_size=1)
    ids = [batch["ids"][0] for batch in take(loader, 10)]  # two epochs
    assert set(ids) == {"a", "b", "c"}
    assert loader.skipped["too short"] >= 2
    assert loader.skipped["broken"] >= 2
    assert len([r for r in caplog.records if "'short' skipped: too short: 5 frames, 17 needed" in r.message]) == 1


def test_nothing_left_is_an_error(tmp_path):
    write_video(tmp_path / "short.mp4", 5)
    write_lines(tmp_path / "manifest.jsonl", [{"video": "short.mp4", "caption": "x"}])
    config = config_of(tmp_path, highlight=False)
    with pytest.raises(InputError, match="16 clips in a row cannot be read"):
        take(build_loader(build_dataset(config, seed=0), batch_size=1), 1)
    write_lines(tmp_path / "manifest.jsonl", [{"video": "short.mp4", "caption": "x", "num_frames": 5}])
    with pytest.raises(InputError, match="has the 9 frames that 3 frames at stride 4 need"):
        build_dataset(config, seed=0)


def test_highlighting_needs_masks(folder, tmp_path):
    write_video(tmp_path / "a.mp4", 20)
    write_lines(tmp_path / "manifest.jsonl", [{"video": "a.mp4", "caption": "x"}])
    with pytest.raises(InputError, match="1 of 1 clips have no mask for their reference, first 'a'"):
        build_dataset(config_of(tmp_path), seed=0)
