"""A client's side of a connection, from its first byte to the hand-over, sans-I/O.

A session is told what happened and answers with what to do: it never reads, waits or decides where
a connection may go. Two kinds exist, by how the client says where it wants to go:

    kind                     asks                      is refused with
    transparent, forward     before it says anything   a reset, whatever the reason
    socks                    in its request            the reply code of that reason (RFC 1928, 6)

A client of either kind may have to be announced first (urelay.engine.announced).

The steps, told in this order: `receive` until it answers Ask; `decided`; `dialed` or `failed`.
A refusal is the last word: after it the client is only let go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from urelay.errors import Failure, ProtocolError
from urelay.net.address import Endpoint
from urelay.policy.model import DenyHow, ListenerKind, Outcome
from urelay.protocols.socks import Request, SocksServer
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
            return self.failed(FAILURE_OF[decision.deny_how])
        return DIAL

    def dialed(self, bound: Endpoint | None) -> Command:
        """The way out is open: answers HandOver."""
        return HAND_OVER

    def failed(self, failure: Failure, why: str | None = None) -> Command:
        """There is no way out: answers Refuse. `why` may be shown to the client."""
        return RESET


class SocksSession(Session):
    """A SOCKS client (urelay.protocols.socks), which is told of every outcome in its own terms."""

    __slots__ = ("_machine", "_request")

    tells_bound = True

    def __init__(self, users: Users | None) -> None:
        self._machine = SocksServer(users)
        self._request: Request | None = None

    def receive(self, data: bytes) -> Command:
        """Take bytes of the handshake: answers Reply, Ask or Refuse."""
        try:
            reply = self._machine.receive(data)
        except ProtocolError as error:
            return Refuse(error.reply, str(error))
        request = self._request = self._machine.request
        if request is None:
            return Reply(reply)
        return Ask(Endpoint(request.host, request.port), request.user, reply)

    def dialed(self, bound: Endpoint | None) -> Command:
        """The way out is open: answers HandOver, with the reply that says so."""
        return HandOver(self._asked.success(bound), self._machine.leftover)

    def failed(self, failure: Failure, why: str | None = None) -> Command:
        """There is no way out: answers Refuse, with the reply code."""
        return Refuse(self._asked.failure(failure))

    @property
    def _asked(self) -> Request:
        assert self._request is not None, "nothing was asked yet"
        return self._request


DIRECT_SESSION = Session()

SESSIONS: Mapping[ListenerKind, Callable[[Users | None], Session]] = {ListenerKind.SOCKS: SocksSession}
"""How a client is listened to, by the kind of its listener; of the other kinds it is asked nothing"""
