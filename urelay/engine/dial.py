"""Opens what a Decision names: an address, a unix socket, or a way through proxies.

The steps of one dial: a host name that is to be dialled here is resolved, once; the table settles
what the decision becomes for each answer; denied answers are dropped, and the first that is left says
which kind of way it is (direct, or which upstream). Answers that go the same way are raced or tried
in turn, so the socket that comes back leads to an address that was decided on, with the decision made
for that very address.

A proxy's own address is configuration: it is resolved here too, and the policy is not asked.

Nothing leaks: whoever opens a socket closes it on every exception, cancellation too, until it is in
the Dialed that `dial` returns.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from urelay.engine.connect import Timeouts, connect_unix
from urelay.engine.groups import Bearer
from urelay.engine.health import Condition
from urelay.engine.logins import Logins
from urelay.engine.loops import OwnListeners
from urelay.engine.preface import Caller
from urelay.engine.resolve import Resolver
from urelay.engine.session import FAILURE_OF
from urelay.errors import AddressError, Blame, DialError, Failure
from urelay.net import paths
from urelay.net.address import Address, Endpoint, Host
from urelay.policy.model import Outcome, Policy
from urelay.table.decision import Decision

if TYPE_CHECKING:
    from urelay.engine.checks import Checks
    from urelay.engine.departure import Abroad
    from urelay.engine.ways import Secures, Way, Ways


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for, and who it is."""

    destination: Endpoint
    source: Address | None
    listener: str
    client: Endpoint | None = None
    """Its whole address, for whoever is told about it"""


@dataclass(frozen=True, slots=True)
class Dialed:
    """A way that is open. The socket is non-blocking, and the receiver's to close."""

    sock: socket.socket
    decision: Decision
    """The final one: made for the address that was dialled. Where the policy names a group, `upstream`
    says who was chosen too: `out/corp`"""
    dialed: str
    """What `sock` is connected to: an endpoint, a proxy's endpoint, or the path of a unix socket"""
    tries: tuple[str, ...]
    """Everything that was tried, in order: endpoints, and what proxies were asked for"""
    early_down: bytes = b""
    """What was read behind a proxy's answer: it reaches the client before all that `sock` still holds"""


class Judge(Protocol):
    """What a dial needs of a table: urelay.table.evaluate.Table is one, and so is what wraps it."""

    @property
    def policy(self) -> Policy:
        """The policy it speaks for."""

    @property
    def name_takers(self) -> frozenset[str]:
        """The upstreams that are sent host names as they are."""

    def settle(
        self,
        decision: Decision,
        host: Host,
        address: Address,
        port: int,
        source: Address | None = None,
        listener: str | None = None,
        /,
    ) -> Decision:
        """What `decision` becomes for one address that the name in it resolved to."""


class Denied(DialError):
    """The policy denies every address of the name; `decision` is the one for the first of them."""

    def __init__(self, decision: Decision) -> None:
        by = decision.wall or decision.route
        text = decision.why or (f"denied by {by}" if by else "denied: no route matches")
        super().__init__(FAILURE_OF[decision.deny_how], text, Blame.DESTINATION)
        self.decision = decision


class _Conditions(dict[str, Condition]):
    """Conditions that begin when they are asked for."""

    def __missing__(self, name: str) -> Condition:
        self[name] = condition = Condition(name)
        return condition


class _Goal(NamedTuple):
    """A decision that needs no more addresses, and where it leads."""

    decision: Decision
    target: Endpoint
    called: str | None
    """The name it was resolved from"""


_NO_LISTENERS = OwnListeners()
_NOBODY = Bearer(None, b"")
_NO_CALLER = Caller(None, Endpoint(bytes(4), 0))
"""On whose behalf a check is made"""


class Dialer:
    """Opens ways out; one for a policy, since it holds what its upstreams need.

    Making one imports python-socks (tens of milliseconds), so that no connection has to wait for that.
    """

    def __init__(
        self,
        resolver: Resolver,
        logins: Logins,
        timeouts: Timeouts | None = None,
        *,
        abroad: Abroad | None = None,
        conditions: Mapping[str, Condition] | None = None,
        tls: Mapping[str, Secures] | None = None,
    ) -> None:
        """`abroad` makes sockets in other namespaces; a policy whose upstreams say `netns` needs it.

        `conditions` are those of its upstreams (Health.adopt); without them they begin with this dialer.
        `tls` is for those of them that speak it (urelay.engine.tls.read_trust).
        """
        from urelay.engine.shortcut import Shortcuts
        from urelay.engine.ways import Gear, Ways

        self.shortcuts = Shortcuts(logins)
        """Ways that can be opened without dialling"""
        self._resolver = resolver
        self._timeouts = timeouts or Timeouts()
        self.patience_s = self._timeouts.total_s
        """How long a dial may take in all"""
        known = _Conditions() if conditions is None else conditions
        self._gear = Gear(resolver, logins, self._timeouts, abroad, known, tls or {})
        self._ways = Ways

    def checks(self, table: Judge, own: OwnListeners = _NO_LISTENERS) -> Checks:
        """What finds out whether the members of the policy's groups work."""
        from urelay.engine.checks import Checks

        gear, upstreams, name_takers = self._gear, table.policy.upstreams, table.name_takers

        def new_ways() -> Ways:
            return self._ways(gear, upstreams, name_takers, own, _NOBODY, _NO_CALLER)

        return Checks(upstreams, gear.conditions, new_ways, self._resolver, self._timeouts.total_s)

    async def dial(
        self, table: Judge, decision: Decision, asked: Asked, own: OwnListeners = _NO_LISTENERS
    ) -> Dialed:
        """Open the way `decision` names for `asked`; takes at most the whole of the timeouts.

        `own`: our listeners, which are never dialled. Raises DialError, and Denied when the policy
        says so of every address. Cancelling is safe.
        """
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        bearer = Bearer(asked.source, asked.destination.host)
        caller = Caller(asked.client, asked.destination)
        ways = self._ways(self._gear, table.policy.upstreams, table.name_takers, own, bearer, caller)
        dial = _Dial(self, table, asked, ways)
        try:
            async with asyncio.timeout(self._timeouts.total_s):
                dialed = await dial.run(decision)
        except TimeoutError:
            target = decision.destination or asked.destination
            late = DialError(Failure.TIMEOUT, f"{target}: not connected in {self._timeouts.total_s:g} s")
            late.tries = tuple(ways.tries)
            raise late from None
        except DialError as error:
            error.tries = tuple(ways.tries)
            raise
        if task.cancelling() > cancels:
            # Libraries that race tasks can swallow a cancellation that comes while they clean up.
            dialed.sock.close()
            raise asyncio.CancelledError
        return dialed


class _Dial:
    """One dial: what is asked, by which table, and the ways there are."""

    def __init__(self, dialer: Dialer, table: Judge, asked: Asked, ways: Ways) -> None:
        self._resolver = dialer._resolver
        self._timeouts = dialer._timeouts
        self._table = table
        self._asked = asked
        self._ways = ways

    async def run(self, decision: Decision) -> Dialed:
        goals = await self._goals(decision)
        first = goals[0].decision
        targets = [goal.target for goal in goals]
        match first.outcome:
            case Outcome.DIRECT:
                return self._arrived(goals, await self._ways.direct(targets))
            case Outcome.VIA:
                way = await self._ways.through(first.upstream or "", targets, goals[0].called)
                return self._arrived(goals, way)
            case Outcome.UNIX:
                return await self._unix(goals[0])
            case _:
                raise Denied(first)

    async def _goals(self, decision: Decision) -> list[_Goal]:
        """Where to go: at least one, and all the same way."""
        target = decision.destination or self._asked.destination
        if not decision.needs_address:
            return [_Goal(decision, target, None)]
        if isinstance(target.host, bytes):
            raise DialError(Failure.ERROR, f"{target} is an address and was to be resolved")
        addresses = await self._resolver.resolve(target.host, self._asked.source)
        settled = [self._settled(decision, target, address) for address in addresses]
        allowed = [goal for goal in settled if not goal.decision.denied]
        if not allowed:
            raise Denied(settled[0].decision)
        way = _way(allowed[0].decision)
        return [goal for goal in allowed if _way(goal.decision) == way]

    def _settled(self, decision: Decision, target: Endpoint, address: Address) -> _Goal:
        # The table walks again from what was asked, with this answer for the name in `target`.
        name, port = self._asked.destination
        final = self._table.settle(decision, name, address, port, self._asked.source, self._asked.listener)
        goal = final.destination or Endpoint(address, target.port)
        called = target.host if isinstance(target.host, str) else None
        return _Goal(replace(final, destination=goal), goal, called)

    async def _unix(self, goal: _Goal) -> Dialed:
        try:
            path = unix_path(goal.decision, goal.target, self._asked)
        except AddressError as error:
            raise DialError(Failure.HOST_UNREACHABLE, str(error)) from None
        self._ways.tries.append(path)
        sock = await connect_unix(path, self._timeouts.address_s)
        return Dialed(sock, goal.decision, path, tuple(self._ways.tries))

    def _arrived(self, goals: list[_Goal], way: Way) -> Dialed:
        """The decision is the one made for the address that was reached."""
        decision = next(goal.decision for goal in goals if goal.target == way.target)
        if way.members:
            decision = replace(decision, upstream="/".join((decision.upstream or "", *way.members)))
        return Dialed(way.sock, decision, way.dialed, tuple(self._ways.tries), way.early)


def unix_path(decision: Decision, target: Endpoint, asked: Asked) -> str:
    """The path that `to unix` leads to for one connection. Raises AddressError where a field has no value."""
    host, name = target.host, asked.destination.host
    return paths.fill(
        decision.template or "",
        address=host if isinstance(host, bytes) else None,
        port=target.port,
        name=host if isinstance(host, str) else name if isinstance(name, str) else None,
        listener=asked.listener,
        source=asked.source,
    )


def _way(decision: Decision) -> tuple[Outcome, str | None, str | None]:
    """What must be equal for answers to be tried together."""
    return decision.outcome, decision.upstream, decision.template
