"""Masks of the subject: the filters with a made-up detector, the models with random weights."""

import json

import numpy as np
import pytest
from clips import SIZE, write_lines, write_video
from PIL import Image
from tiny_finders import write_finders

from videomaker.data.dataset import DataConfig, build_dataset
from videomaker.data.highlight import (
    GroundingDino,
    HighlightSettings,
    Sam,
    highlight_manifest,
    highlight_part,
    suppress,
)
from videomaker.data.manifest import read_manifest
from videomaker.data.sharing import Shard
from videomaker.errors import InputError

BOX = (4.0, 8.0, 20.0, 24.0)


def segmenter(image, box):
    left, top, right, bottom = map(int, box)
    mask = np.zeros((image.height, image.width), bool)
    mask[top:bottom, left:right] = True
    return mask


class MadeUpDetector:
    """Gives the boxes listed for a text and counts its calls."""

    def __init__(self, boxes):
        self.boxes, self.calls = boxes, []

    def __call__(self, image, text):
        self.calls.append(text)
        boxes = np.array(self.boxes[text], float).reshape(-1, 4)
        return boxes, np.linspace(0.9, 0.5, len(boxes))


@pytest.fixture
def manifest(tmp_path):
    lines = []
    for name in ("one", "none", "two", "small", "twice"):
        write_video(tmp_path / f"{name}.mp4", 20)
        lines.append({"id": f"set/{name}", "video": f"{name}.mp4", "caption": "x", "subject_phrase": name.title()})
    return write_lines(tmp_path / "manifest.jsonl", lines)


@pytest.fixture
def detector():
    nearly = (5.0, 8.0, 20.0, 24.0)
    boxes = {
        "one.": [BOX],
        "none.": [],
        "two.": [BOX, (22, 0, 32, 9)],
        "small.": [(0, 0, 4, 4)],
        "twice.": [nearly, BOX],
    }
    return MadeUpDetector(boxes)


def test_clips_with_one_subject_get_masks(manifest, detector, tmp_path):
    count, dropped = highlight_manifest(manifest, tmp_path / "out.jsonl", detector, segmenter)
    assert count == 2
    assert dropped == {"no subject": 1, "several subjects": 1, "small subject": 1}
    one, twice = read_manifest(tmp_path / "out.jsonl")
    assert [ref.frame for ref in one.refs] == [2, 7, 12, 17]
    assert one.refs[0].box == BOX
    assert twice.refs[0].box[0] == 5  # the stronger of two boxes of one subject
    mask = np.asarray(Image.open(tmp_path / one.refs[3].mask))
    assert mask.shape == (SIZE, SIZE)
    assert (mask[8:24, 4:20] == 255).all()
    assert mask.sum() == 255 * 16 * 16
    config = DataConfig(str(tmp_path / "out.jsonl"), num_frames=2, frame_stride=1, height=SIZE, width=SIZE)
    assert len(build_dataset(config, seed=0)) == 2


def test_given_pictures_are_masked_too(tmp_path, detector):
    write_video(tmp_path / "a.mp4", 20)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    line = {"video": "a.mp4", "caption": "x", "refs": [{"image": "a.png"}, {"frame": 19}]}
    manifest = write_lines(tmp_path / "manifest.jsonl", [line])
    with pytest.raises(InputError, match="neither subject_phrase nor category; say what to detect with --prompt"):
        highlight_manifest(manifest, tmp_path / "out.jsonl", detector, segmenter)
    highlight_manifest(manifest, tmp_path / "out.jsonl", detector, segmenter, prompt="One")
    (clip,) = read_manifest(tmp_path / "out.jsonl")
    assert [(ref.image, ref.frame) for ref in clip.refs] == [("a.png", None), (None, 19)]
    assert Image.open(tmp_path / clip.refs[0].mask).size == (40, 30)


def test_highlighting_goes_on_after_an_interruption(manifest, detector, tmp_path):
    def interrupted(image, box):
        raise KeyboardInterrupt

    out = tmp_path / "out.jsonl"
    detector.boxes["one."] = []
    with pytest.raises(KeyboardInterrupt):
        highlight_manifest(manifest, out, detector, interrupted)  # none of the first four clips gets to a mask
    assert not out.exists()
    done = sorted(path.name for path in (tmp_path / "out-masks").iterdir())
    assert done == ["plan.json", "set%2Fnone", "set%2Fone", "set%2Fsmall", "set%2Ftwo"]
    detector.calls.clear()
    assert highlight_manifest(manifest, out, detector, segmenter)[0] == 1
    assert set(detector.calls) == {"twice."}
    with pytest.raises(InputError, match="holds masks made with other thresholds"):
        highlight_manifest(manifest, out, detector, segmenter, settings=HighlightSettings(min_area=0.1))


def test_shards_share_the_clips_and_the_whole_finds_their_masks(manifest, detector, tmp_path):
    out = tmp_path / "out.jsonl"
    counts = [highlight_part(manifest, out, detector, segmenter, Shard(number, 2)) for number in (1, 2)]
    assert counts == [3, 2] and not out.exists()
    assert len(set(detector.calls)) == 5
    detector.calls.clear()
    assert highlight_manifest(manifest, out, detector, segmenter)[0] == 2
    assert detector.calls == []


def test_outputs_go_beside_the_manifest(manifest, detector, tmp_path):
    with pytest.raises(InputError, match="paths in a manifest are relative to its folder"):
        highlight_manifest(manifest, tmp_path / "elsewhere" / "out.jsonl", detector, segmenter)
    detector.boxes = {text: [] for text in detector.boxes}
    with pytest.raises(InputError, match=r"shows one subject \(no subject: 5\)"):
        highlight_manifest(manifest, tmp_path / "out.jsonl", detector, segmenter)
    assert not (tmp_path / "out.jsonl").exists()


def test_suppression_keeps_the_strongest():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [50, 50, 60, 60]], float)
    kept = suppress(boxes, np.array([0.5, 0.9, 0.4, 0.6]), max_overlap=0.5)
    # The first overlaps the strongest by 60 of 100, the third by 40 of 60.
    assert kept.tolist() == [[0, 0, 10, 6], [50, 50, 60, 60]]
    assert suppress(np.zeros((0, 4)), np.zeros(0), max_overlap=0.5).shape == (0, 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_finders(tmp_path_factory.mktemp("models"), detector="dino")


def test_the_models_run_from_local_folders(models):
    """Random weights detect nothing of sense; what counts is that boxes and masks have the picture's coordinates."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 72, 3), np.uint8))
    everything = HighlightSettings(box_threshold=0.0, text_threshold=0.0)
    boxes, scores = GroundingDino(models / "dino", everything)(image, "head.")
    assert boxes.shape == (len(scores), 4)
    assert len(boxes) == 10
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    assert (centres > 0).all()
    assert (centres < [72, 48]).all()
    mask = Sam(models / "sam")(image, (4.0, 4.0, 30.0, 30.0))
    assert (mask.shape, mask.dtype) == ((48, 72), bool)


def test_the_command_runs(models, manifest, tmp_path):
    from typer.testing import CliRunner

    from videomaker.cli import app

    command = ["data", "highlight", manifest, "--detector", models / "dino", "--segmenter", models / "sam"]
    result = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "out.jsonl"), "--prompt", "head"])
    assert result.exit_code == 2  # random weights find no single subject
    assert "shows one subject" in result.output
    found = json.loads((tmp_path / "out-masks" / "set%2Fone" / "result.json").read_text())
    assert found["text"] == "head."
    command[4] = tmp_path
    result = CliRunner().invoke(app, [*map(str, command), "--out", str(tmp_path / "out.jsonl")])
    assert result.exit_code == 2
    assert "has no config.json" in result.output
