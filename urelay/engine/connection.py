"""One client from accept to its record: whose it is, where it wants to go, what the policy says, how it ends.

    HANDSHAKE --> (decide) --> CONNECTING --> FLOWING --> OVER
                     |-------> DIALING ----------^
                     |-------> HELD       `deny silently`
                     '-------> OVER       `deny`

One object all the way, in three chapters: this one, urelay.engine.setting_out between a decision and
the two sockets, and urelay.engine.flow from then on.

Most connections are asked nothing and go to an address, and what they pass through here is the
dearest part of a short connection. So whatever only the others need is in their Handshake, texts are
made when the log wants them, and the common way stands in `decide` without calls of its own.

The rules are captured at accept: a reload in the middle of a handshake changes nothing for this
client, and its decision and its way out come from one policy.
"""

from __future__ import annotations

import asyncio
import errno
import time
from socket import SocketType
from typing import TYPE_CHECKING

from urelay.engine.ends import endpoint_of, sockaddr
from urelay.engine.handshake import Handshake
from urelay.engine.loops import is_our_own
from urelay.engine.record import End, Record
from urelay.engine.session import Dial, Hold, Refuse
from urelay.engine.setting_out import (
    CONNECTING,
    FLOWING,
    HANDSHAKE,
    HELD,
    OVER,
    SettingOut,
    words_of,
)
from urelay.engine.tcp import reset_on_close
from urelay.errors import Failure
from urelay.net.address import Address, Endpoint
from urelay.policy.model import Outcome

if TYPE_CHECKING:
    from urelay.engine.acceptor import Acceptor
    from urelay.engine.announced import Announcer
    from urelay.engine.relay import Relay
    from urelay.table.decision import Decision

_CAME_BACK = "a connection of our own came back to us"

_new = tuple.__new__


class Connection(SettingOut):
    """A client of the relay."""

    __slots__ = ("id", "started", "ts")

    def take_in(
        self, relay: Relay, acceptor: Acceptor, client: SocketType, address: object, number: int
    ) -> None:
        """Make it `client`'s, whose `address` is the peer as accept(2) gave it. Call `begin` next.

        Not __init__, which the interpreter reaches by a detour through C that costs as much again.
        """
        self.id = number
        self.relay = relay
        self.acceptor = acceptor
        self.client = client
        self.address = address
        self.ts = time.time()
        self.started = now = relay.poller.now
        self.slot = 0
        self.due = now + relay.first_look_s
        self.handshake = None
        self.asked = None
        self.decision = None
        self._rules = relay.rules
        self._state = HANDSHAKE
        self._shortcut = None
        self._upstream = None
        self._dialed = None

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
                self.cut(End.ERROR, words_of(error.errno))
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

    # --- what the client does before the hand-over

    def on_timer(self, now: float) -> None:
        """The handshake, the attempt to connect or the holding has lasted long enough."""
        if self._state is FLOWING:
            super().on_timer(now)
        elif self._state is HANDSHAKE:
            handshake = self.handshake
            assert handshake is not None
            self.cut(End.TIMEOUT, f"no {handshake.session.waits_for} in {handshake.patience_s:g} s")
        elif self._state is HELD:
            self.ended(End.DENIED, _why_denied(self.decision))
            self.relay.poller.retire(self.client)
        elif self._state is CONNECTING:
            if now < self._until:
                self.relay.wheel.set(self, self._until)
            else:
                self._connect_failed(errno.ETIMEDOUT)

    def on_crash(self) -> None:
        """A fault of ours: let go of the client."""
        if self._state is FLOWING:
            super().on_crash()
        elif self._state is not OVER:
            self.cut(End.ERROR, "internal error")

    def abort(self, end: End, error: str) -> None:
        """End it now, whatever it is doing."""
        if self._state is FLOWING:
            self.reset_both(end, error)
        elif self._state is not OVER:
            self.cut(end, error)

    def evict(self) -> None:
        """Too many clients have not said where they want to go, and this one took longest."""
        self.cut(End.ERROR, "too many handshakes at once")

    def leave(self) -> None:
        """The client is gone."""
        if self._state < FLOWING:
            self.cut(End.RESET, "reset by the client")

    # --- what the policy says

    def decide(self, asked: Endpoint) -> None:
        """The client wants to go to `asked`: do what the policy says of it."""
        self.asked = asked
        address = self.address
        # By far the most are clients with an address of their own.
        plain = self.handshake is None and isinstance(address, tuple)
        source: Address | str | None = address[0] if plain else self._source  # type: ignore[index]
        rules = self._rules
        question = (asked[0], asked[1], source, self.acceptor.name)
        decision, target, family, destination, port = rules.plans.get(question) or rules.plan(question)
        if target is None:
            self.conclude(decision)
            return
        self.decision = decision
        self._dialed = target
        relay = self.relay
        if port not in relay.own.ports or not self._leads_back(target):
            self._open(family, destination, relay.limits.connect_s)

    def _leads_back(self, target: Endpoint) -> bool:
        """Whether `target` is a listener of ours; then the client has been told so."""
        assert isinstance(target.host, bytes)
        own = self.relay.own.leads_back(target.host, target.port)
        if own is not None:
            self._dialed = None
            self._fail(Failure.REFUSED, f"{target} is our own listener `{own}`")
        return own is not None

    def conclude(self, decision: Decision) -> None:
        """Do what `decision` says."""
        self.decision = decision
        command = self._session.decided(decision)
        match command:
            case Dial():
                if not self._is_within(decision.settings):
                    return
                if decision.outcome is Outcome.SOCKETBOX:
                    self._give_away(decision)
                    return
                if decision.needs_address:
                    self._dial_in_a_task(decision)
                elif decision.outcome is Outcome.DIRECT:
                    self._go_straight(decision)
                elif (shortcut := self._find_shortcut(decision)) is None:
                    self._dial_in_a_task(decision)
                else:
                    self._take(shortcut)
            case Hold():
                self._hold()
            case Refuse():
                self.refuse(command, End.DENIED, _why_denied(decision))
            case _:
                raise AssertionError(f"{command} answers no decision")

    def _go_straight(self, decision: Decision) -> None:
        """As `decide` does with what needs no second look."""
        self._dialed = target = decision.destination or self.asked
        assert target is not None
        if not self._leads_back(target):
            self._open(*sockaddr(target), self.relay.limits.connect_s)

    def _hold(self) -> None:
        self._state = HELD
        self._watch_client()
        relay = self.relay
        relay.wheel.set(self, max(self.started, relay.poller.now) + relay.limits.handshake_s)

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
        client = self.address if handshake is None else self.peer
        if self._state is not FLOWING:
            relay.wheel.cancel(self)
        self._state = OVER
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
        record = _new(
            Record,
            (
                self.id, self.ts, self.acceptor.name, client, self.asked, user, self.decision, self._dialed,
                tries, bytes_up, bytes_down, relay.poller.now - self.started, end, error,
            ),
        )  # fmt: skip
        relay.ended(self, end, record, bytes_up, bytes_down)
        # It knows us: kept, the two would wait for the garbage collector.
        self.handshake = None


def _why_denied(decision: Decision | None) -> str | None:
    return None if decision is None else decision.why
