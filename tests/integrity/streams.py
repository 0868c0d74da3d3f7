"""Many streams at once, every byte of them checked: what the peers of the relay say and expect.

What a side says is *coded*: a long block of pseudo-random bytes whose length is a prime, repeated, and
begun somewhere else for each side. So a byte lost, doubled, moved by a page, or taken from another
stream is seen where it is, and making and checking the bytes costs little more than copying them.

A `Crowd` drives all sides from one epoll: each says its bytes in chunks of random sizes and hears the
other's with reads of random sizes, pausing as its `Plan` says. It fails on the first wrong byte, on a
wrong end, and when a side that listens hears nothing for too long while bytes are on their way.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import random
import select
import socket
import sys
import termios
import time
from dataclasses import dataclass

from tests.engine.rig import reset

_PERIOD = 1_048_573
"""A prime just below a MiB: no multiple of a page, a buffer or a pipe is a multiple of it"""
_BLOCK = random.Random(11).randbytes(_PERIOD) * 2
_VIEW = memoryview(_BLOCK)

PATIENCE_S = 20.0
"""A side that listens and hears nothing for so long has been forgotten"""
_WRITES = (1, 37, 1400, 9000, 65_536, 262_144, 262_144, 262_144, _PERIOD)
_READS = (1000, 16_384, 65_536, 262_144, 262_144, _PERIOD)
_TURNS = 20
"""So many small chunks in a row, for a chunk of one byte would else make a stream last for ever"""


class Coded:
    """The bytes of one side."""

    def __init__(self, number: int) -> None:
        self._start = number * 104_729 % _PERIOD

    def piece(self, at: int, size: int) -> memoryview:
        """At most `size` bytes from the offset `at` on; no more than a period."""
        begin = (self._start + at) % _PERIOD
        return _VIEW[begin : begin + min(size, _PERIOD)]

    def check(self, at: int, data: bytes) -> None:
        """Fails, naming the place, unless `data` is what stands at the offset `at`."""
        begin = (self._start + at) % _PERIOD
        if data == _BLOCK[begin : begin + len(data)]:
            return
        expected = _BLOCK[begin : begin + len(data)]
        wrong = next(place for place, (a, b) in enumerate(zip(data, expected, strict=True)) if a != b)
        found = _BLOCK.find(data[wrong : wrong + 12])
        whence = (found - self._start - at - wrong) % _PERIOD if found >= 0 else None
        raise AssertionError(
            f"wrong at offset {at + wrong} of a read at {at}: "
            + (
                "bytes nobody said"
                if whence is None
                else f"bytes from {whence} further on, or another stream"
            )
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What one side does."""

    says: int
    """Bytes"""
    expects: int
    closes_early: bool = False
    """Whether it half-closes when it has said all; else when it has heard all, too"""
    waits_for_end: bool = False
    """Whether it says nothing before the other side has half-closed"""
    resets_after: int | None = None
    """How much it says before it resets"""
    resets_when_acknowledged: bool = False
    """Whether it waits until the relay's kernel has taken what it said"""
    is_reset: bool = False
    """Whether it must hear a reset, after any exact prefix of `expects`"""
    pause_s: float = 0.0
    """How long it stops listening, now and then"""
    pace: float | None = None
    """How many bytes a second it listens to at most"""
    reads: tuple[int, ...] = _READS
    writes: tuple[int, ...] = _WRITES


class Side:
    """One end of a stream at work."""

    def __init__(
        self, sock: socket.socket, plan: Plan, says: Coded, hears: Coded, rng: random.Random
    ) -> None:
        self.sock = sock
        self.plan = plan
        self.other: Side
        self.said = 0
        self.heard = 0
        self.done_saying = False
        self.end: str | None = None
        """`eof` or `reset`, once it was heard"""
        self.paused = False
        self.goal = plan.says if plan.resets_after is None else plan.resets_after
        """How much it says"""
        self.waiting: tuple[int, float] = (-1, 0.0)
        """How much it had heard when bytes were first seen on their way, and when that was"""
        self._broken = False
        self._says = says
        self._hears = hears
        self._rng = rng
        self._chunk = 0
        self._turns = 0

    @property
    def over(self) -> bool:
        """Whether nothing is left to say or to hear."""
        return self.done_saying and (self.end is not None or self.plan.resets_after is not None)

    @property
    def interest(self) -> int:
        """The events it waits for."""
        wants = 0 if self.paused or self.end is not None else select.EPOLLIN
        early = self.plan.waits_for_end and self.end is None
        if self.said < self.goal and not self.done_saying and not early:
            wants |= select.EPOLLOUT
        return wants

    def act(self, wants: int) -> float:
        """Do what `interest` wanted; returns for how many seconds to stop listening."""
        if wants & select.EPOLLOUT:
            self._say()
        rest_s = self._hear() if wants & select.EPOLLIN else 0.0
        self.finish_saying()
        return rest_s

    def finish_saying(self) -> None:
        """Half-close, or get ready to reset, if it is time."""
        plan = self.plan
        if self.done_saying or self.said < self.goal:
            return
        if plan.resets_after is not None:
            self.done_saying = not plan.resets_when_acknowledged or _unacknowledged(self.sock) == 0
        elif plan.closes_early or self.end is not None or self.heard == plan.expects:
            self.done_saying = True
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Leave, as planned."""
        if self.plan.resets_after is not None:
            reset(self.sock)
        else:
            self.sock.close()

    def judge(self) -> None:
        """Fails unless it heard what it was to hear, and the end that belongs to it."""
        if self.plan.resets_after is not None:
            return
        if self.plan.is_reset:
            assert self.end == "reset", f"a reset arrived as an end of file after {self.heard} bytes"
            assert self.heard <= self.other.said
            if self.other.plan.resets_when_acknowledged:
                assert self.heard == self.other.said, "the reset overtook what was said before it"
        else:
            assert self.end == "eof", f"reset after {self.heard} of {self.plan.expects} bytes"
            assert self.heard == self.plan.expects, f"heard {self.heard} of {self.plan.expects} bytes"

    def _say(self) -> None:
        if not self._turns:
            self._chunk = self._rng.choice(self.plan.writes)
            self._turns = self._rng.randrange(1, _TURNS)
        self._turns -= 1
        try:
            self.said += self.sock.send(self._says.piece(self.said, min(self._chunk, self.goal - self.said)))
        except BlockingIOError:
            return
        except OSError:
            # What was sent to it before the reset can still be read.
            self.done_saying = self._broken = True

    def _hear(self) -> float:
        try:
            data = self.sock.recv(self._rng.choice(self.plan.reads))
        except BlockingIOError:
            return 0.0
        except OSError:
            self.end = "reset"
            self.done_saying = True
            return 0.0
        if not data:
            # A write may have taken the news of the reset before.
            self.end = "reset" if self._broken else "eof"
            return 0.0
        self._hears.check(self.heard, data)
        self.heard += len(data)
        if self.plan.pace is not None:
            return len(data) / self.plan.pace
        return self.plan.pause_s * self._rng.random() if self._rng.random() < 0.1 else 0.0


class Crowd:
    """All the streams of a test."""

    def __init__(self, seed: int) -> None:
        self.slowest_s = 0.0
        """The longest that a listening side waited for bytes on their way, to a tenth of a second"""
        self._rng = random.Random(seed)
        self._sides: dict[int, Side] = {}
        self._numbers = itertools.count(1)
        self._epoll: select.epoll
        self._watched: dict[int, int] = {}

    def add(self, pair: tuple[socket.socket, socket.socket], left: Plan, right: Plan) -> None:
        """A stream between two sockets, which are the crowd's own from here on."""
        codes = Coded(next(self._numbers)), Coded(next(self._numbers))
        rng = random.Random(self._rng.random())
        one = Side(pair[0], left, codes[0], codes[1], rng)
        two = Side(pair[1], right, codes[1], codes[0], rng)
        one.other, two.other = two, one
        for side in (one, two):
            side.sock.setblocking(False)
            self._sides[side.sock.fileno()] = side

    def run(self, limit_s: float) -> int:
        """Until every side has had its end; returns how many bytes were heard."""
        everybody = list(self._sides.values())
        looked = time.monotonic()
        deadline = looked + limit_s
        resting: list[tuple[float, int]] = []
        with select.epoll() as self._epoll:
            for fd, side in list(self._sides.items()):
                side.finish_saying()
                self._settle(fd, side)
            while self._sides:
                for fd, _events in self._epoll.poll(0.01):
                    side = self._sides[fd]
                    rest_s = side.act(self._watched[fd])
                    if rest_s:
                        side.paused = True
                        heapq.heappush(resting, (time.monotonic() + rest_s, fd))
                    self._settle(fd, side)
                now = time.monotonic()
                while resting and resting[0][0] <= now:
                    fd = heapq.heappop(resting)[1]
                    if fd in self._sides:
                        self._sides[fd].paused = False
                        self._settle(fd, self._sides[fd])
                if now - looked > 0.05:
                    looked = now
                    self._look_around(now)
                    assert now < deadline, f"{len(self._sides)} sides never came to their end"
        for side in everybody:
            side.judge()
        return sum(side.heard for side in everybody)

    def _settle(self, fd: int, side: Side) -> None:
        """Take leave of a side that is over; watch it for what it wants, if it is not."""
        wants = 0 if side.over else side.interest
        if wants != self._watched.get(fd, 0):
            # Not with an empty mask: the kernel reports the end of a socket all the same.
            if not wants:
                self._epoll.unregister(fd)
            elif fd in self._watched:
                self._epoll.modify(fd, wants)
            else:
                self._epoll.register(fd, wants)
        if wants:
            self._watched[fd] = wants
        else:
            self._watched.pop(fd, None)
        if side.over:
            del self._sides[fd]
            side.close()

    def _look_around(self, now: float) -> None:
        for fd, side in list(self._sides.items()):
            side.finish_saying()
            self._settle(fd, side)
            if side.paused or side.end is not None or side.other.said == side.heard:
                side.waiting = (-1, now)
            elif side.waiting[0] != side.heard:
                side.waiting = (side.heard, now)
            else:
                waited = now - side.waiting[1]
                self.slowest_s = max(self.slowest_s, waited)
                assert waited < PATIENCE_S, (
                    f"forgotten for {waited:.1f} s: heard {side.heard}, the other side said {side.other.said}"
                )


def _unacknowledged(sock: socket.socket) -> int:
    raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
    return int.from_bytes(raw, sys.byteorder)


def pour(coded: Coded, *socks: socket.socket, settled_s: float = 0.1) -> list[int]:
    """Say bytes on each until the relay and the kernel have taken none for a while; how much was said."""
    said = dict.fromkeys(socks, 0)
    for sock in socks:
        sock.setblocking(False)
    last = time.monotonic()
    while time.monotonic() - last < settled_s:
        for sock in socks:
            with contextlib.suppress(BlockingIOError):
                while True:
                    said[sock] += sock.send(coded.piece(said[sock], 1 << 18))
                    last = time.monotonic()
        time.sleep(0.005)
    return list(said.values())


def hear_all(sock: socket.socket, coded: Coded, heard: int = 0) -> tuple[int, str]:
    """Hear to the end, every byte checked; how much there was, and `eof` or `reset`."""
    while True:
        try:
            data = sock.recv(1 << 18)
        except ConnectionResetError:
            return heard, "reset"
        if not data:
            return heard, "eof"
        coded.check(heard, data)
        heard += len(data)
