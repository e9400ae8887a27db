"""Training data: manifests, decoding, references, the order of samples, shards and caches."""

import dataclasses
import io
import itertools
import json
import math
import wave
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from PIL import Image
from videomaker.train import manifest as manifests
from videomaker.train.augment import NONE, Augmentation, affine_on_white, augment_reference
from videomaker.train.dataset import DataConfig, build_dataset, build_loader, epoch_order
from videomaker.train.reference import crop_to_box, mask_on_white
from videomaker.train.video import ClipError, open_video, probe

from videomaker.errors import InputError

SIZE = 32  # pixels, of the test videos


def index_picture(index: int) -> np.ndarray:
    """A frame that tells its own index: 8 bars, white for a 1 of the binary number, which survives H.264."""
    bits = np.array([255 * (index >> bit & 1) for bit in range(8)], np.uint8)
    return np.broadcast_to(bits.repeat(SIZE // 8)[None, :, None], (SIZE, SIZE, 3))


def picture_index(image) -> int:
    bars = np.asarray(image, float).mean((0, 2)).reshape(8, -1).mean(1)
    return sum(1 << bit for bit in range(8) if bars[bit] > 128)


def write_video(path, num_frames, *, codec="libx264", pts=None, options=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(index_picture(index)), format="rgb24")
            frame.pts = pts[index] if pts else index
            container.mux(stream.encode(frame))
        if num_frames:
            container.mux(stream.encode())
    return path


def write_lines(path, lines):
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve clips, each with a masked first frame as its reference."""
    root = tmp_path_factory.mktemp("clips")
    lines = []
    for number in range(12):
        write_video(root / f"{number}.mp4", 20 + number, options={"g": "5"})
        mask = np.zeros((SIZE, SIZE), np.uint8)
        mask[8:24, 4:20] = 255
        Image.fromarray(mask).save(root / f"{number}.png")
        lines.append(
            {
                "id": f"clip-{number}",
                "video": f"{number}.mp4",
                "captions": [f"caption {number} a", f"caption {number} b"],
                "num_frames": 20 + number,
                "refs": [{"frame": frame, "mask": f"{number}.png", "box": [4, 8, 20, 24]} for frame in (0, 7)],
                "split": "val" if number == 11 else "train",
            }
        )
    write_lines(root / "manifest.jsonl", lines)
    return root


def config_of(folder, **changes):
    settings = {"num_frames": 3, "frame_stride": 4, "height": SIZE, "width": SIZE, "num_workers": 0, **changes}
    return DataConfig(manifest=str(folder / "manifest.jsonl"), **settings)


def take(loader, count):
    return list(itertools.islice(loader, count))


def assert_same_batches(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key], key


# Manifests


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"video": "a.mp4", "caption": "x"', "EOF"),
        ('["a.mp4"]', "object"),
        ({"video": "a.mp4"}, "captions: Field required"),
        ({"caption": "x"}, "video: Field required"),
        ({"video": "a.mp4", "captions": []}, "captions"),
        ({"video": 3, "caption": "x"}, "video: Input should be a valid string, got 3"),
        (
            {"video": "a.mp4", "caption": "x", "num_frames": "16"},
            "num_frames: Input should be a valid integer, got '16'",
        ),
        ({"video": "a.mp4", "caption": "x", "fps": 0}, "fps: Input should be greater than 0"),
        ({"video": "a.mp4", "caption": "x", "refs": [{}]}, "refs.0: a reference needs an 'image' or a 'frame'"),
        ({"video": "a.mp4", "caption": "x", "refs": [{"frame": 0, "box": [4, 0, 2, 9]}]}, "is empty"),
        ({"video": "a.mp4", "caption": "x", "capton": "y"}, "capton: Extra inputs are not permitted"),
        ({"video": "first.mp4", "caption": "x"}, "id 'first' is already that of line 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "m.jsonl", [{"video": "first.mp4", "caption": "x"}, line])
    with pytest.raises(InputError) as error:
        manifests.read_manifest(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe\x00", "cannot read"), (None, "no manifest at")],
)
def test_an_unusable_manifest_is_refused(tmp_path, content, message):
    path = tmp_path / "m.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        manifests.read_manifest(path)


def test_manifests_round_trip(tmp_path, folder):
    clips = manifests.read_manifest(folder / "manifest.jsonl")
    manifests.write_manifest(tmp_path / "copy.jsonl", clips)
    assert manifests.read_manifest(tmp_path / "copy.jsonl") == clips
    assert manifests.splits(tmp_path / "copy.jsonl") == {"train": 11, "val": 1}
    with pytest.raises(InputError, match="its splits are: train, val"):
        manifests.read_manifest(tmp_path / "copy.jsonl", split="test")


def test_long_captions_are_counted(folder):
    def tokenizer(captions):
        return SimpleNamespace(input_ids=[caption.split() for caption in captions])

    clips = manifests.read_manifest(folder / "manifest.jsonl")
    manifests.check_captions(clips, tokenizer, max_tokens=3)
    with pytest.raises(InputError, match="24 captions are longer than 2 tokens, first that of clip 'clip-0'"):
        manifests.check_captions(clips, tokenizer, max_tokens=2)


# Decoding


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("b-frames.mp4", {"options": {"g": "12", "bf": "3"}}),
        ("open-gop.mp4", {"options": {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}}),
        ("variable-rate.mp4", {"pts": [i + i * i // 7 for i in range(60)]}),
        ("no-timestamps.avi", {"codec": "mpeg4", "options": {"bf": "2", "q": "2"}}),
        ("no-count.mkv", {}),
    ],
)
@pytest.mark.parametrize("start", [0, 17, 35])
def test_frames_are_exact(tmp_path, name, settings, start):
    path = write_video(tmp_path / name, 60, **settings)
    wanted = list(range(start, start + 25, 8))
    for source in (path, io.BytesIO(path.read_bytes())):
        with open_video(source) as video:
            assert video.num_frames == 60
            assert [picture_index(frame) for frame in video.read(wanted)] == wanted
            assert [picture_index(frame) for frame in video.read([3])] == [3]
    assert (probe(path).num_frames, probe(path).width) == (60, SIZE)


def damage(path):
    """Overwrites the second half of the pictures; the header stays."""
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    start += (len(content) - start) // 2
    path.write_bytes(content[:start] + bytes(len(content) - start))


@pytest.mark.parametrize("kind", ["missing", "not a video", "only sound", "no frames", "broken", "too short"])
def test_unusable_videos_say_why(tmp_path, kind):
    path = tmp_path / "clip.mp4"
    if kind == "not a video":
        path.write_text("hello")
    elif kind == "only sound":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(8000))
    elif kind != "missing":
        write_video(path, 0 if kind == "no frames" else 30)
    if kind == "broken":
        damage(path)
    with pytest.raises(ClipError) as error, open_video(path) as video:
        video.info()
        video.read(range(30 if kind == "broken" else 31))
    assert error.value.reason == ("not a video" if kind == "only sound" else kind)


# References


def test_affine_moves_the_way_it_says():
    image = torch.ones(3, 40, 60)
    image[:, 19:21, 49:51] = -1  # 20 px right of the centre
    moved = affine_on_white(image, angle=math.pi / 2, scale=0.5, shift=(0.1, -0.2))
    rows, columns = torch.nonzero(1 - moved[0] > 1e-6, as_tuple=True)
    # Clockwise: 10 px below the centre (after scaling), then 6 px right and 8 px up.
    assert (rows.float().mean().item(), columns.float().mean().item()) == pytest.approx((21.5, 35.5), abs=0.01)


def test_affine_fills_with_exact_white():
    moved = affine_on_white(torch.full((3, 24, 32), -0.7), angle=0.4, scale=0.6, shift=(0.1, 0.0))
    assert (moved[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()
    assert moved.max() == 1
    assert moved[:, 12, 17].tolist() == pytest.approx([-0.7] * 3, abs=1e-6)


def test_augmentation_follows_its_ranges():
    image = torch.rand(3, 16, 16) * 2 - 1
    flips = Augmentation(flip_probability=1.0, rotation=0, translation=0, scale_min=1, scale_max=1)
    assert torch.equal(augment_reference(image, flips, np.random.default_rng(0)), image.flip(-1))
    assert torch.equal(augment_reference(image, NONE, np.random.default_rng(0)), image)
    first, again, other = (augment_reference(image, Augmentation(), np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_reference_is_the_subject_on_white(folder):
    crops = config_of(folder, crop_to_subject=True, augmentation=NONE)
    whole = dataclasses.replace(crops, crop_to_subject=False)
    raw = dataclasses.replace(whole, highlight=False)
    crop, whole, raw = (build_dataset(c, seed=0)[0, 3]["reference"][:, 0] for c in (crops, whole, raw))
    inside = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    inside[8:24, 4:20] = True
    assert (whole[:, ~inside] == 1).all()
    assert torch.equal(whole[:, inside], raw[:, inside])
    assert (raw[:, ~inside] < 1).any()
    assert crop.shape == raw.shape
    assert (crop < 0).float().mean() > 0.9 * (whole[:, inside] < 0).float().mean()


def test_masks_and_boxes_must_fit():
    image = Image.new("RGB", (20, 10))
    with pytest.raises(ValueError, match="the mask has 10x10 pixels, its picture 20x10"):
        mask_on_white(image, Image.new("L", (10, 10)))
    with pytest.raises(ValueError, match="no pixel of a picture of 20x10"):
        crop_to_box(image, (20.5, 0, 30, 10))
    assert crop_to_box(image, (-3.2, 1.9, 100.0, 9.9)).size == (20, 8)


# Order and resuming


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


# Clips that cannot be used


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
