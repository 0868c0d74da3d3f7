"""One client from accept to its record: decision, dialling, hand-over to the pump.

    HANDSHAKE --> (decide) --> CONNECTING --> FLOWING --> OVER
                     |-------> DIALING ----------^
                     |-------> HELD       `deny silently`
                     '-------> OVER       `deny`

CONNECTING is the short way: an address dialled directly needs no task, only a socket whose first
event is the result, and where the kernel connects at once not even that. DIALING is for what waits
for more than one thing (names, proxies, unix sockets) and has a task of the relay's.

Most connections are asked nothing and go the short way, and what they pass through here is the
dearest part of a short connection. So whatever only the others need is in their Handshake, and
texts are made when the log wants them.

The rules are captured at accept: a reload in the middle of a handshake changes
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
from urelay.engine.dial import Asked, Denied, Dialed, unix_path
from urelay.engine.ends import endpoint_of, kernel_text, own_end, packed, sockaddr
from urelay.engine.flow import Flow
from urelay.engine.hand_over import hand_over, sender_to
from urelay.engine.handshake import GONE, Handshake
from urelay.engine.loops import is_our_own
from urelay.engine.record import End, Record
from urelay.engine.session import DIRECT_SESSION, Dial, HandOver, Hold, Refuse, Session
from urelay.engine.shortcut import Asking, Shortcut
from urelay.engine.tcp import reset_on_close
from urelay.errors import AddressError, DialError, Failure
from urelay.net.address import Address, Endpoint
from urelay.policy.model import Outcome

if TYPE_CHECKING:
    from urelay.engine.acceptor import Acceptor
    from urelay.engine.announced import Announcer
    from urelay.engine.relay import Relay
    from urelay.policy.model import RouteSettings
    from urelay.table.decision import Decision

log = logging.getLogger(__name__)

_CAME_BACK = "a connection of our own came back to us"

_END_OF = {Failure.TIMEOUT: End.TIMEOUT, Failure.ERROR: End.ERROR, Failure.DENIED: End.DENIED}
"""What a failed dial is logged as; every other failure is a refusal"""

# Plain numbers, and constants for members of enums and modules: on CPython 3.11 naming one costs
# more than what is done with it.
_HANDSHAKE, _CONNECTING, _DIALING, _HELD, _FLOWING, _OVER = range(6)
_DIRECT = Outcome.DIRECT
_SOCKET = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_INET, _INET6, _UNIX = (int(each) for each in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX))
_OUT = select.EPOLLOUT
_EINPROGRESS = errno.EINPROGRESS
_new_record = tuple.__new__


class Connection(Flow):
    """A client of the relay. It stands for its way out in the poller until that is connected."""

    __slots__ = (
        "_dialed", "_rules", "_shortcut", "_state", "_until", "_upstream", "acceptor", "address", "asked",
        "client", "decision", "handshake", "id", "relay", "started", "ts",
    )  # fmt: skip

    def __init__(
        self, relay: Relay, acceptor: Acceptor, client: SocketType, address: object, number: int
    ) -> None:
        """`address` is the peer as accept(2) gave it. Call `begin` next."""
        self.id = number
        self.relay = relay
        self.acceptor = acceptor
        self.client = client
        self.address = address
        self.ts = time.time()
        self.started = relay.poller.now
        self.slot = 0
        self.due = relay.poller.now + relay.first_look_s
        self.handshake: Handshake | None = None
        """Of a client that is asked something, or that waits for a dial of several steps"""
        self.asked: Endpoint | None = None
        self.decision: Decision | None = None
        self._rules = relay.rules
        self._state = _HANDSHAKE
        self._shortcut: Shortcut | None = None
        self._upstream: SocketType | None = None
        """The socket that is connecting"""
        self._dialed: Endpoint | str | None = None

    def begin(self) -> None:
        """Find out where the client wants to go: at once, or by asking it."""
        acceptor = self.acceptor
        if acceptor.is_unix and is_our_own(self.client):
            self.cut(End.ERROR, _CAME_BACK)
            return
        if acceptor.session is not None:
            self.handshake = handshake = Handshake(self, acceptor.session(acceptor.users))
            handshake.ask(self.relay.limits.handshake_s)
            return
        asked = acceptor.to
        if asked is None:
            try:
                asked = acceptor.reads_destination(self.client)
            except OSError as error:
                self.cut(End.ERROR, _words(error.errno))
                return
        if asked is None:
            self.cut(End.ERROR, "its socket does not tell where it wants to go")
        else:
            self.decide(asked)

    def await_header(self, announcer: Announcer) -> None:
        """Have a PROXY header say first whose connection it is: the address so far is the sender's."""
        if self.acceptor.is_unix and is_our_own(self.client):
            self.cut(End.ERROR, _CAME_BACK)
            return
        handshake = self.handshake = Handshake(self, announcer.session())
        handshake.source = sender = endpoint_of(self.acceptor.family, self.address)
        # Nobody's share is used up before it is known whose it is.
        self.address = None
        if announcer.believes(sender):
            handshake.ask(self.relay.limits.header_s)
        else:
            self.cut(End.DENIED, f"PROXY headers of {sender} are not believed")

    def announce(self, source: Endpoint | None) -> bool:
        """It is `source`'s, or the sender's own if that is None; whether it may go on."""
        handshake = self.handshake
        assert handshake is not None
        if source is not None:
            handshake.source = source
        if handshake.source is None:
            return True
        _, self.address = sockaddr(handshake.source)
        return self.relay.enter(self)

    def turn_away(self, most: int) -> None:
        """Its address has as many connections as it may."""
        self.cut(End.DENIED, f"more than {most} connections from one address")

    @property
    def peer(self) -> Endpoint | None:
        """Whose connection it is: the client's own address, or the one it spoke for; None: a unix socket."""
        handshake = self.handshake
        if handshake is not None and handshake.source is not None:
            return handshake.source
        return endpoint_of(self.acceptor.family, self.address)

    @property
    def _source(self) -> Address | None:
        peer = self.peer
        if peer is None:
            return None
        assert isinstance(peer.host, bytes)
        return peer.host

    @property
    def _session(self) -> Session:
        return DIRECT_SESSION if self.handshake is None else self.handshake.session

    # --- what the client does before the hand-over

    def on_timer(self, now: float) -> None:
        """The handshake, the attempt to connect or the holding has lasted long enough."""
        if self._state is _FLOWING:
            super().on_timer(now)
        elif self._state is _HANDSHAKE:
            handshake = self.handshake
            assert handshake is not None
            self.cut(End.TIMEOUT, f"no {handshake.session.waits_for} in {handshake.patience_s:g} s")
        elif self._state is _HELD:
            self.ended(End.DENIED, _why_denied(self.decision))
            self.relay.poller.retire(self.client)
        elif self._state is _CONNECTING:
            if now < self._until:
                self.relay.wheel.set(self, self._until)
            else:
                self._connect_failed(errno.ETIMEDOUT)

    def on_crash(self) -> None:
        """A fault of ours: let go of the client."""
        if self._state is _FLOWING:
            super().on_crash()
        elif self._state is not _OVER:
            self.cut(End.ERROR, "internal error")

    def abort(self, end: End, error: str) -> None:
        """End it now, whatever it is doing."""
        if self._state is _FLOWING:
            self.reset_both(end, error)
        elif self._state is not _OVER:
            self.cut(end, error)

    def evict(self) -> None:
        """Too many clients have not said where they want to go, and this one took longest."""
        self.cut(End.ERROR, "too many handshakes at once")

    def leave(self) -> None:
        """The client is gone."""
        if self._state < _FLOWING:
            self.cut(End.RESET, "reset by the client")

    # --- what the policy says

    def decide(self, asked: Endpoint) -> None:
        """The client wants to go to `asked`: do what the policy says of it."""
        self.asked = asked
        address = self.address
        # By far the most are clients with an address of their own.
        if self.handshake is None and isinstance(address, tuple):
            source: Address | None = packed(address[0])
        else:
            source = self._source
        decision = self._rules.decide(asked.host, asked.port, source, self.acceptor.name)
        if decision.outcome is _DIRECT and not decision.needs_address:
            self.decision = decision
            if decision.settings.limit_per_source is not None and not self._is_within(decision.settings):
                return
            # The short way: one socket to one address.
            self._dialed = target = decision.destination or asked
            host, port = target
            relay = self.relay
            if port in relay.own.ports and self._leads_back(target):
                return
            assert isinstance(host, bytes)
            family = _INET if len(host) == 4 else _INET6
            self._open(family, (kernel_text(host), port), relay.limits.connect_s)
        else:
            self._conclude(decision)

    def _leads_back(self, target: Endpoint) -> bool:
        """Whether `target` is a listener of ours; then the client has been told so."""
        assert isinstance(target.host, bytes)
        own = self.relay.own.leads_back(target.host, target.port)
        if own is not None:
            self._dialed = None
            self._fail(Failure.REFUSED, f"{target} is our own listener `{own}`")
        return own is not None

    def _conclude(self, decision: Decision) -> None:
        self.decision = decision
        command = self._session.decided(decision)
        match command:
            case Dial():
                if not self._is_within(decision.settings):
                    return
                if decision.outcome is Outcome.SOCKETBOX:
                    self._give_away(decision)
                    return
                shortcut = None if decision.needs_address else self._find_shortcut(decision)
                if shortcut is None:
                    self._dial_in_a_task(decision)
                else:
                    self._take(shortcut)
            case Hold():
                self._hold()
            case Refuse():
                self.refuse(command, End.DENIED, _why_denied(decision))
            case _:
                raise AssertionError(f"{command} answers no decision")

    def _is_within(self, settings: RouteSettings) -> bool:
        """Whether this client may have one more connection of its route; if not, it is refused."""
        most = settings.limit_per_source
        if most is None or self.decision is None:
            return True
        handshake = self._own_handshake()
        if handshake.quota is None:
            handshake.quota = self.relay.quota_of(self.decision.route)
            if not handshake.quota.enter(self.address, most):
                why = f"more than {most} connections of this route from one address"
                self._fail(Failure.DENIED, why)
                return False
        return True

    def _own_handshake(self) -> Handshake:
        if self.handshake is None:
            self.handshake = Handshake(self, DIRECT_SESSION)
        return self.handshake

    def _hold(self) -> None:
        self._state = _HELD
        self._watch_client()
        relay = self.relay
        relay.wheel.set(self, max(self.started, relay.poller.now) + relay.limits.handshake_s)

    def _watch_client(self) -> Handshake:
        handshake = self._own_handshake()
        handshake.watch()
        return handshake

    # --- the short way out

    def _find_shortcut(self, decision: Decision) -> Shortcut | None:
        assert self.asked is not None
        whom = Asked(self.asked, self._source, self.acceptor.name)
        return self._rules.dialer.shortcuts.find(self._rules.table.policy, decision, self._target, whom)

    def _take(self, shortcut: Shortcut) -> None:
        """One socket to a place that stands in the policy, and perhaps a proxy to ask there."""
        self._shortcut = shortcut
        self._dialed = shortcut.dialed
        connect_s = self.relay.limits.connect_s
        if shortcut.proxy is not None:
            # Watched from here on, so that a client that leaves does not keep a proxy busy.
            self._watch_client()
            connect_s = shortcut.proxy.connect_timeout_s or connect_s
        self._open(shortcut.family, shortcut.address, connect_s)

    def _open(self, family: int, address: object, timeout_s: float) -> None:
        relay = self.relay
        try:
            upstream = SocketType(family, _SOCKET)
        except OSError as error:
            relay.out_of_room(error)
            try:
                # The reserve is free now, and who is in already is not sent away for want of it.
                upstream = SocketType(family, _SOCKET)
            except OSError:
                self._fail(Failure.ERROR, _words(error.errno))
                return
        self._upstream = upstream
        self._state = _CONNECTING
        try:
            code = upstream.connect_ex(address)  # type: ignore[arg-type]
            if code == _EINPROGRESS:
                relay.poller.add(upstream, self)
                self._until = until = relay.poller.now + timeout_s
                if until < self.due:
                    relay.wheel.set(self, until)
                return
        except OSError as error:
            code = error.errno or errno.EIO
        if not code:
            self._connected(None)
        elif family == _UNIX and code == errno.EAGAIN:
            # Its backlog is full, and the kernel does not tell when that changes: who waits may ask.
            self._upstream = self._shortcut = self._dialed = None
            relay.poller.retire(upstream)
            assert self.decision is not None
            self._dial_in_a_task(self.decision)
        else:
            self._connect_failed(code)

    def on_event(self, events: int) -> None:
        """The socket on its way out connected, or failed."""
        upstream = self._upstream
        assert upstream is not None
        if events & GONE:
            self._connect_failed(upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        elif events & _OUT:
            self._connected(events)

    def _connected(self, told: int | None) -> None:
        """`told` are the events the socket reported so far, if it is watched."""
        upstream, dialed = self._upstream, self._dialed
        assert upstream is not None
        if isinstance(dialed, Endpoint) and dialed.port >= self.relay.first_ephemeral_port:
            if upstream.getsockname()[1] == dialed.port and own_end(upstream) == dialed:
                # The kernel picked the very port that was asked for, and connected the socket to itself.
                self._upstream = None
                self._give_up(upstream)
                self._fail(Failure.REFUSED, f"{dialed}: nobody listens (the connection met itself)")
                return
        if self._shortcut is not None and self._shortcut.proxy is not None:
            self._ask_proxy(self._shortcut, upstream, told)
        else:
            self._upstream = None
            self._hand_over(upstream, told)

    def _connect_failed(self, code: int) -> None:
        upstream, dialed = self._upstream, self._dialed
        assert upstream is not None
        self._upstream = None
        self._give_up(upstream)
        code = code or errno.ECONNREFUSED
        words = _words(code)
        error = f"{dialed}: {words}" if self._shortcut is None else self._shortcut.describe(words)
        self._fail(FAILURES.get(code, Failure.ERROR), error)

    def _give_up(self, upstream: SocketType) -> None:
        self.relay.poller.retire(upstream)
        self._tried((str(self._dialed),))
        self._dialed = None

    def _ask_proxy(self, shortcut: Shortcut, upstream: SocketType, told: int | None) -> None:
        relay = self.relay
        target = self._target
        assert shortcut.proxy is not None
        self._tried((str(shortcut.dialed), f"{shortcut.proxy.name} to {target}"))
        asking = Asking(self, shortcut, upstream, target)
        try:
            if told is None:
                relay.poller.add(upstream, asking)
            else:
                relay.poller.assign(upstream, asking)
        except OSError as error:
            self.proxy_failed(DialError(Failure.ERROR, _words(error.errno)))
            return
        relay.wheel.set(self, relay.poller.now + self._rules.dialer.patience_s)
        asking.on_event(0)

    def proxy_connected(self, told: int, early_down: bytes) -> None:
        """The proxy leads to the target; `told`, `early_down`: see Flow.open."""
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        self._hand_over(upstream, told, early_down)

    def proxy_failed(self, error: DialError) -> None:
        """The proxy does not lead to the target."""
        upstream, self._upstream = self._upstream, None
        assert upstream is not None
        self.relay.poller.retire(upstream)
        self._dialed = None
        self._fail(error.failure, str(error))

    @property
    def _target(self) -> Endpoint:
        assert self.decision is not None
        target = self.decision.destination or self.asked
        assert target is not None
        return target

    # --- no way out, but another owner

    def _give_away(self, decision: Decision) -> None:
        """Hand the client itself over, after the answer it may wait for."""
        assert self.asked is not None
        handshake = self._own_handshake()
        command = handshake.session.dialed(None)
        assert isinstance(command, HandOver)
        whom = Asked(self.asked, self._source, self.acceptor.name)
        try:
            path = unix_path(decision, decision.destination or self.asked, whom)
            self._tried((path,))
            if command.early:
                raise DialError(Failure.ERROR, f"{path}: the client sent more than its request already")
            sender = sender_to(path)
            own = self.relay.own_box(sender.getpeername())
            if own is not None:
                sender.close()
                raise DialError(Failure.REFUSED, f"{path} is our own listener `{own}`")
        except AddressError as error:
            self._fail(Failure.HOST_UNREACHABLE, str(error))
            return
        except DialError as error:
            self._fail(error.failure, str(error))
            return
        with sender:
            if handshake.watched:
                # Now: closing our descriptor will not make the kernel forget a socket others have.
                self.relay.poller.remove(self.client)
                handshake.watched = False
            if not handshake.send(command.reply):
                self.cut(End.RESET, "the client takes no reply")
                return
            try:
                hand_over(sender, self.client)
            except OSError as error:
                self.cut(End.ERROR, f"{path}: {_words(error.errno)}")
                return
        self._dialed = path
        self.ended(End.EOF, None)
        self.relay.poller.retire(self.client)

    # --- the long way out

    def _dial_in_a_task(self, decision: Decision) -> None:
        assert self.asked is not None
        self._state = _DIALING
        # Watched, so that a client that leaves does not keep a name server or a proxy busy.
        handshake = self._watch_client()
        self.relay.wheel.cancel(self)
        handshake.task = self.relay.spawn(self._dial(handshake, decision, self.asked))

    async def _dial(self, handshake: Handshake, decision: Decision, asked: Endpoint) -> None:
        """Cancelled when the client leaves."""
        try:
            judge = self.relay.judge(self._rules.table)
            whom = Asked(asked, self._source, self.acceptor.name, self.peer)
            dialed = await self._rules.dialer.dial(judge, decision, whom, self.relay.own)
        except Denied as denied:
            self._conclude(denied.decision)
        except DialError as error:
            handshake.tries = error.tries
            self._fail(error.failure, str(error))
        except Exception:
            log.exception("dialling failed for a reason nobody foresaw")
            self._fail(Failure.ERROR, "internal error")
        else:
            self._arrive(handshake, dialed)

    def _arrive(self, handshake: Handshake, dialed: Dialed) -> None:
        handshake.task = None
        if self._state is not _DIALING:
            dialed.sock.close()
            return
        self.decision = dialed.decision
        handshake.tries = dialed.tries
        if not self._is_within(dialed.decision.settings):
            dialed.sock.close()
            return
        self._dialed = dialed.dialed
        self._hand_over(dialed.sock, None, dialed.early_down)

    def _fail(self, failure: Failure, error: str) -> None:
        """There is no way out, and the client is told in its own terms."""
        if self.handshake is not None:
            self.handshake.task = None
        if self._state is _OVER:
            return
        command = self._session.failed(failure, error)
        assert isinstance(command, Refuse)
        self.refuse(command, _END_OF.get(failure, End.REFUSED), error)

    def _tried(self, tries: tuple[str, ...]) -> None:
        self._own_handshake().tries = tries

    # --- the flow

    def _hand_over(self, upstream: SocketType, told: int | None, early_down: bytes = b"") -> None:
        """Give both sockets to the pump. `told`: see `_connected`; `early_down`: see Dialed."""
        relay = self.relay
        handshake = self.handshake
        early, client_told = b"", None
        if handshake is not None:
            try:
                bound = own_end(upstream) if handshake.session.tells_bound else None
            except OSError as error:
                relay.poller.retire(upstream)
                self.cut(End.ERROR, _words(error.errno))
                return
            command = handshake.session.dialed(bound)
            assert isinstance(command, HandOver)
            if not handshake.send(command.reply):
                relay.poller.retire(upstream)
                self.cut(End.RESET, "the client takes no reply")
                return
            early = command.early
            client_told = handshake.told if handshake.watched else None
            handshake.session = DIRECT_SESSION
        self._state = _FLOWING
        assert self.decision is not None
        idle_s = self.decision.settings.idle_timeout_s
        if idle_s is None:
            idle_s = self.acceptor.idle_s
        self.open(relay.pump, self.client, upstream, idle_s, client_told, told, early, early_down, True)

    # --- the end

    def refuse(self, command: Refuse, end: End, error: str | None) -> None:
        """Say the last word, if there is one, and let the client go."""
        handshake = self.handshake
        if handshake is None or not command.reply:
            self.cut(end, error)
        elif handshake.send(command.reply):
            self.ended(end, error)
            self.relay.say_farewell(self.client, handshake.watched)
        else:
            self.cut(End.RESET, "the client takes no reply")

    def cut(self, end: End, error: str | None) -> None:
        """Reset the client, and give up whatever was being opened for it."""
        if self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            self._give_up(upstream)
        self.ended(end, error)
        reset_on_close(self.client)
        self.relay.poller.retire(self.client)

    def ended(self, end: End, error: str | None, bytes_up: int = 0, bytes_down: int = 0) -> None:
        """It is over, and its client's socket closed or about to be: make its record."""
        relay = self.relay
        handshake = self.handshake
        address = self.address
        if handshake is None and isinstance(address, tuple):
            peer: Endpoint | None = Endpoint(packed(address[0]), address[1])
        else:
            peer = self.peer
        if self._state is not _FLOWING:
            relay.wheel.cancel(self)
        self._state = _OVER
        user: str | None = None
        tries: tuple[str, ...] = ()
        if handshake is not None:
            handshake.asking = False
            user, tries = handshake.user, handshake.tries
            if handshake.quota is not None:
                handshake.quota.leave(self.address)
            task, handshake.task = handshake.task, None
            if task is not None and task is not asyncio.current_task(relay.loop):
                task.cancel()
        # Not Record(…), whose __new__ is a function of Python's that does just this.
        record = _new_record(
            Record,
            (
                self.id, self.ts, self.acceptor.name, peer, self.asked, user, self.decision, self._dialed,
                tries, bytes_up, bytes_down, relay.poller.now - self.started, end, error,
            ),
        )  # fmt: skip
        relay.ended(self, record)
        # It knows us: kept, the two would wait for the garbage collector.
        self.handshake = None


def _words(number: int | None) -> str:
    return os.strerror(number or errno.EIO).lower()


def _why_denied(decision: Decision | None) -> str | None:
    return None if decision is None else decision.why
