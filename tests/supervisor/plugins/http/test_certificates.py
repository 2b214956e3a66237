"""Files of TLS: each mistake has one sentence that names key, file and remedy; changed files are taken, bad ones are not."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tls_files import TlsFiles, make_pair

from trailboss.certificates import CertificateError, Certificates, judge_files, load_context
from trailboss.config.schema import HttpSslConfig


def config_of(folder: Path, **keys: str) -> HttpSslConfig:
    """Return a configuration with the files `cert.pem` and `key.pem` of a folder."""
    return HttpSslConfig(**{"cert": str(folder / "cert.pem"), "key": str(folder / "key.pem"), **keys})  # type: ignore[arg-type]


def lay(folder: Path, name: str = "localhost", *, ends_in_days: float = 30) -> None:
    """Put a new pair into a folder, the certificate first."""
    pair = make_pair(name, ends_in_days=ends_in_days)
    for file, content in (("cert.pem", pair.cert_pem), ("key.pem", pair.key_pem())):
        new = folder / f"{file}.new"
        new.write_bytes(content)
        new.rename(folder / file)


def _other_key(folder: Path) -> None:
    (folder / "key.pem").write_bytes(make_pair("other").key_pem())


def _encrypted_key(folder: Path) -> None:
    (folder / "key.pem").write_bytes(make_pair("localhost").key_pem(b"secret"))


def _no_cert(folder: Path) -> None:
    (folder / "cert.pem").unlink()


def _no_key(folder: Path) -> None:
    (folder / "key.pem").unlink()


def _folder_for_key(folder: Path) -> None:
    _no_key(folder)
    (folder / "key.pem").mkdir()


def _text_for_cert(folder: Path) -> None:
    (folder / "cert.pem").write_text("hello")


def _damaged_cert(folder: Path) -> None:
    (folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n")


def _nonsense_cert(folder: Path) -> None:
    (folder / "cert.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def _nonsense_key(folder: Path) -> None:
    (folder / "key.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


def _swapped(folder: Path) -> None:
    (folder / "key.pem").rename(folder / "x")
    (folder / "cert.pem").rename(folder / "key.pem")
    (folder / "x").rename(folder / "cert.pem")


def _cert_for_key(folder: Path) -> None:
    (folder / "key.pem").write_bytes((folder / "cert.pem").read_bytes())


@pytest.mark.parametrize(
    ("spoil", "key", "what", "remedy"),
    [
        (_other_key, "key", "does not belong to the certificate in", "name the two files of one pair"),
        (_encrypted_key, "key", "is encrypted", "decrypt it"),
        (_no_cert, "cert", "there is no file", "correct the path"),
        (_no_key, "key", "there is no file", "correct the path"),
        (_folder_for_key, "key", "is a folder", "name the PEM file in it"),
        (_text_for_cert, "cert", "there is no certificate in", "write the path of a PEM file"),
        (_damaged_cert, "cert", "is damaged", "copy it anew"),
        (_nonsense_cert, "cert", "is damaged", "copy it anew"),
        (_nonsense_key, "key", "cannot be used with the certificate in", "check both"),
        (_swapped, "cert", "but a private key", "write the path of a PEM file"),
        (_cert_for_key, "key", "but a certificate", "write the path of a PEM file"),
    ],
)
def test_mistakes(tmp_path: Path, spoil: Callable[[Path], None], key: str, what: str, remedy: str) -> None:
    """One sentence with the key of the configuration, the file, and what to do."""
    lay(tmp_path)
    spoil(tmp_path)
    with pytest.raises(CertificateError) as raised:
        judge_files(config_of(tmp_path))
    text = str(raised.value)
    assert text.startswith(f"http.ssl.{key}: ")
    assert what in text
    assert remedy in text
    assert str(tmp_path) in text


def test_a_bad_root_ca(tmp_path: Path) -> None:
    """The file of authorities is looked at as well."""
    lay(tmp_path)
    config = config_of(tmp_path, root_ca=str(tmp_path / "ca.pem"), client_auth_type="require_any_client_cert")
    with pytest.raises(
        CertificateError, match=r"^http.ssl.root_ca: there is no file .*ca.pem; correct the path"
    ):
        judge_files(config)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_key_that_may_not_be_read(tmp_path: Path) -> None:
    """The message says whose permission is missing."""
    lay(tmp_path)
    (tmp_path / "key.pem").chmod(0)
    with pytest.raises(CertificateError, match=r"^http.ssl.key: no permission to read "):
        judge_files(config_of(tmp_path))


@pytest.mark.parametrize(
    ("days", "note"),
    [(-0.5, "expired on"), (3, "expires on"), (30, "")],
)
def test_the_time_of_a_certificate(tmp_path: Path, days: float, note: str) -> None:
    """One that has ended, or ends within a week, works and is worth a warning."""
    lay(tmp_path, ends_in_days=days)
    notes = judge_files(config_of(tmp_path))
    assert [found.key for found in notes] == (["cert"] if note else [])
    assert all(note in found.what and str(tmp_path) in found.what for found in notes)
    with capture_logs() as logs:
        Certificates(config_of(tmp_path), ())
    assert [entry["log_level"] for entry in logs] == (["warning"] if note else [])


def test_a_warning_comes_again_the_next_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that runs for months says once a day that its certificate ends soon."""
    lay(tmp_path, ends_in_days=10)
    began = time.time()
    with capture_logs() as logs:
        certificates = Certificates(config_of(tmp_path), ())
        assert certificates.expires == pytest.approx(began + 10 * 86400, abs=60)
        for hours in range(0, 240, 3):
            monkeypatch.setattr(time, "time", lambda hours=hours: began + hours * 3600)
            assert certificates.look() is False
    assert [entry["log_level"] for entry in logs] == ["warning"] * 7
    assert all("expires on" in entry["event"] for entry in logs)


def test_a_certificate_of_the_future(tmp_path: Path) -> None:
    """A clock that is wrong is named."""
    lay(tmp_path)
    (found,) = judge_files(config_of(tmp_path), now=time.time() - 10 * 86400)
    assert "is valid from" in found.what
    assert "clock" in found.remedy


@pytest.mark.parametrize("year", [2049, 2050, 2120])
def test_both_forms_of_a_time(tmp_path: Path, year: int) -> None:
    """Certificates write years up to 2049 with two digits and later ones with four."""
    days = (year - time.gmtime().tm_year) * 365.25
    lay(tmp_path, ends_in_days=days)
    assert judge_files(config_of(tmp_path)) == []
    (found,) = judge_files(config_of(tmp_path), now=time.time() + (days + 400) * 86400)
    assert f"expired on {year}" in found.what


def common_name(context: ssl.SSLContext, tmp_path: Path) -> str:
    """Return whom a server with this context says it is."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    ours, theirs = (ssl.MemoryBIO(), ssl.MemoryBIO())
    far = client.wrap_bio(ours, theirs)
    to_far, from_far = ours, theirs
    near = context.wrap_bio(from_far, to_far, server_side=True)
    for _ in range(4):
        for side in (far, near):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    shown = far.getpeercert(binary_form=True)
    assert shown is not None
    from cryptography import x509

    return str(x509.load_der_x509_certificate(shown).subject.rfc4514_string())


def test_changed_files_are_taken_once_they_are_still(tmp_path: Path) -> None:
    """The look after the one that has noticed takes them; without a change nothing is read."""
    lay(tmp_path, "old")
    certificates = Certificates(config_of(tmp_path), ())
    first = certificates.context
    assert [certificates.look() for _ in range(3)] == [False] * 3
    assert certificates.context is first
    lay(tmp_path, "new")
    assert certificates.look() is False  # noticed
    assert certificates.look() is True
    assert certificates.look() is False
    assert common_name(first, tmp_path) == "CN=old"
    assert common_name(certificates.context, tmp_path) == "CN=new"
    assert certificates.reloads == 1


def test_a_pair_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    """One error is logged, however often is looked; the right pair is taken later."""
    lay(tmp_path, "old")
    certificates = Certificates(config_of(tmp_path), ())
    _other_key(tmp_path)
    with capture_logs() as logs:
        assert [certificates.look() for _ in range(5)] == [False] * 5
    assert [entry["log_level"] for entry in logs] == ["error"]
    assert "does not belong to the certificate" in logs[0]["reason"]
    assert common_name(certificates.context, tmp_path) == "CN=old"
    _no_key(tmp_path)
    with capture_logs() as logs:
        assert [certificates.look() for _ in range(5)] == [False] * 5
    assert [entry["reason"].split(":")[0] for entry in logs] == ["http.ssl.key"]
    lay(tmp_path, "new")
    assert [certificates.look() for _ in range(2)] == [False, True]
    assert common_name(certificates.context, tmp_path) == "CN=new"


def test_files_are_read_now_when_asked(tmp_path: Path) -> None:
    """`reload` waits for nothing, and says whether it did it."""
    lay(tmp_path, "old")
    certificates = Certificates(config_of(tmp_path), ())
    lay(tmp_path, "new")
    assert certificates.reload() is True
    assert common_name(certificates.context, tmp_path) == "CN=new"
    assert certificates.look() is False
    _other_key(tmp_path)
    assert certificates.reload() is False
    assert common_name(certificates.context, tmp_path) == "CN=new"


def test_the_rules_of_the_context(tls_files: TlsFiles) -> None:
    """A client may not ask for the handshake anew, nor for an old version."""
    context = load_context(HttpSslConfig(cert=tls_files.cert, key=tls_files.key), ("http/1.1",))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.verify_mode is ssl.CERT_NONE
