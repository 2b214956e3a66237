"""The Python counterpart of tests/php/jobs_worker.php: the same behaviour by job name, JOBS_LOG and BOOT_SLEEP_MS."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time

from trailboss_worker.sdk import RPC, Consumer, Jobs, Task, Worker

held: list[bytes] = []


def work(task: Task, arguments: dict, worker: Worker) -> None:
    """Do what the job's name says; what it does not answer itself is acknowledged."""
    message = arguments.get("message", "as told")
    delay = arguments.get("delay", 0)
    if task.name == "nack":
        task.nack(message, arguments.get("requeue", False), delay)
    elif task.name == "requeue":
        task.requeue(message, delay, arguments.get("headers"))
    elif task.name == "fail":
        task.fail(message, arguments.get("requeue", False))
    elif task.name == "sleep":
        time.sleep(arguments["ms"] / 1000)
    elif task.name == "echo":
        print(arguments.get("text", "echoed"), end="")
    elif task.name == "stdout":  # Python has no way to the relay but by its own descriptor
        os.write(worker._relay.write_fd, arguments.get("text", "garbage\n").encode())
    elif task.name == "stderr":
        sys.stderr.write(("x" * 79 + "\n") * (arguments.get("bytes", 80) // 80))
    elif task.name == "push":
        with RPC.from_environment() as rpc:
            pipeline = arguments.get("pipeline", task.pipeline)
            Jobs(rpc).push(pipeline, arguments.get("job", "ack"), arguments.get("payload", "{}"))
    elif task.name == "exit":
        os._exit(arguments.get("code", 3))
    elif task.name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif task.name == "fatal":
        raise RuntimeError("a fatal error, as told")
    elif task.name == "memory":
        held.append(b"m" * (arguments.get("mb", 16) << 20))
    elif task.name == "hang":
        while True:
            time.sleep(3600)
    if not task.answered:
        task.ack()


def record(task: Task) -> None:
    """One JSON line for each job at its start."""
    path = os.environ.get("JOBS_LOG")
    if path is None:
        return
    line = {"id": task.id, "job": task.name, "pipeline": task.pipeline, "attempts": task.attempts}
    line |= {"headers": task.headers, "payload": task.payload.decode("utf-8", "replace")}
    line |= {"pid": os.getpid(), "time": time.time()}
    with open(path, "a", encoding="utf-8") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(json.dumps(line) + "\n")


def main() -> None:
    time.sleep(int(os.environ.get("BOOT_SLEEP_MS", "0")) / 1000)
    consumer = Consumer()
    for task in consumer:
        record(task)
        work(task, json.loads(task.payload or b"null") or {}, consumer.worker)


if __name__ == "__main__":
    main()
