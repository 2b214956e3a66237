"""The Python example, as its docstring says it is started."""

from __future__ import annotations

import pathlib

from trailboss_worker.protocol.payload import split_payload

from ..support.http_dialogue import STOP_FRAME, ask, read_answer, request

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


def test_the_wsgi_example(serve_command):
    """Its pages answer, its clock ticks, and its traceback goes to standard error."""
    worker = serve_command("wsgi", "wsgi_app", "--chdir", str(EXAMPLE))
    worker.shake_hands()
    assert ask(worker, "http://h/?name=Ann").body.startswith(b"Hello Ann, from Python (process ")
    assert ask(worker, "http://h/nowhere").status == 404
    assert ask(worker, "http://h/raise").status == 500
    worker.wait_stderr("this traceback is in the server's log")
    worker.send(request("http://h/clock"))
    assert split_payload(worker.frame())[1].startswith(b"1 of 10: ")
    worker.send(STOP_FRAME)
    assert read_answer(worker).parts[-1] == b""


def test_the_asgi_example(serve_command):
    """Its pages answer, its events come until nobody listens, and its shutdown has a word to say."""
    worker = serve_command("asgi", "asgi_app", "--chdir", str(EXAMPLE))
    worker.shake_hands()
    assert ask(worker, "http://h/").body.startswith(b"Hello from process ")
    assert ask(worker, "http://h/nowhere").status == 404
    worker.send(request("http://h/events"))
    assert split_payload(worker.frame())[1].startswith(b"id: 1\ndata: ")
    worker.send(STOP_FRAME)
    assert read_answer(worker).parts[-1] == b""
    worker.send_stop()
    assert worker.exit_code() == 0
    assert "closes what it has opened" in worker.stderr()
    assert "Traceback" not in worker.stderr()
