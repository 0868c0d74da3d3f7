"""A listening socket in the relay's epoll: accepts in batches, and knows when to stop.

Not asyncio's server: that accepts up to the whole backlog in one go, and when descriptors run out it
calls itself more often the longer it lasts. Here a wake-up accepts `accept_batch` clients at most
(the socket stays readable, so the rest come with the next batch). When there is no room, no
descriptor to be had or as many connections as allowed, the relay pauses every acceptor: who waits in
the backlog is served later, and who is connected notices nothing.
"""

from __future__ import annotations

import errno
import select
import socket
from socket import SocketType
from typing import TYPE_CHECKING, Protocol

from urelay.engine.session import DIRECT_SESSION, session_for

if TYPE_CHECKING:
    from urelay.engine.poller import Poller
    from urelay.engine.session import Session
    from urelay.policy.model import Listener
    from urelay.protocols.users import Users

_ROOM_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
_GONE_ERRORS = frozenset((errno.ECONNABORTED, errno.EPROTO, errno.EPERM))
"""One client left, or a firewall took it: the next may be fine (accept(2), "Error handling")"""


class Host(Protocol):
    """Who takes the clients in."""

    def has_room(self) -> bool:
        """Whether another client may be accepted; if not, the acceptors are paused."""

    def welcome(self, acceptor: Acceptor, client: SocketType, address: object) -> None:
        """Take in a client: a non-blocking socket, and its peer as accept(2) gave it."""

    def out_of_room(self, error: OSError) -> None:
        """The kernel has no socket to give: the acceptors must be paused."""


class Acceptor:
    """One listener at work."""

    __slots__ = (
        "_batch", "_host", "_kind", "_poller", "_users", "asks", "family", "idle_s", "name", "sock", "to",
    )  # fmt: skip

    def __init__(
        self,
        host: Host,
        poller: Poller,
        listener: Listener,
        sock: SocketType,
        users: Users | None,
        idle_s: float,
        batch: int,
    ) -> None:
        """`sock` is listening and becomes the acceptor's own; `idle_s` is for its connections."""
        self.name = listener.name
        self.asks = session_for(listener.kind, users) is not DIRECT_SESSION
        """Whether clients say in a protocol where they want to go"""
        self.to = listener.to
        """Where all of them want to go; None: the address they connected to, unless they are asked"""
        self.sock = sock
        self.idle_s = idle_s
        self.family = int(sock.family)
        self._host = host
        self._kind = listener.kind
        self._users = users
        self._poller = poller
        self._batch = batch
        sock.setblocking(False)
        if self.family != socket.AF_UNIX:
            # Inherited by every client, so none of them costs a system call for it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def session(self) -> Session:
        """A session for one client."""
        return session_for(self._kind, self._users)

    def resume(self) -> None:
        """Accept from now on."""
        # Level-triggered: what one batch leaves in the backlog is told again.
        self._poller.add(self.sock, self, select.EPOLLIN)

    def pause(self) -> None:
        """Leave clients in the backlog until `resume`."""
        self._poller.remove(self.sock)

    def close(self) -> None:
        """Stop, and close the listening socket."""
        self._poller.remove(self.sock)
        self._poller.retire(self.sock)

    def on_event(self, events: int) -> None:
        """Somebody waits: they are accepted when this batch's own descriptors are closed."""
        self._poller.last(self)

    def come_last(self) -> None:
        """Accept a batch."""
        host = self._host
        listening = self.sock
        family = self.family
        for _ in range(self._batch):
            if not host.has_room():
                return
            try:
                # The underscore saves the enums and the wrapper that the public accept makes: 4 µs.
                fd, address = listening._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_ERRORS:
                    continue
                if error.errno in _ROOM_ERRORS:
                    host.out_of_room(error)
                    return
                raise
            client = SocketType(family, socket.SOCK_STREAM, 0, fd)
            client.setblocking(False)
            host.welcome(self, client, address)

    def on_crash(self) -> None:
        """Accepting failed: others go on, this listener too with its next client."""
