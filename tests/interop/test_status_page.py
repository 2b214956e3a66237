"""The status page in a real browser, over a server under load: alive, readable at every size, and text stays text.

Pictures of it are kept in `.cache/artefacts` (or $TRAILBOSS_ARTEFACTS), for people to look at.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from .browser import Browser, chromium
from .conftest import Serve
from .live import Live, free_port, wait_for

APPLICATION = """
import os, sys, time

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/report"):
        time.sleep(0.7)
    if path == "/die":
        print("<img src=x onerror=document.title='broken'> <b id=injected>bold</b>", file=sys.stderr, flush=True)
        os._exit(3)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
    return [b"ok"]
"""
CONFIGURATION = """
version: "3"
server: {{command: [trailboss-worker, wsgi, "app:application"]}}
rpc: {{listen: "unix://{folder}/rpc.sock"}}
http: {{address: "127.0.0.1:{web}", retry: false, pool: {{num_workers: 4, max_queue_size: 2}}}}
status: {{address: "127.0.0.1:{status}"}}
logs: {{level: error, output: stderr}}
"""
ARTEFACTS = Path(
    os.environ.get("TRAILBOSS_ARTEFACTS") or Path(__file__).resolve().parents[2] / ".cache" / "artefacts"
)
LIVE = "document.getElementById('link')?.dataset.live === 'yes'"


class Load:
    """Requests on the way, some slow ones among them, until `end`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(path, pause))
            for path, pause in (("/", 0.01), ("/report/7?token=secret", 0.0), ("/report/8", 0.0))
        ]
        for thread in self._threads:
            thread.start()

    def get(self, path: str) -> int:
        """Ask once; returns the status."""
        connection = HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    def _ask(self, path: str, pause: float) -> None:
        while not self._ended.wait(pause):
            assert self.get(path) in (200, 503)

    def end(self) -> None:
        """Stop asking."""
        self._ended.set()
        for thread in self._threads:
            thread.join(30)


@pytest.fixture
def browser() -> Iterator[Browser]:
    """A browser."""
    command = chromium()
    if command is None:
        pytest.skip("needs chromium")
    with Browser(command) as made:
        yield made


@pytest.mark.timeout(120)
def test_the_page_in_a_browser(serve: Serve, browser: Browser, tmp_path: Path) -> None:
    """Values move, details stay open, nothing of a worker's text runs, and no width needs scrolling sideways."""
    web, status = free_port(), free_port()
    (tmp_path / "app.py").write_text(APPLICATION)
    live: Live = serve(CONFIGURATION.format(folder=tmp_path, web=web, status=status))
    live.wait_ready()
    url = f"http://127.0.0.1:{status}/"
    load = Load(web)
    try:
        assert load.get("/die") == 502
        burst = [threading.Thread(target=load.get, args=("/report/burst",)) for _ in range(12)]
        for thread in burst:
            thread.start()

        browser.look(1280, 1000)
        browser.open(url)
        browser.until(LIVE)
        pools = "document.getElementById('pools').innerText"
        browser.until(f"{pools}.includes('GET /report/7')")
        figures = browser.until("document.getElementById('figures').innerText")
        assert "Latency" in figures
        assert "median" in figures
        browser.until(
            "!!document.querySelector('.spark .line')"
        )  # two pictures are there: a line can be drawn
        assert browser.ask("document.querySelectorAll('#pools .slot.busy').length") >= 1
        assert browser.ask("document.title").startswith("ready: Trailboss on ")
        logs = browser.until(
            "(text => text.includes('worker died') && text.includes('queue full') && text)"
            "(document.getElementById('logs').innerText)"
        )
        assert "/die" in logs

        # What a worker said is text, also where the page was made anew by a script.
        assert browser.ask("document.getElementById('injected')") is None
        assert browser.ask("document.querySelectorAll('img').length") == 0
        assert "<b id=injected>bold</b>" in browser.ask("document.getElementById('logs').textContent")
        assert "secret" not in browser.ask("document.documentElement.outerHTML")

        # An opened detail and the focus on it stay while the page changes around them.
        browser.ask(
            "{ const all = [...document.querySelectorAll('#logs details')]; const last = all[all.length - 1];"
            " last.open = true; last.querySelector('summary').focus(); window.opened = last; }"
        )
        uptime = browser.ask("document.getElementById('head').innerText")
        browser.until(f"document.getElementById('head').innerText !== {uptime!r}")
        assert browser.ask("window.opened.isConnected && window.opened.open")
        assert browser.ask("document.activeElement === window.opened.querySelector('summary')")

        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        light = browser.ask("getComputedStyle(document.body).backgroundColor")
        browser.picture(ARTEFACTS / "status-page-light.png")
        browser.look(1280, 1000, dark=True)
        assert browser.ask("getComputedStyle(document.body).backgroundColor") != light
        browser.picture(ARTEFACTS / "status-page-dark.png")
        for width in (320, 360, 768):
            browser.look(width, 780)
            browser.open(url)
            browser.until(LIVE)
            assert browser.ask("document.documentElement.scrollWidth") <= width
            if width == 360:
                browser.until(f"{pools}.includes('GET /report')")
                browser.picture(ARTEFACTS / "status-page-phone.png")

        # Without scripts: the picture of the moment, loaded again by the browser itself.
        browser.look(1280, 1000, scripts=False)
        browser.open(url)
        browser.until("document.getElementById('link')?.innerText.includes('loaded again every')")
        assert "Pool http" in browser.ask(pools)

        for thread in burst:
            thread.join(30)
    finally:
        load.end()
    for name in ("light", "dark", "phone"):
        assert (ARTEFACTS / f"status-page-{name}.png").read_bytes().startswith(b"\x89PNG")
    browser.look(1280, 1000)
    browser.open("about:blank")
    descriptors = f"/proc/{live.process.pid}/fd"
    wait_for(lambda: not _watched(status, descriptors), "the stream ended with the page")


def _watched(port: int, descriptors: str) -> bool:
    """Whether somebody still has a connection to the status port."""
    inodes = {
        os.readlink(f"{descriptors}/{name}").rpartition("[")[2].rstrip("]")
        for name in os.listdir(descriptors)
        if os.path.islink(f"{descriptors}/{name}") and "socket" in os.readlink(f"{descriptors}/{name}")
    }
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(row[1].endswith(f":{port:04X}") and row[3] == "01" and row[9] in inodes for row in rows)
