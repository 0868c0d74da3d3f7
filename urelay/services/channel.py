"""What a supervisor and its workers say to each other, over a pair of connected sockets.

    supervisor says   with               a worker then
    go                -                  accepts clients, and answers `accepting`
    finish            seconds or null    accepts nobody, answers `closed`, ends with its last connection
                                         or when the time is over; said again, the earlier end counts
    reopen            -                  opens the access log's file again
    report            -                  answers `report`

    a worker says     with
    ready             its counters       everything is made; nobody is accepted yet
    accepting         its counters
    closed            its counters       its listening sockets are closed
    report            its counters       when asked, and as its last word

A message is one packet: a JSON list of the word and what comes with it. The kernel tells either side
when the other is gone.
"""

from __future__ import annotations

import contextlib
import enum
import json
import socket

_LONGEST = 65536


class Order(enum.StrEnum):
    """What a worker is told."""

    GO = "go"
    FINISH = "finish"
    REOPEN = "reopen"
    REPORT = "report"


class Word(enum.StrEnum):
    """What a worker says."""

    READY = "ready"
    ACCEPTING = "accepting"
    CLOSED = "closed"
    REPORT = "report"


class Channel:
    """One end. Nothing here ever waits."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.gone = False
        """Whether the other end has been closed, and all it said was received"""

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends that know each other."""
        kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        return cls(left), cls(right)

    def fileno(self) -> int:
        """The descriptor to watch for something to receive."""
        return self._sock.fileno()

    def send(self, word: Order | Word, value: object = None) -> None:
        """Say something, if anybody is there."""
        # It fails when the other end is gone, which `receive` tells, and when hundreds of messages
        # wait because it has stopped working, which whoever waits for its answer finds out.
        with contextlib.suppress(OSError):
            self._sock.send(json.dumps([word, value]).encode())

    def receive(self) -> list[tuple[str, object]]:
        """Everything that was said meanwhile, in its order."""
        said: list[tuple[str, object]] = []
        while True:
            try:
                packet = self._sock.recv(_LONGEST)
            except BlockingIOError:
                return said
            except ConnectionResetError:
                # It ended with something of ours unread; the rest of what it said is behind this.
                continue
            if not packet:
                self.gone = True
                return said
            word, value = json.loads(packet)
            said.append((word, value))

    def close(self) -> None:
        """Let the other end know that nobody is here."""
        self._sock.close()
