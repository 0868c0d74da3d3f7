"""A pump with real sockets on loopback: the relay's loop in a thread, the peers blocking in the test.

Leaving the rig proves that nothing is left: no descriptor, no pipe in use, no handler, no timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from urelay.engine.flow import Flow
from urelay.engine.limits import Limits
from urelay.engine.poller import RelayLoop
from urelay.engine.pump import Direction, Pump
from urelay.engine.record import End
from urelay.engine.tcp import Bridged
from urelay.engine.timers import Wheel

MIB = 1 << 20
T = TypeVar("T")
PATIENCE_S = 20.0


class LoopThread:
    """An event loop in a thread of its own; `call` runs a function in it and returns its result."""

    def __init__(self) -> None:
        self.loop = RelayLoop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="relay", daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], T]) -> T:
        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE_S)

    def run(self, coroutine: object) -> object:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE_S)  # type: ignore[arg-type]

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()


@dataclass
class Ended:
    """The owner of one flow: what it was told."""

    done: threading.Event = field(default_factory=threading.Event)
    bytes_up: int = -1
    bytes_down: int = -1
    end: End | None = None
    error: str | None = None

    def flow_ended(self, bytes_up: int, bytes_down: int, end: End, error: str | None) -> None:
        assert not self.done.is_set(), "a flow ends once"
        self.bytes_up, self.bytes_down, self.end, self.error = bytes_up, bytes_down, end, error
        self.done.set()

    def wait(self, seconds: float = PATIENCE_S) -> Ended:
        assert self.done.wait(seconds), "the flow never ended"
        return self


class OneFlow(Flow):
    """A flow and whom it tells that it ended."""

    __slots__ = ("_whom",)

    def __init__(self, whom: Ended) -> None:
        self.slot = 0
        self.due = 0.0
        self._whom = whom

    def ended(self, end: End, error: str | None, bytes_up: int = 0, bytes_down: int = 0) -> None:
        self._whom.flow_ended(bytes_up, bytes_down, end, error)


class Placeholder:
    """Stands for a socket until a direction does."""

    def on_event(self, events: int) -> None:
        raise AssertionError("nobody waits for this")

    on_crash = on_event


@dataclass
class Run:
    """One relayed connection: the two peers, and how it ended."""

    client: socket.socket
    server: socket.socket
    ended: Ended


class Rig:
    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008
        self.thread = LoopThread()
        self.pump: Pump = self.thread.call(lambda: self._make(limits))
        self.runs: list[Run] = []

    def _make(self, limits: Limits) -> Pump:
        loop = self.thread.loop
        self.poller = loop.poller
        self.wheel = Wheel(loop, limits.tick_s)
        return Pump(loop, self.poller, self.wheel, limits)

    def flow(
        self,
        *,
        early: bytes = b"",
        early_down: bytes = b"",
        idle_s: float = 0,
        small: int = 0,
        server_pair: tuple[socket.socket, socket.socket] | None = None,
        connected: bool = True,
    ) -> Run:
        """A flow between two fresh loopback connections; `small` bounds every kernel buffer, in bytes.

        `connected`: by the short way, that of an upstream which has just connected, if nothing was read yet.
        """
        client, inner = tcp_pair(small)
        server, outer = server_pair or tcp_pair(small)
        inner.setblocking(False)
        outer.setblocking(False)
        run = Run(client, server, Ended())
        self.runs.append(run)

        def start() -> None:
            flow = OneFlow(run.ended)
            if connected and not early and not early_down and not isinstance(outer, Bridged):
                self.poller.add(outer, Placeholder())
                flow.open_connected(self.pump, inner, outer, idle_s)
            else:
                flow.open(self.pump, inner, outer, idle_s, early_up=early, early_down=early_down)

        self.thread.call(start)
        return run

    def directions(self) -> list[Direction]:
        """Every direction that the poller knows."""
        return [each for each in self.poller.handlers.values() if isinstance(each, Direction)]

    def held(self) -> list[int]:
        """What each direction holds, in bytes."""
        return self.thread.call(lambda: [each.held for each in self.directions()])

    def rest(self) -> None:
        """Return when the poller has had nothing to do for a while."""
        deadline = time.monotonic() + PATIENCE_S
        seen, still = -1, 0
        while still < 5:
            now = self.thread.call(lambda: self.poller.batches)
            still = still + 1 if now == seen else 0
            seen = now
            threading.Event().wait(0.005)
            assert time.monotonic() < deadline, "the relay never comes to rest"

    def stall(self, *writers: socket.socket) -> int:
        """Write to each until neither the relay nor the kernel takes more; returns the bytes written."""
        block = pattern(1 << 18)
        total = 0
        before = -1
        for writer in writers:
            writer.setblocking(False)
        while total != before:
            before = total
            for writer in writers:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        # Whole patterns, so that what arrives can be checked: a short write goes on
                        # where it stopped.
                        total += writer.send(block[total % len(block) :] if len(writers) == 1 else block)
            self.rest()
        assert sum(map(bool, self.held())) >= len(writers), "a reader took everything"
        return total

    def close(self) -> None:
        for run in self.runs:
            run.client.close()
            run.server.close()
        for run in self.runs:
            run.ended.wait()
        assert self.thread.call(lambda: len(self.poller)) == 0, "a handler is left"
        assert self.thread.call(lambda: len(self.wheel)) == 0, "a timer is left"
        assert self.pump.pipes.in_use == 0, "a pipe is left"

        def stop() -> None:
            self.pump.close()
            self.wheel.close()

        self.thread.call(stop)
        assert self.pump.pipes.open == 0
        self.thread.close()


def tcp_pair(small: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two ends of a loopback connection, both blocking with a timeout."""
    with socket.socket() as listener:
        if small:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, small)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, small)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        near = socket.socket()
        if small:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, small)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, small)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


def reset(sock: socket.socket) -> None:
    """Close with a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def read_all(sock: socket.socket) -> bytes:
    """Everything until the end of file."""
    parts = []
    while part := sock.recv(1 << 17):
        parts.append(part)
    return b"".join(parts)


def read_until_reset(sock: socket.socket) -> bytes:
    """Everything before the reset; fails on a clean end of file."""
    parts = []
    while True:
        try:
            part = sock.recv(1 << 17)
        except ConnectionResetError:
            return b"".join(parts)
        assert part, "a reset arrived as an end of file"
        parts.append(part)


def descriptors() -> set[str]:
    """The open descriptors of this process, and what they are."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return found


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """What was opened inside is closed at the end."""
    before = len(os.listdir("/proc/self/fd"))
    shown = descriptors()
    yield
    after = len(os.listdir("/proc/self/fd"))
    assert after <= before, sorted(descriptors() - shown)


def pattern(size: int, seed: int = 0) -> bytes:
    """Position-coded bytes: every 8 hold their offset and the seed, so a mismatch names its place."""
    return struct.pack(f"<{size // 8 + 1}Q", *range(seed << 32, (seed << 32) + size // 8 + 1))[:size]


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def exchange(run: Run, up: bytes, down: bytes) -> tuple[bytes, bytes]:
    """Both ways at once, each side half-closing when it has said all; returns what arrived (up, down)."""
    got: dict[str, bytes] = {}

    def side(name: str, sock: socket.socket, says: bytes) -> None:
        def say() -> None:
            sock.sendall(says)
            sock.shutdown(socket.SHUT_WR)

        sending = in_thread(say)
        got[name] = read_all(sock)
        sending.join()

    server = in_thread(lambda: side("up", run.server, down))
    side("down", run.client, up)
    server.join()
    return got["up"], got["down"]
