"""Highlighting at inference: the subject on white by the code that makes training's references, end to end."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import tiny_pipeline
from tiny_finders import write_finders
from typer.testing import CliRunner

from videomaker import media
from videomaker.cli import app
from videomaker.data import subject
from videomaker.data.reference import compose_reference, read_mask
from videomaker.data.subject import Highlight, border_is_plain, highlight_picture, parse_box
from videomaker.errors import InputError

SIZE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def photo(tmp_path):
    """A busy picture of 60×40, and a mask of a part of it."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:45] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path / "photo.png"


def generate(model, photo, *arguments):
    command = ["generate", "-r", photo, "-p", "a thing", "--model", model, "--steps", "1", "--frames", "2"]
    return CliRunner().invoke(app, list(map(str, [*command, "-o", photo.parent / "out", *arguments])))


@pytest.mark.parametrize("how", ["mask", "box", "both"])
def test_a_photo_with_a_busy_background(model, photo, how):
    """What is used is what training composes of the same mask and box; it lies beside the record, which names it."""
    image, mask = media.load_reference(photo), Image.open(photo.parent / "mask.png")
    options = [] if how == "box" else ["--mask", photo.parent / "mask.png"]
    options += [] if how == "mask" else ["--box", "18,8,50,34"]
    result = generate(model, photo, *options)
    assert result.exit_code == 0, result.output
    assert "is not plain" not in result.output
    box = (20, 10, 45, 30) if how == "mask" else (18, 8, 50, 34)
    expected = compose_reference(image, mask=None if how == "box" else mask, box=box, **SIZE)
    out = photo.parent / "out"
    (used,) = out.glob("*.reference.png")
    np.testing.assert_array_equal(np.asarray(Image.open(used)), np.asarray(expected))
    assert json.loads(used.with_suffix(".json").read_text())["source"] == str(photo.resolve())
    (file,) = (path for path in out.glob("*.json") if "video" in json.loads(path.read_text()))
    assert json.loads(file.read_text())["references"][0]["path"] == str(used.resolve())
    again = CliRunner().invoke(app, ["generate", "--from-json", str(file), "-o", str(photo.parent / "again.mp4")])
    assert again.exit_code == 0 and "the same bytes" in again.output


def test_without_highlighting_a_busy_border_is_said(model, photo):
    result = generate(model, photo)
    assert result.exit_code == 0
    words = " ".join(result.output.split())
    assert "is not plain" in words and "trained on subjects on white" in words and "--mask or --box" in words
    assert generate(model, photo, "--highlight", "head").exit_code == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--box", "5,5"], "is not understood"),
        (["--box", ""], "is not understood"),
        (["--box", "100,100,200,200"], "has no pixel of a picture of 60x40"),
        (["--mask", "absent.png"], "absent.png"),
        (["--highlight", "dog"], "needs --models FOLDER"),
        (["--highlight", "dog", "--models", "."], "has no grounding-dino/"),
        (["--highlight", "dog", "--box", "18,8,50,34"], "leave it out, or the box"),
    ],
)
def test_what_cannot_be_highlighted_is_told_before_the_model_loads(model, photo, monkeypatch, options, words):
    monkeypatch.setattr("videomaker.jobs.prepare.load_pipeline", lambda spec: pytest.fail("loaded"))
    result = generate(model, photo, *options)
    assert result.exit_code == 2 and words in " ".join(result.output.split()), result.output


def test_a_box_beyond_the_picture_is_said(photo, caplog):
    for box, said in (((0.0, 0.0, 60.0, 40.0), False), ((30.0, 20.0, 90.0, 40.0), True)):
        caplog.clear()
        subject.write_highlighted(photo, photo.parent / "out", Highlight(box=box), **SIZE)
        assert ("goes beyond" in caplog.text and "60x40 pixels: it is cut there" in caplog.text) == said


def test_plain_borders():
    rng = np.random.default_rng(0)
    picture = np.full((50, 50, 3), 240, np.uint8)
    picture[10:40, 10:40] = rng.integers(0, 256, (30, 30, 3), np.uint8)
    assert border_is_plain(Image.fromarray(picture))
    assert not border_is_plain(Image.fromarray(rng.integers(0, 256, (50, 50, 3), np.uint8)))
    picture[:, :30] = 0  # a subject that reaches the edge on half of it
    assert not border_is_plain(Image.fromarray(picture))


def test_a_word_goes_through_detector_and_segmenter(photo):
    image = media.load_reference(photo)
    mask = np.zeros((40, 60), bool)
    mask[12:20, 30:40] = True
    asked = []

    def finder(picture, word):
        asked.append(word)
        return mask, (28.0, 10.0, 42.0, 22.0)

    found, box = highlight_picture(image, Highlight("Dog"), finder=finder, **SIZE)
    assert asked == ["Dog"] and box == (28.0, 10.0, 42.0, 22.0)
    expected = compose_reference(image, mask=Image.fromarray(mask.astype(np.uint8)), box=box, **SIZE)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def found_by_hand(models, image, word):
    """The one query's box and SAM's mask of it, from the whole models' own outputs."""
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor, SamModel, SamProcessor

    processor = GroundingDinoProcessor.from_pretrained(models / "grounding-dino", backend="pil")
    detector = GroundingDinoForObjectDetection.from_pretrained(models / "grounding-dino").eval()
    with torch.no_grad():
        found = detector(**processor(images=image, text=f"{word}.", return_tensors="pt"))
    assert found.logits.sigmoid().max() > 0.35
    x, y, width, height = found.pred_boxes[0, 0].tolist()
    corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    limits = np.array(image.size * 2)
    box = np.clip(corners * limits, 0, limits)
    processor, segmenter = SamProcessor.from_pretrained(models / "sam"), SamModel.from_pretrained(models / "sam").eval()
    inputs = processor(images=image, input_boxes=[[box.tolist()]], return_tensors="pt")
    with torch.no_grad():
        masks = segmenter(
            pixel_values=inputs["pixel_values"], input_boxes=inputs["input_boxes"].float(), multimask_output=False
        ).pred_masks[0]
    whole = torch.nn.functional.interpolate(masks, (64, 64), mode="bilinear", align_corners=False)
    height, width = inputs["reshaped_input_sizes"][0].tolist()  # without the padding below and to the right
    size = (image.height, image.width)
    mask = torch.nn.functional.interpolate(whole[..., :height, :width], size, mode="bilinear", align_corners=False)
    return (mask[0, 0] > 0).numpy(), tuple(box.tolist())


def test_a_word_from_the_command_line(model, photo, tmp_path):
    """Tiny random Grounding DINO and SAM in their real formats, from local folders to the video and its record."""
    models = write_finders(tmp_path / "models", queries=1)
    image = media.load_reference(photo)
    mask, box = found_by_hand(models, image, "head")
    assert 0 < mask.mean() < 1
    result = generate(model, photo, "--highlight", "Head", "--models", models)
    assert result.exit_code == 0, result.output
    assert "is not plain" not in result.output
    (used,) = (photo.parent / "out").glob("*.reference.png")
    expected = compose_reference(image, mask=Image.fromarray(mask.astype(np.uint8) * 255), box=box, **SIZE)
    np.testing.assert_array_equal(np.asarray(Image.open(used)), np.asarray(expected))
    story = json.loads(used.with_suffix(".json").read_text())
    assert story["word"] == "Head" and story["box"] == pytest.approx(box, abs=1e-3)
    (models / "sam" / "model.safetensors").unlink()
    result = generate(model, photo, "--highlight", "head", "--models", models)
    assert result.exit_code == 2 and "cannot be loaded as SamModel" in " ".join(result.output.split())


def test_finders_of_half_precision_find_what_float32_finds(photo, tmp_path):
    found, image = [], media.load_reference(photo)
    for dtype in (torch.float16, torch.float32):
        models = write_finders(tmp_path / str(dtype), queries=1)
        for name in (subject.DETECTOR, subject.SEGMENTER):
            file = models / name / "model.safetensors"
            rounded = {key: x.half().to(dtype) if x.is_floating_point() else x for key, x in load_file(file).items()}
            save_file(rounded, file, metadata={"format": "pt"})
            config = json.loads((models / name / "config.json").read_text())
            (models / name / "config.json").write_text(json.dumps(config | {"dtype": str(dtype).split(".")[1]}))
        found.append(subject.open_finder(models)(image, "head"))
    (mask, box), (expected, expected_box) = found
    assert 0 < mask.mean() < 1 and box == expected_box
    np.testing.assert_array_equal(mask, expected)


def test_what_a_word_cannot_do_is_said(photo, monkeypatch, tmp_path):
    with pytest.raises(InputError, match="needs --models FOLDER with grounding-dino/ and sam/"):
        subject.open_finder(None)
    with pytest.raises(InputError, match="has no grounding-dino/"):
        subject.open_finder(tmp_path)
    for name in (subject.DETECTOR, subject.SEGMENTER):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    boxes = np.array([[0, 0, 30, 30], [31, 0, 60, 30]], float)
    monkeypatch.setattr(subject, "GroundingDino", lambda *_, **__: lambda image, text: (boxes, np.ones(2)))
    monkeypatch.setattr(subject, "Sam", lambda *_, **__: None)
    with pytest.raises(InputError, match="looking for 'dog' found several subjects: try another word"):
        highlight_picture(media.load_reference(photo), Highlight("dog"), finder=subject.open_finder(tmp_path), **SIZE)


def test_a_mask_means_its_labels(tmp_path):
    inside = np.zeros((8, 8), bool)
    inside[2:5, 3:7] = True
    for name, picture in {
        "grey": Image.fromarray(inside.astype(np.uint8)),
        "16": Image.fromarray(inside.astype(np.uint16) * 3),
        "rgb": Image.fromarray(np.repeat(inside[..., None] * np.uint8(9), 3, -1)),
        "cut-out": Image.fromarray(np.dstack([np.full((8, 8, 3), 70, np.uint8), inside * np.uint8(255)])),
        "bits": Image.fromarray(inside),
    }.items():
        picture.save(tmp_path / f"{name}.png")
        assert ((np.asarray(read_mask(tmp_path / f"{name}.png")) > 0) == inside).all(), name
    palette = Image.fromarray(inside.astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 0, 0, 0])  # label 0 is drawn white
    palette.save(tmp_path / "palette.png")
    assert ((np.asarray(read_mask(tmp_path / "palette.png")) > 0) == inside).all()


def test_masks_and_boxes_that_do_not_fit(model, photo):
    for options, words in (
        (["--box", "1,2,3"], "give x1,y1,x2,y2"),
        (["--box", "5,5,5,9"], "spans no area"),
        (["--highlight", "dog", "--mask", "m.png"], "leave it out, or the mask"),
        (["--box", "100,100,120,120"], "has no pixel"),
        (["--mask", photo.parent / "none.png"], "does not exist"),
    ):
        result = generate(model, photo, *options)
        assert result.exit_code == 2 and words in result.output, result.output
    Image.new("L", (60, 40)).save(photo.parent / "empty.png")
    assert "is empty" in generate(model, photo, "--mask", photo.parent / "empty.png").output
    Image.new("L", (6, 4), 255).save(photo.parent / "tiny.png")
    assert "pixels, its picture" in generate(model, photo, "--mask", photo.parent / "tiny.png").output
    assert parse_box("1, 2.5,3,4") == (1, 2.5, 3, 4)
