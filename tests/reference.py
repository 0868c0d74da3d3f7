"""The oracle: what a policy decides, by scanning every statement for every connection.

It shares nothing with urelay.table but the reading of embedded IPv4 addresses (which has tests of
its own), and is meant to be read beside language.md, 4. It knows no rewrites; those have examples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tests.strategies import Connection, region, route
from urelay.lang.source import Origin
from urelay.net.address import Host, address_text
from urelay.net.nat64 import embedded_ipv4
from urelay.policy.model import (
    ALL_PORTS,
    MAIN,
    Deny,
    Direct,
    NameKind,
    Outcome,
    Policy,
    Region,
    Route,
    Silent,
    Unix,
    Via,
)

Verdict = tuple[Outcome, str, Origin | None, str | None]
"""Outcome, table, the route that decided, upstream. (Which of several walls is named is free.)"""


def decide(policy: Policy, asked: Connection) -> Verdict:
    """Steps 1 to 4 of language.md, 4, and the final check of an address that is dialled as it is."""
    table = asked.table or _table(policy, asked)
    verdict = _verdict(policy, table, asked, asked.host)
    if isinstance(asked.host, bytes) and verdict[0] in (Outcome.DIRECT, Outcome.VIA):
        for inner in embedded_ipv4(asked.host):
            if _wall(policy, table, asked, inner):
                return Outcome.DENY, table, None, None
            winner = _winner(policy, table, asked, inner)
            if winner is not None and winner.guard:
                return Outcome.DENY, table, winner.origin, None
    return verdict


def _verdict(policy: Policy, table: str, asked: Connection, host: Host) -> Verdict:
    if _wall(policy, table, asked, host):
        return Outcome.DENY, table, None, None
    winner = _winner(policy, table, asked, host)
    if winner is None:
        return Outcome.DENY, table, None, None
    match winner.action.deliver:
        case Via(upstream):
            return Outcome.VIA, table, winner.origin, upstream
        case Direct():
            return Outcome.DIRECT, table, winner.origin, None
        case Unix():
            return Outcome.UNIX, table, winner.origin, None
        case Silent():
            return Outcome.SILENT, table, winner.origin, None
        case _:
            return Outcome.DENY, table, winner.origin, None


def _table(policy: Policy, asked: Connection) -> str:
    listener = policy.listeners.get(asked.listener or "")
    choices = [] if listener is None else listener.tables
    fitting = [choice for choice in choices if choice.source is None or asked.source in choice.source]
    return max(fitting, key=lambda c: -1 if c.source is None else c.source.length).table if fitting else MAIN


def _wall(policy: Policy, table: str, asked: Connection, host: Host) -> bool:
    here = [wall for wall in policy.walls if wall.table in (None, table)]
    return any(True for wall in here for _ in _matches(wall.region, asked, host))


def _winner(policy: Policy, table: str, asked: Connection, host: Host) -> Route | None:
    guard = [*policy.guard, *_own_listeners(policy, asked.port)]
    found = [
        ((destination, not route.guard, -width, source, named), route)
        for route in [*policy.tables[table], *guard]
        for destination, width, source, named in _matches(route.region, asked, host)
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _own_listeners(policy: Policy, port: int) -> Iterator[Route]:
    """Our own addresses are guarded at their port."""
    for listener in policy.listeners.values():
        endpoint = listener.place.endpoint
        if endpoint is not None and isinstance(endpoint.host, bytes) and endpoint.port == port:
            where = region(address_text(endpoint.host), port=str(endpoint.port))
            yield replace(route(where, Deny(), guard=True), origin=listener.origin)


def _matches(where: Region, asked: Connection, host: Host) -> Iterator[tuple[Any, int, int, bool]]:
    """One key for each combination of elements that matches: destination, width, source, named."""
    if where.listeners is not None and asked.listener not in where.listeners:
        return
    widths = [ports.width for ports in where.ports or (ALL_PORTS,) if ports.first <= asked.port <= ports.last]
    lengths = [-1]
    if where.sources is not None:
        lengths = [source.length for source in where.sources if asked.source in source]
    if widths and lengths:
        for key in itertools.product(_destinations(where, host), widths, lengths):
            yield *key, where.listeners is not None


def _destinations(where: Region, host: Host) -> Iterator[tuple[int, ...]]:
    """How specific each matching destination is: name over address over any."""
    if where.destinations is None:
        yield (0,)
    elif isinstance(host, bytes):
        yield from ((1, block.length) for block in where.destinations.prefixes if host in block)
    else:
        for kind, name in where.destinations.names:
            below = host.endswith("." + name)
            if (
                (kind is NameKind.EXACT and host == name)
                or (kind is NameKind.BELOW and below)
                or (kind is NameKind.SELF_AND_BELOW and (below or host == name))
            ):
                yield (2, int(kind is NameKind.EXACT), name.count("."), kind)
