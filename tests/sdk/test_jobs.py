"""Jobs: the Consumer, and `trailboss-worker jobs` with blocking and asynchronous handlers."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import signal

import pytest

from trailboss_worker.cli import JobsOptions, UsageError, parse_jobs_options
from trailboss_worker.jobs import describe, is_async
from trailboss_worker.protocol.jobs_message import decode_job_context
from trailboss_worker.protocol.payload import encode_payload
from trailboss_worker.sdk.consumer import attempts_of

PROGRAMS = pathlib.Path(__file__).resolve().parent / "programs"
ACK = {"type": 2, "data": []}

handlers = pytest.mark.parametrize(
    "arguments",
    [
        ("handlers:handle",),
        ("handlers:handle_async",),
        ("handlers:handle_async", "--runner", "trio"),
        ("handlers:handle", "--runner=asyncio"),
    ],
    ids=["blocking", "asyncio", "trio", "blocking on asyncio"],
)


@pytest.fixture
def serve_jobs(serve_command):
    """Start `trailboss-worker jobs` in the folder of the handlers, handshake done."""

    def start(*arguments, shake_hands=True, **options):
        worker = serve_command("jobs", *arguments, "--chdir", str(PROGRAMS), **options)
        if shake_hands:
            worker.shake_hands()
        return worker

    return start


@handlers
def test_what_a_handler_does_is_what_the_server_hears(serve_jobs, arguments):
    """Each verb has its answer, returning acknowledges, raising gives back; all in one process."""
    worker = serve_jobs(*arguments)
    assert worker.job("nothing") == ACK
    assert worker.job("ack") == ACK
    assert worker.job("nack", {"requeue": True, "delay": 3}) == {
        "type": 3,
        "data": {"message": "no", "requeue": True, "delay_seconds": 3},
    }
    assert worker.job("requeue", {"delay": 5, "headers": {"x": ["1", "2"]}}) == {
        "type": 4,
        "data": {"message": "later", "delay_seconds": 5, "headers": {"x": ["1", "2"]}},
    }
    assert worker.job("fail", {"requeue": True}) == {
        "type": 1,
        "data": {"message": "bad", "requeue": True, "delay_seconds": 0},
    }
    assert worker.job("raise") == {
        "type": 3,
        "data": {"message": "RuntimeError: went wrong \\udcff", "requeue": True, "delay_seconds": 0},
    }
    assert worker.job("raise-after-ack") == ACK
    assert worker.job("twice") == ACK
    assert worker.job("nothing") == ACK
    worker.send_stop()
    assert worker.exit_code() == 0
    assert worker.rest() == b""
    for text in ("printed on import", "RuntimeError: went wrong", "RuntimeError: too late", "nack after ack"):
        assert text in worker.stderr()


def test_options_of_giving_back(serve_jobs):
    """--no-nack-requeue and --nack-delay are what a raised exception answers with."""
    worker = serve_jobs("handlers:handle", "--no-nack-requeue", "--nack-delay", "9")
    assert worker.job("raise")["data"]["requeue"] is False
    assert worker.job("raise")["data"]["delay_seconds"] == 9


def test_a_task_tells_what_the_server_said(serve_jobs):
    """Context and payload arrive in the task, with the attempt count of Trailboss."""
    worker = serve_jobs("handlers:handle")
    answer = worker.job(
        "describe", b'{"v":1}', headers={"h": ["v"]}, pipeline="p", driver="d", queue="q", attempts=3, id="i"
    )
    expected = ["i", "describe", {"h": ["v"]}, "p", "d", "q", 3, '{"v":1}']
    assert json.loads(answer["data"]["message"]) == expected


@pytest.mark.parametrize(
    ("extra", "headers", "expected"),
    [
        ({}, {}, 1),
        ({"attempts": 4}, {}, 4),
        ({}, {"x-trailboss-attempts": ["7"]}, 7),
        ({"attempts": 2}, {"x-trailboss-attempts": ["7"]}, 2),
        ({"attempts": True}, {}, 1),
        ({"attempts": "3"}, {}, 1),
        ({"attempts": -1}, {}, 1),
        ({}, {"x-trailboss-attempts": ["many"]}, 1),
        ({}, {"x-trailboss-attempts": []}, 1),
        ({}, {"x-trailboss-attempts": ["0"]}, 1),
    ],
)
def test_the_attempt_count(extra, headers, expected):
    """The context's number, else the header's, else 1; nonsense counts as absent."""
    context = decode_job_context(json.dumps({"id": "i", "job": "j", "headers": headers, **extra}).encode())
    assert attempts_of(context) == expected


def test_the_working_directory(serve_jobs):
    """--chdir is where the handler works and where its modules come from."""
    worker = serve_jobs("handlers:handle")
    assert json.loads(worker.job("where")["data"]["message"]) == [str(PROGRAMS), str(PROGRAMS)]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("broken_import:handle", "RuntimeError: this module is broken"),
        ("no_such_module:handle", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("handlers:no_such_handler", "has no attribute 'no_such_handler'"),
        ("handlers:not_callable", "handlers:not_callable is no function but int"),
    ],
)
def test_a_handler_that_cannot_be_imported(serve_jobs, target, text):
    """What failed and where in the application, once, on standard error, exit code 1, not a byte on the relay."""
    worker = serve_jobs(target, shake_hands=False)
    assert worker.exit_code() == 1
    assert worker.rest() == b""
    assert worker.stderr().count(text) == 1
    assert worker.stderr().count(f"trailboss-worker: cannot load the handler {target}:") == 1
    in_the_application = target.startswith("broken")
    assert worker.stderr().count("Traceback") == in_the_application
    assert ("broken_import.py" in worker.stderr()) == in_the_application


def test_a_folder_that_does_not_exist(serve_command):
    """--chdir to nowhere is an error before the handshake."""
    worker = serve_command("jobs", "handlers:handle", "--chdir", "/nonexistent")
    assert worker.exit_code() == 1
    assert "/nonexistent" in worker.stderr()


def test_leaving_the_process_leaves_the_job(serve_jobs):
    """SystemExit is no failure of the job: the process ends with its code and without an answer."""
    worker = serve_jobs("handlers:handle")
    worker.send_job("exit")
    assert worker.exit_code() == 7
    assert worker.rest() == b""


@handlers
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_idle_ends_at_once(serve_jobs, arguments, number):
    """With whatever loop, an idle worker leaves with status 0."""
    worker = serve_jobs(*arguments)
    assert worker.job("nothing") == ACK
    worker.signal(number)
    assert worker.exit_code() == 0
    assert "Traceback" not in worker.stderr()


@handlers
def test_a_signal_during_a_job_lets_it_finish(serve_jobs, arguments):
    """With whatever loop, the job at hand is answered first."""
    worker = serve_jobs(*arguments)
    worker.send_job("sleep")
    worker.wait_stderr("sleeping")
    worker.signal(signal.SIGTERM)
    worker.signal(signal.SIGTERM)
    assert json.loads(worker.frame().payload) == ACK
    assert worker.exit_code() == 0


@handlers
def test_a_forked_child_dies_of_a_signal(serve_jobs, arguments):
    """With whatever loop, a child does not inherit the worker's way with SIGTERM, nor wakes its parent."""
    worker = serve_jobs(*arguments)
    assert worker.job("fork")["data"]["message"] == str(int(signal.SIGTERM))
    assert worker.job("nothing") == ACK
    worker.send_stop()
    assert worker.exit_code() == 0


@handlers
def test_the_end_of_the_relay_ends_every_loop(serve_jobs, arguments):
    """A server that is gone ends an idle worker with status 0."""
    worker = serve_jobs(*arguments, relay="unix")
    assert worker.job("nothing") == ACK
    worker.close_relay()
    assert worker.exit_code() == 0


@handlers
def test_a_broken_server_ends_every_loop(serve_jobs, arguments):
    """Bytes that are no frame end the worker with status 1 and the reason, without a traceback."""
    worker = serve_jobs(*arguments)
    worker.send(b"x" * 20)
    assert worker.exit_code() == 1
    assert "no frame" in worker.stderr()
    assert "Traceback" not in worker.stderr()


def test_a_request_that_is_no_job(serve_jobs):
    """A context without an id ends the worker with the reason."""
    worker = serve_jobs("handlers:handle")
    worker.send(encode_payload(b"{}", b""))
    assert worker.exit_code() == 1
    assert "without 'id'" in worker.stderr()


@pytest.mark.parametrize("name", ["as_partial", "as_object", "handle_async"])
def test_async_callables_are_recognised(serve_jobs, name):
    """Functions, partials and callable objects run on a loop without being told so."""
    worker = serve_jobs(f"handlers:{name}")
    assert worker.job("library")["data"]["message"] == "asyncio"
    assert worker.job("raise")["type"] == 3


def test_a_decorated_async_handler_needs_the_option(serve_jobs):
    """A plain function that returns a coroutine is told how to be run; with --runner it works."""
    worker = serve_jobs("handlers:decorated")
    assert "--runner" in worker.job("nothing")["data"]["message"]
    worker = serve_jobs("handlers:decorated", "--runner", "trio")
    assert worker.job("nothing") == ACK
    assert worker.job("library")["data"]["message"] == "trio"


def test_one_loop_lives_between_jobs(serve_jobs):
    """A task that one job starts in the background goes on while the worker is idle."""
    worker = serve_jobs("handlers:handle_async")
    assert worker.job("start-background") == ACK
    counts = [int(worker.job("background-count")["data"]["message"])]
    while counts[-1] < counts[0] + 3:
        assert worker.is_silent(0.005)
        counts.append(int(worker.job("background-count")["data"]["message"]))
    assert worker.process.poll() is None


def test_trio_that_is_not_there(serve_jobs, tmp_path):
    """--runner trio without trio is an import error before the handshake."""
    (tmp_path / "trio.py").write_text("raise ImportError('no trio here')\n")
    worker = serve_jobs(
        "handlers:handle_async",
        "--runner=trio",
        shake_hands=False,
        PYTHONPATH=f"{tmp_path}:{PROGRAMS.parents[2] / 'worker_protocol'}",
    )
    assert worker.exit_code() == 1
    assert "no trio here" in worker.stderr()
    assert worker.rest() == b""


# The Consumer


def test_a_loop_over_tasks(serve_program):
    """`for task in Consumer()` answers each and ends with the stop control."""
    worker = serve_program("consumer.py", "ack")
    worker.shake_hands()
    for _ in range(3):
        assert worker.job("anything") == ACK
    worker.send_stop()
    assert worker.exit_code() == 0


def test_a_forgotten_answer(serve_program):
    """Going on without an answer raises TaskError that names the task, and nothing is answered."""
    worker = serve_program("consumer.py", "forget")
    worker.shake_hands()
    worker.send_job("precious")
    assert worker.exit_code() == 4
    assert worker.rest() == b""
    assert "TaskError: the task was not answered" in worker.stderr()
    assert "precious id-1" in worker.stderr()


def test_a_second_answer(serve_program):
    """Answering twice raises TaskError; the server has heard the first answer only."""
    worker = serve_program("consumer.py", "twice")
    worker.shake_hands()
    assert worker.job("anything") == ACK
    assert worker.exit_code() == 4
    assert worker.rest() == b""
    assert "TaskError: nack after ack" in worker.stderr()


# The command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("m:h", JobsOptions("m:h")),
        ("--no-nack-requeue m:h", JobsOptions("m:h", nack_requeue=False)),
        ("m:h --no-nack-requeue --nack-requeue", JobsOptions("m:h")),
        ("m:h --nack-delay 5 --chdir=/x", JobsOptions("m:h", directory="/x", nack_delay_seconds=5)),
        ("a.b:c.d --runner trio", JobsOptions("a.b:c.d", runner="trio")),
    ],
)
def test_options_are_read(words, expected):
    """Options in any order, with a space or an equals sign."""
    assert expected == parse_jobs_options(words.split())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("", "MODULE:NAME"),
        ("module", "MODULE:NAME"),
        (":handler", "MODULE:NAME"),
        ("m:h other:h", "one handler is enough"),
        ("m:h --chdir", "--chdir needs a value"),
        ("m:h --runner curio", "trio or asyncio"),
        ("m:h --nack-delay soon", "number of seconds"),
        ("m:h --nack-delay -1", "number of seconds"),
        ("m:h --unknown", "unknown option '--unknown'"),
    ],
)
def test_wrong_options_are_named(words, text):
    """What makes no sense is refused in words."""
    with pytest.raises(UsageError, match=text):
        parse_jobs_options(words.split())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--version"], 0, "trailboss-worker 20"),
        (["--help"], 0, "Usage: trailboss-worker"),
        (["jobs", "--help"], 0, "Usage: trailboss-worker"),
        ([], 2, "a command is needed"),
        (["dance"], 2, "unknown command 'dance'"),
        (["echo", "more"], 2, "echo takes no arguments"),
        (["jobs"], 2, "MODULE:NAME"),
    ],
)
def test_the_command(serve_command, arguments, code, text):
    """Version and help on standard output, wrong usage on standard error with exit code 2."""
    worker = serve_command(*arguments)
    assert worker.exit_code() == code
    assert text in (worker.rest().decode() if code == 0 else worker.stderr())


async def _coroutine(task):
    """An async function."""


class _Method:
    async def bound(self, task):
        """An async method."""

    def plain(self, task):
        """No async method."""


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        (_coroutine, True),
        (functools.partial(functools.partial(_coroutine), 1), True),
        (_Method().bound, True),
        (_Method().plain, False),
        (print, False),
        (os.getpid, False),
        (functools.partial(print), False),
        (int, False),
    ],
)
def test_what_is_async(handler, expected):
    """Whether a loop is needed is told from the callable's code."""
    assert is_async(handler) is expected


def test_exceptions_in_one_line():
    """Type and text, or the type alone."""
    assert describe(ValueError("x")) == "ValueError: x"
    assert describe(KeyError()) == "KeyError"


def test_the_worker_of_other_tests(serve_program, tmp_path):
    """The Python counterpart of the PHP jobs worker behaves by job name and records what it ran."""
    log = tmp_path / "log"
    worker = serve_program("jobs_worker.py", JOBS_LOG=str(log))
    worker.shake_hands()
    assert worker.job("ack", {}) == ACK
    assert worker.job("sleep", {"ms": 5}) == ACK
    assert worker.job("memory", {"mb": 1}) == ACK
    assert worker.job("echo", {"text": "echoed\n"}) == ACK
    assert worker.job("stderr", {"bytes": 80}) == ACK
    assert worker.job("nack", {"requeue": True})["data"]["requeue"] is True
    assert worker.job("requeue", {"delay": 1, "headers": {"a": ["1"]}})["type"] == 4
    assert worker.job("fail", {})["type"] == 1
    assert [json.loads(line)["job"] for line in log.read_text().splitlines()] == [
        "ack", "sleep", "memory", "echo", "stderr", "nack", "requeue", "fail",
    ]  # fmt: skip
    worker.send_job("stdout", {"text": "garbage"})
    worker.close_relay()
    assert worker.rest().startswith(b"garbage\x14")
    for name, code in (("exit", 3), ("die", -9), ("fatal", 1)):
        worker = serve_program("jobs_worker.py")
        worker.shake_hands()
        worker.send_job(name, {})
        assert worker.exit_code() == code
        assert worker.rest() == b""
