"""A listening socket in the relay's epoll: accepts in batches, and knows when to stop.

Not asyncio's server: that accepts up to the whole backlog in one go, and when descriptors run out it
calls itself more often the longer it lasts. Here a wake-up accepts `accept_batch` clients at most
(the socket stays readable, so the rest come with the next batch). When there is no room, no
descriptor to be had or as many connections as allowed, the relay pauses every acceptor: who waits in
the backlog is served later, and who is connected notices nothing.

    kind          the destination is                     the client is asked (engine.session)
    transparent   the socket's own address               no
    redirect      what NAT remembers                     no
    forward       the listener's `to`                    no
    socks         what the client says, in SOCKS         yes
    http          what the client says, with CONNECT     yes
    mixed         what the client says, in either        yes
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable
from socket import SocketType
from typing import TYPE_CHECKING, Protocol

from urelay.engine.announced import Announcer
from urelay.engine.ends import own_end
from urelay.engine.redirected import original_destination
from urelay.engine.session import SESSIONS
from urelay.policy.model import ListenerKind

if TYPE_CHECKING:
    from urelay.engine.poller import Poller
    from urelay.net.address import Endpoint
    from urelay.policy.model import Listener
    from urelay.protocols.users import Users

ROOM_ERRORS = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
"""The kernel has no room for another client"""
_GONE_ERRORS = frozenset((errno.ECONNABORTED, errno.EPROTO, errno.EPERM))
"""One client left, or a firewall took it: the next may be fine (accept(2), "Error handling")"""

_STREAM = int(socket.SOCK_STREAM)

READS_DESTINATION: dict[ListenerKind, Callable[[SocketType], Endpoint | None]] = {
    ListenerKind.TRANSPARENT: own_end,
    ListenerKind.REDIRECT: original_destination,
}
"""How the destination is read off a client's socket, where that is how it comes; raises OSError"""


class Host(Protocol):
    """Who takes the clients in."""

    def room(self) -> int:
        """How many more clients may be accepted; 0: the acceptors are paused."""

    def welcome(self, acceptor: Acceptor, client: SocketType, address: object) -> None:
        """Take in a client: a non-blocking socket, and its peer as accept(2) gave it."""

    def out_of_room(self, error: OSError) -> None:
        """The kernel has no socket to give: the acceptors must be paused."""


class Acceptor:
    """One listener at work."""

    __slots__ = (
        "_awake", "_batch", "_host", "_poller", "_shared", "announcer", "family", "idle_s", "is_unix", "name",
        "per_source", "reads_destination", "session", "sock", "to", "users",
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
        per_source: int,
        shared: bool = False,
    ) -> None:
        """`sock` is listening and becomes the acceptor's own; `idle_s` is for its connections.

        `per_source` clients of one address may be connected at a time. `shared`: other processes
        accept from the same socket.
        """
        self.name = listener.name
        self.session = SESSIONS.get(listener.kind)
        """Makes the session of a client that is asked where it wants to go; None: clients are not asked"""
        self.to = listener.to
        """Where all clients want to go that are not asked; None: the socket tells"""
        self.reads_destination = READS_DESTINATION.get(listener.kind, own_end)
        """Reads it off a client's socket otherwise; None if that knows none. Raises OSError"""
        accept = listener.accept_proxy
        self.announcer = None if accept is None else Announcer(accept, self.to, self.session, users)
        """Of a listener whose clients are announced by PROXY headers"""
        self.sock = sock
        self.users = users
        self.idle_s = idle_s
        self.per_source = per_source
        self.family = int(sock.family)
        self.is_unix = self.family == socket.AF_UNIX
        self._host = host
        self._poller = poller
        self._batch = batch
        self._shared = shared
        self._awake = False
        # The first session imports what its protocol needs: better now than while clients wait.
        if self.session is not None:
            self.session(users)
        sock.setblocking(False)
        if not self.is_unix:
            # Inherited by every client, so none of them costs a system call for it.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def resume(self) -> None:
        """Accept from now on."""
        # Level-triggered: what one batch leaves in the backlog is told again. Exclusive: of several
        # processes that share the socket, a client wakes one.
        self._poller.add(self.sock, self, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        self._awake = True

    def pause(self) -> None:
        """Leave clients in the backlog until `resume`."""
        self._awake = False
        self._poller.remove(self.sock)

    def close(self) -> None:
        """Stop, and close the listening socket."""
        self.pause()
        self._poller.retire(self.sock)

    def on_event(self, events: int) -> None:
        """Somebody waits: they are accepted when this batch's own descriptors are closed."""
        self._poller.last(self)

    def come_last(self) -> None:
        """Accept a batch."""
        self._accept()
        # Once full it must not wait at all: the next client would wake it, and nobody else.
        if self._shared and self._host.room() and self._awake:
            # To the end of the queue of those who wait: the first in it gets every client otherwise.
            self.pause()
            self.resume()

    def _accept(self) -> None:
        host = self._host
        listening = self.sock
        family = self.family
        for _ in range(min(self._batch, host.room())):
            try:
                # The underscore saves the enums and the wrapper that the public accept makes: 4 µs.
                fd, address = listening._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_ERRORS:
                    continue
                if error.errno in ROOM_ERRORS:
                    host.out_of_room(error)
                    return
                raise
            client = SocketType(family, _STREAM, 0, fd)
            client.setblocking(False)
            host.welcome(self, client, address)
            if not self._awake:
                # Its way out took the last descriptor: the rest of the batch would eat up the reserve.
                return

    def on_crash(self) -> None:
        """Accepting failed: others go on, this listener too with its next client."""
