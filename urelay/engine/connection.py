"""One client from accept to its record: session, decision, dialling, hand-over to the pump.

    HANDSHAKE --> (decide) --> CONNECTING --> FLOWING --> OVER
                     |-------> DIALING ----------^
                     |-------> HELD       `deny silently`
                     '-------> OVER       `deny`

CONNECTING is the short way: an address dialled directly needs no task, only a socket whose first
event is the result, and where the kernel connects at once not even that. DIALING is for what waits
for more than one thing (names, proxies, unix sockets) and has a task of the relay's.

The table and the dialer are captured at accept: a reload in the middle of a handshake changes
nothing for this client, and its decision and its way out come from one policy.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket
import time
from socket import SocketType
from typing import TYPE_CHECKING

from urelay.engine.connect import FAILURES
from urelay.engine.dial import Asked, Denied, Dialed
from urelay.engine.flow import Flow
from urelay.engine.record import End, Record
from urelay.engine.session import (
    DIRECT_SESSION,
    Ask,
    Command,
    Dial,
    HandOver,
    Hold,
    Refuse,
    Reply,
    Session,
    SocksSession,
)
from urelay.engine.tcp import reset_on_close
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint, unmap
from urelay.policy.model import Outcome

if TYPE_CHECKING:
    from urelay.engine.acceptor import Acceptor
    from urelay.engine.relay import Relay
    from urelay.table.decision import Decision

log = logging.getLogger(__name__)

_GONE = select.EPOLLERR | select.EPOLLHUP
_SOCKET = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_END_OF = {Failure.TIMEOUT: End.TIMEOUT, Failure.ERROR: End.ERROR, Failure.DENIED: End.DENIED}
"""What a failed dial is logged as; every other failure is a refusal"""


# Plain numbers, and a constant for the outcome: on CPython 3.11 naming an enum's member costs more
# than anything else that is done with it.
_HANDSHAKE, _CONNECTING, _DIALING, _HELD, _FLOWING, _OVER = range(6)
_DIRECT = Outcome.DIRECT


class Connection:
    """A client of the relay. It stands for its socket in the poller until it is handed over."""

    __slots__ = (
        "_acceptor", "_asked", "_attempt", "_client", "_decision", "_dialed", "_dialer", "_flow", "_relay",
        "_session", "_state", "_table", "_task", "_told", "_tries", "_user", "_watched", "id", "peer",
        "slot", "started", "ts",
    )  # fmt: skip

    def __init__(
        self, relay: Relay, acceptor: Acceptor, client: SocketType, address: object, number: int
    ) -> None:
        """`address` is the peer as accept(2) gave it. Call `begin` next."""
        self.id = number
        self.slot = 0
        self.ts = time.time()
        self.started = relay.poller.touch()
        self.peer = endpoint_of(acceptor.family, address)
        self._relay = relay
        self._acceptor = acceptor
        self._client = client
        self._table = relay.table
        self._dialer = relay.dialer
        self._state = _HANDSHAKE
        self._session: Session = DIRECT_SESSION
        self._watched = False
        self._told = 0
        """The events the client's socket reported before the hand-over"""
        self._asked: Endpoint | None = None
        self._user: str | None = None
        self._decision: Decision | None = None
        self._attempt: _Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        self._flow: Flow | None = None
        self._dialed: str | None = None
        self._tries: tuple[str, ...] = ()

    def begin(self) -> None:
        """Find out where the client wants to go: at once, or by asking it."""
        acceptor = self._acceptor
        if acceptor.asks:
            self._session = SocksSession(acceptor.users)
            self._relay.wheel.set(self, self.started + self._relay.limits.handshake_s)
            self._relay.handshaking[self] = None
            self._watch()
        else:
            self._decide(acceptor.to or endpoint_of(acceptor.family, self._client.getsockname()))

    # --- what the client does before the hand-over

    def on_event(self, events: int) -> None:
        """The client sent something, or left."""
        self._told |= events
        if self._state is _HANDSHAKE:
            self._receive()
        elif events & _GONE:
            self._leave()

    def on_timer(self, now: float) -> None:
        """The handshake, the attempt to connect or the holding has lasted long enough."""
        limits = self._relay.limits
        if self._state is _HANDSHAKE:
            self._cut(End.TIMEOUT, f"no complete request in {limits.handshake_s:g} s")
        elif self._state is _HELD:
            self._over(End.DENIED, _why_denied(self._decision))
            self._relay.poller.retire(self._client)
        elif self._attempt is not None:
            self._attempt_failed(errno.ETIMEDOUT)

    def on_crash(self) -> None:
        """A fault of ours: let go of the client."""
        if self._state is not _OVER:
            self._cut(End.ERROR, "internal error")

    def abort(self, end: End, error: str) -> None:
        """End it now, whatever it is doing."""
        if self._flow is not None:
            self._flow.abort(end, error)
        elif self._state is not _OVER:
            self._cut(end, error)

    def evict(self) -> None:
        """Too many clients have not said where they want to go, and this one took longest."""
        self._cut(End.ERROR, "too many handshakes at once")

    def _watch(self) -> None:
        if not self._watched:
            self._relay.poller.add(self._client, self)
            self._watched = True

    def _receive(self) -> None:
        limit = self._relay.limits.handshake_bytes
        while self._state is _HANDSHAKE:
            try:
                data = self._client.recv(limit)
            except BlockingIOError:
                return
            except OSError:
                self._leave()
                return
            if not data:
                self._cut(End.EOF, "the client left before its request was complete")
                return
            self._obey(self._session.receive(data))

    def _leave(self) -> None:
        if self._state in (_HANDSHAKE, _CONNECTING, _DIALING, _HELD):
            self._cut(End.RESET, "reset by the client")

    # --- what the session says

    def _obey(self, command: Command) -> None:
        match command:
            case Dial():
                self._dial()
            case HandOver():
                raise AssertionError("handed over without a way out")
            case Reply():
                self._send(command.data)
            case Ask():
                if self._send(command.reply):
                    self._user = command.user
                    self._relay.handshaking.pop(self, None)
                    self._relay.wheel.cancel(self)
                    self._decide(command.destination)
            case Refuse():
                self._refuse(command, End.ERROR, command.error)
            case Hold():
                self._hold()

    def _send(self, data: bytes) -> bool:
        """Send a whole reply. A client that leaves no room for some bytes is cut off."""
        if not data:
            return True
        try:
            sent = self._client.send(data)
        except OSError:
            sent = -1
        if sent != len(data):
            self._cut(End.RESET, "the client takes no reply")
        return sent == len(data)

    def _decide(self, asked: Endpoint | None) -> None:
        assert asked is not None, "a destination is known for every client but those of a unix socket"
        self._asked = asked
        source = self.peer.host if self.peer is not None else None
        assert not isinstance(source, str)
        self._conclude(self._table.decide(asked.host, asked.port, source, self._acceptor.name))

    def _conclude(self, decision: Decision) -> None:
        """Do what `decision` says."""
        self._decision = decision
        command = self._session.decided(decision)
        if isinstance(command, Refuse):
            self._refuse(command, End.DENIED, _why_denied(decision))
        else:
            self._obey(command)

    def _hold(self) -> None:
        self._state = _HELD
        self._watch()
        self._relay.wheel.set(
            self, max(self.started, self._relay.poller.touch()) + self._relay.limits.handshake_s
        )

    # --- the way out

    def _dial(self) -> None:
        decision, asked = self._decision, self._asked
        assert decision is not None
        assert asked is not None
        target = decision.destination or asked
        if (
            decision.outcome is Outcome.DIRECT
            and not decision.needs_address
            and not isinstance(target.host, str)
        ):
            self._connect(target)
        else:
            self._state = _DIALING
            # Watched, so that a client that leaves does not keep a name server or a proxy busy.
            self._watch()
            self._task = self._relay.spawn(self._dial_at_length(decision, asked))

    def _connect(self, target: Endpoint) -> None:
        """The short way: one socket to one address."""
        host, port = target
        assert isinstance(host, bytes)
        own = self._relay.own.leads_back(host, port)
        if own is not None:
            self._fail(Failure.REFUSED, f"{target} is our own listener `{own}`")
            return
        family = socket.AF_INET if len(host) == 4 else socket.AF_INET6
        try:
            upstream = SocketType(family, _SOCKET)
        except OSError as error:
            self._relay.out_of_room(error)
            self._fail(Failure.ERROR, os.strerror(error.errno or errno.EIO).lower())
            return
        self._attempt = attempt = _Attempt(self, upstream, target)
        try:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = upstream.connect_ex((socket.inet_ntop(family, host), port))
            if code == errno.EINPROGRESS:
                self._state = _CONNECTING
                self._relay.poller.add(upstream, attempt)
                self._relay.wheel.set(self, self._relay.poller.touch() + self._relay.limits.connect_s)
                return
        except OSError as error:
            code = error.errno or errno.EIO
        if code:
            self._attempt_failed(code)
        else:
            self.attempt_succeeded(None)

    def attempt_succeeded(self, told: int | None) -> None:
        """The attempt is connected; `told` are the events its socket reported so far, if it is watched."""
        attempt = self._attempt
        assert attempt is not None
        self._attempt = None
        self._dialed = dialed = str(attempt.target)
        self._tries = (dialed,)
        upstream = attempt.sock
        if attempt.target.port >= self._relay.first_ephemeral_port and attempt.met_itself():
            self._relay.poller.retire(upstream)
            self._fail(Failure.REFUSED, f"{attempt.target}: nobody listens (the connection met itself)")
            return
        self._hand_over(upstream, told)

    def _attempt_failed(self, code: int) -> None:
        """The attempt came to nothing."""
        attempt = self._attempt
        assert attempt is not None
        self._attempt = None
        self._relay.poller.retire(attempt.sock)
        target = str(attempt.target)
        self._tries = (target,)
        self._fail(FAILURES.get(code, Failure.ERROR), f"{target}: {os.strerror(code).lower()}")

    def attempt_failed(self, code: int) -> None:
        """The kernel reported this error number for the attempt."""
        self._attempt_failed(code or errno.ECONNREFUSED)

    async def _dial_at_length(self, decision: Decision, asked: Endpoint) -> None:
        """The long way, in a task. Cancelled when the client leaves."""
        source = self.peer.host if self.peer is not None else None
        assert not isinstance(source, str)
        try:
            judge = self._relay.judge(self._table)
            asking = Asked(asked, source, self._acceptor.name)
            dialed = await self._dialer.dial(judge, decision, asking, self._relay.own)
        except Denied as denied:
            self._conclude(denied.decision)
        except DialError as error:
            self._tries = error.tries
            self._fail(error.failure, str(error))
        except Exception:
            log.exception("dialling failed for a reason nobody foresaw")
            self._fail(Failure.ERROR, "internal error")
        else:
            self._arrive(dialed)

    def _arrive(self, dialed: Dialed) -> None:
        self._task = None
        if self._state is not _DIALING:
            dialed.sock.close()
            return
        self._decision = dialed.decision
        self._dialed = dialed.dialed
        self._tries = dialed.tries
        self._hand_over(dialed.sock, None)

    def _fail(self, failure: Failure, error: str) -> None:
        """There is no way out, and the client is told in its own terms."""
        self._task = None
        if self._state is _OVER:
            return
        command = self._session.failed(failure)
        assert isinstance(command, Refuse)
        self._refuse(command, _END_OF.get(failure, End.REFUSED), error)

    # --- the end

    def _hand_over(self, upstream: SocketType, told: int | None) -> None:
        """Give both sockets to the pump. `told`: see `attempt_succeeded`."""
        relay = self._relay
        try:
            bound = None
            if self._session.tells_bound:
                bound = endpoint_of(upstream.family, upstream.getsockname())
            command = self._session.dialed(bound)
            assert isinstance(command, HandOver)
            if not self._send(command.reply):
                relay.poller.retire(upstream)
                return
            self._state = _FLOWING
            relay.wheel.cancel(self)
            self._flow = flow = Flow(relay.pump, self._client, upstream, self, self._idle_s, command.early)
        except OSError as error:
            relay.poller.retire(upstream)
            self._cut(End.ERROR, os.strerror(error.errno or errno.EIO).lower())
            return
        self._session = DIRECT_SESSION
        try:
            flow.start(self._told if self._watched else None, told)
        except OSError as error:
            flow.abort(End.ERROR, os.strerror(error.errno or errno.EIO).lower())

    @property
    def _idle_s(self) -> float:
        assert self._decision is not None
        idle_s = self._decision.settings.idle_timeout_s
        return self._acceptor.idle_s if idle_s is None else idle_s

    def flow_ended(self, bytes_up: int, bytes_down: int, end: End, error: str | None) -> None:
        """The pump has closed both sockets."""
        self._flow = None
        self._over(end, error, bytes_up, bytes_down)

    def _refuse(self, command: Refuse, end: End, error: str | None) -> None:
        """Say the last word, if there is one, and let the client go."""
        if not command.reply:
            self._cut(end, error)
        elif self._send(command.reply):
            self._over(end, error)
            self._relay.say_farewell(self._client, self._watched)

    def _cut(self, end: End, error: str | None) -> None:
        """Reset the client, and whatever was being opened for it."""
        if self._attempt is not None:
            self._relay.poller.retire(self._attempt.sock)
            self._attempt = None
        self._over(end, error)
        reset_on_close(self._client)
        self._relay.poller.retire(self._client)

    def _over(self, end: End, error: str | None, bytes_up: int = 0, bytes_down: int = 0) -> None:
        relay = self._relay
        self._state = _OVER
        relay.wheel.cancel(self)
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task(relay.loop):
            task.cancel()
        relay.ended(
            self,
            Record(
                self.id, self.ts, self._acceptor.name, self.peer, self._asked, self._user, self._decision,
                self._dialed, self._tries, bytes_up, bytes_down,
                relay.poller.touch() - self.started, end, error,
            ),
        )  # fmt: skip


class _Attempt:
    """A socket on its way to one address."""

    __slots__ = ("_connection", "sock", "target")

    def __init__(self, connection: Connection, sock: SocketType, target: Endpoint) -> None:
        self._connection = connection
        self.sock = sock
        self.target = target

    def on_event(self, events: int) -> None:
        """It connected, or failed."""
        if events & _GONE:
            self._connection.attempt_failed(self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        elif events & select.EPOLLOUT:
            self._connection.attempt_succeeded(events)

    def on_crash(self) -> None:
        """A fault of ours: the client is let go."""
        self._connection.on_crash()

    def met_itself(self) -> bool:
        """Whether the kernel connected it to itself: it picked the very port that was asked for."""
        own = self.sock.getsockname()
        return bool(own[1] == self.target.port) and endpoint_of(self.sock.family, own) == self.target


def endpoint_of(family: int, address: object) -> Endpoint | None:
    """A socket address of the kernel's as an Endpoint, unmapped; None on a unix socket."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    assert isinstance(address, tuple)
    text, port = address[:2]
    # The kernel names the interface of a link-local address; the policy knows none.
    packed = socket.inet_pton(family, text if "%" not in text else text.partition("%")[0])
    return Endpoint(unmap(packed), port)


def _why_denied(decision: Decision | None) -> str | None:
    return None if decision is None else decision.why
