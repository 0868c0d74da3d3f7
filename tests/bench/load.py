"""The load: clients and the servers they are after, in one process on one core, in one epoll.

Run as `python -m tests.bench.load FOLDER ADDRESS`, it opens its servers in the namespace it is started in,
unix sockets in FOLDER, and then answers each job, a JSON object a line on standard input, by one line on
standard output. Every answer says how busy it was; what it does without a relay is in the tables as `direct`.

Bytes are checked as they come: a relay that answers wrongly has failed, not been fast.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.bench.cpu import Processes, named
from tests.bench.servers import BULK, ECHO, SINK, STALLED_S, Broken, Servers, wait_at_most

_CLONE_NEWNET = 0x40000000
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_LIBC = ctypes.CDLL(None, use_errno=True)

Script = list[tuple[bytes, bytes, int]]
"""What a client says, how the answer must begin, how long it is"""

Answer = dict[str, float]


class Clients:
    """Connections to one place by one script; each that is through is handed to `on_through`."""

    def __init__(
        self, servers: Servers, place: tuple[str, int], script: Script, on_through: Callable[[int], None]
    ) -> None:
        self._servers = servers
        self._place = place
        self._script = script
        self._on_through = on_through
        self._steps: dict[int, int] = {}

    def open(self) -> None:
        """One more connection, which says its first word when it is connected."""
        sock = socket.socket(socket.AF_INET, _STREAM)
        sock.connect_ex(self._place)
        fd = sock.detach()
        self._steps[fd] = 0
        # On loopback it is connected by now, though the kernel says that it is under way.
        try:
            os.write(fd, self._script[0][0])
        except OSError:
            self._servers.handlers[fd] = self._connected
            self._servers.epoll.register(fd, select.EPOLLOUT)
        else:
            self._servers.handlers[fd] = self._answered
            self._servers.epoll.register(fd, select.EPOLLIN)

    def _connected(self, fd: int) -> None:
        try:
            os.write(fd, self._script[0][0])
        except OSError as error:
            raise Broken(f"connecting: {error.strerror}") from None
        self._servers.handlers[fd] = self._answered
        self._servers.epoll.modify(fd, select.EPOLLIN)

    def _answered(self, fd: int) -> None:
        step = self._steps[fd]
        _, start, length = self._script[step]
        try:
            data = os.read(fd, 4096)
        except OSError as error:
            raise Broken(f"waiting for an answer: {error.strerror}") from None
        if len(data) != length or not data.startswith(start):
            raise Broken(f"answered {data[:40].hex(' ') or 'with its end'} in step {step}")
        step += 1
        if step < len(self._script):
            self._steps[fd] = step
            os.write(fd, self._script[step][0])
        else:
            del self._steps[fd]
            self._on_through(fd)

    @property
    def under_way(self) -> int:
        """How many are not through yet."""
        return len(self._steps)


class Load:
    """The jobs; each leaves nothing open but what `hold` was told to."""

    def __init__(self, folder: Path, address: str) -> None:
        self.servers = Servers(folder, address)
        self._held: list[int] = []

    def rate(
        self, place: tuple[str, int], script: Script, usage: Processes | None, *, seconds: float, flight: int
    ) -> Answer:
        """Connections, `flight` of them at a time, each closed when it has its byte back."""
        servers, count = self.servers, 0
        until = time.perf_counter() + seconds

        def through(fd: int) -> None:
            nonlocal count
            count += 1
            del servers.handlers[fd]
            os.close(fd)
            if time.perf_counter() < until:
                clients.open()

        clients = Clients(servers, place, script, through)
        clock = Clock(usage)
        for _ in range(flight):
            clients.open()
        servers.until(lambda: not clients.under_way)
        answer = clock.read()
        servers.until(lambda: not servers.echoing)
        # What the relay did for the last ones belongs to it too.
        answer["cpu_ns"] = clock.read()["cpu_ns"]
        return {"connections": count, **answer}

    def hold(
        self, place: tuple[str, int], script: Script, usage: Processes | None, *, count: int, flight: int
    ) -> Answer:
        """Opens `count` connections, has a byte echoed on each, and keeps them."""
        clients = Clients(self.servers, place, script, self._hold)
        while len(self._held) < count:
            for _ in range(min(flight, count - len(self._held)) - clients.under_way):
                clients.open()
            more = len(self._held) + 1
            self.servers.until(lambda more=more: len(self._held) >= more)  # type: ignore[misc]
        return {"held": len(self._held)}

    def latency(
        self, place: tuple[str, int], script: Script, usage: Processes | None, *, count: int
    ) -> Answer:
        """The time of one byte there and back on one connection, in µs."""
        self.hold(place, script, usage, count=1, flight=1)
        (client,), (server,) = self._held, self.servers.echoing
        os.set_blocking(client, True)
        wait_at_most(STALLED_S, client)
        wait_at_most(STALLED_S, server)
        took = []
        read, write, now = os.read, os.write, time.perf_counter_ns
        clock = Clock(usage)
        for _ in range(count):
            start = now()
            write(client, b"x")
            write(server, read(server, 1))
            if read(client, 1) != b"x":
                raise Broken("the echo ended")
            took.append(now() - start)
        answer = clock.read()
        self._let_go()
        self.servers.until(lambda: not self.servers.echoing)
        took = sorted(took[count // 10 :])
        return {"p50": took[len(took) // 2] / 1000, "p99": took[len(took) * 99 // 100] / 1000, **answer}

    def bulk(
        self, place: tuple[str, int], script: Script, usage: Processes | None, *, streams: int, seconds: float
    ) -> Answer:
        """Bytes one way as fast as they go; the first tenth of the time is not counted."""
        servers = self.servers
        self.hold(place, script, usage, count=streams, flight=streams)

        def fill(fd: int) -> None:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
            try:
                sock.send(BULK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                pass
            except OSError as error:
                raise Broken(f"sending: {error.strerror}") from None
            finally:
                sock.detach()

        for fd in self._held:
            servers.handlers[fd] = fill
            servers.epoll.register(fd, select.EPOLLOUT)

        def run(duration: float) -> Answer:
            clock, sunk, end = Clock(usage), servers.sunk, time.perf_counter() + duration
            servers.until(lambda: time.perf_counter() >= end)
            return {"bytes": servers.sunk - sunk, **clock.read()}

        run(seconds / 10)
        answer = run(seconds)
        self._let_go()
        servers.until(lambda: not servers.sinking)
        if not answer["bytes"]:
            raise Broken("nothing arrived")
        return answer

    def drop(self, *_: object) -> Answer:
        """Closes what is held and whatever a failed job left."""
        self._let_go()
        self.servers.drop()
        return {}

    def _hold(self, fd: int) -> None:
        del self.servers.handlers[fd]
        self.servers.epoll.unregister(fd)
        self._held.append(fd)

    def _let_go(self) -> None:
        for fd in self._held:
            self.servers.handlers.pop(fd, None)
            os.close(fd)
        self._held.clear()


class Clock:
    """The wall clock, how busy this process is, and the CPU time of the relay, from now on."""

    def __init__(self, usage: Processes | None) -> None:
        self._usage = usage
        self._start = self._now()

    def _now(self) -> tuple[float, float, int]:
        relay = self._usage.nanoseconds() if self._usage is not None else 0
        return time.perf_counter(), time.process_time(), relay

    def read(self) -> Answer:
        """`seconds`, `busy` (0 to 1) and `cpu_ns`."""
        wall, own, relay = (now - start for now, start in zip(self._now(), self._start, strict=True))
        return {"seconds": wall, "busy": own / wall, "cpu_ns": relay}


def script(way: str, address: str, port: int) -> Script:
    """What a client says to get through to `address` and have one byte echoed."""
    byte = (b"x", b"x", 1)
    if way == "socks5":
        asked = b"\5\1\0\1" + socket.inet_aton(address) + struct.pack("!H", port)
        return [(b"\5\1\0", b"\5\0", 2), (asked, b"\5\0\0\1", 10), byte]
    return [byte]


@contextmanager
def inside(netns: str | None) -> Iterator[None]:
    """This thread in a namespace, given as a path."""
    if netns is None:
        yield
        return
    with open("/proc/thread-self/ns/net", "rb") as home, open(netns, "rb") as there:
        _enter(there.fileno())
        try:
            yield
        finally:
            _enter(home.fileno())


def _enter(fd: int) -> None:
    if _LIBC.setns(fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def answer(load: Load, address: str, job: dict[str, Any]) -> dict[str, Any]:
    """Does one job. A relay that fails makes an answer with `error`."""
    does, way, place = job.pop("does"), job.pop("way"), tuple(job.pop("place"))
    netns, relay = job.pop("netns"), job.pop("processes")
    os.sched_setaffinity(0, {job.pop("core")})
    port = SINK if does == "bulk" else ECHO
    usage = named(relay) if relay else None
    try:
        with inside(netns):
            if does == "serve":
                load.servers.tcp(address)
                return {}
            found: Answer = getattr(load, does)(place, script(way, address, port), usage, **job)
    except (Broken, OSError) as error:
        load.drop()
        return {"error": str(error)}
    return found


def main() -> None:
    """Answers jobs until standard input ends."""
    folder, address = sys.argv[1:]
    load = Load(Path(folder), address)
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(load, address, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
