"""A real Chromium without a screen, driven over a pipe: open a page, ask it things, take its picture.

The protocol is JSON messages with a zero byte behind each, on descriptors 3 and 4 of the browser. One tab, one question
at a time; every wait has a deadline.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

__all__ = ["Browser", "chromium"]

#: Puts the pipes where the browser looks for them, by way of numbers that cannot be in the way.
PUT_PIPES = """
import os, sys
for old, high in zip(sys.argv[1:3], (103, 104)):
    os.dup2(int(old), high)
for high, new in ((103, 3), (104, 4)):
    os.dup2(high, new)
    os.close(high)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str | None:
    """Return the command, or None where there is no Chromium."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """A context manager; the browser and its profile are gone afterwards."""

    def __init__(self, command: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="trailboss-chromium-", ignore_cleanup_errors=True)
        to_read, self._write_fd = os.pipe()
        self._read_fd, to_write = os.pipe()
        words = [
            *(
                command,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
            ),
            *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--mute-audio"),
            *(
                "--force-color-profile=srgb",
                "--remote-debugging-pipe",
                f"--user-data-dir={self._profile.name}",
            ),
            "about:blank",
        ]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", PUT_PIPES, str(to_read), str(to_write), *words],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._received = b""
        self._number = 0
        self._session = ""
        try:
            target = self._ask("Target.createTarget", url="about:blank")["targetId"]
            self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            self._ask("Page.enable")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and all its processes."""
        os.close(self._write_fd)
        os.close(self._read_fd)
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait(20)
        self._profile.cleanup()

    def look(self, width: int, height: int, *, dark: bool = False, scripts: bool = True) -> None:
        """Choose window size, colour scheme, and whether scripts run."""
        phone = width < 500
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Emulation.setScriptExecutionDisabled", value=not scripts)

    def open(self, url: str) -> None:
        """Go there."""
        assert "errorText" not in self._ask("Page.navigate", url=url)

    def ask(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, expression: str, seconds: float = 20.0) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {expression}"
            time.sleep(0.1)
        return value

    def picture(self, path: Path) -> None:
        """Write the whole page as PNG."""
        data = self._ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 30
        while True:
            while b"\0" not in self._received:
                ready, _, _ = select.select([self._read_fd], [], [], max(0.0, deadline - time.monotonic()))
                assert ready, f"the browser does not answer {method}"
                data = os.read(self._read_fd, 1 << 20)
                assert data, f"the browser has gone, asked for {method}"
                self._received += data
            text, _, self._received = self._received.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])
