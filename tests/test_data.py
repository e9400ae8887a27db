"""Training data: manifests, decoding, references, the order of samples, shards and caches."""

import dataclasses
import io
import itertools
import json
import math
import wave
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import webdataset
from clips import SIZE, damage, picture_index, write_lines, write_video
from PIL import Image
from tiny import tiny_pipeline
from typer.testing import CliRunner

from videomaker.data import index
from videomaker.data import manifest as manifests
from videomaker.data import shards as shard_files
from videomaker.data.cache import build_cache, open_cache
from videomaker.data.check import check_manifest, write_clean
from videomaker.data.dataset import DataConfig, build_dataset, decode_window
from videomaker.data.loader import build_loader, epoch_order
from videomaker.data.reference import NONE, Augmentation, affine_on_white, augment_reference, crop_to_box, mask_on_white
from videomaker.data.shards import write_shards
from videomaker.data.video import ClipError, open_video, probe
from videomaker.errors import InputError


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
        ({"video": "a.mp4", "caption": "x", "categry": "y"}, "unknown field 'categry', did you mean 'category'?"),
        (
            {"video": "a.mp4", "caption": "x", "refs": [{"image": "b", "msk": "c"}]},
            "'refs.0.msk', did you mean 'mask'?",
        ),
        ({"video": "a.mp4", "captions": "x"}, "captions: Input should be a valid array, got 'x'"),
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
    def tokenizer(captions, **_):
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
    (batch,) = take(build_loader(build_dataset(config_of(tmp_path), seed=0), batch_size=1), 1)
    assert (batch["reference"] == 1).all()  # the mask keeps nothing


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


def test_check_lists_every_problem_and_writes_the_rest(tmp_path):
    write_video(tmp_path / "good.mp4", 20)
    write_video(tmp_path / "claims.mp4", 20)
    damage(write_video(tmp_path / "damaged.mp4", 20, options={"g": "1"}))
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    path = write_lines(
        tmp_path / "manifest.jsonl",
        [
            {"video": "good.mp4", "caption": "x"},
            "{",
            {"video": "gone.mp4", "caption": "x"},
            {"video": "claims.mp4", "caption": "x", "num_frames": 21},
            {"video": "damaged.mp4", "caption": "x"},
            {"id": "small mask", "video": "good.mp4", "caption": "x", "refs": [{"frame": 0, "mask": "mask.png"}]},
        ],
    )
    report = check_manifest(path)
    assert [clip.id for clip in report.good] == ["good"]
    assert [(where, reason) for where, reason, _ in sorted(report.problems)] == [
        (f"{path}:2", "bad line"),
        (f"{path}:3", "missing"),
        (f"{path}:4", "too short"),
        (f"{path}:5", "broken"),
        (f"{path}:6", "bad reference"),
    ]
    assert "the mask has 8x8 pixels, its picture 32x32" in sorted(report.problems)[-1][2]
    write_clean(report, path, tmp_path / "clean.jsonl")
    assert manifests.read_manifest(tmp_path / "clean.jsonl") == report.good
    with pytest.raises(InputError, match="are relative to its folder"):
        write_clean(report, path, tmp_path / "elsewhere" / "clean.jsonl")


# The layouts of published data sets


@pytest.fixture
def celebv_text(tmp_path):
    root = tmp_path / "CelebV-Text"
    ids = ["0-5BrmyFsYM_0", "0-5BrmyFsYM_1", "a_b_c_d_e_f_2", "nodescript_3", "notfetched_4", "damaged____5"]
    root.mkdir()
    entries = {name: {"ytb_id": name.rpartition("_")[0], "bbox": {"top": 0}} for name in ids}
    (root / "celebvtext_info.json").write_text(json.dumps({"clips": entries}))
    for name in ["0-5BrmyFsYM_0_0", "0-5BrmyFsYM_0_1", "0-5BrmyFsYM_1", "a_b_c_d_e_f_2_0", "nodescript_3_0"]:
        write_video(root / "videos" / "celebvtext_6" / f"{name}.mp4", 20)
    (root / "videos" / "celebvtext_6" / "damaged____5_0.mp4").write_text("<html>")
    (root / "videos" / "celebvtext_6" / "unlisted_6_0.mp4").write_text("not looked at")
    for kind, name, text in [
        ("action_dur", "0-5BrmyFsYM_0", "He talks.\n\nHe smiles.\n"),
        ("face40_details_new", "0-5BrmyFsYM_0", "A man with a beard.\nHe talks.\n"),
        ("light_colot_temp", "0-5BrmyFsYM_1", "The light is warm.\n"),
        ("emotion", "a_b_c_d_e_f_2_0", "She is happy.\n"),
        ("emotion", "damaged____5", "x"),
        ("emotion", "notfetched_4", "x"),
        ("notes", "nodescript_3", "not a description"),
    ]:
        (root / "texts" / kind).mkdir(parents=True, exist_ok=True)
        (root / "texts" / kind / f"{name}.txt").write_text(text)
    return root


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
    root = tmp_path / "VideoBooth"
    labels = [
        {"value": 0, "label": "background"},
        {"value": 1, "label": "dog", "logit": 0.8, "box": [4.5, 2, 20, 24.9]},
        {"value": 2, "label": "small dog", "logit": 0.5, "box": [0, 0, 4, 4]},
    ]
    rows = {"100": labels, "101": labels, "102": labels[:1], "103": [{"value": 1, "label": "dog"}], "104": None}
    rows["105"] = [{**labels[1], "box": [9, 9, 3, 3]}]
    (root / "dog").mkdir(parents=True)
    table = "".join(f"{number},pages/0,A dog runs; number {number}\n" for number in rows)
    (root / "dog.csv").write_text("videoid,page_dir,name\n" + table)
    for number, content in rows.items():
        if number != "101":
            write_video(root / "videos" / "pages" / "0" / f"{number}.mp4", 20)
        if content:
            (root / "dog" / number).mkdir()
            (root / "dog" / number / "mask.json").write_text(json.dumps(content))
            (root / "parsing" / number).mkdir(parents=True)
            Image.new("L", (SIZE, SIZE), 1).save(root / "parsing" / number / "mask_1.png")
    return root


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


# Shards


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


# Cached latents and embeddings


@pytest.fixture
def cached(tmp_path):
    """A manifest of three clips, one of them too short, its cache, and what is needed to open it."""
    for name, count in (("a", 20), ("b", 12), ("short", 4)):
        write_video(tmp_path / f"{name}.mp4", count)
    lines = [{"video": f"{name}.mp4", "captions": [f"{name} 1", f"{name} 2"]} for name in ("a", "b", "short")]
    write_lines(tmp_path / "manifest.jsonl", lines)
    config = config_of(tmp_path, highlight=False, cache=str(tmp_path / "cache"))
    pipeline = tiny_pipeline()
    assert build_cache(config, pipeline, tmp_path / "cache", starts=2) == (2, {"too short": 1})
    return tmp_path, config, pipeline


def open_for(config, pipeline):
    return open_cache(config, vae=pipeline.vae, text_encoder=pipeline.text_encoder, tokenizer=pipeline.tokenizer)


def test_a_cache_replaces_pixels_and_prompts(cached):
    _, config, pipeline = cached
    dataset = build_dataset(config, seed=0, cache=open_for(config, pipeline))
    loader = build_loader(dataset, batch_size=2)
    batches = take(loader, 3)
    assert set(loader.skipped) == {"too short"}
    for batch in batches:
        assert "pixel_values" not in batch
        assert batch["latents"].shape == (2, 4, 3, 16, 16)
        assert batch["reference"].shape == (2, 3, 1, SIZE, SIZE)
        tokens = pipeline.tokenizer(batch["caption"], padding="max_length", return_tensors="pt").input_ids
        expected = pipeline.text_encoder(tokens)[0]
        # Entries are fp16: half a unit in the last place of its 11 significant bits.
        assert (batch["prompt_embeds"] - expected).abs().max() <= expected.abs().max() * 2**-11
    windows = {batch["latents"][i].sum().item() for batch in take(loader, 12) for i in range(2)}
    assert len(windows) == 4  # two of each clip


def test_cached_latents_are_the_clips(cached):
    _, config, pipeline = cached
    plain = build_dataset(dataclasses.replace(config, cache=""), seed=0)
    cache = open_for(config, pipeline)
    latents = cache.read(plain.clips[1], caption=0, rng=np.random.default_rng(0))["latents"]
    with open_video(plain.root / "b.mp4") as video:
        means = []
        for position in (0.25, 0.75):
            frames = decode_window(video, config, position=position).transpose(0, 1)
            with torch.no_grad():
                posterior = pipeline.vae.encode(frames).latent_dist
            scaled = (latents.transpose(0, 1) / pipeline.vae.config.scaling_factor - posterior.mean) / posterior.std
            means.append(scaled.pow(2).mean().item())
    # One of the windows is it: what is left is the posterior's noise, of variance 1 over 3072 numbers (4.7 sigma).
    assert min(abs(mean - 1) for mean in means) < 0.12


def test_an_interrupted_cache_goes_on(cached):
    root, config, pipeline = cached
    files = sorted((root / "cache").glob("*.safetensors"))
    times = [path.stat().st_mtime_ns for path in files]
    (root / "cache" / "cache.json").unlink()
    with pytest.raises(InputError, match="holds no finished cache"):
        open_for(config, pipeline)
    build_cache(config, pipeline, root / "cache", starts=2)
    assert [path.stat().st_mtime_ns for path in files] == times
    open_for(config, pipeline)


def test_a_stale_cache_is_refused(cached):
    root, config, pipeline = cached
    with pytest.raises(InputError, match="stale: frame_stride was 4, is 5"):
        open_for(dataclasses.replace(config, frame_stride=5), pipeline)
    with torch.no_grad():
        next(pipeline.vae.parameters()).add_(0.1)
    with pytest.raises(InputError, match="stale: vae was"):
        open_for(config, pipeline)
    pipeline = tiny_pipeline()
    (root / "a.mp4").touch()  # another time of change, the same bytes
    open_for(config, pipeline)
    write_video(root / "a.mp4", 21)
    with pytest.raises(InputError, match="stale for 1 of 3 clips, first 'a': its video changed"):
        open_for(config, pipeline)
    manifest = root / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace("b 2", "b 3"))
    with pytest.raises(InputError, match="stale for 2 of 3 clips"):
        open_for(config, pipeline)


# The command line


def run(*arguments):
    from videomaker.cli import app

    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_commands_prepare_a_data_set(videobooth, tmp_path):
    out, clean, masks = tmp_path / "all.jsonl", tmp_path / "clean.jsonl", videobooth / "parsing"
    code, text = run("index", "--layout", "videobooth", "--root", videobooth, "--masks", masks, "--out", out)
    assert code == 0, text
    assert "1 clips in" in text
    assert "left out, bad mask.json: 2" in text
    (tmp_path / "gone.jsonl").write_text(out.read_text() + '{"video": "gone.mp4", "caption": "x"}\n{')
    code, text = run("check", tmp_path / "gone.jsonl")
    assert code == 2
    assert "gone.jsonl:2: clip 'gone': missing" in text
    assert run("check", tmp_path / "gone.jsonl", "--out", clean)[0] == 0
    assert len(manifests.read_manifest(clean)) == 1
    code, text = run("shard", clean, "--out", tmp_path / "shards")
    assert code == 0, text
    tiny_pipeline().save_pretrained(tmp_path / "model")
    size = ["--num-frames", 3, "--frame-stride", 4, "--height", SIZE, "--width", SIZE]
    manifest = tmp_path / "shards" / "manifest.jsonl"
    code, text = run("cache", manifest, "--model", tmp_path / "model", "--out", tmp_path / "cache", *size)
    assert code == 0, text
    config = config_of(tmp_path / "shards", cache=str(tmp_path / "cache"))
    assert open_for(config, tiny_pipeline()).entries.keys() == {"dog-100"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["index", "--layout", "celebv-text", "--root", "nowhere", "--out", "m.jsonl"],
        ["index", "--layout", "celebv-text", "--root", ".", "--out", "m.jsonl", "--masks", "."],
        ["check", "nowhere.jsonl"],
        ["shard", "nowhere.jsonl", "--out", "shards"],
        ["cache", "nowhere.jsonl", "--model", "nowhere", "--out", "cache"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_refuse_and_write_nothing(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text = run(*arguments)
    assert code == 2
    assert text.startswith("error: ")
    assert not list(tmp_path.iterdir())
