"""A listener that is handed its clients: connected sockets come as descriptors beside datagrams.

socketbox, HAProxy (`sockpair@`) and others accept a connection in one place and have it served in
another. What they send is in urelay.protocols.fd_passing; what a descriptor is, its sender does not
say and need not know, so it is looked at here:

    a TCP socket that is connected     a client; getsockname and getpeername are its addresses
    a unix stream that is connected    a client without addresses: `accept-proxy` or `forward` knows more
    anything else                      closed, and said in the log once a second at most

INVARIANT: every descriptor that recvmsg(2) yields is in the hands of a Connection or closed when
the batch is over. The room for them is that of the most a message can carry, so the kernel
truncates (MSG_CTRUNC) only when this process may open no more; it has closed the client then, and
accepting pauses as it does elsewhere.

Where the place names a slot, the socket is our end of a registration with a sender of "P", which can
end; urelay.engine.registration makes another then.

Whoever may write to the socket's file may hand over clients, with whatever addresses their sockets
have: the file's mode is what stands for trust here.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING

from urelay.engine.acceptor import ROOM_ERRORS, Acceptor
from urelay.engine.connect import words
from urelay.engine.registration import Registration
from urelay.protocols.fd_passing import DESCRIPTOR_LIMIT, DESCRIPTOR_SIZE, MESSAGE_LIMIT, descriptors

if TYPE_CHECKING:
    from urelay.engine.acceptor import Host
    from urelay.engine.poller import Poller
    from urelay.policy.model import Listener
    from urelay.protocols.users import Users

log = logging.getLogger(__name__)

_ANCILLARY_ROOM = socket.CMSG_SPACE(DESCRIPTOR_LIMIT * DESCRIPTOR_SIZE)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_COMPLAINT_EVERY_S = 1.0


class Receiver(Acceptor):
    """One listener at work whose socket brings descriptors."""

    __slots__ = ("_complained_at", "_registration")

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
        """`sock` brings descriptors, bound or registered for a slot, and becomes the receiver's own."""
        super().__init__(host, poller, listener, sock, users, idle_s, batch, per_source, shared)
        # What it brings are sockets of any family; those with addresses are of the internet.
        self.family = int(socket.AF_INET6)
        self.is_unix = False
        self._complained_at = 0.0
        slot = listener.place.slot
        self._registration = None if slot is None else Registration(listener.name, listener.place, sock, self)

    def resume(self) -> None:
        """Accept from now on, or as soon as there is somebody who sends."""
        if self._registration is None or not self._registration.is_lost:
            super().resume()

    def close(self) -> None:
        """Stop, and close the socket."""
        if self._registration is not None:
            self._registration.close()
        super().close()

    def registered(self) -> None:
        """The socket leads to its sender again."""
        if self._host.room():
            self.resume()

    def _accept(self) -> None:
        host = self._host
        for _ in range(min(self._batch, host.room())):
            try:
                message, ancillary, flags, _ = self.sock.recvmsg(MESSAGE_LIMIT, _ANCILLARY_ROOM, _FLAGS)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in ROOM_ERRORS:
                    host.out_of_room(error)
                    return
                if self._registration is not None:
                    self._registration.lost(words(error))
                    return
                raise
            found = descriptors(ancillary)
            if flags & socket.MSG_CTRUNC and not found:
                host.out_of_room(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
                return
            if self._registration is not None and not found:
                if self._registration.told(message):
                    continue
                return
            taken = self._take(found)
            if taken is not None:
                # Its sender may keep a descriptor, by mistake or not.
                self._poller.share(taken[0])
                host.welcome(self, *taken)

    def _take(self, found: list[int]) -> tuple[SocketType, object] | None:
        """The client among the descriptors of one message, and its peer; everything else is closed."""
        for descriptor in found[1:]:
            os.close(descriptor)
        if not found:
            self._complain("a message without a descriptor")
            return None
        if len(found) > 1:
            self._complain(f"a message with {len(found)} descriptors; the first is taken")
        try:
            client = SocketType(fileno=found[0])
        except OSError:
            os.close(found[0])
            self._complain("a descriptor that is no socket")
            return None
        try:
            return client, _peer(client)
        except (OSError, ValueError) as error:
            client.close()
            self._complain(words(error) if isinstance(error, OSError) else str(error))
            return None

    def _complain(self, what: str) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAINT_EVERY_S:
            self._complained_at = now
            log.warning("listener `%s` was handed what it cannot serve: %s", self.name, what)


def _peer(client: SocketType) -> object:
    """The peer of a socket that can be a client's, which is made ready to be one.

    Raises ValueError for a socket of another kind, and OSError for one that is not connected.
    """
    if client.type != socket.SOCK_STREAM:
        raise ValueError("a socket that is no stream")
    if client.family == socket.AF_UNIX:
        client.getpeername()
        peer = None
    elif client.family in (socket.AF_INET, socket.AF_INET6) and client.proto == socket.IPPROTO_TCP:
        peer = client.getpeername()
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        raise ValueError("a stream that is neither TCP nor a unix socket")
    client.setblocking(False)
    return peer
