"""A client with a decision, on its way out: how the other socket comes to be, and the hand-over to the pump.

    the short way   one socket, connected at the end of this batch: to an address, to a unix socket, to
                    one proxy that is asked next (urelay.engine.shortcut)
    the long way    whatever waits for more than one thing (names, chains, groups, other namespaces):
                    a task of the relay's (urelay.engine.dial)
    no way          the client itself is handed to somebody else (urelay.engine.hand_over)

The short way needs no task, only a socket whose first event is the result, and where the kernel
connects at once not even that. A base class, because a connection is one object from accept to end:
what it is before and after is urelay.engine.connection.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from socket import SocketType
from typing import TYPE_CHECKING, cast

from urelay.engine.connect import FAILURES
from urelay.engine.dial import Asked, Denied, Dialed, unix_path
from urelay.engine.ends import endpoint_of, own_end
from urelay.engine.flow import Flow
from urelay.engine.hand_over import hand_over, sender_to
from urelay.engine.handshake import GONE, Handshake
from urelay.engine.record import End
from urelay.engine.session import DIRECT_SESSION, HandOver, Refuse, Session
from urelay.engine.shortcut import Asking, Shortcut, text_of
from urelay.errors import AddressError, DialError, Failure
from urelay.net.address import Address, Endpoint

if TYPE_CHECKING:
    from urelay.engine.acceptor import Acceptor
    from urelay.engine.connection import Connection
    from urelay.engine.relay import Relay
    from urelay.engine.rules import Rules
    from urelay.policy.model import RouteSettings
    from urelay.table.decision import Decision

log = logging.getLogger(__name__)

# Plain numbers, and constants for members of enums and modules: on CPython 3.11 naming one costs
# more than what is done with it.
HANDSHAKE, CONNECTING, DIALING, HELD, FLOWING, OVER = range(6)
"""What a connection is doing"""

_END_OF = {Failure.TIMEOUT: End.TIMEOUT, Failure.ERROR: End.ERROR, Failure.DENIED: End.DENIED}
"""What a failed dial is logged as; every other failure is a refusal"""
_SOCKET = int(socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
_UNIX = int(socket.AF_UNIX)
_OUT = select.EPOLLOUT
_EINPROGRESS = errno.EINPROGRESS


class SettingOut(Flow):
    """It stands for its way out in the poller until that is connected."""

    __slots__ = (
        "_address", "_dialed", "_rules", "_shortcut", "_state", "_until", "_upstream", "acceptor", "address",
        "asked", "client", "decision", "handshake", "relay",
    )  # fmt: skip

    relay: Relay
    acceptor: Acceptor
    client: SocketType
    address: object
    """The client's, as accept(2) gave it"""
    handshake: Handshake | None
    """Of a client that is asked something, or that waits for a dial of several steps"""
    asked: Endpoint | None
    decision: Decision | None
    _rules: Rules
    _state: int
    _shortcut: Shortcut | None
    _upstream: SocketType | None
    """The socket that is connecting, or about to"""
    _address: object
    """Where to, as connect(2) wants it"""
    _dialed: Endpoint | str | None
    _until: float
    """When the attempt to connect has lasted long enough"""

    def conclude(self, decision: Decision) -> None:
        """Do what `decision` says: to be overridden."""
        raise NotImplementedError

    def refuse(self, command: Refuse, end: End, error: str | None) -> None:
        """Say the last word, if there is one, and let the client go: to be overridden."""
        raise NotImplementedError

    def cut(self, end: End, error: str | None) -> None:
        """Reset the client, and give up whatever is being opened for it: to be overridden."""
        raise NotImplementedError

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
            self.handshake = Handshake(cast("Connection", self), DIRECT_SESSION)
        return self.handshake

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
                self._fail(Failure.ERROR, words_of(error.errno))
                return
        self._upstream = upstream
        self._address = address
        self._state = CONNECTING
        poller = relay.poller
        self._until = until = poller.now + timeout_s
        if until < self.due:
            relay.wheel.set(self, until)
        poller.last(self)

    def come_last(self) -> None:
        """Connect now: after everybody's events, and together with all who were accepted with this client.

        Connecting to a socket of this machine wakes its owner up, which is dearer than the rest of it, and in
        a virtual machine dearer still; and whoever was woken by the first is still awake for the others.
        """
        upstream = self._upstream
        if upstream is None:
            # Cut short meanwhile.
            return
        try:
            code = upstream.connect_ex(self._address)  # type: ignore[arg-type]
            if code == _EINPROGRESS:
                self.relay.poller.add(upstream, self)
                return
        except OSError as error:
            code = error.errno or errno.EIO
        if not code:
            self._connected(None)
        elif upstream.family == _UNIX and code == errno.EAGAIN:
            # Its backlog is full, and the kernel does not tell when that changes: who waits may ask.
            self._upstream = self._shortcut = self._dialed = None
            self.relay.poller.retire(upstream)
            assert self.decision is not None
            self._dial_in_a_task(self.decision)
        else:
            self._connect_failed(code)

    def on_event(self, events: int) -> None:
        """The socket on its way out connected, or failed."""
        upstream = self._upstream
        assert upstream is not None
        if events == _OUT and self.handshake is None and self._shortcut is None:
            relay = self.relay
            dialed: Endpoint = self._dialed  # type: ignore[assignment]  # without a shortcut it is none else
            if dialed[1] < relay.first_ephemeral_port:
                # By far the most, so without the calls that the others take.
                self._upstream = None
                self._state = FLOWING
                self.open_connected(relay.pump, self.client, upstream, self._idle_after_s())
                return
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
        words = words_of(code)
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
        self._tried((text_of(shortcut.dialed), f"{shortcut.proxy.name} to {text_of(target)}"))
        asking = Asking(self, shortcut, upstream, target)
        try:
            if told is None:
                relay.poller.add(upstream, asking)
            else:
                relay.poller.assign(upstream, asking)
        except OSError as error:
            self.proxy_failed(DialError(Failure.ERROR, words_of(error.errno)))
            return
        # Later than the time to connect would have ended, or much sooner.
        self._until = until = relay.poller.now + self._rules.dialer.patience_s
        if until < self.due:
            relay.wheel.set(self, until)
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
                self.cut(End.ERROR, f"{path}: {words_of(error.errno)}")
                return
        self._dialed = path
        self.ended(End.EOF, None)
        self.relay.poller.retire(self.client)

    # --- the long way out

    def _dial_in_a_task(self, decision: Decision) -> None:
        assert self.asked is not None
        self._state = DIALING
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
            self.conclude(denied.decision)
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
        if self._state is not DIALING:
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
        if self._state is OVER:
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
                self.cut(End.ERROR, words_of(error.errno))
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
        self._state = FLOWING
        idle_s = self._idle_after_s()
        self.open(relay.pump, self.client, upstream, idle_s, client_told, told, early, early_down, True)

    def _idle_after_s(self) -> float:
        assert self.decision is not None
        idle_s = self.decision.settings.idle_timeout_s
        return self.acceptor.idle_s if idle_s is None else idle_s


def words_of(number: int | None) -> str:
    """What an error number means, in a few lower-case words."""
    return os.strerror(number or errno.EIO).lower()
