"""Plays the worker's part of one recorded dialogue, byte for byte; needs the standard library only (python -I -S).

    replay_worker.py DIALOGUE FOLDER

DIALOGUE is a JSON list of steps, each {"dir", "hex"} with exactly one frame. What the server sends has to be the frame
of the next step; what the worker says is sent as recorded, the pid aside where the relay is a socket (there the server
knows a worker by it). The first process does this and writes what it saw into FOLDER/seen, one line for each step of
the server and a last one, `complete` or `end of stream`; every later one is a plain worker that gives back what it gets.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import zlib
from typing import TextIO


class Relay:
    """The worker's end; reads and writes whole frames as bytes."""

    def __init__(self, address: str) -> None:
        self.connection: socket.socket | None = None
        kind, _, rest = address.partition("://")
        if kind == "unix":
            self.connection = socket.socket(socket.AF_UNIX)
            self.connection.connect(rest)
        elif kind == "tcp":
            host, _, port = rest.rpartition(":")
            self.connection = socket.create_connection((host, int(port)))

    def read(self, count: int) -> bytes:
        """Exactly `count` bytes, or fewer at the end of the stream."""
        data = b""
        while len(data) < count:
            wanted = count - len(data)
            piece = self.connection.recv(wanted) if self.connection else os.read(0, wanted)
            if not piece:
                break
            data += piece
        return data

    def write(self, data: bytes) -> None:
        """All of `data`."""
        if self.connection:
            self.connection.sendall(data)
        while data and not self.connection:
            data = data[os.write(1, data) :]

    def frame(self) -> bytes:
        """The next frame; b"" at the end of the stream."""
        header = self.read(12)
        if len(header) < 12:
            return b""
        return header + self.read(4 * ((header[0] & 15) - 3) + struct.unpack_from("<I", header, 2)[0])


def pid_answer(payload: bytes) -> bytes:
    """A handshake answer with this payload."""
    front = struct.pack("<BBI", 0x13, 0x01, len(payload))
    return front + struct.pack("<I", zlib.crc32(front)) + b"\0\0" + payload


def is_handshake(frame: bytes) -> bool:
    """Whether a frame is a control message about a pid; whose pid differs from run to run."""
    return bool(frame[1:2] and frame[1] & 1 and b'"pid"' in frame)


def same(expected: bytes, frame: bytes) -> bool:
    """Whether the server said what was recorded."""
    if is_handshake(expected):
        return is_handshake(frame) and frame[:2] == expected[:2] and list(json.loads(frame[12:])) == ["pid"]
    return frame == expected


def replay(relay: Relay, steps: list[dict[str, str]], seen: TextIO) -> None:
    """Play the steps; what is wrong ends the process with exit code 70 and a line that says it."""
    for number, step in enumerate(steps):
        recorded = bytes.fromhex(step["hex"])
        if step["dir"] == "worker->server":
            own_pid = is_handshake(recorded) and relay.connection is not None
            relay.write(pid_answer(b'{"pid":%d}' % os.getpid()) if own_pid else recorded)
            continue
        frame = relay.frame()
        if not frame:
            seen.write("end of stream\n")
            return
        if not same(recorded, frame):
            seen.write(f"step {number}: expected {recorded.hex()}, the server sent {frame.hex()}\n")
            seen.flush()
            os._exit(70)
        seen.write(f"step {number}\n")
        seen.flush()
    seen.write("complete\n")


def echo(relay: Relay) -> None:
    """An ordinary worker: contexts and bodies come back; ends at a stop and at the end of the stream."""
    while frame := relay.frame():
        if not frame[1] & 1:
            front = bytes((frame[0], 0)) + frame[2:6]
            relay.write(front + struct.pack("<I", zlib.crc32(front)) + frame[10:])
        elif b'"stop"' in frame:
            return
        else:
            relay.write(pid_answer(b'{"pid":%d}' % os.getpid()))


def main() -> None:
    with open(sys.argv[1]) as file:
        steps = json.load(file)
    relay = Relay(os.environ.get("RR_RELAY", "pipes"))
    try:
        claim = os.open(os.path.join(sys.argv[2], "claim"), os.O_CREAT | os.O_EXCL)
    except FileExistsError:
        echo(relay)
        return
    os.close(claim)
    with open(os.path.join(sys.argv[2], "seen"), "w") as seen:
        replay(relay, steps, seen)


if __name__ == "__main__":
    main()
