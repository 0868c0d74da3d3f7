"""A refused client on its way out: it shall be able to read its reply.

Closing a socket that has unread bytes in it resets the connection, and the reset may overtake the
reply (RFC 1122, 4.2.2.13). So our side is closed first, and what the client still sends is read and
thrown away until it closes its own, or for a moment at most.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from urelay.engine.poller import Poller
    from urelay.engine.timers import Wheel

_READS = 16
_READ_BYTES = 4096
"""A client that sends more than this many times it, instead of reading, is not waited for"""


class Farewell:
    """The last moments of one client's socket."""

    __slots__ = ("_client", "_done", "_poller", "_reads", "_wheel", "due", "slot")

    def __init__(
        self, client: SocketType, poller: Poller, wheel: Wheel, done: Callable[[Farewell], None]
    ) -> None:
        """`done` is called once, when the socket is closed."""
        self.slot = 0
        self.due = 0.0
        self._client = client
        self._poller = poller
        self._wheel = wheel
        self._done = done
        self._reads = _READS

    def begin(self, watched: bool, until: float) -> None:
        """Say that nothing more comes, and wait for the client, `until` this loop time at most."""
        try:
            self._client.shutdown(socket.SHUT_WR)
            if watched:
                self._poller.assign(self._client, self)
            else:
                self._poller.add(self._client, self)
        except OSError:
            self.close()
            return
        self._wheel.set(self, until)
        self._discard()

    def on_event(self, events: int) -> None:
        """The client sent something, or closed."""
        self._discard()

    def on_timer(self, now: float) -> None:
        """It had its time."""
        self.close()

    def on_crash(self) -> None:
        """A fault of ours: close."""
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._wheel.cancel(self)
        self._poller.retire(self._client)
        self._done(self)

    def _discard(self) -> None:
        while self._reads:
            self._reads -= 1
            try:
                if not self._client.recv(_READ_BYTES):
                    break
            except BlockingIOError:
                return
            except OSError:
                break
        self.close()
