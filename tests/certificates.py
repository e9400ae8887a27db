"""A certificate authority of the tests' own, and holders of certificates for signing videos."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KINDS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "ps256": lambda: rsa.generate_private_key(65537, 2048),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}
DAY = timedelta(days=1)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Studio"),
                      x509.NameAttribute(NameOID.COMMON_NAME, common)])  # fmt: skip


def _certificate(name: str, key: Any, issuer: str, issuer_key: Any, *, authority: bool, days: int, fit: bool) -> Any:
    now, public = datetime.now(UTC), key.public_key()
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 10 * DAY)
        .not_valid_after(now + days * DAY)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        purpose = ExtendedKeyUsageOID.EMAIL_PROTECTION if fit else ExtendedKeyUsageOID.SERVER_AUTH
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    algorithm = None if isinstance(issuer_key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(issuer_key, algorithm)


def make_certificate(folder: Path, kind: str = "es256", *, days: int = 30, fit: bool = True) -> tuple[Path, Path, Path]:
    """Files of a holder's chain, its key, and the authority that vouches for it.

    Args:
        folder: to write into.
        kind: of the holder's key.
        days: until it runs out; negative: it has.
        fit: whether the certificate is for signing documents, as C2PA wants.
    """
    root_key, key = KINDS["es256"](), KINDS[kind]()
    root = _certificate("Test Root", root_key, "Test Root", root_key, authority=True, days=60, fit=True)
    leaf = _certificate("Test Signer", key, "Test Root", root_key, authority=False, days=days, fit=fit)
    paths = folder / f"{kind}.pem", folder / f"{kind}.key", folder / f"{kind}-root.pem"
    paths[0].write_bytes(leaf.public_bytes(Encoding.PEM))
    paths[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[2].write_bytes(root.public_bytes(Encoding.PEM))
    return paths
