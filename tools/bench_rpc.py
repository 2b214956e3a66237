#!/usr/bin/env python3
"""Measure the RPC port: calls of rpc.Version over a unix socket, from 1 client and from 8, one call under way each.

The server is a process of its own with the production connection, registry, codec and an open gate. Printed are calls
a second and the server's own CPU time a call (user + system, from /proc), per number of clients; the last column says
whether the targets are met. Run: tools/bench_rpc.py [--seconds 3]
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import tempfile
import time
from functools import partial

import trio

from trailboss import ROADRUNNER_COMPAT_VERSION
from trailboss.config.schema import RpcConfig
from trailboss.container.contract import Access, RpcMethod, Services, WholePhase
from trailboss.container.state import ServerState
from trailboss.reactor import Reactor
from trailboss.rpc.plugin import RpcPlugin
from trailboss.rpc.registry import Registry
from trailboss_worker.protocol.frames import JSON
from trailboss_worker.protocol.rpc import encode_request

#: clients -> (calls a second at least, CPU microseconds a call at most)
TARGETS = {1: (14_300, 27.0), 8: (25_000, 27.0)}


async def serve(path: str) -> None:
    """Serve rpc.Version on the unix socket `path` until killed."""
    services = Services()
    reactor = Reactor()
    services.provide(Reactor, reactor)
    state = ServerState()
    state.gate_open = True
    state.whole = WholePhase.READY
    services.provide(ServerState, state)
    version = RpcMethod("rpc.Version", lambda _argument, _caller: ROADRUNNER_COMPAT_VERSION, Access.ALWAYS)
    plugin = RpcPlugin(RpcConfig(listen=f"unix://{path}"), Registry([version]))
    async with trio.open_nursery() as nursery:
        await nursery.start(reactor.run)
        nursery.start_soon(plugin.run, services, trio.Event())


def cpu_seconds(pid: int) -> float:
    """Return user + system time that `pid` has used."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def connect(path: str) -> socket.socket:
    """Connect, waiting up to 10 s for the server to come up."""
    give_up_at = time.monotonic() + 10
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(path)
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)


def one_client(path: str, seconds: float) -> int:
    """Call in a plain loop; return how many calls were answered."""
    with connect(path) as sock:
        request = encode_request(1, "rpc.Version", b"true", JSON)
        send, receive = sock.send, sock.recv
        ends_at = time.perf_counter() + seconds
        count = 0
        while time.perf_counter() < ends_at:
            for _ in range(100):
                send(request)
                receive(4096)
            count += 100
    return count


def many_clients(path: str, seconds: float, clients: int) -> int:
    """Keep one call under way on each of `clients` connections; return how many were answered."""
    request = encode_request(1, "rpc.Version", b"true", JSON)
    poll = select.epoll()
    socks = {}
    for _ in range(clients):
        sock = connect(path)
        socks[sock.fileno()] = (sock.send, sock.recv, sock)
        poll.register(sock.fileno(), select.EPOLLIN)
        sock.send(request)
    ends_at = time.perf_counter() + seconds
    count = 0
    while time.perf_counter() < ends_at:
        for fd, _ in poll.poll():
            send, receive, _sock = socks[fd]
            receive(4096)
            send(request)
            count += 1
    for _send, _receive, sock in socks.values():
        sock.close()
    poll.close()
    return count


def main() -> int:
    """Run both measurements, print the table; exit code 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of each measurement")
    options = parser.parse_args()
    met = True
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "rpc.sock")
        pid = os.fork()
        if pid == 0:
            trio.run(serve, path)
            os._exit(0)
        try:
            one_client(path, 0.3)
            print(f"{'clients':>7} {'calls/s':>9} {'CPU us/call':>12}  target")
            for clients, (rate_min, cpu_max) in TARGETS.items():
                run = one_client if clients == 1 else partial(many_clients, clients=clients)
                cpu, began = cpu_seconds(pid), time.perf_counter()
                count = run(path, options.seconds)
                rate = count / (time.perf_counter() - began)
                cpu_us = (cpu_seconds(pid) - cpu) / count * 1e6
                good = rate >= rate_min and cpu_us <= cpu_max
                met = met and good
                print(
                    f"{clients:>7} {rate:>9,.0f} {cpu_us:>12.1f}  "
                    f"{'met' if good else 'MISSED'} (>= {rate_min:,}/s, <= {cpu_max:g} us)"
                )
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
