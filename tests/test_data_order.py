"""Several manifests in shares, buckets of size and length, and sampling by frames a second."""

import collections
import dataclasses
import json

import numpy as np
import pytest
from clips import assert_same_batches, config_of, picture_index, take, write_lines, write_video

from videomaker.data.buckets import Shape, choose_shape
from videomaker.data.dataset import build_dataset, decode_window
from videomaker.data.loader import build_loader
from videomaker.data.manifest import Clip
from videomaker.data.order import Order
from videomaker.data.video import open_video
from videomaker.errors import InputError

WIDE, TALL, SHORT = Shape(3, 16, 32), Shape(3, 32, 16), Shape(2, 32, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two manifests of five and three clips of the same ids."""
    made = []
    for name, count in (("a", 5), ("b", 3)):
        folder = tmp_path_factory.mktemp(name)
        lines = []
        for number in range(count):
            write_video(folder / f"{number}.mp4", 12)
            lines.append({"video": f"{number}.mp4", "caption": f"{name} {number}", "num_frames": 12, "fps": 25})
        write_lines(folder / "manifest.jsonl", lines)
        made.append(folder)
    return made


def mixed(folders, **changes):
    config = config_of(folders[0], highlight=False, **changes)
    return dataclasses.replace(config, manifest=tuple(str(folder / "manifest.jsonl") for folder in folders))


def captions(loader, count):
    return [caption for batch in take(loader, count) for caption in batch["caption"]]


def test_without_weights_all_clips_count_alike(folders):
    loader = build_loader(build_dataset(mixed(folders), seed=0), batch_size=2)
    assert sorted(captions(loader, 4)) == [f"a {n}" for n in range(5)] + [f"b {n}" for n in range(3)]


def test_weights_are_the_shares_of_every_epoch():
    clips = [Clip(video=f"{n}.mp4", caption="x") for n in range(50)]
    order = Order(clips, seed=0, sources=[0] * 40 + [1] * 10, shares=(1.0, 3.0))
    taken = collections.Counter()
    for epoch in range(8):
        keys = order.epoch(epoch)
        shares = collections.Counter(index >= 40 for _, index in keys)
        assert abs(shares[True] - 37.5) < 1 and abs(shares[False] - 12.5) < 1
        taken.update(keys)
    assert set(taken.values()) == {1}  # no pass over a manifest takes a clip twice
    seen = collections.Counter(index for _, index in taken)
    assert {seen[n] for n in range(40, 50)} == {30}  # 8 · 37.5 / 10
    assert {seen[n] for n in range(40)} <= {2, 3}


def test_a_weighted_run_resumes_at_the_very_next_clip(folders):
    config = mixed(folders, weights=(1.0, 4.0))
    whole = take(build_loader(build_dataset(config, seed=0), batch_size=2), 9)
    first = build_loader(build_dataset(config, seed=0), batch_size=2)
    take(first, 5)
    second = build_loader(build_dataset(config, seed=0), batch_size=2)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert_same_batches(take(second, 4), whole[5:])
    pair = [build_loader(build_dataset(config, seed=0), batch_size=1, rank=rank, world_size=2) for rank in (0, 1)]
    together = [name for names in zip(*(captions(one, 9) for one in pair), strict=True) for name in names]
    assert together == [caption for batch in whole for caption in batch["caption"]]


def test_other_manifests_are_another_run(folders):
    state = build_loader(build_dataset(mixed(folders), seed=0), batch_size=1).state_dict()
    turned = build_loader(build_dataset(mixed(folders[::-1]), seed=0), batch_size=1)
    with pytest.raises(InputError, match="the manifest changed"):
        turned.load_state_dict(state)
    with pytest.raises(InputError, match=r"data\.weights has 1 numbers for 2 manifests"):
        build_dataset(mixed(folders, weights=(1.0,)), seed=0)


def test_a_clip_goes_to_the_shape_that_fits_it():
    def chosen(width, height, num_frames, shapes):
        clip = Clip(video="x.mp4", caption="x", width=width, height=height, num_frames=num_frames)
        number = choose_shape(clip, shapes, step=4)
        return None if number is None else shapes[number]

    shapes = [WIDE, TALL, SHORT]
    assert chosen(1280, 720, 100, shapes) == WIDE
    assert chosen(720, 1280, 100, shapes) == TALL
    assert chosen(1280, 720, 8, shapes) == SHORT  # too short for the wide one
    assert chosen(1280, 720, 4, shapes) is None
    lengths = [Shape(2, 32, 32), Shape(3, 32, 32), Shape(3, 64, 64), Shape(2, 64, 64)]
    assert chosen(640, 640, 100, lengths) == Shape(3, 64, 64)
    assert chosen(48, 48, 100, lengths) == Shape(3, 32, 32)
    with pytest.raises(InputError, match=r"data\.buckets needs num_frames, width and height"):
        choose_shape(Clip(video="x.mp4", caption="x", num_frames=100), shapes, 4)


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory):
    """Nine wide clips, five tall ones, one that is nearly square."""
    folder = tmp_path_factory.mktemp("shapes")
    lines = []
    for number, (width, height) in enumerate([(64, 32)] * 9 + [(32, 64)] * 5 + [(32, 32)]):
        write_video(folder / f"{number}.mp4", 12)
        about = {"num_frames": 12, "width": width, "height": height}
        lines.append({"video": f"{number}.mp4", "caption": f"{number}", **about})
    write_lines(folder / "manifest.jsonl", lines)
    return folder


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_step_takes_one_bucket_and_resumes(shapes_folder, world_size):
    config = config_of(shapes_folder, highlight=False, buckets=(WIDE, TALL, SHORT))
    dataset = build_dataset(config, seed=0)

    def loaders():
        size = {"batch_size": 2 // world_size, "world_size": world_size, "group": 4}
        return [build_loader(dataset, rank=rank, **size) for rank in range(world_size)]

    made = loaders()
    streams = [take(loader, 16) for loader in made]
    shapes = [[tuple(batch["pixel_values"].shape[2:]) for batch in stream] for stream in streams]
    assert set(map(tuple, shapes)) == {tuple(shapes[0])}
    steps = list(zip(shapes[0][::2], shapes[0][1::2], strict=True))  # two batches make a step of four
    assert all(first == second for first, second in steps)
    counts = collections.Counter(first for first, _ in steps)
    assert set(counts) == {tuple(WIDE), tuple(TALL)}  # one square clip fills no step
    assert counts[tuple(WIDE)] > counts[tuple(TALL)]
    ids = [name for batches in zip(*streams, strict=True) for batch in batches for name in batch["ids"]]
    assert ids == [name for batch in take(build_loader(dataset, batch_size=2, group=4), 16) for name in batch["ids"]]

    again = loaders()
    halfway = build_loader(dataset, batch_size=2 // world_size, world_size=world_size, group=4)
    take(halfway, 6)
    again[0].load_state_dict(halfway.state_dict())
    assert_same_batches(take(again[0], 10), streams[0][6:])


def test_buckets_that_no_step_can_fill_are_said(shapes_folder, caplog):
    dataset = build_dataset(config_of(shapes_folder, highlight=False, buckets=(WIDE, TALL, SHORT)), seed=0)
    build_loader(dataset, batch_size=4)
    assert "fewer clips than a step's 4 are left out: 2 frames of 32x32: 1" in caplog.text
    with pytest.raises(InputError, match="a step takes 16 clips of one bucket and none has as many"):
        build_loader(dataset, batch_size=16)


def test_a_bad_clip_gives_way_to_one_of_its_bucket(shapes_folder, tmp_path):
    lines = (shapes_folder / "manifest.jsonl").read_text().splitlines()
    for path in shapes_folder.glob("*.mp4"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "9.mp4").unlink()
    write_lines(tmp_path / "manifest.jsonl", lines)
    config = config_of(tmp_path, highlight=False, buckets=(WIDE, TALL), bad_clips="skip")
    sample = build_dataset(config, seed=0)[0, 9]
    assert sample["pixel_values"].shape[2:] == (32, 16) and int(sample["ids"]) > 9
    assert [name for name, *_ in sample["skipped"]] == ["9"]


@pytest.mark.parametrize(
    ("fps", "expected"), [(25, [0, 1, 2, 3]), (12.5, [0, 2, 4, 6]), (10, [0, 2, 5, 8]), (5, [0, 5, 10, 15])]
)
def test_frames_a_second_choose_the_nearest_frames(tmp_path, fps, expected):
    write_video(tmp_path / "a.mp4", 20)
    config = config_of(tmp_path, num_frames=4, fps=fps)
    with open_video(tmp_path / "a.mp4") as video:
        pixels = decode_window(video, config, position=0.0)
    shown = ((pixels.permute(1, 2, 3, 0).numpy() + 1) * 127.5).astype(np.uint8)
    assert [picture_index(frame) for frame in shown] == expected


def test_frames_a_second_of_a_variable_rate_go_by_time(tmp_path):
    times = [0, 1, 2, 3, 4, 14, 24, 34, 44, 54]  # in 25ths: quick, then slow
    write_video(tmp_path / "a.mp4", 10, pts=times)
    with open_video(tmp_path / "a.mp4") as video:
        assert video.variable_rate and video.rate == pytest.approx(25 * 9 / 54)
        wanted = config_of(tmp_path, num_frames=4, fps=25 / 12).step(video.rate)
        assert video.window(0.0, num_frames=4, stride=wanted) == [3, 5, 6, 7]  # shown at 3, 15, 27 and 39


def test_a_video_that_is_too_slow_is_left_out(tmp_path):
    for name in ("slow", "quick"):
        write_video(tmp_path / f"{name}.mp4", 20)
    lines = [
        {"video": f"{name}.mp4", "caption": "x", "num_frames": 20, "fps": fps}
        for name, fps in (("slow", 5), ("quick", 25))
    ]
    write_lines(tmp_path / "manifest.jsonl", lines)
    config = config_of(tmp_path, highlight=False, fps=10)
    assert [clip.id for clip in build_dataset(config, seed=0).clips] == ["quick"]
    with pytest.raises(InputError, match=r"no clip of .* has the 30 frames a second of data\.fps"):
        build_dataset(dataclasses.replace(config, fps=30), seed=0)
    write_lines(tmp_path / "manifest.jsonl", [{"video": "quick.mp4", "caption": "x"}])  # its rate is not known yet
    with pytest.raises(InputError, match="clips in a row cannot be read"):
        take(build_loader(build_dataset(dataclasses.replace(config, fps=30), seed=0), batch_size=1), 1)


def test_a_cache_is_of_one_manifest_and_size(folders):
    with pytest.raises(InputError, match=r"data\.cache holds one manifest in one size"):
        build_dataset(mixed(folders), seed=0, cache=object())
