"""A client's side of a connection, from its first byte to the hand-over, sans-I/O.

A session is told what happened and answers with what to do: it never reads, waits or decides where
a connection may go. Two kinds exist, by how the client says where it wants to go:

    listener                 asks                      is refused with
    transparent, forward     before it says anything   a reset, whatever the reason
    socks                    in its request            the reply code of that reason (RFC 1928, 6)
    http                     in its request            403 and why, 502, 504; 407
    mixed                    as socks or as http       as the one it chose

A client of either kind may have to be announced first (urelay.engine.announced).

The steps, told in this order: `receive` until it answers Ask; `decided`; `dialed` or `failed`.
A refusal is the last word: after it the client is only let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from urelay.errors import Failure, ProtocolError
from urelay.net.address import Endpoint, Host
from urelay.policy.model import DenyHow, ListenerKind, Outcome
from urelay.protocols.socks import SocksServer
from urelay.protocols.users import Users
from urelay.table.decision import Decision


@dataclass(frozen=True, slots=True)
class Reply:
    """Send `data`, then go on receiving."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """The client has said where it wants to go: ask the table, then tell `decided`."""

    destination: Endpoint
    user: str | None = None
    reply: bytes = b""
    """To be sent first, perhaps nothing"""
    source: Endpoint | None = None
    """Whose connection it is, if the client spoke for somebody else; None: its own"""


@dataclass(frozen=True, slots=True)
class Announced:
    """The client's connection is `source`'s, and `session` goes on with it: obey `then`."""

    source: Endpoint | None
    """None: the client spoke for itself"""
    session: Session
    then: Command


@dataclass(frozen=True, slots=True)
class Dial:
    """Open the way out, then tell `dialed` or `failed`."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Say nothing and read nothing; close when the handshake would have timed out."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Send `reply` and close; with nothing to send, reset."""

    reply: bytes = b""
    error: str | None = None
    """What the client did wrong, if that is the reason"""


@dataclass(frozen=True, slots=True)
class HandOver:
    """Send `reply` to the client, then pump; `early` are client bytes that come before all others."""

    reply: bytes = b""
    early: bytes = b""


Command: TypeAlias = "Reply | Ask | Announced | Dial | Hold | Refuse | HandOver"

DIAL = Dial()
HOLD = Hold()
RESET = Refuse()
HAND_OVER = HandOver()

FAILURE_OF = {
    DenyHow.DEFAULT: Failure.DENIED,
    DenyHow.REFUSED: Failure.REFUSED,
    DenyHow.HOST_UNREACHABLE: Failure.HOST_UNREACHABLE,
    DenyHow.NET_UNREACHABLE: Failure.NET_UNREACHABLE,
    DenyHow.TTL_EXPIRED: Failure.TTL_EXPIRED,
}
"""What a `deny` claims has happened"""


class Session:
    """A client that need not say where it wants to go. It has no state: one serves all."""

    __slots__ = ()

    tells_bound = False
    """Whether the client is told the relay's own end of the way out"""

    waits_for = "complete request"
    """What the client owes while it is listened to"""

    def receive(self, data: bytes) -> Command:
        """The client sent `data`: answers Reply, Ask or Refuse."""
        raise AssertionError("a client that is asked nothing is not listened to before the hand-over")

    def decided(self, decision: Decision) -> Command:
        """The policy has spoken: answers Dial, Hold or Refuse."""
        if decision.outcome is Outcome.SILENT:
            return HOLD
        if decision.outcome is Outcome.DENY:
            return self.denied(decision)
        return DIAL

    def denied(self, decision: Decision) -> Command:
        """The policy says no: answers Refuse."""
        return RESET

    def dialed(self, bound: Endpoint | None) -> Command:
        """The way out is open: answers HandOver."""
        return HAND_OVER

    def failed(self, failure: Failure, why: str | None = None) -> Command:
        """There is no way out: answers Refuse. `why` may be shown to the client."""
        return RESET


class Request(Protocol):
    """What a client asked for, in the protocol it asked in, and how that is answered."""

    @property
    def host(self) -> Host:
        """An address or a host name."""

    @property
    def port(self) -> int:
        """1 to 65535."""

    @property
    def user(self) -> str | None:
        """Who the client is, as far as its protocol says."""

    def success(self, bound: Endpoint | None, /) -> bytes:
        """The reply to a connection that was made."""

    def failure(self, failure: Failure, reason: str | None = None, /) -> bytes:
        """The reply to one that was not; `reason` is told where the protocol has room for it."""


class Server(Protocol):
    """The server side of a protocol, sans-I/O: SocksServer, HttpServer, MixedServer."""

    @property
    def request(self) -> Request | None:
        """What the client asked for, once it has."""

    @property
    def leftover(self) -> bytes:
        """What it sent behind that."""

    def receive(self, data: bytes) -> bytes:
        """Take bytes, return what to send; raises ProtocolError."""


class AskedSession(Session):
    """A client that is asked where it wants to go, and told of every outcome in its own terms."""

    __slots__ = ("_request", "_server")

    tells_bound = True

    def __init__(self, server: Server) -> None:
        self._server = server
        self._request: Request | None = None

    def receive(self, data: bytes) -> Command:
        """Take bytes of the handshake: answers Reply, Ask or Refuse."""
        try:
            reply = self._server.receive(data)
        except ProtocolError as error:
            return Refuse(error.reply, str(error))
        request = self._request = self._server.request
        if request is None:
            return Reply(reply)
        return Ask(Endpoint(request.host, request.port), request.user, reply)

    def denied(self, decision: Decision) -> Command:
        """The policy says no: answers Refuse, with the reply that says why, or what it claims."""
        return self.failed(FAILURE_OF[decision.deny_how], _why(decision))

    def dialed(self, bound: Endpoint | None) -> Command:
        """The way out is open: answers HandOver, with the reply that says so."""
        return HandOver(self._asked.success(bound), self._server.leftover)

    def failed(self, failure: Failure, why: str | None = None) -> Command:
        """There is no way out: answers Refuse, with the reply that says so.

        Only a denial is explained. What else goes wrong is explained in words that name addresses
        and upstreams, and a `deny` that claims something else would give itself away.
        """
        return Refuse(self._asked.failure(failure, why if failure is Failure.DENIED else None))

    @property
    def _asked(self) -> Request:
        assert self._request is not None, "nothing was asked yet"
        return self._request


DIRECT_SESSION = Session()


def _socks(users: Users | None) -> Session:
    return AskedSession(SocksServer(users))


# Imported by the first listener of its kind: h11 takes 10 ms, which most relays never have to spend.


def _http(users: Users | None) -> Session:
    from urelay.protocols.connect import HttpServer

    return AskedSession(HttpServer(users))


def _mixed(users: Users | None) -> Session:
    from urelay.protocols.mixed import MixedServer

    return AskedSession(MixedServer(users))


SESSIONS: Final[Mapping[ListenerKind, Callable[[Users | None], Session]]] = {
    ListenerKind.SOCKS: _socks,
    ListenerKind.HTTP: _http,
    ListenerKind.MIXED: _mixed,
}
"""How a client is listened to, by the kind of its listener; of the other kinds it is asked nothing"""


def _why(decision: Decision) -> str:
    """Why the policy says no, as a client may know it: a statement's place, without its folder."""
    by = decision.wall or decision.route
    if decision.why is not None or by is None:
        return decision.why or "no route matches"
    return f"denied by {by.file.rpartition('/')[2]}:{by.line}"
