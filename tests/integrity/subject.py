"""The relay under test, in a process of its own (process.py), as a test talks to it.

`Subject` starts it, asks it for its numbers and judges at the end that it gave everything back. The
process is separate so that what is measured is the relay's: processor time, memory, descriptors.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self, TypeVar

from tests.engine.rig import PATIENCE_S

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = "127.0.0.1"


def until(condition: Callable[[], T | None], what: Callable[[], str], patience_s: float = PATIENCE_S) -> T:
    """The first true value of `condition`; AssertionError saying `what` if it never comes."""
    deadline = time.monotonic() + patience_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


def descriptors_of(pid: int) -> Counter[str]:
    """How many descriptors of each kind a process has: `socket`, `pipe`, `anon_inode`, …"""
    kinds: Counter[str] = Counter()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        # The process goes on meanwhile.
        with contextlib.suppress(FileNotFoundError):
            kinds[os.readlink(entry.path).partition(":")[0]] += 1
    return kinds


def resident_of(pid: int) -> int:
    """Bytes of memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a relay without clients holds."""

    sockets: int
    tasks: int
    timers: int
    watched: int


class Subject:
    """A running relay whose forward listener `out` leads to `server`, a listening socket here."""

    def __init__(
        self,
        *,
        routes: Sequence[tuple[str, str]] = (("127.0.0.0/8", "direct"),),
        listeners: Sequence[tuple[str, str, str, int | None]] = (),
        netns: Sequence[str] = (),
        **spec: Any,
    ) -> None:
        """`listeners` are (name, kind, host, port to forward to) beside `out`."""
        self.server, self._small_server = _listening(), _listening()
        spec["routes"] = routes
        forward = [("out", self.server), ("small", self._small_server)]
        spec["listeners"] = [(name, "forward", *sock.getsockname()) for name, sock in forward] + list(
            listeners
        )
        self._process = subprocess.Popen(
            [*netns, sys.executable, "-m", "tests.integrity.process", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            bufsize=1,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._ports: dict[str, int] = {}
        self._held: list[socket.socket] = []
        self.complaints: list[str] = []
        """What it said on standard error, once it is closed"""

    def __enter__(self) -> Self:
        said = self._stdout.readline()
        assert said, self._process.communicate()[1]
        self._ports = json.loads(said)
        self.baseline = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for sock in self._held:
                sock.close()
            if kind is None:
                self.comes_to_rest()
        finally:
            self.server.close()
            self._small_server.close()
            self._stop()
        if kind is None:
            assert self._process.returncode == 0, self.complaints
            assert not any("Traceback" in line for line in self.complaints), "\n".join(self.complaints)

    def _stop(self) -> None:
        try:
            _, said = self._process.communicate(timeout=PATIENCE_S)
            self.complaints = said.splitlines()
        finally:
            self._process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    def address(self, listener: str = "out") -> tuple[str, int]:
        """Where a listener is."""
        return LOOPBACK, self._ports[listener]

    def connect(self, listener: str = "out", *, small: int = 0) -> socket.socket:
        """A client of it, blocking with a timeout; `small` bounds its kernel buffers, in bytes."""
        sock = socket.socket()
        self._held.append(sock)
        _bound_buffers(sock, small)
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.connect(self.address(listener))
        return sock

    def pair(self, *, small: int = 0) -> tuple[socket.socket, socket.socket]:
        """A client and the server's end of its connection. If `small`, the relay's end of it is so too."""
        # Two of them, for a listening socket whose buffers were bounded keeps them so.
        listening = self._small_server if small else self.server
        _bound_buffers(listening, small)
        client = self.connect("small" if small else "out", small=small)
        server, _ = listening.accept()
        self._held.append(server)
        server.settimeout(PATIENCE_S)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, server

    def pairs(self, count: int, *, small: int = 0) -> list[tuple[socket.socket, socket.socket]]:
        """So many of them."""
        return [self.pair(small=small) for _ in range(count)]

    def forget(self) -> None:
        """Close every socket of `connect` and `pair`."""
        while self._held:
            self._held.pop().close()

    def _ask(self, what: str) -> Any:
        self._stdin.write(what + "\n")
        answer = self._stdout.readline()
        assert answer, "the relay is gone"
        return json.loads(answer)

    def report(self) -> SimpleNamespace:
        """Its numbers (urelay.engine.stats.Stats), and `tasks`, `timers`, `watched`, `cpu_s`."""
        return SimpleNamespace(**self._ask("report"))

    def records(self, count: int) -> list[SimpleNamespace]:
        """How the next `count` connections ended: `bytes_up`, `bytes_down`, `end`, `error`."""
        found: list[SimpleNamespace] = []

        def enough() -> bool:
            for up, down, end, error in self._ask("records"):
                found.append(SimpleNamespace(bytes_up=up, bytes_down=down, end=end, error=error))
            return len(found) >= count

        if count:
            until(enough, lambda: f"{len(found)} of {count} connections ended")
        assert len(found) == count
        return found

    def memory(self) -> tuple[int, int]:
        """Bytes it has, and objects that its garbage collector knows, after a collection."""
        objects = self._ask("memory")
        return resident_of(self.pid), objects

    def idle(self, seconds: float) -> tuple[float, int]:
        """Leave it alone for so long; the processor seconds and the wake-ups it used meanwhile."""
        before = self.report()
        time.sleep(seconds)
        after = self.report()
        return after.cpu_s - before.cpu_s, after.wakeups - before.wakeups

    def _now(self) -> Baseline:
        report = self.report()
        return Baseline(descriptors_of(self.pid)["socket"], report.tasks, report.timers, report.watched)

    def comes_to_rest(self, patience_s: float = PATIENCE_S) -> None:
        """Return once nobody is connected and everything is given back; fail if that does not happen."""

        def rests() -> bool:
            report = self.report()
            return not (report.active or report.pipes_in_use) and self._now() == self.baseline

        until(
            rests, lambda: f"never came to rest: {self.report()}, {self._now()}, {self.baseline}", patience_s
        )


def _listening() -> socket.socket:
    server = socket.create_server((LOOPBACK, 0), backlog=4096)
    server.settimeout(PATIENCE_S)
    return server


def _bound_buffers(sock: socket.socket, size: int) -> None:
    if size:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
