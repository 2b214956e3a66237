"""The released PHP packages, unmodified, against a running server; runs where PHP_SDK_DIR names a folder that has them.

The folder is one in which `composer require spiral/roadrunner-jobs:^4` was run. Elsewhere the PHP programs of tests/php
stand in, which speak as those packages do.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import Serve
from .live import PROGRAMS, WAIT_SECONDS, clean_environment, free_port

SDK = os.environ.get("PHP_SDK_DIR", "")

pytestmark = [
    pytest.mark.php,
    pytest.mark.skipif(
        not (SDK and Path(SDK, "vendor", "autoload.php").exists()),
        reason="PHP_SDK_DIR names no folder with vendor/autoload.php of the released PHP packages",
    ),
]

CONFIG = """
version: "3"
rpc: {{listen: "{address}"}}
server: {{command: "{php} {programs}/sdk_consumer.php", relay: "{relay}"}}
jobs:
  pool: {{num_workers: 2}}
  pipelines: {{idle: {{driver: memory}}}}
logs: {{mode: production, level: debug, output: [server.log]}}
"""


@pytest.mark.parametrize("relay", ["pipes", "unix", "tcp"])
def test_a_producer_and_consumers_of_the_released_packages(
    serve: Serve, php: str, tmp_path: Path, relay: str
) -> None:
    """Declare, push, batch, stat, resume, list and an error; ack, complete, fail, and a retry with delay and header."""
    relays = {
        "pipes": "pipes",
        "unix": f"unix://{tmp_path}/relay.sock",
        "tcp": f"tcp://127.0.0.1:{free_port()}",
    }
    address = f"tcp://127.0.0.1:{free_port()}"
    text = CONFIG.format(address=address, php=php, programs=PROGRAMS, relay=relays[relay])
    server = serve(text, address, env={"PHP_SDK_DIR": SDK})
    finished = subprocess.run(
        [php, str(PROGRAMS / "sdk_producer.php")],
        env=clean_environment(RR_RPC=address),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
    assert (finished.returncode, finished.stderr) == (0, "")
    found = json.loads(finished.stdout)
    assert (found["version"], found["before"]) == ("2025.1.15", ["idle"])
    assert (found["declared paused"], found["resumed paused"], found["waiting"]) == (True, False, 4)
    assert sorted(found["after"]) == ["fresh", "idle"]
    assert "no such pipeline, requested: nowhere" in found["error"]
    books = server.books()
    assert (books["pushed"], books["done"], books["dead"]) == (4, 3, 1)
    runs = server.jobs(5)
    assert {found["first"], *found["many"]} == {run["id"] for run in runs}
    assert sorted(str(run["job"]) for run in runs) == ["ack", "complete", "fail", "retry", "retry"]
    assert sorted(str(run["tries"]) for run in runs if run["job"] == "retry") == ["", "2"]
    (first,) = [run for run in runs if run["id"] == found["first"]]
    assert (first["payload"], first["headers"], first["pipeline"]) == ('{"n":1}', {"tenant": ["a"]}, "fresh")
    assert "a line that belongs on standard error" in (tmp_path / "server.log").read_text()
    with server.rpc() as rpc:
        assert rpc.call("trailboss.Deaths", True) == []
