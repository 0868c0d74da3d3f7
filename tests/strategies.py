"""Policies built straight from the model, and Hypothesis strategies for them and for connections.

The universe is small on purpose: a handful of nested prefixes, ports, sources and names, so that
random routes overlap, tie and shadow one another instead of missing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from hypothesis import strategies as st

from urelay.lang import ast
from urelay.lang.source import Origin, Source, Span
from urelay.net.address import Address, Endpoint, Host, Prefix, host_prefix, parse_address, unmap
from urelay.policy.model import (
    ALL_PORTS,
    MAIN,
    NO_SETTINGS,
    Action,
    Deliver,
    Deny,
    Destinations,
    Direct,
    Expectation,
    Listener,
    ListenerKind,
    NameKind,
    NamePattern,
    Place,
    PlaceKind,
    Policy,
    PortRange,
    Region,
    Route,
    Setting,
    Silent,
    TableChoice,
    Unix,
    Upstream,
    UpstreamKind,
    Via,
    Wall,
)

_T = TypeVar("_T")

_SOURCE = Source.from_text("test.urr", "")
_SPAN = Span(_SOURCE, 0, 0)
_ANY = ast.Region(ast.Word("any", _SPAN), (), _SPAN)
_MATCH = ast.Match(_ANY, ast.Action((), ast.Deliver("deny", (), _SPAN), _SPAN), (), _SPAN)
_FORBID = ast.Forbid(_ANY, _SPAN)


# --- building by hand: what the parser and the checker would make of a line


def prefix(text: str) -> Prefix:
    """`10.0.0.0/8`, or an address for its /32 or /128."""
    address, slash, length = text.partition("/")
    found = host_prefix(parse_address(address))
    return found._replace(length=int(length)) if slash else found


def pattern(text: str) -> NamePattern:
    """`example.com`, `*.example.com` or `.example.com`."""
    if text.startswith("*."):
        return NamePattern(NameKind.BELOW, text[2:])
    if text.startswith("."):
        return NamePattern(NameKind.SELF_AND_BELOW, text[1:])
    return NamePattern(NameKind.EXACT, text)


def ports(text: str) -> PortRange:
    """`80` or `8000-8999`."""
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def region(
    destination: str = "any", *, port: str = "", source: str = "", on: str = "", name: bool = False
) -> Region:
    """A region; every argument may hold several words. `name` reads the destination as names."""
    words = destination.split()
    return Region(
        destinations=None
        if destination == "any"
        else Destinations(
            prefixes=() if name else tuple(prefix(word) for word in words),
            names=tuple(pattern(word) for word in words) if name else (),
        ),
        ports=tuple(ports(word) for word in port.split()) or None,
        sources=tuple(prefix(word) for word in source.split()) or None,
        listeners=frozenset(on.split()) or None,
    )


def route(
    where: Region, action: Action | Deliver, line: int = 1, *, table: str = MAIN, guard: bool = False
) -> Route:
    """A `match` statement; `line` tells routes apart in decisions."""
    if not isinstance(action, Action):
        action = Action(action)
    file = "guard.urr" if guard else "test.urr"
    origin = Origin(file, line, f"match {line}")
    return Route(table, where, action, NO_SETTINGS, origin, _MATCH, guard)


def wall(where: Region, line: int = 1, *, table: str | None = None) -> Wall:
    """A `forbid` statement."""
    return Wall(table, where, Origin("test.urr", line, f"forbid {line}"), _FORBID)


def upstream(
    name: str, kind: UpstreamKind = UpstreamKind.SOCKS5, *, members: Sequence[str] = (), **options: object
) -> Upstream:
    """An upstream at 192.0.2.1:1080; `options` as checked values (`dns="local"`)."""
    origin = Origin("test.urr", 1, f"upstream {name}")
    endpoint = Endpoint(bytes((192, 0, 2, 1)), 1080)
    if kind in (UpstreamKind.DIRECT, UpstreamKind.FIRST, UpstreamKind.SPREAD):
        endpoint = None
    node = ast.UpstreamDef(ast.Word(name, _SPAN), ast.Word(kind.value, _SPAN), (), (), _SPAN)
    settings = {option: Setting(value, origin) for option, value in options.items()}
    return Upstream(name, kind, endpoint, tuple(members), settings, origin, node)


def listener(
    name: str,
    *choices: TableChoice,
    place: str = "fd 3",
    kind: ListenerKind = ListenerKind.SOCKS,
    **options: object,
) -> Listener:
    """A listener; `place` is `fd N` or an address and a port with a space between."""
    origin = Origin("test.urr", 1, f"listen {name}")
    host, _, number = place.partition(" ")
    where = (
        Place(PlaceKind.FD, fd=int(number))
        if host == "fd"
        else Place(PlaceKind.ADDRESS, Endpoint(parse_address(host), int(number)))
    )
    node = ast.ListenDef(ast.Word(name, _SPAN), ast.Word(kind.value, _SPAN), (), None, (), _SPAN)
    settings = {option: Setting(value, origin) for option, value in options.items()}
    return Listener(name, kind, where, None, tuple(choices), settings, origin, node)


def policy(
    routes: Iterable[Route] = (),
    *,
    walls: Iterable[Wall] = (),
    guard: Iterable[Route] = (),
    upstreams: Iterable[Upstream] = (),
    listeners: Iterable[Listener] = (),
    tables: Iterable[str] = (),
    expectations: Iterable[Expectation] = (),
) -> Policy:
    """A policy of these statements; each route goes to the table it names."""
    worlds: dict[str, list[Route]] = {name: [] for name in (MAIN, *tables)}
    for one in routes:
        worlds.setdefault(one.table, []).append(one)
    return Policy(
        path="test.urr",
        digest=hashlib.sha256(repr(worlds).encode()).hexdigest(),
        sources=(_SOURCE,),
        documents=(),
        upstreams={one.name: one for one in upstreams},
        listeners={one.name: one for one in listeners},
        dns={},
        tables={name: tuple(members) for name, members in worlds.items()},
        guard=tuple(guard),
        walls=tuple(walls),
        expectations=tuple(expectations),
    )


_GUARDED = (
    "0.0.0.0/8 127.0.0.0/8 169.254.0.0/16 224.0.0.0/4 240.0.0.0/4 ::/128 ::1/128 fe80::/10 fec0::/10 "
    "ff00::/8 ::/96 ::ffff:0:0:0/96 2002::/16 2001::/32 64:ff9b::/96 64:ff9b:1::/48"
)
GUARD: tuple[Route, ...] = tuple(
    route(region(block), Deny(), line, guard=True) for line, block in enumerate(_GUARDED.split(), 1)
)
"""The guard of rules/guard.urr, in the model's words."""


# --- at random

_UPSTREAMS: Mapping[str, Upstream] = {
    one.name: one
    for one in (
        upstream("remote"),
        upstream("local", dns="local"),
        upstream("four", UpstreamKind.SOCKS4),
        upstream("straight", UpstreamKind.DIRECT),
        upstream("some", UpstreamKind.FIRST, members=("remote", "local")),
        upstream("all", UpstreamKind.SPREAD, members=("remote",)),
    )
}
_DELIVERIES: tuple[Deliver, ...] = (
    Direct(),
    Deny(),
    Silent(),
    Unix("/run/x"),
    *(Via(name) for name in _UPSTREAMS),
)
LISTENERS = ("lan", "box", "socks")

_V4_BLOCKS = (
    "0.0.0.0/0 0.0.0.0/1 10.0.0.0/8 10.0.0.0/9 10.1.0.0/16 10.1.2.0/24 10.1.2.3 10.1.2.4/31 10.255.0.0/16 "
    "127.0.0.0/8 127.0.0.1 169.254.0.0/16 192.0.2.0/24 255.255.255.255"
)
_V6_BLOCKS = (
    "::/0 ::/1 2001:db8::/32 2001:db8::/64 2001:db8::1 2001:db8:0:1::/64 fd00::/8 ::1 64:ff9b::/96 "
    "64:ff9b::a00:0/104 2002::/16 fe80::/10 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
)
_BLOCKS = [prefix(text) for text in (_V4_BLOCKS + " " + _V6_BLOCKS).split()]
_NAMES = "example.com a.example.com b.a.example.com c.b.a.example.com com other.net intranet".split()
_SOURCES = [
    prefix(text) for text in "10.0.0.0/8 10.1.0.0/16 10.1.1.1 0.0.0.0/0 fd00::/8 fd00::1 ::/0".split()
]
_PORTS = [ports(text) for text in "80 81 80-81 80-89 85-94 1-1023 22 443 1-65535 8000-8999 65535".split()]


def _packed(number: int, family: int) -> Address:
    return unmap((number % (1 << (32 if family == 4 else 128))).to_bytes(4 if family == 4 else 16))


def _edges(block: Prefix) -> list[Address]:
    """Addresses in, at the ends of, and just outside a block."""
    return [
        _packed(place, block.family) for place in (block.first - 1, block.first, block.last, block.last + 1)
    ]


addresses: st.SearchStrategy[Address] = st.one_of(
    st.sampled_from([edge for block in _BLOCKS for edge in _edges(block)]),
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=16, max_size=16).map(unmap),
)
names = st.sampled_from([*_NAMES, "x.example.com", "x.y.other.net", "org"])
hosts: st.SearchStrategy[Host] = st.one_of(addresses, names)
port_numbers = st.one_of(
    st.sampled_from(sorted({edge for one in _PORTS for edge in (one.first, one.last)} | {79, 90, 95})),
    st.integers(1, 65535),
)
prefixes = st.one_of(
    st.sampled_from(_BLOCKS),
    st.tuples(st.binary(min_size=4, max_size=4), st.integers(0, 32)).map(lambda pair: _network(*pair)),
    st.tuples(st.binary(min_size=16, max_size=16), st.integers(0, 128)).map(lambda pair: _network(*pair)),
)


def _network(address: bytes, length: int) -> Prefix:
    bits = len(address) * 8
    return Prefix(
        4 if bits == 32 else 6, int.from_bytes(address) >> (bits - length) << (bits - length), length
    )


patterns = st.builds(NamePattern, st.sampled_from(NameKind), st.sampled_from(_NAMES))
destinations = st.none() | st.builds(
    Destinations,
    prefixes=st.lists(prefixes, max_size=3).map(tuple),
    names=st.lists(patterns, max_size=2).map(tuple),
)
regions = st.builds(
    Region,
    destinations=destinations,
    ports=st.none() | st.lists(st.sampled_from(_PORTS), min_size=1, max_size=3).map(tuple),
    sources=st.none() | st.lists(st.sampled_from(_SOURCES), min_size=1, max_size=2).map(tuple),
    listeners=st.none() | st.frozensets(st.sampled_from(LISTENERS), min_size=1, max_size=2),
)
outcomes: st.SearchStrategy[Deliver] = st.sampled_from(_DELIVERIES)


@dataclass(frozen=True, slots=True)
class Connection:
    """One question to a table."""

    host: Host
    port: int
    source: Address | None
    listener: str | None
    table: str | None


connections = st.builds(
    Connection,
    host=hosts,
    port=port_numbers,
    source=st.none() | st.sampled_from([edge for block in _SOURCES for edge in _edges(block)]),
    listener=st.none() | st.sampled_from((*LISTENERS, "nobody")),
    table=st.none() | st.sampled_from((MAIN, "guests")),
)


@st.composite
def policies(draw: st.DrawFn, max_routes: int = 8) -> Policy:
    """A policy of two tables, without rewrites. Ties between routes are dropped, as a check would
    refuse them (UR201, UR203): where two elements have the same key and overlap, the later one goes.
    """
    found = []
    for line in range(1, draw(st.integers(0, max_routes)) + 1):
        table = draw(st.sampled_from((MAIN, MAIN, "guests")))
        found.append(route(draw(regions), draw(outcomes), line, table=table))
    walls = [
        wall(draw(regions.filter(_bounded)), 100 + line, table=draw(st.sampled_from((None, None, "guests"))))
        for line in range(draw(st.integers(0, 2)))
    ]
    choices = [
        TableChoice("guests", draw(st.sampled_from(_SOURCES))),
        TableChoice(draw(st.sampled_from((MAIN, "guests")))),
    ]
    return policy(
        without_ties(found),
        walls=walls,
        guard=GUARD if draw(st.booleans()) else (),
        upstreams=_UPSTREAMS.values(),
        listeners=[listener("lan"), listener("box", *choices), listener("socks", place="10.1.2.3 80")],
        tables=["guests"],
    )


def _bounded(where: Region) -> bool:
    """A wall round everything makes every policy the same."""
    return where != Region()


def without_ties(routes: Iterable[Route]) -> list[Route]:
    """The routes, each cut down to the elements that tie with no earlier route of the same table."""
    kept: list[Route] = []
    for one in routes:
        elements = [
            (destination, port, source)
            for destination in _destination_elements(one)
            for port in one.region.ports or (ALL_PORTS,)
            for source in one.region.sources or (None,)
        ]
        if not any(
            _ties(one, element, other) for element in elements for other in kept if other.table == one.table
        ):
            kept.append(one)
    return kept


def _destination_elements(one: Route) -> list[Prefix | NamePattern | None]:
    where = one.region.destinations
    return [None] if where is None else [*where.prefixes, *where.names]


def _ties(
    one: Route, element: tuple[Prefix | NamePattern | None, PortRange, Prefix | None], other: Route
) -> bool:
    destination, port, source = element
    if destination not in _destination_elements(other):
        return False
    mine, theirs = one.region.listeners, other.region.listeners
    if (mine is None) != (theirs is None) or (mine and theirs and not mine & theirs):
        return False
    return any(
        port.width == their_port.width and port.first <= their_port.last and their_port.first <= port.last
        for their_port in other.region.ports or (ALL_PORTS,)
    ) and source in (other.region.sources or (None,))


class RandomPolicies:
    """The same universe from a seeded generator, for runs in the hundred thousands."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._blocks: list[Prefix] = []

    def policy(self, routes: int) -> Policy:
        """A policy of about so many routes; remembers its prefixes to ask about their edges."""
        pick, maybe = self._chance.choice, self._maybe
        found = [
            route(self._region(), pick(_DELIVERIES), line, table=pick((MAIN, MAIN, "guests")))
            for line in range(1, routes + 1)
        ]
        walls = [
            wall(self._region(), 100 + line, table=pick((None, None, "guests")))
            for line in range(self._chance.randrange(3))
        ]
        return policy(
            without_ties(found),
            walls=[one for one in walls if one.region != Region()],
            guard=GUARD if maybe(0.5) else (),
            upstreams=_UPSTREAMS.values(),
            listeners=[
                listener("lan"),
                listener("box", TableChoice("guests", pick(_SOURCES)), TableChoice("guests", pick(_SOURCES))),
                listener("socks", place="10.1.2.3 80"),
            ],
            tables=["guests"],
        )

    def connection(self) -> Connection:
        """A connection that is likely to be near something the policy says."""
        pick, chance = self._chance.choice, self._chance
        host: Host
        if self._maybe(0.2):
            host = pick((*_NAMES, "x.example.com", "x.y.other.net", "org"))
        elif self._maybe(0.8):
            host = pick(_edges(pick(self._blocks or _BLOCKS)))
        else:
            host = unmap(chance.randbytes(pick((4, 16))))
        edge = pick(_PORTS)
        return Connection(
            host=host,
            port=pick((edge.first, edge.last, min(edge.last + 1, 65535), chance.randrange(1, 65536))),
            source=pick((None, *_edges(pick(_SOURCES)))),
            listener=pick((None, *LISTENERS, "nobody")),
            table=pick((None, None, MAIN, "guests")),
        )

    def _maybe(self, share: float) -> bool:
        return self._chance.random() < share

    def _some(self, pool: Sequence[_T], most: int) -> tuple[_T, ...]:
        return tuple(self._chance.choices(pool, k=self._chance.randrange(1, most + 1)))

    def _region(self) -> Region:
        chance = self._chance
        blocks = list(self._some(_BLOCKS, 3))
        if self._maybe(0.3):
            bits = chance.choice((4, 16))
            blocks.append(_network(chance.randbytes(bits), chance.randrange(bits * 8 + 1)))
        self._blocks += blocks
        patterns = [NamePattern(chance.choice(list(NameKind)), chance.choice(_NAMES))]
        return Region(
            destinations=None
            if self._maybe(0.2)
            else Destinations(tuple(blocks), tuple(patterns) if self._maybe(0.4) else ()),
            ports=self._some(_PORTS, 3) if self._maybe(0.5) else None,
            sources=self._some(_SOURCES, 2) if self._maybe(0.3) else None,
            listeners=frozenset(self._some(LISTENERS, 2)) if self._maybe(0.3) else None,
        )
