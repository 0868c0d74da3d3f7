"""Writes lines to a file, a pipe or a terminal without ever making the relay wait.

Disks stall and readers of pipes fall asleep, so a thread of the sink's own does the writing. The
event loop hands over bytes and goes on; what the thread has not written yet is bounded, and what
comes beyond the bound is dropped, whole lines at a time, and counted: the sink is asked now and
then how many were lost (`take_dropped`), and somebody says so.

Several processes may write to one destination. A file takes every write whole, at its end; a pipe
takes whole what fits into PIPE_BUF bytes, so such a sink is told to write no more at once.

There is no lock: the event loop would wait for it whenever the thread holds it and waits for the
interpreter, milliseconds at a time. Instead each counter has one writer, and the other side only
reads it.

INVARIANT `_handed - _done` is exactly the bytes handed over and not yet written or given up.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import select
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT: Final = 4 * 1024 * 1024
"""Bytes that may wait to be written: some ten thousand lines of the access log."""

_STANDARD_ERROR = 2


class Sink:
    """One destination of lines. Made in the event loop's thread and used from there only."""

    def __init__(
        self, descriptor: int, path: str | None = None, limit: int = LIMIT, *, in_pieces: bool = False
    ) -> None:
        """`path`: the file behind `descriptor`, to be opened again on request; then it is ours to close.

        `in_pieces`: it is a pipe that other processes write to as well.
        """
        self._descriptor = descriptor
        self._path = path
        self._limit = limit
        self._in_pieces = in_pieces
        # Bytes to write, a path to open instead, or None: the end.
        self._queue: queue.SimpleQueue[bytes | str | None] = queue.SimpleQueue()
        # Written by the event loop's thread:
        self._handed = 0
        self._refused = 0
        self._told = 0
        # Written by the sink's own:
        self._done = 0
        self._failed = 0
        self._trouble: collections.deque[str] = collections.deque(maxlen=1)
        # A full disk may take half a line; the next one then begins on a line of its own.
        self._torn = False
        # A daemon: a destination that never takes another byte must not keep the process alive.
        self._thread = threading.Thread(
            target=self._write_all, name=f"sink {path or descriptor}", daemon=True
        )
        self._thread.start()

    def write(self, data: bytes) -> None:
        """Hand over whole lines; returns at once. They may be dropped, and are then counted."""
        if self._handed - self._done + len(data) > self._limit:
            self._refused += data.count(b"\n")
            return
        self._handed += len(data)
        self._queue.put(data)

    def reopen(self) -> None:
        """Open the path again, behind what was handed over so far: the file may have been moved away."""
        if self._path is not None:
            self._queue.put(self._path)

    def take_dropped(self) -> int:
        """How many lines were lost since the last time this was asked."""
        lost = self._refused + self._failed
        news, self._told = lost - self._told, lost
        return news

    def take_trouble(self) -> str | None:
        """What the system said when writing or opening last failed, once; None: nothing new."""
        return self._trouble.pop() if self._trouble else None

    def close(self, timeout_s: float = 5.0) -> bool:
        """Write what waits, for so long at most, and end; whether everything was written."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._handed == self._done

    # --- the thread

    def _write_all(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, bytes):
                for piece in _pieces(item) if self._in_pieces else (item,):
                    if not self._write_one(piece):
                        self._failed += piece.count(b"\n")
                    self._done += len(piece)
            elif isinstance(item, str):
                self._open_again(item)
            else:
                if self._path is not None:
                    os.close(self._descriptor)
                return

    def _write_one(self, data: bytes) -> bool:
        if self._torn:
            data = b"\n" + data
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
                self._torn = len(rest) > 0
            except BlockingIOError:
                # Somebody who shares this pipe or terminal with us made it non-blocking.
                poller = select.poll()
                poller.register(self._descriptor, select.POLLOUT)
                poller.poll()
            except OSError as error:
                self._note(error)
                return False
        return True

    def _open_again(self, path: str) -> None:
        try:
            descriptor = open_to_append(path)
        except OSError as error:
            self._note(error)  # the old file is better than none
            return
        os.close(self._descriptor)
        self._descriptor = descriptor

    def _note(self, error: OSError) -> None:
        self._trouble.append((error.strerror or str(error)).lower())


class DirectSink:
    """Lines to standard error from a process that must have no thread, because it forks.

    A line that cannot be written at once is lost: whoever does not read what the relay says must not
    keep it from being stopped.
    """

    def write(self, data: bytes) -> None:
        """Write whole lines now, as many as there is room for."""
        poller = select.poll()
        poller.register(_STANDARD_ERROR, select.POLLOUT)
        for piece in _pieces(data):
            # Writable means PIPE_BUF bytes of room, in a pipe, and a piece is no longer than that.
            if not poller.poll(0):
                return
            with contextlib.suppress(OSError):
                os.write(_STANDARD_ERROR, piece)


def open_to_append(path: str) -> int:
    """The descriptor of a file that lines are added to, which is made if missing; raises OSError."""
    # O_NONBLOCK: a fifo that nobody reads is an error now, not a wait for ever.
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o640)


def _pieces(data: bytes) -> Iterator[bytes]:
    """`data` in parts that a pipe takes whole: as many lines each as fit, or a bit of one that does not."""
    start = 0
    while start < len(data):
        most = min(start + select.PIPE_BUF, len(data))
        end = data.rfind(b"\n", start, most) + 1 or most
        yield data[start:end]
        start = end
