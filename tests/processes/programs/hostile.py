"""A scripted worker that does what no worker should: the behaviour comes from its arguments and from each payload.

Run as ``python -I -S hostile.py [BOOT]``. BOOT says how it starts (default: properly); afterwards each request's
context is a command and its body the argument. Standard library only and few modules, so that it starts in some 15 ms.
"""

import os
import signal
import struct
import sys
import time
import zlib

INPUT, OUTPUT = 0, 1


def frame(payload, flags=0, options=None, stream=0, length=None):
    options = options or []
    head = struct.pack("<BBI", 0x13 + len(options), flags, len(payload) if length is None else length)
    words = b"".join(struct.pack("<I", word) for word in options)
    return head + struct.pack("<IBB", zlib.crc32(head), stream, 0) + words + payload


def answer(context, body):
    return frame(context + body, 0, [len(context)])


def say(data):
    view = memoryview(data)
    while view:
        view = view[os.write(OUTPUT, view[: 1 << 16]) :]


def read_exactly(count):
    parts = []
    while count:
        data = os.read(INPUT, min(count, 1 << 16))
        if not data:
            os._exit(0)
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


def read_frame():
    head = read_exactly(12)
    words = head[0] & 15
    length = struct.unpack("<I", head[2:6])[0]
    options = read_exactly(4 * words - 12)
    return head[1], (struct.unpack("<I", options[:4])[0] if options else 0), read_exactly(length)


def hang():
    while True:
        time.sleep(3600)


def spawn_child(own_session, keeps=()):
    """A grandchild that sleeps; it keeps only the descriptors in `keeps`. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    if own_session:
        os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        if fd not in keeps:
            os.dup2(null, fd)
    hang()
    return 0


def write_error(data):
    view = memoryview(data)
    while view:
        view = view[os.write(2, view) :]


def flag_path():
    return os.environ.get("FLAG", "/nonexistent")


def boot(how):
    if how == "flag":  # starts properly only while the file FLAG exists
        if not os.path.exists(flag_path()):
            write_error(b"cannot start: the flag is missing\n")
            os._exit(7)
        how = ""
    elif how == "flag-late":  # shakes hands, then dies at once while the file FLAG does not exist
        if not os.path.exists(flag_path()):
            read_frame()
            say(frame(b'{"pid":%d}' % os.getpid(), 1))
            write_error(b"dying right after the handshake\n")
            os._exit(9)
        how = ""
    elif how == "flag-hang":  # says nothing while the file FLAG does not exist
        if not os.path.exists(flag_path()):
            hang()
        how = ""
    if how == "never":
        hang()
    elif how == "exit":
        write_error(b"exiting before hello\nbecause of a missing extension\n")
        os._exit(3)
    elif how == "garbage-short":
        say(b"Hi\n")
        hang()
    elif how == "garbage-long":
        say(b"PHP Warning:  Undefined variable $x in /app/worker.php on line 3\n")
        hang()
    elif how == "garbage-exit":
        say(b"PHP Fatal error:  Uncaught Error: Class not found in /app/worker.php\n")
        os._exit(255)
    elif how == "close":
        os.close(OUTPUT)
        hang()
    elif how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    read_frame()
    hello = frame(b'{"pid":%d}' % os.getpid(), 1)
    if how == "half-silent":
        say(hello[:9])
        hang()
    elif how == "half-exit":
        say(hello[:15])
        write_error(b"killed in the middle of my hello\n")
        os._exit(4)
    elif how == "pid-zero":
        say(frame(b'{"pid":0}', 1))
    elif how == "no-json":
        say(frame(b"hello!", 1))
    elif how == "no-control":
        say(frame(b'{"pid":%d}' % os.getpid(), 0))
    elif how == "glued":
        say(hello + b"and good morning to you")
    elif how == "late":
        time.sleep(0.4)
        say(hello)
    elif how == "claims-stack":  # says that it writes its stack at SIGUSR2, which would end it
        say(frame(b'{"pid":%d,"stack_signal":12}' % os.getpid(), 1))
    elif how == "child":
        spawn_child(False)
        spawn_child(True)
        say(hello)
    else:
        say(hello)


def die(how):
    if how in ("KILL", "SEGV", "ABRT", "TERM"):
        number = getattr(signal, "SIG" + how)
        if how != "KILL":
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        hang()
    os._exit(int(how))


def describe():
    fds = []
    for name in os.listdir("/proc/self/fd"):
        try:
            fds.append((int(name), os.readlink("/proc/self/fd/" + name)))
        except OSError:
            pass  # the descriptor of the listing itself
    figures = {
        "fds": ",".join(str(fd) for fd, _ in sorted(fds)),
        "pid": os.getpid(),
        "sid": os.getsid(0),
        "pgid": os.getpgid(0),
        "uid": os.getuid(),
        "gid": os.getgid(),
        "groups": ",".join(map(str, sorted(os.getgroups()))),
    }
    lines = [f"{name}={value}" for name, value in figures.items()]
    lines += [f"env:{name}={value}" for name, value in sorted(os.environ.items())]
    return "\n".join(lines).encode()


def act(command, context, body):
    argument = body.decode("latin-1")
    if command == "echo":
        say(answer(context, body))
    elif command == "pid":
        say(answer(b"", b"%d" % os.getpid()))
    elif command == "die":
        die(argument)
    elif command == "sleep":
        time.sleep(float(argument))
        say(answer(context, b"slept"))
    elif command == "soft":
        say(frame(body, 0x40))
    elif command == "answer-exit":  # answers with so many bytes and exits at once
        say(answer(context, b"x" * int(argument)))
        os._exit(0)
    elif command == "words-exit":  # so many bytes of numbered last words, then exit 255
        total, number, lines = int(argument), 0, []
        while total > 0:
            line = b"%06d " % number + b"w" * 92 + b"\n"
            lines.append(line)
            total -= len(line)
            number += 1
        write_error(b"".join(lines) + b"the end\n")
        os._exit(255)
    elif command == "two":
        say(answer(context, body) + answer(context, b"second"))
    elif command == "glue-text":
        say(answer(context, body) + b"<br />Notice: too late\n")
    elif command == "text-first":
        say(b"PHP Notice:  Undefined index\n" + answer(context, body))
    elif command == "text-only":
        say(b"oops")
        hang()
    elif command == "huge":
        say(frame(b"", 0, [0], length=int(argument)))
        hang()
    elif command == "partial":
        say(answer(context, b"y" * 1000)[:500])
        hang()
    elif command == "no-option":
        say(frame(body, 0))
    elif command == "bad-option":
        say(frame(body, 0, [len(body) + 1]))
    elif command == "control":
        say(frame(b'{"pid":1}', 1))
    elif command == "stream":
        say(frame(body, 0, [0], stream=1))
    elif command == "bad-crc":
        data = bytearray(answer(context, body))
        data[6] ^= 1
        say(bytes(data))
    elif command == "ask-stop":
        say(frame(b'{"stop":true}', 0, [13]))
    elif command == "stray-after":  # a good answer, then a few bytes while idle
        say(answer(context, body))
        time.sleep(0.05)
        say(b"hi")
    elif command == "frame-after":
        say(answer(context, body))
        time.sleep(0.05)
        say(answer(context, b"nobody asked"))
    elif command == "head-after":
        say(answer(context, body))
        time.sleep(0.05)
        say(frame(b"", 0, [0], length=1000))
    elif command == "close-out":
        os.close(OUTPUT)
        hang()
    elif command == "close-in":
        os.close(INPUT)
        hang()
    elif command == "close-in-answer":
        os.close(INPUT)
        say(answer(context, body))
        hang()
    elif command == "spin":
        while True:
            pass
    elif command == "stop-self":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif command == "hang":
        hang()
    elif command == "child-die":  # argument: own-session flag, kept descriptors; then it dies with 1
        own, keeps = argument.split(":")
        spawn_child(own == "1", [int(fd) for fd in keeps.split(",")])
        os._exit(1)
    elif command == "child":  # two children, one in a session of its own; answers with their pids
        pids = [spawn_child(False), spawn_child(True)]
        say(answer(context, b"%d %d" % tuple(pids)))
    elif command == "memory":
        act.kept = b"m" * int(argument)
        say(answer(context, b"kept"))
    elif command == "error-flood":
        line = b"flood " + b"z" * 1000 + b"\n"
        for _ in range(int(argument) // len(line) + 1):
            write_error(line)
        say(answer(context, b"flooded"))
    elif command == "error-lines":
        write_error(body)
        say(answer(context, b"said"))
    elif command == "describe":
        say(answer(b"", describe()))
    else:
        say(answer(b"unknown command", command.encode()))


def early(command, size):
    """What is done before the request has been read; only its first frame's head has."""
    if command == "early-answer":
        say(answer(b"", b"too early"))
        hang()
    elif command == "early-exit-answer":
        say(answer(b"", b"e" * 200000))
        os._exit(0)
    elif command == "stop-reading":
        hang()
    elif command == "close-early":
        os.close(INPUT)
        hang()


def tidy_up(_number, _frame):
    write_error(b"tidying up\n")
    time.sleep(0.1)
    write_error(b"tidy\n")
    os._exit(5)


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    arguments = sys.argv[1:]
    if "tidy-term" in arguments:  # cleans up for a moment at SIGTERM, then leaves
        signal.signal(signal.SIGTERM, tidy_up)
    if "ignore-term" in arguments:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    boot(arguments[0] if arguments else "")
    ignores_stop = "ignore-stop" in arguments
    last = "exit-after-one" in arguments
    broken = "always-error" in arguments
    while True:
        head = read_exactly(12)
        words = head[0] & 15
        length = struct.unpack("<I", head[2:6])[0]
        options = read_exactly(4 * words - 12)
        split = struct.unpack("<I", options[:4])[0] if options else 0
        context = read_exactly(min(split, length))
        command = context.decode("latin-1")
        if not head[1] & 1:
            early(command, length)
        body = read_exactly(length - len(context))
        if head[1] & 1:  # a control frame: there is only one kind after the handshake
            if ignores_stop:
                continue
            os._exit(0)
        if broken:
            say(frame(b"broken", 0x40))
        else:
            act(command, context, body)
        if last:
            os._exit(0)


main()
