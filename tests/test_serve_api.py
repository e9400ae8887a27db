"""The interface in one process: what it answers, what it refuses, and that others' jobs are not there."""

from __future__ import annotations

import base64
import io
import json

import pytest
from PIL import Image
from serving import PICTURE, client_of, make_state, make_worker, submit

from videomaker import media
from videomaker.serve import pictures
from videomaker.serve.housekeeping import remove_expired, sweep_orphans


@pytest.fixture
def state(tmp_path):
    return make_state(tmp_path)


@pytest.fixture
def client(state):
    with client_of(state) as client:
        yield client


def made(client, state, **fields):
    id = submit(client, **fields).json()["id"]
    assert make_worker(state).work_once()
    return id


def test_a_video_from_request_to_files(client, state):
    video = submit(client, seed="7", num_inference_steps="3", consent="synthetic").json()
    assert (video["status"], video["queue_position"], video["seed"], video["size"]) == ("queued", 0, 7, "32x32")
    assert make_worker(state).work_once()
    done = client.get(f"/v1/videos/{video['id']}").json()
    assert (done["status"], done["progress"], done["step"], done["eta_seconds"]) == ("completed", 100, 3, None)
    kinds = {
        "video": b"ftyp",
        "thumbnail": b"WEBP",
        "spritesheet": b"JFIF",
        "record": b"synthetic",
        "reference": b"PNG",
    }
    for variant, mark in kinds.items():
        answer = client.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
        assert answer.status_code == 200 and mark in answer.content, variant
        assert client.get(done["links"][variant]).content == answer.content
    record = client.get(done["links"]["record"]).json()
    assert record["safety_checks"] == {"request": None, "frames": None}
    assert client.delete(f"/v1/videos/{video['id']}").json() == {
        "id": video["id"], "object": "video.deleted", "deleted": True,
    }  # fmt: skip
    assert client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert state.store.keys("videos") == []


def test_json_takes_data_urls_and_several_pictures(client, state):
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    for reference in (url, {"image_url": url}, [url, {"image_url": {"url": url}}]):
        answer = client.post("/v1/videos", json={"prompt": "a creature", "input_reference": reference})
        assert answer.status_code == 200, answer.json()
        assert answer.json()["num_references"] == (2 if isinstance(reference, list) else 1)


def test_a_variation_uses_the_pictures_again(client, state):
    first = submit(client, fit="pad").json()
    second = submit(client, picture=None, reference_of=first["id"], fit="pad", seed="9").json()
    assert second["id"] != first["id"]
    one, two = (client.get(v["links"]["reference"]).content for v in (first, second))
    assert one == two
    client.delete(f"/v1/videos/{first['id']}")
    assert client.get(second["links"]["reference"]).content == two
    assert submit(client, picture=None, reference_of=first["id"]).status_code == 404
    other = submit(client, picture=None, reference_of=second["id"], fit="crop")
    assert (other.status_code, other.json()["error"]["param"]) == (400, "reference_of")


@pytest.mark.parametrize(
    "fields, status, param",
    [
        ({"picture": None}, 400, "input_reference"),
        ({"picture": b""}, 400, "input_reference"),
        ({"picture": b"<svg/>"}, 400, "input_reference"),
        ({"picture": PICTURE.read_bytes()[:200]}, 400, "input_reference"),
        ({"prompt": "  "}, 400, "prompt"),
        ({"prompt": "a\0b"}, 400, "prompt"),
        ({"size": "31x32"}, 400, "size"),
        ({"size": "4096x32"}, 400, "size"),
        ({"size": "32"}, 400, "size"),
        ({"seconds": "4"}, 400, "seconds"),
        ({"num_frames": "16"}, 400, "num_frames"),
        ({"num_frames": "8", "seconds": "2"}, 400, "seconds"),
        ({"num_inference_steps": "101"}, 400, "num_inference_steps"),
        ({"guidance_scale": "nan"}, 400, "guidance_scale"),
        ({"seed": "-1"}, 400, "seed"),
        ({"fit": "zoom"}, 400, "fit"),
        ({"consent": "yes"}, 400, "consent"),
        ({"sharpness": "9"}, 400, "sharpness"),
        ({"model": "sora-2"}, 404, "model"),
    ],
)
def test_a_wrong_value_is_refused_by_name_and_leaves_nothing(client, state, fields, status, param):
    answer = submit(client, **{"prompt": "a creature", **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert set(error) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]
    assert state.store.keys("videos") == []


def test_no_address_is_fetched(client):
    for reference in ("http://127.0.0.1:1/x.png", {"image_url": "https://x"}, {"file_id": "f"}, 3, {"image_url": 3}):
        answer = client.post("/v1/videos", json={"prompt": "a", "input_reference": reference})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")


def test_pages_go_over_all_videos_in_either_order(client):
    ids = [submit(client, seed=str(i)).json()["id"] for i in range(5)]
    for order, expected in (("asc", ids), ("desc", ids[::-1])):
        seen, after = [], None
        while True:
            params = {"limit": 2, "order": order, **({"after": after} if after else {})}
            page = client.get("/v1/videos", params=params).json()
            seen += [video["id"] for video in page["data"]]
            after = page["last_id"]
            if not page["has_more"]:
                break
        assert seen == expected
    positions = [v["queue_position"] for v in client.get("/v1/videos", params={"order": "asc"}).json()["data"]]
    assert positions == [0, 1, 2, 3, 4]
    assert client.get("/v1/videos", params={"after": "nobody"}).status_code == 400
    assert client.get("/v1/videos", params={"limit": 0}).json()["error"]["param"] == "limit"


def test_ranges(client, state):
    id = made(client, state)
    url = f"/v1/videos/{id}/content"
    whole = client.get(url).content
    cases = {"bytes=0-9": whole[:10], "bytes=5-": whole[5:], "bytes=-7": whole[-7:], f"bytes=0-{10**12}": whole}
    for asked, expected in cases.items():
        answer = client.get(url, headers={"range": asked})
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["content-range"].endswith(f"/{len(whole)}")
    assert client.get(url, headers={"range": f"bytes={len(whole)}-"}).status_code == 416
    for ignored in ("bytes=9-3", "lines=0-1", "bytes=", "bytes=0-1,4-5"):
        assert client.get(url, headers={"range": ignored}).content == whole
    head = client.head(url)
    assert (head.content, int(head.headers["content-length"])) == (b"", len(whole))
    tag = head.headers["etag"]
    assert client.get(url, headers={"if-none-match": tag}).status_code == 304
    assert client.get(url, headers={"range": "bytes=0-9", "if-range": '"other"'}).content == whole


def test_events_end_with_the_video(client, state):
    id = made(client, state)
    with client.stream("GET", f"/v1/videos/{id}/events") as stream:
        lines = [line for line in stream.iter_lines() if line]
    assert lines[0] == "event: video"
    assert json.loads(lines[-1].removeprefix("data: "))["status"] == "completed"


def test_the_same_key_makes_one_video(client):
    headers = {"Idempotency-Key": "abc"}
    first = submit(client, seed="1", headers=headers).json()["id"]
    assert submit(client, seed="1", headers=headers).json()["id"] == first
    other = submit(client, seed="2", headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    retry = {"x-stainless-retry-count": "1"}
    unkeyed = submit(client, seed="3").json()["id"]
    assert submit(client, seed="3", headers=retry).json()["id"] == unkeyed
    assert len(client.get("/v1/videos").json()["data"]) == 2


def test_too_much_waiting_is_429_with_a_time(tmp_path):
    state = make_state(tmp_path, max_active=2)
    with client_of(state) as client:
        assert [submit(client, seed=str(i)).status_code for i in range(3)] == [200, 200, 429]
        answer = submit(client, seed="9")
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    assert len(state.store.children("videos")) == 2


def test_draining_and_a_full_disk_are_503(client, state, monkeypatch):
    monkeypatch.setattr(state.store, "free_bytes", lambda: 10)
    full = submit(client)
    assert (full.status_code, full.json()["error"]["code"]) == (503, "disk_full")
    monkeypatch.undo()
    state.draining = True
    draining = submit(client)
    assert (draining.status_code, draining.json()["error"]["code"]) == (503, "draining")
    assert draining.headers["retry-after"]
    assert client.get("/readyz").status_code == 503
    assert client.get("/v1/videos").status_code == 200


def test_keys_divide_what_is_seen(state, client):
    submit(client)
    ann, bob = (state.keys.create(name, max_active=1) for name in ("ann", "bob"))
    assert client.get("/v1/videos").status_code == 401
    assert client.get("/metrics").status_code == 401
    assert client.get("/healthz").status_code == 200
    as_ann, as_bob = ({"authorization": f"Bearer {key}"} for key in (ann, bob))
    video = submit(client, headers=as_ann).json()
    assert submit(client, seed="2", headers=as_ann).status_code == 429
    assert submit(client, headers=as_bob).json()["id"] != video["id"]
    paths = (("GET", ""), ("GET", "/content"), ("GET", "/events"), ("POST", "/cancel"), ("DELETE", ""))
    for method, path in paths:
        assert client.request(method, f"/v1/videos/{video['id']}{path}", headers=as_bob).status_code == 404
    assert submit(client, picture=None, reference_of=video["id"], headers=as_bob).status_code == 404
    assert client.get("/v1/videos", params={"after": video["id"]}, headers=as_bob).status_code == 400
    assert [v["id"] for v in client.get("/v1/videos", headers=as_ann).json()["data"]] == [video["id"]]
    assert client.get(video["links"]["reference"]).status_code == 200  # a link needs no key
    assert client.get(video["links"]["reference"].replace("variant=reference", "variant=video")).status_code == 403
    state.keys.revoke("ann")
    assert client.get("/v1/videos", headers=as_ann).status_code == 401
    state.keys.revoke("bob")
    assert client.get("/v1/videos").status_code == 401  # no way back to no keys


def test_other_web_sites_cannot_use_it(client):
    assert submit(client, headers={"origin": "http://evil.example"}).json()["error"]["code"] == "cross_site"
    assert submit(client, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert submit(client, headers={"origin": "http://localhost"}).status_code == 200
    assert submit(client, headers={"origin": "http://["}).json()["error"]["code"] == "cross_site"
    assert client.get("/v1/videos", headers={"host": "evil.example"}).json()["error"]["code"] == "host_not_allowed"


def test_a_body_has_a_limit(tmp_path):
    with client_of(make_state(tmp_path, max_body_mib=0.5)) as client:
        answer = submit(client, picture=b"x" * 600_000)
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "invalid_request_error")
        chunks = (b"x" * 100_000 for _ in range(8))
        headers = {"content-type": "application/json"}
        assert client.post("/v1/videos", content=chunks, headers=headers).status_code == 413


def test_wrong_values_are_told_with_the_remedy(client, state):
    post = lambda files=(), **fields: client.post(
        "/v1/videos", data={"prompt": "a", **fields}, files=[("input_reference", PICTURE.read_bytes()), *files]
    ).json()["error"]
    assert "such as 512x512" in post(size="32")["message"] and "got '12a'" in post(seed="12a")["message"]
    assert "from 4" in post(size="0x0")["message"]
    assert post(mask="x")["param"] == "mask"
    assert "twice" in post([("mask", b"x"), ("mask", b"y")])["message"]
    id = submit(client, "FAIL").json()["id"]
    make_worker(state).work_once()
    assert client.get(f"/v1/videos/{id}/content").json()["error"]["code"] == "video_failed"
    assert [client.head(path).status_code for path in ("/", "/healthz")] == [200, 200]


def test_a_body_of_countless_parts_is_refused_before_it_is_read(client, monkeypatch):
    """Else one request of 31 MiB keeps all others waiting for seconds."""
    body, headers = b'{"x":[' + b"[]," * 20_000 + b"[]]}", {"content-type": "application/json"}
    with monkeypatch.context() as patched:
        patched.setattr("videomaker.serve.api.uploads.json.loads", lambda *_, **__: 1 / 0)
        answer = client.post("/v1/videos", content=body, headers=headers)
    assert answer.status_code == 400 and "parts" in answer.json()["error"]["message"]


def test_a_picture_is_what_it_is_whatever_it_is_called(client):
    target = io.BytesIO()
    Image.open(PICTURE).convert("RGB").save(target, "JPEG")
    file = ("../../etc/passwd.exe", target.getvalue(), "application/x-msdownload")
    answer = client.post("/v1/videos", data={"prompt": "a"}, files=[("input_reference", file)])
    assert answer.status_code == 200


def test_too_many_pixels_are_refused_by_the_header(tmp_path):
    with client_of(make_state(tmp_path, max_pixels=1000)) as client:
        error = submit(client).json()["error"]
    assert error["code"] == "invalid_image" and "1,000" in error["message"]


def test_what_openai_has_and_we_have_not_is_501(client):
    for path in ("videos/x/remix", "videos/edits", "videos/extensions", "videos/characters"):
        assert client.post(f"/v1/{path}").json()["error"]["code"] == "not_implemented"


def test_openapi_has_examples_and_the_page_a_strict_policy(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/videos"]["post"]["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    policy = client.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_retention_removes_files_then_rows_and_the_sweep_what_no_row_names(tmp_path):
    state = make_state(tmp_path, keep_hours=1e-9)
    with client_of(state) as client:
        id = made(client, state)
        assert remove_expired(state) == 1
        assert client.get(f"/v1/videos/{id}").status_code == 404
        kept = submit(client).json()["id"]
    state.store.put("videos/video_0000000000000/reference-0.ppm", b"x")
    assert sweep_orphans(state, age=-10) == 1
    assert state.store.children("videos") == [kept]


def test_safety_checks_are_asked_and_named(tmp_path, monkeypatch):
    (tmp_path / "house_rules.py").write_text(
        "def request(request, pictures):\n"
        "    return 'no dragons' if 'dragon' in request['prompt'] and pictures[0].size else None\n"
        "def frames(request, frames):\n"
        "    return 'too bright' if 'bright' in request['prompt'] and frames.ndim == 4 else None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rules = {"request_check": "house_rules:request", "frames_check": "house_rules:frames"}
    state = make_state(tmp_path / "data", **rules)
    with client_of(state) as client:
        assert submit(client, "a dragon").json()["error"]["code"] == "safety_rejected"
        bright = made(client, state, prompt="bright")
        assert client.get(f"/v1/videos/{bright}").json()["error"] == {
            "code": "safety_rejected",
            "message": "too bright",
        }
        good = made(client, state)
        record = client.get(f"/v1/videos/{good}/content?variant=record").json()
    assert record["safety_checks"] == {"request": "house_rules:request", "frames": "house_rules:frames"}


def test_consent_can_be_required(tmp_path):
    with client_of(make_state(tmp_path, require_consent=True)) as client:
        assert submit(client).json()["error"]["code"] == "consent_required"
        assert submit(client, consent="self").status_code == 200


def test_declared_shapes_are_all_that_is_served(tmp_path):
    shapes = [{"num_frames": 8, "height": 32, "width": 32, "batch": 2}]
    with client_of(make_state(tmp_path, shapes=shapes)) as client:
        error = submit(client, size="48x32").json()["error"]
        assert error["code"] == "undeclared_shape" and "8 frames of 32x32" in error["message"]
        assert submit(client).status_code == 200
        assert submit(client, guidance_scale="1").status_code == 400


def test_stored_pixels_come_back():
    image = Image.open(PICTURE).convert("RGB")
    assert pictures.from_ppm(pictures.to_ppm(image)).tobytes() == image.tobytes()
    assert Image.open(io.BytesIO(pictures.to_png(image))).convert("RGB").tobytes() == image.tobytes()


@pytest.mark.parametrize(("side", "suffix"), [(64, ".upload"), (16, ".ppm")])
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_what_is_kept_of_a_picture_is_the_smaller_and_gives_the_same_pixels(side, suffix, fit):
    target = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(target, "PNG")
    upload = pictures.decode(target.getvalue(), "x", max_pixels=10_000)
    shape = {"width": side, "height": side, "fit": fit}
    kept, data = pictures.to_file(upload, shape)
    assert kept == suffix and len(data) <= min(len(upload.data), 3 * side * side + 20)
    expected = media.fit_reference(upload.image, side, side, fit)
    assert pictures.from_file(f"videos/x/reference-0{kept}", data, shape).tobytes() == expected.tobytes()
