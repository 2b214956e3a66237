"""Certificates for tests, made on the spot: an authority, a server's pair, a client's pair, and ones that are no good.

Keys are P-256, which takes a millisecond to make. Times are those of the real clock, with a day to spare on either side.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, in memory and as PEM."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self, password: bytes | None = None) -> bytes:
        """The key, encrypted where there is a password."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
        )

    def write(self, folder: Path, name: str) -> tuple[str, str]:
        """Write NAME.pem and NAME.key.pem; return their paths."""
        cert, key = folder / f"{name}.pem", folder / f"{name}.key.pem"
        cert.write_bytes(self.cert_pem)
        key.write_bytes(self.key_pem())
        return str(cert), str(key)


def make_pair(
    name: str, issuer: Pair | None = None, *, authority: bool = False, ends_in_days: float = 30
) -> Pair:
    """Return a certificate for `name` (and localhost, 127.0.0.1), signed by `issuer` or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    ends = now + DAY * ends_in_days
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, ends) - DAY)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        names: list[x509.GeneralName] = [
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return Pair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


@dataclass(frozen=True)
class TlsFiles:
    """Paths of what most tests need."""

    folder: Path
    authority: Pair
    ca: str
    cert: str
    key: str


def make_files(folder: Path) -> TlsFiles:
    """Write an authority and a server's pair into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = make_pair("Test Authority", authority=True)
    ca, _ = authority.write(folder, "ca")
    cert, key = make_pair("localhost", authority).write(folder, "server")
    return TlsFiles(folder, authority, ca, cert, key)
