"""Host names to addresses, with dnspython: one A and one AAAA query for each connection, no cache.

A name comes here when a decision is to be acted on, never to make one, and always in the form that
urelay.net.address gives it, so nothing numeric reaches a resolver. Answers are hostile: they are
unmapped, counted, and every one of them is decided on again by whoever asked. No search suffixes: a
name is what it says.

`localhost` is the loopback addresses without asking anybody (RFC 6761, 6.3), then /etc/hosts is
looked at, then the name servers of /etc/resolv.conf (or those given). Both files are read again when
they change.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from urelay.errors import AddressError, DialError, Failure
from urelay.net.address import Address, Endpoint, host_text, parse_address, parse_name

if TYPE_CHECKING:
    import dns.asyncresolver

LOOPBACK = (parse_address("127.0.0.1"), parse_address("::1"))

_ANSWERS_A_FAMILY = 8
"""Addresses kept of one answer: more than any honest name needs, few enough to try them all."""

_GRACE_S = 0.5
"""How long the other family may take once one has answered. RFC 8305, 3 gives it 50 ms and adds late
answers to the race; here the race starts once, so a slow server gets a little more."""

_PAYLOAD = 1232
"""Bytes of a UDP answer that pass every path without fragments; longer ones come over TCP."""

_Value = TypeVar("_Value")

Hosts: TypeAlias = dict[str, tuple[Address, ...]]


class Resolver:
    """Asks for addresses, a bounded number of names at a time, fairly between sources.

    Making one imports dnspython (tens of milliseconds), so that the first connection need not wait for that.
    """

    def __init__(
        self,
        servers: Sequence[Endpoint] = (),
        *,
        hosts: str = "/etc/hosts",
        resolv_conf: str = "/etc/resolv.conf",
        lifetime_s: float = 5.0,
        in_flight: int = 64,
        per_source: int = 8,
    ) -> None:
        """`servers` (addresses) are asked instead of those in `resolv_conf`.

        One name takes at most `lifetime_s`, once it is its turn: `in_flight` names are asked for at
        the same time, and `per_source` of them for one source.
        """
        import dns.asyncresolver
        import dns.rdtypes.IN.A
        import dns.rdtypes.IN.AAAA  # noqa: F401  dnspython would import these with the first answer

        self._lifetime_s = lifetime_s
        self._hosts: _Watched[Hosts] = _Watched(hosts, parse_hosts, {})
        given = tuple(servers)
        self._servers = _Watched("" if given else resolv_conf, _parse_resolv_conf, given)
        self._turns = _Turns(in_flight, per_source)

    async def resolve(self, name: str, source_key: Hashable = None) -> tuple[Address, ...]:
        """The addresses of `name`, IPv6 first, none twice, at least one and at most sixteen.

        `source_key` says for whom: one source cannot take every turn. Raises DialError.
        """
        if name == "localhost" or name.endswith(".localhost"):
            return LOOPBACK
        if (known := self._hosts.value().get(name)) is not None:
            return known
        async with self._turns.of(source_key):
            return await self._ask(name)

    async def _ask(self, name: str) -> tuple[Address, ...]:
        """Both families at the same time; both tasks are over when this is."""
        client = self._client()
        loop = asyncio.get_running_loop()
        queries = [loop.create_task(self._query(client, name, kind)) for kind in ("AAAA", "A")]
        try:
            done, late = await asyncio.wait(queries, return_when=asyncio.FIRST_COMPLETED)
            if late:
                answered = any(query.result().addresses for query in done)
                await asyncio.wait(late, timeout=_GRACE_S if answered else None)
        finally:
            for query in queries:
                query.cancel()
            await asyncio.wait(queries)
        answers = [query.result() for query in queries if not query.cancelled()]
        addresses = dict.fromkeys(address for answer in answers for address in answer.addresses)
        if not addresses:
            raise _error(name, {answer.failure for answer in answers})
        return tuple(addresses)

    async def _query(self, client: dns.asyncresolver.Resolver, name: str, kind: str) -> _Answer:
        """One family; what goes wrong is part of the answer."""
        import dns.exception
        import dns.name
        import dns.resolver

        try:
            answer = await client.resolve(
                dns.name.from_text(name + "."), kind, raise_on_no_answer=False, search=False
            )
        except dns.resolver.NXDOMAIN:
            return _Answer(failure=Failure.NAME_NOT_FOUND)
        except dns.exception.Timeout:
            return _Answer(failure=Failure.TIMEOUT)
        except dns.exception.DNSException:
            return _Answer(failure=Failure.HOST_UNREACHABLE)
        records = islice(answer.rrset or (), _ANSWERS_A_FAMILY)
        return _Answer(tuple(parse_address(record.address) for record in records))

    def _client(self) -> dns.asyncresolver.Resolver:
        import dns.asyncresolver
        import dns.nameserver

        client = dns.asyncresolver.Resolver(configure=False)
        client.nameservers = [
            dns.nameserver.Do53Nameserver(host_text(server.host), server.port)
            for server in self._servers.value()
        ]
        client.lifetime = self._lifetime_s
        client.use_edns(0, 0, _PAYLOAD)
        return client


@dataclass(frozen=True, slots=True)
class _Answer:
    """The addresses of one family, or why there are none (None: the name has no such address)."""

    addresses: tuple[Address, ...] = ()
    failure: Failure | None = None


# What is said of a name without addresses. The first that either family met is told.
_ERRORS = {
    Failure.NAME_NOT_FOUND: "there is no host called `{}`",
    Failure.TIMEOUT: "no name server answered for `{}` in time",
    Failure.HOST_UNREACHABLE: "no name server could tell the address of `{}`",
}


def _error(name: str, met: set[Failure | None]) -> DialError:
    for failure, text in _ERRORS.items():
        if failure in met:
            return DialError(failure, text.format(name))
    return DialError(Failure.NAME_NOT_FOUND, f"`{name}` has no address")


class _Turns:
    """Who may ask now: first come, first served, within a source's share and the whole."""

    def __init__(self, in_flight: int, per_source: int) -> None:
        self._all = asyncio.Semaphore(in_flight)
        self._per_source = per_source
        self._shares: dict[Hashable, tuple[asyncio.Semaphore, list[None]]] = {}

    @contextlib.asynccontextmanager
    async def of(self, source_key: Hashable) -> AsyncIterator[None]:
        share = self._shares.get(source_key)
        if share is None:
            share = self._shares[source_key] = (asyncio.Semaphore(self._per_source), [])
        semaphore, users = share
        users.append(None)
        try:
            # The share first: a source that waits for its own share holds no turn of the others.
            async with semaphore, self._all:
                yield
        finally:
            users.pop()
            if not users:
                del self._shares[source_key]


class _Watched(Generic[_Value]):
    """What a file says, read again when the file is another one or has changed."""

    def __init__(self, path: str, parse: Callable[[str], _Value], without: _Value) -> None:
        """`without` is the value of a file that cannot be read; an empty `path` is never read."""
        self._path = path
        self._parse = parse
        self._without = self._value = without
        self._seen: tuple[int, int, int] | None = None

    def value(self) -> _Value:
        if not self._path:
            return self._value
        try:
            status = os.stat(self._path)
            seen = (status.st_mtime_ns, status.st_size, status.st_ino)
            if seen != self._seen:
                with open(self._path, encoding="utf-8", errors="replace") as file:
                    self._value = self._parse(file.read())
                self._seen = seen
        except OSError:
            self._value, self._seen = self._without, None
        return self._value


def parse_hosts(text: str) -> Hosts:
    """The names of an /etc/hosts (hosts(5)); lines that make no sense are left out."""
    hosts: Hosts = {}
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        for spelling in fields[1:]:
            with contextlib.suppress(AddressError):
                name, address = parse_name(spelling), parse_address(fields[0])
                known = hosts.get(name, ())
                if address not in known and len(known) < 2 * _ANSWERS_A_FAMILY:
                    hosts[name] = (*known, address)
    return hosts


def _parse_resolv_conf(text: str) -> tuple[Endpoint, ...]:
    """The `nameserver` lines of a resolv.conf(5), three at most as there; nothing else is used."""
    servers = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "nameserver":
            with contextlib.suppress(AddressError):
                servers.append(Endpoint(parse_address(fields[1]), 53))
    return tuple(servers[:3])
