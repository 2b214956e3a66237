"""The Python example, as its docstring says it is started."""

from __future__ import annotations

import pathlib

EXAMPLE = pathlib.Path(__file__).resolve().parent.parent.parent / "examples" / "python"
ACK = {"type": 2, "data": []}


def test_the_python_example(serve_command, tmp_path):
    """Every job of the example does what it says; pushing needs a server, and fails in words without one."""
    worker = serve_command(
        "jobs", "handler:handle", "--chdir", str(EXAMPLE), RR_RPC=f"unix://{tmp_path}/nobody"
    )
    worker.shake_hands()
    assert worker.job("greet", b"Ann") == ACK
    worker.wait_stderr("Hello Ann, from Python")
    assert worker.job("later", b"") == {
        "type": 4,
        "data": {"message": "come back later", "delay_seconds": 5, "headers": {"x-seen": ["1"]}},
    }
    assert worker.job("later", b"", headers={"x-seen": ["1"]}) == ACK
    assert worker.job("unknown", b"")["data"]["message"] == "no such job: unknown"
    failed = worker.job("greet-everybody", b"Ann\nBob")["data"]
    assert failed["requeue"] is True
    assert failed["message"].startswith("ConnectionLost: jobs.PushBatch")
