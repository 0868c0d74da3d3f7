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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from urelay.engine.connect import Timeouts, connect_tcp, connect_unix
from urelay.engine.logins import Logins
from urelay.engine.resolve import Resolver
from urelay.engine.session import FAILURE_OF
from urelay.errors import AddressError, DialError, Failure
from urelay.net import paths
from urelay.net.address import Address, Endpoint, Host
from urelay.policy.model import Outcome, Policy, Upstream, UpstreamKind
from urelay.table.decision import Decision


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asked for, and who it is."""

    destination: Endpoint
    source: Address | None
    listener: str


@dataclass(frozen=True, slots=True)
class Dialed:
    """A way that is open. The socket is non-blocking, and the receiver's to close."""

    sock: socket.socket
    decision: Decision
    """The final one: made for the address that was dialled"""
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
        super().__init__(FAILURE_OF[decision.deny_how], text)
        self.decision = decision


# Failures of a proxy that speak of the address it was asked for, so that another may do better.
_ABOUT_THE_ADDRESS = frozenset((Failure.REFUSED, Failure.HOST_UNREACHABLE, Failure.NET_UNREACHABLE))

_ADDRESSES_BY_PROXY = 4
"""Addresses of one name a proxy is asked for, one after the other."""


class _Goal(NamedTuple):
    """A decision that needs no more addresses, and where it leads."""

    decision: Decision
    target: Endpoint


class Dialer:
    """Opens ways out; one for a policy, since it holds the logins of its upstreams.

    Making one imports python-socks (tens of milliseconds), so that no connection has to wait for that.
    """

    def __init__(self, resolver: Resolver, logins: Logins, timeouts: Timeouts | None = None) -> None:
        from urelay.engine import proxies
        from urelay.engine.shortcut import Shortcuts

        self.shortcuts = Shortcuts(logins)
        """Ways that can be opened without dialling"""
        self._resolver = resolver
        self._logins = logins
        self._timeouts = timeouts or Timeouts()
        self.patience_s = self._timeouts.total_s
        """How long a dial may take in all"""
        self._ask = proxies.ask
        self._kinds = proxies.KINDS

    async def dial(self, table: Judge, decision: Decision, asked: Asked) -> Dialed:
        """Open the way `decision` names for `asked`; takes at most the whole of the timeouts.

        Raises DialError, and Denied when the policy says so of every address. Cancelling is safe.
        """
        task = asyncio.current_task()
        assert task is not None
        cancels = task.cancelling()
        dial = _Dial(self, table, asked)
        try:
            async with asyncio.timeout(self._timeouts.total_s):
                dialed = await dial.run(decision)
        except TimeoutError:
            target = decision.destination or asked.destination
            late = DialError(Failure.TIMEOUT, f"{target}: not connected in {self._timeouts.total_s:g} s")
            late.tries = dial.tries
            raise late from None
        except DialError as error:
            error.tries = dial.tries
            raise
        if task.cancelling() > cancels:
            # Libraries that race tasks can swallow a cancellation that comes while they clean up.
            dialed.sock.close()
            raise asyncio.CancelledError
        return dialed


class _Dial:
    """One dial: what is asked, by which table, and what was tried so far."""

    def __init__(self, dialer: Dialer, table: Judge, asked: Asked) -> None:
        self._resolver = dialer._resolver
        self._logins = dialer._logins
        self._timeouts = dialer._timeouts
        self._ask = dialer._ask
        self._kinds = dialer._kinds
        self._table = table
        self._asked = asked
        self._tries: list[str] = []

    async def run(self, decision: Decision) -> Dialed:
        goals = await self._goals(decision)
        first = goals[0].decision
        match first.outcome:
            case Outcome.DIRECT:
                return await self._direct(goals, self._timeouts)
            case Outcome.VIA:
                return await self._via(first.upstream or "", goals)
            case Outcome.UNIX:
                return await self._unix(goals[0])
            case _:
                raise Denied(first)

    async def _goals(self, decision: Decision) -> list[_Goal]:
        """Where to go: at least one, and all the same way."""
        target = decision.destination or self._asked.destination
        if not decision.needs_address:
            return [_Goal(decision, target)]
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
        return _Goal(replace(final, destination=goal), goal)

    async def _direct(self, goals: Sequence[_Goal], timeouts: Timeouts) -> Dialed:
        by_target = {goal.target: goal for goal in reversed(goals)}
        sock, far = await connect_tcp([goal.target for goal in goals], timeouts, self._tries)
        return self._dialed(sock, by_target[far].decision, str(far))

    async def _unix(self, goal: _Goal) -> Dialed:
        try:
            path = unix_path(goal.decision, goal.target, self._asked)
        except AddressError as error:
            raise DialError(Failure.HOST_UNREACHABLE, str(error)) from None
        self._tries.append(path)
        sock = await connect_unix(path, self._timeouts.address_s)
        return self._dialed(sock, goal.decision, path)

    async def _via(self, name: str, goals: Sequence[_Goal]) -> Dialed:
        chain = _chain(self._table.policy, name)
        timeouts = self._timeouts
        if (seconds := chain[0].connect_timeout_s) is not None:
            timeouts = replace(timeouts, address_s=seconds)
        # A `direct` upstream is the plain way out, whatever stands behind it in a chain.
        proxies = [upstream for upstream in chain if upstream.kind is not UpstreamKind.DIRECT]
        if not proxies:
            return await self._direct(goals, timeouts)
        for proxy in proxies:
            if proxy.kind not in self._kinds:
                raise DialError(Failure.ERROR, f"upstream `{proxy.name}` is no proxy: {proxy.kind}")
        if proxies[-1].kind is UpstreamKind.SOCKS4:
            goals = [goal for goal in goals if len(goal.target.host) == 4] or goals
        for goal in goals[:_ADDRESSES_BY_PROXY]:
            try:
                sock, dialed, early = await self._through(proxies, goal.target, timeouts)
            except DialError as error:
                last = error
                if error.failure not in _ABOUT_THE_ADDRESS:
                    break
            else:
                return self._dialed(sock, goal.decision, dialed, early)
        raise last

    async def _through(
        self, proxies: Sequence[Upstream], target: Endpoint, timeouts: Timeouts
    ) -> tuple[socket.socket, str, bytes]:
        """A socket that leads through every proxy to `target`, what it is connected to itself, and what
        was read of it behind the last proxy's answer.
        """
        sock, dialed = await self._reach(proxies[0], timeouts)
        early = b""
        try:
            for proxy, following in zip(proxies, [*proxies[1:], None], strict=True):
                goal = target if following is None else await self._next_hop(proxy, following)
                self._tries.append(f"{proxy.name} to {goal}")
                early = await self._ask(sock, proxy, self._logins.get(proxy.name), goal, early)
        except BaseException:
            sock.close()
            raise
        return sock, dialed, early

    async def _reach(self, proxy: Upstream, timeouts: Timeouts) -> tuple[socket.socket, str]:
        try:
            if proxy.unix_path is not None:
                self._tries.append(proxy.unix_path)
                return await connect_unix(proxy.unix_path, timeouts.address_s), proxy.unix_path
            host, port = _endpoint(proxy)
            addresses = (host,) if isinstance(host, bytes) else await self._proxy_addresses(host)
            endpoints = [Endpoint(address, port) for address in addresses]
            sock, far = await connect_tcp(endpoints, timeouts, self._tries)
        except DialError as error:
            raise DialError(error.failure, f"upstream `{proxy.name}`: {error}") from None
        return sock, str(far)

    async def _next_hop(self, proxy: Upstream, following: Upstream) -> Endpoint:
        """What `proxy` is asked for so that `following` is reached."""
        host, port = _endpoint(following)
        if isinstance(host, bytes) or proxy.takes_names:
            return Endpoint(host, port)
        addresses = await self._proxy_addresses(host)
        if proxy.kind is UpstreamKind.SOCKS4:
            addresses = tuple(address for address in addresses if len(address) == 4) or addresses
        return Endpoint(addresses[0], port)

    async def _proxy_addresses(self, name: str) -> tuple[Address, ...]:
        return await self._resolver.resolve(name, self._asked.source)

    @property
    def tries(self) -> tuple[str, ...]:
        """Everything that was tried so far, in order."""
        return tuple(self._tries)

    def _dialed(self, sock: socket.socket, decision: Decision, dialed: str, early: bytes = b"") -> Dialed:
        return Dialed(sock, decision, dialed, self.tries, early)


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


def _chain(policy: Policy, name: str) -> list[Upstream]:
    """The upstreams on the way to `name`, the nearest first; `check` has seen that it ends."""
    chain: list[Upstream] = []
    following: str | None = name
    while following is not None and len(chain) <= len(policy.upstreams):
        upstream = policy.upstreams[following]
        chain.append(upstream)
        following = upstream.via
    return chain[::-1]


def _endpoint(proxy: Upstream) -> Endpoint:
    if proxy.endpoint is None:
        raise DialError(Failure.ERROR, f"`{proxy.name}` has no address to connect to")
    return proxy.endpoint
