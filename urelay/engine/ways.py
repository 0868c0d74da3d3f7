"""Ways through upstreams: one function a kind, and each calls the next along a chain.

    kind               leads to                            by
    direct             the destination                     connecting, from where its options say; or by
                                                           `via`, to speak TLS or to announce the client
    socks4/5, http     whatever its proxy connects to      reaching the proxy, then asking it
    first, spread      whatever a member leads to          the ways of its members, one after the other

A proxy is reached on its unix socket, through another upstream (`via`), or by connecting to it.
Every function takes the targets that will do, best first, and gives back a Way to one of them. `called`
is the host name they are the addresses of, for whoever must know whom to expect there: `tls` is
spoken to the proxy as soon as it is reached, or to the destination.

Whose failure it was is said where it happens (DialError.blame), because only there it is known:
a connection that was refused speaks of the destination, a proxy that cannot be reached of the way.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple, Protocol

from urelay.engine import proxies
from urelay.engine.connect import Timeouts, connect_tcp, connect_unix
from urelay.engine.departure import Abroad, Departure
from urelay.engine.groups import Bearer, candidates, nobody_got_through
from urelay.engine.health import Condition
from urelay.engine.logins import Logins
from urelay.engine.loops import OwnListeners
from urelay.engine.preface import Caller, announce
from urelay.engine.resolve import Resolver
from urelay.errors import Blame, DialError, Failure, StartError
from urelay.net.address import Endpoint, host_text
from urelay.policy.model import Upstream, UpstreamKind

_ADDRESSES_BY_PROXY = 4
"""Addresses of one name a proxy is asked for, one after the other."""

_ABOUT_THE_ADDRESS = frozenset((Failure.REFUSED, Failure.HOST_UNREACHABLE, Failure.NET_UNREACHABLE))
"""Failures of a proxy that speak of the address it was asked for, so that another may do better."""

_BLAME_OF = {
    Failure.REFUSED: Blame.DESTINATION,
    Failure.HOST_UNREACHABLE: Blame.UNFIT,
    Failure.NET_UNREACHABLE: Blame.UNFIT,
    Failure.TIMEOUT: Blame.UNCLEAR,
}
"""What connecting to the destination itself says; anything else, such as no descriptor, is the way's."""


class Secures(Protocol):
    """Who speaks TLS: urelay.engine.tls.Tls is one, and is imported only where a policy needs it."""

    async def start(
        self, sock: socket.socket, name: str, timeout_s: float, early: bytes = b""
    ) -> socket.socket:
        """A socket that leads through TLS over `sock` to `name`; `early` was read. Raises DialError."""


@dataclass(frozen=True, slots=True)
class Gear:
    """What the dials of one policy have in common."""

    resolver: Resolver
    logins: Logins
    timeouts: Timeouts
    abroad: Abroad | None
    conditions: Mapping[str, Condition]
    """How every upstream is doing, by name"""
    tls: Mapping[str, Secures]
    """How those speak TLS that do, by name"""


class Way(NamedTuple):
    """An open way. The socket is non-blocking, and the receiver's to close."""

    sock: socket.socket
    target: Endpoint
    """Which of the targets it leads to"""
    dialed: str
    """What the socket is connected to: an endpoint, or the path of a unix socket"""
    early: bytes = b""
    """What was read of it already, behind a proxy's answer"""
    members: tuple[str, ...] = ()
    """The upstreams that groups chose on the way, outermost first"""


class Ways:
    """The upstreams of a policy, for one dial. `tries` is told everything that is tried."""

    def __init__(
        self,
        gear: Gear,
        upstreams: Mapping[str, Upstream],
        name_takers: frozenset[str],
        own: OwnListeners,
        bearer: Bearer,
        caller: Caller,
    ) -> None:
        """Inside an event loop: the time that the timeouts allow begins now."""
        self._gear = gear
        self._upstreams = upstreams
        self._name_takers = name_takers
        self._own = own
        self._bearer = bearer
        self._caller = caller
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + gear.timeouts.total_s
        self.tries: list[str] = []

    async def through(self, name: str, targets: Sequence[Endpoint], called: str | None = None) -> Way:
        """A way through the upstream of this name to one of `targets`.

        They are addresses, or one host name if the upstream takes names. Raises DialError.
        """
        upstream = self._upstreams[name]
        return await _KINDS[upstream.kind](self, upstream, targets, called)

    def takes_names(self, name: str) -> bool:
        """Whether the upstream of this name may be given a host name as a target."""
        return name in self._name_takers

    async def direct(
        self, targets: Sequence[Endpoint], upstream: Upstream | None = None, called: str | None = None
    ) -> Way:
        """Connected to the first of `targets` that answers, as `upstream` says. Raises DialError."""
        departure = None if upstream is None else Departure.of(upstream)
        try:
            if departure is not None:
                targets = departure.fitting(targets)
            targets = self._not_ours(targets, departure)
            sock, far = await self._connect(targets, upstream, departure)
            if upstream is not None:
                await announce(sock, upstream, self._caller, far)
        except DialError as error:
            whose = "" if upstream is None else f"upstream `{upstream.name}`: "
            blame = _BLAME_OF.get(error.failure, Blame.WAY)
            raise DialError(error.failure, f"{whose}{error}", blame) from None
        if upstream is not None and upstream.tls:
            try:
                sock = await self._secured(sock, upstream, called or host_text(far.host))
            except DialError as error:
                # It was reached; that it does not show who it is, is its own affair.
                blame = Blame.UNCLEAR if error.failure is Failure.TIMEOUT else Blame.DESTINATION
                raise DialError(error.failure, f"upstream `{upstream.name}`: {far}: {error}", blame) from None
        return Way(sock, far, str(far))

    async def _direct(self, upstream: Upstream, targets: Sequence[Endpoint], called: str | None) -> Way:
        if upstream.via is None:
            return await self.direct(targets, upstream, called)
        try:
            way = await self.through(upstream.via, targets, called)
        except DialError as error:
            # It was to get to this very destination, so what it says of it and of itself holds here too.
            raise DialError(error.failure, f"upstream `{upstream.name}`: {error}", error.blame) from None
        sock, early, far = way.sock, way.early, way.target
        try:
            await announce(sock, upstream, self._caller, far if isinstance(far.host, bytes) else None)
            if upstream.tls:
                sock, early = await self._secured(sock, upstream, called or host_text(far.host), early), b""
        except DialError as error:
            # Whether the destination spoke or somebody on the way to it cannot be told.
            what = f"upstream `{upstream.name}`: {far}: {error}"
            raise DialError(error.failure, what, Blame.UNCLEAR) from None
        return Way(sock, far, way.dialed, early)

    async def _secured(
        self, sock: socket.socket, upstream: Upstream, name: str, early: bytes = b""
    ) -> socket.socket:
        """TLS over `sock`, which is closed when that fails."""
        timeout_s = self._timeouts(upstream).address_s
        try:
            return await self._gear.tls[upstream.name].start(sock, name, timeout_s, early)
        except BaseException:
            sock.close()
            raise

    async def _group(self, group: Upstream, targets: Sequence[Endpoint], called: str | None) -> Way:
        """Tries one member after the other, and remembers how each of them did."""
        loop, conditions = self._loop, self._gear.conditions
        names = candidates(group, self._bearer, conditions, loop.time())
        errors: list[DialError] = []
        silent: list[tuple[Condition, float, DialError]] = []
        for place, name in enumerate(names):
            condition, began = conditions[name], loop.time()
            condition.begin(began)
            self.tries.append(f"{group.name} by {name}")
            try:
                way = await self._in_turn(name, targets, called, len(names) - place)
            except DialError as error:
                if error.blame is Blame.DESTINATION:
                    condition.worked(loop.time())
                    _blame(silent, loop.time())
                    raise
                errors.append(error)
                if error.blame is Blame.WAY:
                    condition.failed(began, loop.time(), error)
                elif error.blame is Blame.UNCLEAR:
                    silent.append((condition, began, error))
            else:
                condition.worked(loop.time())
                _blame(silent, loop.time())
                return way._replace(members=(name, *way.members))
        raise errors[0] if len(errors) == 1 else nobody_got_through(group, errors)

    async def _in_turn(self, name: str, targets: Sequence[Endpoint], called: str | None, left: int) -> Way:
        """The way of a member, in its share of the time: `left` members, it included, have the rest."""
        if left == 1:
            return await self.through(name, targets, called)
        whole, now = self._deadline, self._loop.time()
        self._deadline = now + (whole - now) / left
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self.through(name, targets, called)
        except TimeoutError:
            raise DialError(Failure.TIMEOUT, f"upstream `{name}`: no answer in time", Blame.UNCLEAR) from None
        finally:
            self._deadline = whole

    async def _proxy(self, proxy: Upstream, targets: Sequence[Endpoint], called: str | None) -> Way:
        """Reaches the proxy anew for each target, until it gets to one of them."""
        if proxy.kind is UpstreamKind.SOCKS4:
            targets = [target for target in targets if len(target.host) == 4] or targets
        for target in targets[:_ADDRESSES_BY_PROXY]:
            sock, dialed, early = await self._reach(proxy)
            try:
                self.tries.append(f"{proxy.name} to {target}")
                early = await proxies.ask(sock, proxy, self._gear.logins.get(proxy.name), target, early)
            except DialError as error:
                sock.close()
                last = error
                if error.failure not in _ABOUT_THE_ADDRESS:
                    break
            except BaseException:
                sock.close()
                raise
            else:
                return Way(sock, target, dialed, early)
        raise last

    async def _reach(self, proxy: Upstream) -> tuple[socket.socket, str, bytes]:
        """A socket at whose other end `proxy` is, what it is connected to itself, and what was read of it."""
        try:
            sock, dialed, early = await self._reach_plainly(proxy)
            await announce(sock, proxy, self._caller)
            if proxy.tls:
                # On a unix socket there is no name but the one its options give.
                name = host_text(proxy.endpoint.host) if proxy.endpoint is not None else ""
                sock, early = await self._secured(sock, proxy, name, early), b""
        except DialError as error:
            # Whatever it was that stands between us and the proxy, it keeps this way from working.
            raise DialError(error.failure, f"upstream `{proxy.name}`: {error}", Blame.WAY) from None
        return sock, dialed, early

    async def _reach_plainly(self, proxy: Upstream) -> tuple[socket.socket, str, bytes]:
        if proxy.via is not None:
            host = None if proxy.endpoint is None else proxy.endpoint.host
            called = host if isinstance(host, str) else None
            way = await self.through(proxy.via, await self._places(proxy, proxy.via), called)
            return way.sock, way.dialed, way.early
        if proxy.unix_path is not None:
            self.tries.append(proxy.unix_path)
            sock = await connect_unix(proxy.unix_path, self._timeouts(proxy).address_s)
            return sock, proxy.unix_path, b""
        places: Sequence[Endpoint] = await self._places(proxy)
        departure = Departure.of(proxy)
        if departure is not None:
            places = departure.fitting(places)
        sock, far = await self._connect(places, proxy, departure)
        return sock, str(far), b""

    async def _places(self, proxy: Upstream, by: str | None = None) -> list[Endpoint]:
        """Where `proxy` is, in a form that the upstream `by` can be asked for."""
        if proxy.endpoint is None:
            raise DialError(Failure.ERROR, "it has no address to connect to")
        host, port = proxy.endpoint
        if isinstance(host, bytes) or by in self._name_takers:
            return [proxy.endpoint]
        return [
            Endpoint(address, port)
            for address in await self._gear.resolver.resolve(host, self._bearer.source)
        ]

    async def _connect(
        self, targets: Sequence[Endpoint], upstream: Upstream | None, departure: Departure | None
    ) -> tuple[socket.socket, Endpoint]:
        timeouts = self._timeouts(upstream)
        if departure is None:
            return await connect_tcp(targets, timeouts, self.tries)
        maker = _Maker(departure, self._gear.abroad)
        try:
            return await connect_tcp(targets, timeouts, self.tries, maker)
        except DialError as error:
            raise maker.refusal or error from None

    def _timeouts(self, upstream: Upstream | None) -> Timeouts:
        seconds = None if upstream is None else upstream.connect_timeout_s
        return self._gear.timeouts if seconds is None else replace(self._gear.timeouts, address_s=seconds)

    def _not_ours(self, targets: Sequence[Endpoint], departure: Departure | None) -> Sequence[Endpoint]:
        """`targets` without those at which a listener of ours would take the connection in again."""
        probe = None if departure is None else departure.probe(self._gear.abroad)
        allowed = []
        for target in targets:
            assert isinstance(target.host, bytes)
            try:
                own = self._own.leads_back(target.host, target.port, probe)
            except (OSError, StartError):
                # It cannot be told; making the socket meets the same reason, and says it.
                own = None
            if own is None:
                allowed.append(target)
            else:
                back = f"{target} is our own listener `{own}`"
        if not allowed:
            raise DialError(Failure.REFUSED, back)
        return allowed


def _blame(silent: Sequence[tuple[Condition, float, DialError]], now: float) -> None:
    """Another member got through, so it was no fault of the destination that these did not answer."""
    for condition, began, error in silent:
        condition.failed(began, now, error)


class _Maker:
    """Makes sockets for the race, and keeps what kept it from making one: a race tells numbers only."""

    def __init__(self, departure: Departure, abroad: Abroad | None) -> None:
        self._departure = departure
        self._abroad = abroad
        self.refusal: DialError | None = None

    def __call__(self, family: int) -> socket.socket:
        try:
            return self._departure.make(family, self._abroad)
        except DialError as error:
            self.refusal = error
            raise OSError(str(error)) from None


_Open = Callable[[Ways, Upstream, Sequence[Endpoint], str | None], Awaitable[Way]]

_KINDS: Final[Mapping[UpstreamKind, _Open]] = {
    UpstreamKind.DIRECT: Ways._direct,
    UpstreamKind.SOCKS4: Ways._proxy,
    UpstreamKind.SOCKS5: Ways._proxy,
    UpstreamKind.HTTP: Ways._proxy,
    UpstreamKind.FIRST: Ways._group,
    UpstreamKind.SPREAD: Ways._group,
}
