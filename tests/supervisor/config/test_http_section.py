"""Addresses of the web server and its HTTPS: what is accepted, and the one line for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from trailboss.config.check import check

from .conftest import Folder

SUPPORT = str(Path(__file__).resolve().parents[2] / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)

from tls_files import make_pair  # noqa: E402  the lines above make it findable

HEAD = 'version: "3"\nserver: {command: [sh]}\n'


def test_https_alone_is_enough(folder: Folder) -> None:
    """The plain address may be missing where there is ssl; its defaults are RoadRunner's."""
    http = folder.load(HEAD + "http: {ssl: {cert: c.pem, key: k.pem}}\n").http
    assert http is not None
    assert http.ssl is not None
    assert http.address == ()
    assert http.ssl.address == ("127.0.0.1:443",)
    assert (http.ssl.redirect, http.ssl.client_auth_type, http.ssl.root_ca) == (False, "no_client_cert", "")


def test_addresses_of_every_kind(folder: Folder) -> None:
    """One or a list; systemd with a name or without."""
    text = "http: {address: 'systemd:web', ssl: {address: [':8443', 'unix:/s', systemd], cert: c, key: k}}\n"
    http = folder.load(HEAD + text).http
    assert http is not None
    assert http.ssl is not None
    assert http.address == ("systemd:web",)
    assert http.ssl.address == (":8443", "unix:/s", "systemd")


@pytest.mark.parametrize(
    ("http", "line"),
    [
        ("{}", "http.address: there is no address to listen on; set http.address"),
        ("{ssl: {cert: c}}", "http.ssl.key: the key is required"),
        ("{ssl: {cert: '', key: k}}", "http.ssl.cert: the path is empty"),
        ("{ssl: {address: [], cert: c, key: k}}", "http.ssl.address: there is no address to listen on"),
        (
            "{address: ':1', ssl: {address: ':1', cert: c, key: k}}",
            "http.ssl.address[0]: the address is listed twice; remove one of the two",
        ),
        (
            "{address: 'systemd:a b'}",
            "http.address: not an address: the name of a passed socket has characters",
        ),
        (
            "{ssl: {cert: c, key: k, client_auth_type: require_any_client_cert}}",
            "http.ssl.client_auth_type: there is nothing to verify client certificates with; set http.ssl.root_ca",
        ),
        (
            "{ssl: {cert: c, key: k, root_ca: r, client_auth_type: always}}",
            "http.ssl.client_auth_type: not a known value",
        ),
        (
            "{ssl: {cert: c, key: k, acme: {email: a@b}}}",
            "http.ssl.acme: certificates by ACME are not available yet in this version of Trailboss; let certbot",
        ),
        ("{address: ':1', http3: {address: ':2'}}", "http.http3: HTTP/3 is not available yet"),
        ("{address: ':1', fcgi: {address: ':2'}}", "http.fcgi: FastCGI is not available yet"),
    ],
)
def test_mistakes(folder: Folder, http: str, line: str) -> None:
    """Each is refused with file, line, key, what is wrong and what to do."""
    (refused,) = folder.refuse(HEAD + f"http: {http}\n")
    assert line in refused
    assert ".rr.yaml:" in refused


def test_check_tries_the_files(folder: Folder) -> None:
    """`trailboss check` loads the pair from the working directory, and says when it expires."""
    text = HEAD + "http: {ssl: {address: ':0', cert: c.pem, key: k.pem}}\n"
    config = folder.load(text)
    assert [str(problem).partition(": ")[2].partition(";")[0] for problem in check(config)] == [
        f"http.ssl.cert: there is no file {folder.path}/c.pem"
    ]
    pair = make_pair("localhost", ends_in_days=2)
    (folder.path / "c.pem").write_bytes(pair.cert_pem)
    (folder.path / "k.pem").write_bytes(pair.key_pem())
    (problem,) = check(config)
    assert "http.ssl.cert: the certificate in" in str(problem)
    assert "expires on" in str(problem)


def test_our_own_worker_is_always_there(folder: Folder) -> None:
    """trailboss-worker need not be in PATH: the server knows where it is."""
    text = (
        'version: "3"\nserver: {command: [trailboss-worker, wsgi, "a:b"]}\nhttp: {address: "127.0.0.1:0"}\n'
    )
    assert check(folder.load(text, environ={"PATH": "/nonexistent"})) == []
