"""The certificate, its key and the rules of TLS: files to an SSLContext, with one clear sentence where that fails.

TLS 1.2 and 1.3, forward secrecy and AEAD only, no compression, no renegotiation, session tickets on. A client that is
asked for a certificate has every one it shows verified: Python's ssl has no way to take one unverified, so RoadRunner's
`request_client_cert` is `verify_client_cert_if_given` here, and `require_any_client_cert` is
`require_and_verify_client_cert`.

Certificates notices changed files: `look` is called every second, away from the data plane, and reads them once they
have been still from one look to the next, so that a pair that is being written is not read half. Whatever is wrong with
a new pair, the old one stays, and that is logged once.
"""

from __future__ import annotations

import os
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from trailboss.config.schema import HttpSslConfig
from trailboss.log import logger

__all__ = ["CertificateError", "Certificates", "Note", "judge_files", "load_context", "utc_day"]

log = logger("http")

#: Time between two looks at the files.
LOOK_SECONDS: Final = 1.0
#: A certificate that ends sooner than this is worth a warning.
EXPIRY_NOTICE_SECONDS: Final = 7 * 86400
#: A warning about a certificate is repeated after this time.
WARN_AGAIN_SECONDS: Final = 86400.0
CIPHERS_TLS_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_CERTIFICATE: Final = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_VERIFY: Final = {
    "request_client_cert": ssl.CERT_OPTIONAL,
    "verify_client_cert_if_given": ssl.CERT_OPTIONAL,
    "require_any_client_cert": ssl.CERT_REQUIRED,
    "require_and_verify_client_cert": ssl.CERT_REQUIRED,
}
#: Device, inode, size and time of each file; None for one that cannot be looked at.
Signature = tuple[tuple[int, int, int, int] | None, ...]


class CertificateError(Exception):
    """A file that cannot be used: `key` of http.ssl it comes from, `what` is wrong, the `remedy`."""

    def __init__(self, key: str, what: str, remedy: str) -> None:
        super().__init__(f"http.ssl.{key}: {what}; {remedy}")
        self.key = key
        self.what = what
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Note:
    """Something about a certificate that works for now and hardly is meant."""

    key: str
    what: str
    remedy: str


class _Encrypted(Exception):
    """The key asks for a password."""


def load_context(config: HttpSslConfig, alpn: Sequence[str], folder: str = "") -> ssl.SSLContext:
    """Return the context for the files that are there now. Blocks on the disk. Raises CertificateError."""
    cert, key = _path(folder, config.cert), _path(folder, config.key)
    _read_validity("cert", cert)
    _check_key(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS_TLS_1_2)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    if alpn:
        context.set_alpn_protocols(list(alpn))
    try:
        context.load_cert_chain(cert, key, _refuse_password)
    except _Encrypted:
        raise CertificateError(
            "key",
            f"the key in {key} is encrypted",
            f"decrypt it (openssl pkey -in {key} -out FILE) and protect the file by its mode",
        ) from None
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise _pair_error(cert, key, error) from None
    if config.root_ca:
        _trust(context, config, _path(folder, config.root_ca))
    return context


def _path(folder: str, path: str) -> str:
    """Return the whole path, so that a message says where a file was looked for."""
    return os.path.abspath(os.path.join(folder, path))


def _refuse_password() -> str:
    raise _Encrypted


def _pair_error(cert: str, key: str, error: Exception) -> CertificateError:
    reason = getattr(error, "reason", None) or str(error)
    if reason == "KEY_VALUES_MISMATCH":
        return CertificateError(
            "key", f"{key} does not belong to the certificate in {cert}", "name the two files of one pair"
        )
    if reason in ("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"):
        return CertificateError(
            "cert",
            f"the certificate in {cert} is too weak ({reason})",
            "make one with at least RSA 2048 or P-256",
        )
    return CertificateError(
        "key",
        f"the key in {key} cannot be used with the certificate in {cert} ({reason})",
        "check both with openssl pkey and openssl x509",
    )


def _trust(context: ssl.SSLContext, config: HttpSslConfig, path: str) -> None:
    """Accept client certificates as configured."""
    _read_validity("root_ca", path)
    try:
        context.load_verify_locations(path)
    except (OSError, ValueError) as error:
        raise CertificateError(
            "root_ca", f"{path} cannot be used ({error})", "write a PEM file of certificates"
        ) from None
    # An authority is trusted because it is listed, also where it is not a root, as in Go.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = _VERIFY.get(config.client_auth_type, ssl.CERT_NONE)


def _read(key: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except FileNotFoundError:
        raise CertificateError(key, f"there is no file {path}", "correct the path") from None
    except IsADirectoryError:
        raise CertificateError(key, f"{path} is a folder", "name the PEM file in it") from None
    except PermissionError:
        raise CertificateError(
            key, f"no permission to read {path}", "let the user of the server read it, or change its group"
        ) from None
    except OSError as error:
        raise CertificateError(key, f"{path} cannot be read ({error.strerror})", "correct the path") from None


def _read_validity(key: str, path: str) -> tuple[float, float]:
    """Return from when until when the first certificate of a file is valid, in seconds since 1970."""
    text = _read(key, path)
    found = _CERTIFICATE.search(text)
    if found is None:
        hint = " but a private key" if "PRIVATE KEY-----" in text else ""
        raise CertificateError(
            key,
            f"there is no certificate in {path}{hint}",
            "write the path of a PEM file (BEGIN CERTIFICATE)",
        )
    try:
        validity = _validity(ssl.PEM_cert_to_DER_cert(found[0]))
    except ValueError:
        validity = None
    if validity is None:
        raise CertificateError(key, f"the certificate in {path} is damaged", "copy it anew, it has to be PEM")
    return validity


def _check_key(path: str) -> None:
    text = _read("key", path)
    if "PRIVATE KEY-----" not in text:
        hint = " but a certificate" if "BEGIN CERTIFICATE" in text else ""
        raise CertificateError(
            "key",
            f"there is no private key in {path}{hint}",
            "write the path of a PEM file (BEGIN PRIVATE KEY)",
        )


def judge_files(config: HttpSslConfig, folder: str = "", now: float | None = None) -> list[Note]:
    """Try the files as a start would; return what is worth a warning. Blocks on the disk. Raises CertificateError."""
    load_context(config, (), folder)
    path = _path(folder, config.cert)
    return _judge_validity(path, _read_validity("cert", path), time.time() if now is None else now)


def _judge_validity(path: str, validity: tuple[float, float], now: float) -> list[Note]:
    begins, ends = validity
    if now > ends:
        return [
            Note(
                "cert", f"the certificate in {path} expired on {utc_day(ends)}", "renew it; clients refuse it"
            )
        ]
    if now < begins:
        return [
            Note(
                "cert",
                f"the certificate in {path} is valid from {utc_day(begins)} on",
                "check the clock of this machine",
            )
        ]
    if now > ends - EXPIRY_NOTICE_SECONDS:
        return [Note("cert", f"the certificate in {path} expires on {utc_day(ends)}", "renew it")]
    return []


def utc_day(moment: float) -> str:
    """Return a moment, in seconds since 1970, for people."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _validity(der: bytes) -> tuple[float, float] | None:
    """Return from when until when a certificate is valid, in seconds since 1970; None where it cannot be read.

    A certificate is a SEQUENCE that begins with a SEQUENCE of: version ([0], optional), serial number, algorithm, issuer,
    and the SEQUENCE of two times (RFC 5280, 4.1). Nothing in the standard library tells it of a file.
    """
    try:
        _, certificate = _element(der, 0)
        _, fields = _element(certificate, 0)
        at = 0
        tag, content = _element(fields, at)
        if tag == 0xA0:
            at += _size(fields, at)
        for _ in range(3):
            at += _size(fields, at)
        tag, content = _element(fields, at)
        begins = _element(content, 0)
        ends = _element(content, _size(content, 0))
        return _moment(*begins), _moment(*ends)
    except (ValueError, IndexError):
        return None


def _header(data: bytes, at: int) -> tuple[int, int]:
    """Return size of the header and of the content of the DER element at `at`."""
    length = data[at + 1]
    if length < 0x80:
        return 2, length
    count = length & 0x7F
    return 2 + count, int.from_bytes(data[at + 2 : at + 2 + count], "big")


def _size(data: bytes, at: int) -> int:
    return sum(_header(data, at))


def _element(data: bytes, at: int) -> tuple[int, bytes]:
    header, length = _header(data, at)
    return data[at], data[at + header : at + header + length]


def _moment(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == 0x17:  # UTCTime: years 1950 to 2049 in two digits
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


class Certificates:
    """The context for new connections; `context` is replaced when the files change."""

    def __init__(self, config: HttpSslConfig, alpn: Sequence[str]) -> None:
        """Load the files. Blocks on the disk. Raises CertificateError."""
        self._config = config
        self._alpn = tuple(alpn)
        self._paths = [path for path in (config.cert, config.key, config.root_ca) if path]
        #: What was loaded, or failed to load, last; and what the last look has found.
        self._judged = self._seen = self._signature()
        self.context, self._validity = self._load()
        #: How often changed files have been taken.
        self.reloads = 0
        self._warn_again_at = 0.0
        self._warn()

    @property
    def expires(self) -> float:
        """When the certificate in use ends, in seconds since 1970."""
        return self._validity[1]

    def look(self) -> bool:
        """Take changed files; True where new ones are used from now on. Blocks on the disk; never raises.

        Once a day it says again what there is to be said about the one in use.
        """
        if time.time() >= self._warn_again_at:
            self._warn()
        seen, self._seen = self._seen, self._signature()
        if self._seen == self._judged or self._seen != seen:
            return False
        return self.reload()

    def reload(self) -> bool:
        """Read the files now; False where they cannot be used, which is logged, and the old ones stay."""
        self._judged = self._seen = self._signature()
        try:
            self.context, self._validity = self._load()
        except CertificateError as error:
            log.error("the new certificate cannot be used, the old one stays", reason=str(error))
            return False
        self.reloads += 1
        log.info("the certificate was read anew", cert=self._config.cert, expires=utc_day(self.expires))
        self._warn()
        return True

    def _load(self) -> tuple[ssl.SSLContext, tuple[float, float]]:
        context = load_context(self._config, self._alpn)
        return context, _read_validity("cert", _path("", self._config.cert))

    def _warn(self) -> None:
        now = time.time()
        self._warn_again_at = now + WARN_AGAIN_SECONDS
        for note in _judge_validity(_path("", self._config.cert), self._validity, now):
            log.warning(note.what, key=f"http.ssl.{note.key}", remedy=note.remedy)

    def _signature(self) -> Signature:
        return tuple(map(_file_signature, self._paths))


def _file_signature(path: str) -> tuple[int, int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
