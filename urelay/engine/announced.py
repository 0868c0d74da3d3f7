"""A client that a PROXY header announces, before it says anything of its own; sans-I/O.

The header comes first and must come; then the listener's own session goes on, with what stood behind
the header. This session is never told more: it answers Announced and is done.

    listener               goes on as                   asks for
    socks, http, mixed     its own session              what the client asks for
    forward                a client asked for nothing   where the listener forwards
    transparent, redirect  a client asked for nothing   what the header holds, by `as`

`as` chooses among what the header holds, in this order:

    name      the name, with the address's port; else the address
    address   the address
    inner     with an inner destination: the name with its port, else the inner one; else the address

A header without addresses (LOCAL, UNKNOWN) speaks for its sender, so the connection keeps its own
source. It holds no destination, which only a listener that needs none can do without.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from urelay.engine.session import Announced, Ask, Command, HandOver, Refuse, Reply, Session
from urelay.errors import ProtocolError
from urelay.net.address import Endpoint
from urelay.policy.model import AcceptProxy, HeaderTarget
from urelay.protocols.proxy_header import Header, HeaderReader
from urelay.protocols.users import Users


@dataclass(frozen=True, slots=True)
class Announcer:
    """How the clients of one listener are announced, and what comes then."""

    accept: AcceptProxy
    to: Endpoint | None
    """Where the listener forwards, if it does"""
    asked: Callable[[Users | None], Session] | None
    """Makes the session of a client that is asked where it wants to go; None: clients are not asked"""
    users: Users | None = None
    """Who may log in, where they are asked; None: everybody"""

    def believes(self, sender: Endpoint | None) -> bool:
        """Whether a header of `sender` (None: it has no address) counts.

        Who has no address came by a file or a descriptor, and its permissions have let it in.
        """
        if sender is None:
            return True
        host = sender.host
        return isinstance(host, bytes) and any(prefix.holds(host) for prefix in self.accept.senders)

    def session(self) -> Session:
        """A session for one client, which has yet to send its header."""
        return AnnouncedSession(self._following)

    def _following(self, header: Header) -> Session:
        if self.asked is not None:
            return self.asked(self.users)
        return KnownSession(self.to or destination_in(header, self.accept.target))


class AnnouncedSession(Session):
    """The first words on a connection that begins with a PROXY header."""

    __slots__ = ("_following", "_reader")

    waits_for = "PROXY header"

    def __init__(self, following: Callable[[Header], Session]) -> None:
        """`following` makes the session that goes on once the header is read."""
        self._reader = HeaderReader()
        self._following = following

    def receive(self, data: bytes) -> Command:
        """Take bytes of the header: answers Reply, Announced or Refuse."""
        try:
            header = self._reader.receive(data)
        except ProtocolError as error:
            return Refuse(error=str(error))
        if header is None:
            return Reply(b"")
        session, behind = self._following(header), self._reader.leftover
        # No bytes are the end of the stream to some protocols, and would be wrong to pass on.
        asks_later = not behind and not isinstance(session, KnownSession)
        return Announced(header.source, session, Reply(b"") if asks_later else session.receive(behind))


class KnownSession(Session):
    """A client whose destination is known without asking it; what it sent already goes ahead."""

    __slots__ = ("_destination", "_early")

    def __init__(self, destination: Endpoint | None) -> None:
        """`destination` is None where there is none."""
        self._destination = destination
        self._early = b""

    def receive(self, data: bytes) -> Command:
        """Called once, with what the client sent already: answers Ask or Refuse."""
        destination = self._destination
        if destination is None:
            return Refuse(error="the PROXY header names no destination")
        if destination.port == 0 or not (isinstance(destination.host, str) or any(destination.host)):
            return Refuse(error=f"the PROXY header names {destination}, which cannot be connected to")
        self._early = data
        return Ask(destination, None, b"")

    def dialed(self, bound: Endpoint | None) -> Command:
        """The way out is open: answers HandOver."""
        return HandOver(early=self._early)


def destination_in(header: Header, target: HeaderTarget) -> Endpoint | None:
    """Where a header says its connection was going; None if it does not."""
    return _TARGETS[target](header)


def _name(header: Header) -> Endpoint | None:
    destination = header.destination
    if destination is None or header.authority is None:
        return destination
    return Endpoint(header.authority, destination.port)


def _address(header: Header) -> Endpoint | None:
    return header.destination


def _inner(header: Header) -> Endpoint | None:
    if header.inner is None:
        return header.destination
    return header.inner if header.authority is None else Endpoint(header.authority, header.inner.port)


_TARGETS: dict[HeaderTarget, Callable[[Header], Endpoint | None]] = {
    HeaderTarget.NAME: _name,
    HeaderTarget.ADDRESS: _address,
    HeaderTarget.INNER: _inner,
}
