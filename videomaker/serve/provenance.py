"""Content Credentials (C2PA): a signed manifest in every mp4 that says it was generated; and what such a file says.

The manifest names the program, the model, the seed and why the subject may be shown; neither prompt nor picture. It
proves who signed and that no byte changed since, not that anything shown is true.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videomaker import __version__
from videomaker.errors import InputError
from videomaker.files import read_text

if TYPE_CHECKING:
    import c2pa
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from cryptography.x509 import Certificate

MP4 = "video/mp4"
LABEL = "org.videomaker.generation"  # of our own assertion
# IPTC's word for what a trained model made.
GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
_TOLD = ("model", "seed", "num_inference_steps", "guidance_scale", "consent")


class SigningFailed(Exception):
    """The video was made and could not be signed; it is not published without."""


class Credentials:
    """Signs videos as one certificate's holder.

    Args:
        certificate: PEM, the holder's own first, then those that issued it.
        key: PEM, its private key, not encrypted: EC (P-256, P-384, P-521), RSA or Ed25519.
        timestamp_url: of an RFC 3161 authority, which vouches for the time of signing; "" asks none.

    Raises:
        InputError: a file is missing or does not fit the other, or the certificate is out of its time.
    """

    def __init__(self, certificate: Path, key: Path, timestamp_url: str = ""):
        chain, self._key = _read(certificate, "certificate"), _read(key, "certificate_key")
        leaf = _check_pair(chain, self._key, certificate, key)
        self._until, self._chain, self._url = leaf.not_valid_after_utc, chain, timestamp_url
        self._algorithm = _algorithm(leaf, certificate)

    def sign(self, video: bytes, request: dict[str, Any]) -> bytes:
        """The mp4 with a manifest.

        Args:
            video: an mp4 without one.
            request: as accepted; a few of its values are told.

        Raises:
            SigningFailed: the certificate has run out or is not fit for signing, or no timestamp came.
        """
        import c2pa  # late: a shared library of 50 MB, needed only where a certificate is configured

        if datetime.now(UTC) > self._until:
            raise SigningFailed(f"the certificate ran out on {self._until:%Y-%m-%d}")
        target = io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self._algorithm.encode(), self._chain, self._key, self._url.encode() or None)
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(_manifest(request)) as builder:
                builder.sign(signer, MP4, io.BytesIO(video), target)
        except c2pa.C2paError as error:
            raise SigningFailed(f"the video cannot be signed: {error}") from error
        return target.getvalue()


def open_credentials(certificate: Path | None, key: Path | None, timestamp_url: str) -> Credentials | None:
    """The credentials of a server's settings, tried on a tiny video; None where there is no certificate.

    Raises:
        InputError: only one of the two is given, or they do not sign.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("certificate and certificate_key go together: give both, or neither")
    credentials = Credentials(certificate, key, timestamp_url)
    try:
        credentials.sign(_tiny_video(), dict.fromkeys(_TOLD))
    except SigningFailed as error:
        raise InputError(f"certificate {certificate}: {error}") from error
    return credentials


@dataclass(frozen=True)
class Verdict:
    """What a signed file says and whether it holds.

    Args:
        state: `Trusted` (an anchor vouches for the signer), `Valid` (nothing changed since), or `Invalid`.
        signer: the certificate's holder and issuer, as it says.
        generated: whether the manifest says that a model made it.
        told: of our own assertion; empty in files of other programs.
        problems: codes of what does not hold.
    """

    state: str
    signer: str
    generated: bool
    told: dict[str, Any]
    problems: tuple[str, ...]


def verify(path: Path, anchors: Path | None = None) -> Verdict | None:
    """Reads and checks the manifest of a file; None when it has none.

    Args:
        path: of an mp4 (or another kind that c2pa knows).
        anchors: PEM of certificates that are trusted.

    Raises:
        InputError: a file does not exist or is of a kind that carries no manifest; `anchors` holds no certificates.
    """
    import c2pa  # late: as above

    if not path.is_file():
        raise InputError(f"{path} does not exist: give a video")
    trust = {} if anchors is None else {"trust": {"trust_anchors": read_text(anchors)}}
    verify_trust = {"verify": {"verify_trust": anchors is not None}}
    try:
        context = c2pa.Context(c2pa.Settings.from_dict({**trust, **verify_trust}))
    except c2pa.C2paError as error:
        raise InputError(f"--trust {anchors} holds no certificates (PEM): {error}") from error
    try:
        with c2pa.Reader(path, context=context) as reader:
            return _verdict(reader)
    except c2pa.C2paError.ManifestNotFound:
        return None
    except c2pa.C2paError as error:
        raise InputError(f"{path} cannot be checked: {error}") from error


def _verdict(reader: c2pa.Reader) -> Verdict:
    manifest = reader.get_active_manifest() or {}
    assertions = {assertion["label"]: assertion["data"] for assertion in manifest.get("assertions", ())}
    signature = manifest.get("signature_info", {})
    names = [signature[name] for name in ("common_name", "issuer") if signature.get(name)]
    results = (reader.get_validation_results() or {}).get("activeManifest", {})
    return Verdict(
        state=reader.get_validation_state() or "Invalid",
        signer=", ".join(dict.fromkeys(names)),
        generated=GENERATED in json.dumps(assertions),
        told=assertions.get(LABEL, {}),
        problems=tuple(failure["code"] for failure in results.get("failure", ())),
    )


def _manifest(request: dict[str, Any]) -> dict[str, Any]:
    agent = {"name": "VideoMaker", "version": __version__}
    created = {"action": "c2pa.created", "digitalSourceType": GENERATED, "softwareAgent": agent}
    return {
        "claim_generator_info": [agent],
        "format": MP4,
        "title": "video.mp4",
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [created]}},
            {"label": LABEL, "data": {name: request[name] for name in _TOLD if request[name] is not None}},
        ],
    }


def _read(path: Path, name: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{name} {path} cannot be read: {error.strerror}") from error


def _check_pair(chain: bytes, key: bytes, certificate: Path, key_path: Path) -> Certificate:
    """The holder's certificate, if the key is its own and today is within its time."""
    from cryptography import x509  # late: only where something is signed
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        raise InputError(f"certificate {certificate} is not PEM: {error}") from error
    try:
        private: PrivateKeyTypes = load_pem_private_key(key, None)
    except (TypeError, ValueError) as error:
        raise InputError(f"certificate_key {key_path} is no unencrypted private key in PEM: {error}") from error
    if private.public_key() != leaf.public_key():
        raise InputError(f"certificate_key {key_path} is not the key of certificate {certificate}: give its own")
    if not leaf.not_valid_before_utc <= datetime.now(UTC) <= leaf.not_valid_after_utc:
        days = f"{leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}"
        raise InputError(f"certificate {certificate} holds from {days}: renew it")
    return leaf


def _algorithm(leaf: Certificate, path: Path) -> str:
    """C2PA's name of what the certificate's key signs with."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa  # late: as above

    key = leaf.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey):
        name = {256: "es256", 384: "es384", 521: "es512"}.get(key.curve.key_size)
    else:
        kinds = ((rsa.RSAPublicKey, "ps256"), (ed25519.Ed25519PublicKey, "ed25519"))
        name = next((name for kind, name in kinds if isinstance(key, kind)), None)
    if name is None:
        raise InputError(f"certificate {path} is of a kind that C2PA does not sign with: take EC, RSA or Ed25519")
    return name


def _tiny_video() -> bytes:
    import tempfile  # late: only at a start with a certificate

    import numpy as np

    from videomaker import media

    with tempfile.TemporaryDirectory(prefix="videomaker-") as folder:
        path = Path(folder, "tiny.mp4")
        media.write_mp4(path, np.zeros((2, 16, 16, 3), np.uint8), fps=8)
        return path.read_bytes()
