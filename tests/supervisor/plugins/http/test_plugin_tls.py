"""The plugin with HTTPS: a wrong file fails the start, the port of the redirect is the bound one, files are read again."""

from __future__ import annotations

import os
import ssl
from functools import partial
from pathlib import Path

import pytest
import trio
from test_plugin import make_config, staged
from tls_files import TlsFiles, make_files, make_pair

from trailboss.config.schema import HttpSslConfig
from trailboss.container.contract import PluginFailed, Services
from trailboss.plugins.http.plugin import HttpPlugin
from trailboss.reactor import Reactor

GET = b"GET / HTTP/1.1\r\nHost: example.test:80\r\n\r\n"


def ssl_config(files: TlsFiles, **keys: bool) -> HttpSslConfig:
    """Return the section, on a free port."""
    return HttpSslConfig(address=("127.0.0.1:0",), cert=files.cert, key=files.key, **keys)


def spoil(path: str) -> None:
    """Put something else in place of a file."""
    Path(path).write_bytes(b"nothing")


async def ask(context: ssl.SSLContext, port: int) -> tuple[bytes, int]:
    """Return what is answered over TLS, and the serial number of the certificate that was shown."""
    plain = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.SSLStream(plain, context, server_hostname="localhost", https_compatible=True) as stream:
        await stream.send_all(GET)
        answer = await stream.receive_some()
        shown = stream.getpeercert()
        assert shown is not None
        return bytes(answer), int(str(shown["serialNumber"]), 16)


async def test_both_ports_and_the_way_between(tls_files: TlsFiles) -> None:
    """HTTPS is served by the pool; the plain port redirects to where HTTPS is bound."""
    config = make_config(ssl=ssl_config(tls_files, redirect=True))
    context = ssl.create_default_context(cafile=tls_files.ca)
    async with staged(config) as stage:
        plain, secure = (int(address.rpartition(":")[2]) for address in stage.plugin.addresses)
        answer, _ = await ask(context, secure)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        async with await trio.open_tcp_stream("127.0.0.1", plain) as client:
            await client.send_all(GET)
            redirected = bytes(await client.receive_some())
        assert redirected.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n")
        assert b"\r\nLocation: https://example.test:%d/\r\n" % secure in redirected


async def test_https_without_a_plain_port(tls_files: TlsFiles) -> None:
    """One address is enough."""
    async with staged(make_config(address=(), ssl=ssl_config(tls_files))) as stage:
        (address,) = stage.plugin.addresses
        answer, _ = await ask(
            ssl.create_default_context(cafile=tls_files.ca), int(address.rpartition(":")[2])
        )
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_files_are_read_again_when_asked(tmp_path: Path) -> None:
    """`reload_certificates` takes a new pair, and leaves the old one where the new one is no good."""
    files = make_files(tmp_path)
    context = ssl.create_default_context(cafile=files.ca)
    async with staged(make_config(address=(), ssl=ssl_config(files))) as stage:
        port = int(stage.plugin.addresses[0].rpartition(":")[2])
        renewed = make_pair("localhost", files.authority)
        renewed.write(tmp_path, "server")
        assert await stage.plugin.reload_certificates()
        assert (await ask(context, port))[1] == renewed.certificate.serial_number
        spoil(files.key)
        assert not await stage.plugin.reload_certificates()
        assert (await ask(context, port))[1] == renewed.certificate.serial_number
        assert stage.figure("certificate_reloads") == 1
        detail = stage.plugin.state_detail()
        assert detail["tls_addresses"] == [f"127.0.0.1:{port}"]
        expires = renewed.certificate.not_valid_after_utc
        assert detail["certificate_expires"] == expires.strftime("%Y-%m-%d %H:%M UTC")
        assert stage.figure("handshakes_failed") == 0
    async with staged(make_config()) as stage:
        assert not await stage.plugin.reload_certificates()


async def test_a_wrong_file_fails_the_start(tmp_path: Path) -> None:
    """Before any worker boots, with key, file and remedy."""
    files = make_files(tmp_path)
    os.unlink(files.key)
    services = Services()
    reactor = Reactor()
    services.provide(Reactor, reactor)
    plugin = HttpPlugin(make_config(ssl=ssl_config(files)))
    with trio.fail_after(10), pytest.raises(PluginFailed) as raised:
        await plugin.run(services, trio.Event())
    assert f"http.ssl.key: there is no file {files.key}; correct the path" in str(raised.value)
    reactor.close()


async def test_many_handshakes_at_once(tls_files: TlsFiles) -> None:
    """Forty clients that come together are all served."""
    context = ssl.create_default_context(cafile=tls_files.ca)
    async with staged(make_config(address=(), ssl=ssl_config(tls_files))) as stage:
        port = int(stage.plugin.addresses[0].rpartition(":")[2])
        answers: list[bytes] = []

        async def one() -> None:
            answers.append((await ask(context, port))[0])

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(one)
        assert len(answers) == 40
        assert all(answer.startswith(b"HTTP/1.1 200 OK\r\n") for answer in answers)
        await stage.until(partial(_is_empty, stage))


def _is_empty(stage: object) -> bool:
    return stage.figure("connections") == 0  # type: ignore[attr-defined, no-any-return]
