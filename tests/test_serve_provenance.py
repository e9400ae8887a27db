"""Videos that say they were generated: signed, checked, refused when a byte changed; a failure publishes nothing."""

from __future__ import annotations

import io

import av
import pytest
from certificates import KINDS, make_certificate
from serving import client_of, make_state, make_worker, submit
from typer.testing import CliRunner

from videomaker.cli import app
from videomaker.digests import sha256
from videomaker.errors import InputError
from videomaker.serve import provenance

pytest.importorskip("c2pa")


def verify(*arguments):
    shown = CliRunner().invoke(app, ["provenance", "verify", *map(str, arguments)])
    return shown.exit_code, shown.stdout + shown.stderr


def signing_state(folder, **settings):
    certificate, key, root = make_certificate(folder, **settings)
    return make_state(folder / "data", certificate=certificate, certificate_key=key), root


def made(client, state, **fields):
    id = submit(client, **fields).json()["id"]
    assert make_worker(state).work_once()
    return client.get(f"/v1/videos/{id}").json()


def test_a_served_video_is_signed_and_its_record_lies_beside_it(tmp_path):
    state, root = signing_state(tmp_path)
    with client_of(state) as client:
        video = made(client, state, prompt="my secret plan", seed="41", consent="synthetic")
        assert (video["status"], video["signed"]) == ("completed", True)
        content, record = (client.get(video["links"][name]) for name in ("video", "record"))
    file = tmp_path / "video.mp4"
    file.write_bytes(content.content)
    code, told = verify(file, "--trust", root)
    assert code == 0 and "trusted" in told and "Test Signer" in told and "by a trained model" in told
    assert "41" in told and "synthetic" in told
    assert b"my secret plan" not in content.content and "secret" not in told
    code, told = verify(file)
    assert code == 0 and "valid" in told and "not checked" in told
    assert record.json()["signed_video_sha256"] == sha256(content.content) != record.json()["video_sha256"]
    with av.open(io.BytesIO(content.content)) as container:
        assert len(list(container.decode(video=0))) == video["num_frames"]


def test_a_changed_byte_and_a_stranger_and_no_signature_are_told(tmp_path):
    credentials = provenance.open_credentials(*make_certificate(tmp_path)[:2], "")
    plain = provenance._tiny_video()
    signed = bytearray(credentials.sign(plain, dict.fromkeys(provenance._TOLD)))
    files = {name: tmp_path / f"{name}.mp4" for name in ("plain", "signed", "changed")}
    files["plain"].write_bytes(plain)
    files["signed"].write_bytes(signed)
    signed[-100] ^= 1
    files["changed"].write_bytes(signed)
    (tmp_path / "other").mkdir()
    stranger = make_certificate(tmp_path / "other")[2]
    assert verify(files["plain"]) == (1, f"{files['plain']}: not signed\n")
    assert verify(files["signed"])[0] == 0
    assert verify(files["signed"], "--trust", stranger)[0] == 1
    code, told = verify(files["changed"])
    assert code == 1 and "INVALID" in told and "mismatch" in told
    assert verify(tmp_path / "none.mp4")[0] == 2
    (tmp_path / "x.txt").write_text("words")
    assert verify(tmp_path / "x.txt")[0] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key_signs(tmp_path, kind):
    certificate, key, root = make_certificate(tmp_path, kind)
    file = tmp_path / "video.mp4"
    signed = provenance.open_credentials(certificate, key, "").sign(provenance._tiny_video(), {
        "model": "m", "seed": 1, "num_inference_steps": 2, "guidance_scale": 3.0, "consent": None,
    })  # fmt: skip
    file.write_bytes(signed)
    verdict = provenance.verify(file, root)
    assert (verdict.state, verdict.told["seed"]) == ("Trusted", 1) and "consent" not in verdict.told


def test_what_cannot_sign_is_refused_at_the_start(tmp_path):
    certificate, key, _ = make_certificate(tmp_path)
    for folder in ("late", "unfit", "other"):
        (tmp_path / folder).mkdir()
    late = make_certificate(tmp_path / "late", days=-1)
    unfit = make_certificate(tmp_path / "unfit", fit=False)
    other = make_certificate(tmp_path / "other")
    cases = [
        ((certificate, None, ""), "go together"),
        ((certificate, tmp_path / "none.key", ""), "none.key"),
        ((key, key, ""), "not PEM"),
        ((certificate, certificate, ""), "no unencrypted private key"),
        ((certificate, other[1], ""), "not the key of"),
        ((*late[:2], ""), "renew it"),
        ((*unfit[:2], ""), "certificate is invalid"),
        ((certificate, key, "http://127.0.0.1:9/"), "127.0.0.1:9"),  # nobody vouches for the time there
    ]
    for arguments, word in cases:
        with pytest.raises(InputError, match=word):
            provenance.open_credentials(*arguments)
    refused = CliRunner().invoke(app, ["serve", "--data", str(tmp_path / "data")],
                                 env={"VIDEOMAKER_CERTIFICATE": str(certificate)})  # fmt: skip
    assert refused.exit_code == 2 and "go together" in refused.stderr


def test_trust_that_is_none(tmp_path):
    video, trust = tmp_path / "a.mp4", tmp_path / "trust.pem"
    video.write_bytes(b"x")
    with pytest.raises(InputError, match="does not exist"):
        provenance.verify(video, trust)
    trust.write_text("no certificate")
    with pytest.raises(InputError, match="holds no certificates"):
        provenance.verify(video, trust)


def test_a_video_that_cannot_be_signed_fails_in_words_and_leaves_no_file(tmp_path, monkeypatch):
    state, _ = signing_state(tmp_path)
    assert state.credentials is not None

    def refuse(*_):
        raise provenance.SigningFailed("the certificate ran out on 2026-01-01")

    monkeypatch.setattr(state.credentials, "sign", refuse)
    with client_of(state) as client:
        video = made(client, state)
    assert (video["status"], video["error"]["code"]) == ("failed", "signing_failed")
    assert "ran out" in video["error"]["message"] and not video["signed"]
    assert [key for key in state.store.keys("videos") if "reference" not in key] == []
