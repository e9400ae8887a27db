"""Subjects put on white by the server, by mask, box or word: the same pictures as `videomaker generate` uses."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from serving import client_of, make_state, make_worker
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.data import subject
from videomaker.serve import client as client_module

SIZE, BOX = 64, (16, 8, 48, 56)


def encoded(image):
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


@pytest.fixture(scope="module")
def photo():
    """A subject before a busy background, and its mask."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    inside = np.zeros((SIZE, SIZE), np.uint8)
    inside[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    return Image.fromarray(pixels), Image.fromarray(inside)


@pytest.fixture
def state(tmp_path):
    return make_state(tmp_path)


@pytest.fixture
def client(state):
    with client_of(state) as client:
        yield client


def ask(client, photo, mask=None, **fields):
    files = [("input_reference", ("x.png", encoded(photo)))]
    files += [] if mask is None else [("mask", ("m.png", encoded(mask)))]
    return client.post("/v1/videos", data={"prompt": "a creature", **fields}, files=files)


def used(client, video):
    return np.asarray(Image.open(io.BytesIO(client.get(video["links"]["reference"]).content)).convert("RGB"))


def expected(photo, tmp_path, **how):
    if (mask := how.pop("mask", None)) is not None:
        how["mask"] = tmp_path / "mask.png"
        mask.save(how["mask"])
    picture, _ = subject.highlight_picture(photo, subject.Highlight(**how), height=32, width=32)
    return np.asarray(picture)


def test_a_mask_or_a_box_gives_the_picture_that_generate_uses(client, state, photo, tmp_path):
    picture, mask = photo
    box = ",".join(map(str, BOX))
    masked, boxed = ask(client, picture, mask).json(), ask(client, picture, box=box).json()
    np.testing.assert_array_equal(used(client, masked), expected(picture, tmp_path, mask=mask))
    np.testing.assert_array_equal(used(client, boxed), expected(picture, tmp_path, box=BOX))
    assert (used(client, masked)[0, 0] == 255).all()
    urls = [f"data:image/png;base64,{base64.b64encode(encoded(image)).decode()}" for image in photo]
    body = {"prompt": "a creature", "input_reference": urls[0], "mask": urls[1], "box": list(BOX)}
    both = client.post("/v1/videos", json=body).json()
    np.testing.assert_array_equal(used(client, both), expected(picture, tmp_path, mask=mask, box=BOX))


def test_the_record_tells_how_and_names_the_picture_that_was_used(client, state, photo):
    video = ask(client, *photo).json()
    request = state.listing.get(video["id"]).request
    assert make_worker(state).work_once()
    done = client.get(f"/v1/videos/{video['id']}").json()
    (story,) = client.get(done["links"]["record"]).json()["highlight"]
    assert tuple(story["box"]) == BOX and story["mask_sha256"] and story["word"] is None
    from videomaker.digests import sha256

    assert sha256(client.get(done["links"]["reference"]).content) == request["references"][0]["sha256"]
    again = client.post("/v1/videos", data={"prompt": "another", "reference_of": video["id"]}).json()
    np.testing.assert_array_equal(used(client, again), used(client, video))


def test_what_does_not_fit_is_refused_in_words(client, state, photo):
    picture, mask = photo
    small = Image.new("L", (5, 5), 255)
    cases = [
        (ask(client, picture, small), "mask", "5x5"),
        (ask(client, picture, Image.new("L", picture.size)), "mask", "that was sent is empty"),
        (ask(client, picture, box="1,2,3"), "box", "x1,y1,x2,y2"),
        (ask(client, picture, box="900,900,901,901"), "box", "no pixel"),
        (ask(client, picture, highlight="dog"), "highlight", "no detector"),
        (ask(client, picture, mask, highlight="dog"), "mask", "leave it out, or the mask"),
        (ask(client, picture, box="1,2,3,4", highlight="dog"), "box", "leave it out, or the box"),
    ]
    for answer, param, word in cases:
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param) and word in error["message"], error
        assert "--" not in error["message"]
    assert ask(client, picture, highlight="dog").json()["error"]["code"] == "no_detector"
    files = [("input_reference", ("x", encoded(picture)))] * 2 + [("mask", ("m", encoded(mask)))]
    assert client.post("/v1/videos", data={"prompt": "a"}, files=files).json()["error"]["param"] == "mask"
    bad = [("input_reference", ("x", encoded(picture))), ("mask", ("m", b"no picture"))]
    assert client.post("/v1/videos", data={"prompt": "a"}, files=bad).json()["error"]["param"] == "mask"
    first = ask(client, picture).json()["id"]
    refused = client.post("/v1/videos", data={"prompt": "a", "reference_of": first, "box": "1,2,3,4"})
    assert refused.json()["error"]["param"] == "reference_of"
    assert [key for key in state.store.keys("videos") if first not in key] == []


def test_a_mask_has_no_more_pixels_than_a_picture_may(tmp_path, photo):
    picture, _ = photo
    with client_of(make_state(tmp_path, max_pixels=picture.width * picture.height)) as client:
        error = ask(client, picture, Image.new("L", (7000, 7000))).json()["error"]
    assert error["param"] == "mask" and "7000x7000" in error["message"]


def test_a_word_is_looked_for_by_the_configured_detector(tmp_path, photo, monkeypatch):
    picture, mask = photo
    for name in ("grounding-dino", "sam"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    asked = []

    def find(image, word):
        asked.append((image.size, word))
        return np.asarray(mask) > 0, BOX

    monkeypatch.setattr(subject, "open_finder", lambda models: find)
    state = make_state(tmp_path / "data", highlight_models=tmp_path)
    state.highlighter.check()
    with client_of(state) as client:
        video = ask(client, picture, highlight="dog").json()
        np.testing.assert_array_equal(used(client, video), expected(picture, tmp_path, mask=mask, box=BOX))
        assert client.get("/v1/models").json()["data"][0]["limits"]["highlight_by_word"]
    assert asked == [((SIZE, SIZE), "dog")]


def test_a_detector_that_is_not_there_ends_the_start(tmp_path):
    refused = CliRunner().invoke(app, ["serve", "--data", str(tmp_path / "data"), "--models", str(tmp_path)])
    assert refused.exit_code == 2 and "grounding-dino" in refused.stderr


def test_submit_sends_mask_and_box(tmp_path, photo, monkeypatch):
    seen = {}

    def create(self, references, fields, mask=None):
        seen.update(fields, mask=mask)
        raise client_module.InputError("stop here")

    monkeypatch.setattr(client_module.Client, "create", create)
    photo[0].save(tmp_path / "x.png")
    photo[1].save(tmp_path / "m.png")
    arguments = ["-r", tmp_path / "x.png", "-p", "a", "--mask", tmp_path / "m.png", "--box", "1,2,3,4",
                 "--highlight", "dog", "-o", tmp_path / "out"]  # fmt: skip
    CliRunner().invoke(app, ["submit", *map(str, arguments)])
    assert (seen["mask"], seen["box"], seen["highlight"]) == (tmp_path / "m.png", "1,2,3,4", "dog")
