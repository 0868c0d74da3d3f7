"""Pipes that carry large bursts from socket to socket, kept in a pool while they are empty.

A pipe is taken when a burst starts and given back when nothing is in it, so idle connections hold
none. INVARIANT: a pipe with bytes in it is never pooled. It would hand one client's bytes to
another; it is closed instead.

There may be no pipe to have: the descriptors ran out, the budget is spent, or the kernel has made
pipes small because an unprivileged user holds many (pipe(7): beyond `pipe-user-pages-soft` a new
one has two pages, and says nothing). Then the pump copies, and asks again a second later.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import NamedTuple

PIPE_BYTES = 1 << 20
"""Asked for: large pipes halve the cost of a byte against 64 KiB ones"""

_USEFUL_BYTES = 1 << 16
_KEPT = 64
_RETRY_S = 1.0


class Pipe(NamedTuple):
    """A pipe's two ends, non-blocking, and what it was given room for."""

    reader: int
    writer: int
    size: int

    def close(self) -> None:
        """Close both ends; what is inside is gone."""
        os.close(self.reader)
        os.close(self.writer)


class PipePool:
    """Empty pipes, at most `limit` in all with those in use. Must be closed."""

    __slots__ = ("_free", "_limit", "_not_before", "_size", "open", "refused")

    def __init__(self, limit: int, size: int = PIPE_BYTES) -> None:
        self.open = 0
        """How many there are, in use and in the pool"""
        self.refused = 0
        """How often the kernel gave none, or one too small to be of use"""
        self._limit = limit
        self._size = size
        self._free: list[Pipe] = []
        self._not_before = 0.0

    @property
    def in_use(self) -> int:
        """How many are taken."""
        return self.open - len(self._free)

    def take(self) -> Pipe | None:
        """An empty pipe of at least 64 KiB, or None: then copy."""
        if self._free:
            return self._free.pop()
        if self.open >= self._limit or time.monotonic() < self._not_before:
            return None
        pipe = _open_pipe(self._size)
        if pipe is None:
            self._not_before = time.monotonic() + _RETRY_S
            self.refused += 1
            return None
        self.open += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Take back a pipe that is empty."""
        if len(self._free) < _KEPT:
            self._free.append(pipe)
        else:
            self.drop(pipe)

    def drop(self, pipe: Pipe) -> None:
        """Close a pipe that may have bytes in it."""
        pipe.close()
        self.open -= 1

    def close(self) -> None:
        """Close the pooled pipes; those in use are dropped by their users."""
        while self._free:
            self.drop(self._free.pop())
        self._limit = 0


def _open_pipe(size: int) -> Pipe | None:
    try:
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    # Refused over the user's quota or over pipe-max-size: what the kernel gave may still do.
    with contextlib.suppress(OSError):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    pipe = Pipe(reader, writer, fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    if pipe.size < _USEFUL_BYTES:
        pipe.close()
        return None
    return pipe
