"""Cells are disjoint, they are everything, and inside one every connection is decided alike.

Small universes are enumerated address by address and compared with the forwarder's evaluator.
"""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import strategies as build
from urelay.analysis.boxes import IPV4_SOURCES, IPV6_SOURCES, NO_SOURCE, Box, clients, partition
from urelay.analysis.cells import Cell, Cells, Stretch
from urelay.analysis.cubes import Cube
from urelay.net.address import Address, Host, Prefix, address_of, parse_address
from urelay.policy.model import (
    ALL_PORTS,
    MAIN,
    Action,
    Deliver,
    Deny,
    Direct,
    FromNat64,
    Lookup,
    Move,
    NameKind,
    PortRange,
    Region,
    Rewrite,
    Silent,
    TableChoice,
    ToName,
    ToNat64,
    ToPrefix,
    Unix,
    Via,
)
from urelay.table.compile import compile_policy
from urelay.table.decision import Decision
from urelay.table.evaluate import Table

BLOCKS = [
    build.prefix(text)
    for text in (
        "10.0.0.0/28 10.0.0.0/29 10.0.0.4/30 10.0.0.5 10.0.0.8/29 10.0.0.12/31 "
        "127.0.0.0/28 8.8.8.0/28 8.8.8.8 "
        "2001:db8::/124 2001:db8::8/125 2001:db8::5efe:a00:0/124 "
        "2001:db8::5efe:a00:8/125 64:ff9b::a00:0/124 "
        "64:ff9b::808:800/124 2002:a00::/124 2001:db8:1::a00:0/124 64:ff9b:1::/48 "
        "2001:0:a00:5::/64 ::a00:0/124 "
        "2001:db8:2:a:0:0:5:0/112 2001:db8:4:0:5ff:6464:a00:0/124 0.0.0.0/0 ::/0"
    ).split()
]
NAMES = "example.com a.example.com b.a.example.com com other.net".split()
NAT64 = [
    build.prefix(text)
    for text in (
        "64:ff9b::/96 2001:db8:1::/96 2001:db8:2:a::/64 2001:db8:3::/48 2001:db8:4:0:5ff:6464::/96"
    ).split()
]
PORTS = [build.ports(text) for text in "80 80-81 80-89 85-94 1-1023 443 1-65535".split()]
SOURCES = [build.prefix(text) for text in "10.0.0.0/8 10.1.0.0/16 fd00::/8".split()]
LISTENERS = ("lan", "box")

# What is enumerated: everything in reach of the blocks and of their images.
UNIVERSE: list[Host] = [
    *(
        address_of(block.family, block.first + offset)
        for block in BLOCKS
        if block.bits - block.length in (3, 4)
        for offset in range(1 << (block.bits - block.length))
    ),
    *(
        parse_address(text)
        for text in (
            "9.9.9.9 255.255.255.255 :: ::1 2001:db8:2:a::1 2001:db8:2:a:a:0:500:0 2001:db8:2:a:1a:0:500:0 "
            "2001:db8:2:a:8:808:800:7 64:ff9b:1:a00:0:500:: 64:ff9b:1::7f00:1 2001:0:a00:5::f5ff:fffa "
            "2001:0:a00:5::80ff:fffe 2001:db8:3:a00:0:500:: 2001:db8:3:a00:1:500:: ffff::1 "
            "2001:db8:9::200:5efe:7f00:1"
        ).split()
    ),
    *NAMES,
    "x.example.com",
    "x.b.a.example.com",
    "org",
    "x.org",
]

moves: st.SearchStrategy[Move | None] = st.one_of(
    st.none(),
    st.builds(ToPrefix, st.sampled_from([block for block in BLOCKS if block.length > 16])),
    st.builds(ToNat64, st.sampled_from(NAT64)),
    st.builds(FromNat64, st.sampled_from(NAT64)),
    st.builds(ToName, st.sampled_from(NAMES)),
)
rewrites = st.builds(
    Rewrite,
    moves,
    st.none() | st.sampled_from([PortRange(443, 443), PortRange(80, 80), PortRange(84, 93)]),
).filter(lambda rewrite: rewrite != Rewrite())
delivers: st.SearchStrategy[Deliver] = st.sampled_from(
    [Direct(), Via("remote"), Via("local"), Deny(), Silent(), Unix("/run/x")]
)
lookups: st.SearchStrategy[Deliver] = st.builds(Lookup, st.sampled_from((MAIN, "guests")))
actions = st.one_of(
    st.builds(Action, delivers),
    st.builds(Action, delivers | lookups, rewrites),
)


blocks = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2)
bounded = st.deferred(lambda: st.lists(regions().filter(lambda one: one != Region()), max_size=1))


@st.composite
def regions(draw: st.DrawFn) -> Region:
    kind = draw(st.sampled_from(("any", "prefixes", "prefixes", "prefixes", "name")))
    patterns = st.tuples(st.sampled_from(("", "*.", ".")), st.sampled_from(NAMES)).map("".join)
    where = {
        "any": lambda: build.region(),
        "prefixes": lambda: build.region(
            " ".join(map(str, draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2))))
        ),
        "name": lambda: build.region(draw(patterns), name=True),
    }[kind]()
    return Region(
        where.destinations,
        draw(st.none() | st.sampled_from(PORTS).map(lambda ports: (ports,))),
        draw(st.none() | st.sampled_from(SOURCES).map(lambda source: (source,))),
        draw(st.none() | st.sampled_from(LISTENERS).map(lambda name: frozenset((name,)))),
    )


@st.composite
def tables(draw: st.DrawFn) -> Table:
    routes = []
    for line in range(1, draw(st.integers(1, 7)) + 1):
        action = draw(actions)
        region = draw(regions())
        if action.rewrite is not None and action.rewrite.ports is not None and action.rewrite.ports.width > 1:
            region = Region(region.destinations, (PortRange(80, 89),), region.sources, region.listeners)
        routes.append(build.route(region, action, line, table=draw(st.sampled_from((MAIN, MAIN, "guests")))))
    walls = [
        build.wall(where, 50 + line, table=draw(st.sampled_from((None, "guests"))))
        for line, where in enumerate(
            draw(st.lists(regions().filter(lambda one: one != Region()), max_size=1))
        )
    ]
    policy = build.policy(
        build.without_ties(routes),
        walls=walls,
        guard=build.GUARD if draw(st.booleans()) else (),
        upstreams=[build.upstream("remote"), build.upstream("local", dns="local")],
        listeners=[
            build.listener("lan"),
            build.listener("box", TableChoice("guests", SOURCES[0]), TableChoice(MAIN, SOURCES[1])),
        ],
        tables=["guests"],
    )
    return compile_policy(policy)


def holds(cell: Cell, host: Host) -> bool:
    """Whether a cell's destinations include `host`, told from the cell alone and the names it could be."""
    where = cell.where
    if isinstance(where, Stretch | Cube):
        if isinstance(host, str) or where.family != (4 if len(host) == 4 else 6):
            return False
        number = int.from_bytes(host)
        if isinstance(where, Stretch):
            inside = where.first <= number <= where.last
        else:
            inside = number & ~where.free == where.value
        return inside and not any(number & ~cube.free == cube.value for cube in cell.less)
    if isinstance(host, bytes):
        return False
    if where is None:
        return True
    if where.kind is NameKind.EXACT:
        return host == where.name
    return host.endswith("." + where.name)


def rank(cell: Cell) -> tuple[int, int]:
    """The closer description first: the name itself, a longer suffix, the rest last."""
    where = cell.where
    if isinstance(where, Stretch | Cube):
        return 0, 0
    if where is None:
        return 9, 0
    return (2, 0) if where.kind is NameKind.EXACT else (3, -where.name.count("."))


def in_box(box: Box, port: int, source: Address | None, listener: str | None) -> bool:
    # Asked a million times: what most boxes fail comes first.
    ports, sources = box.ports, box.sources
    if not (ports.first <= port <= ports.last and listener in box.listeners):
        return False
    if source is None:
        return sources.family == 0
    return sources.family == (4 if len(source) == 4 else 6) and (
        sources.first <= int.from_bytes(source) <= sources.last
    )


def told(decision: Decision) -> tuple[object, ...]:
    return (
        decision.outcome,
        decision.table,
        decision.route,
        decision.wall,
        decision.upstream,
        decision.deny_how,
        decision.template,
        decision.needs_address,
    )


ASKED_PORTS = (1, 79, 80, 81, 84, 85, 89, 90, 94, 443, 1024, 65535)
ASKED_SOURCES: tuple[Address | None, ...] = (
    None,
    bytes((10, 0, 0, 1)),
    bytes((10, 1, 0, 1)),
    bytes((11, 0, 0, 1)),
    b"\xfd" + bytes(15),
    bytes(16),
)
EVERYTHING = list(itertools.product(UNIVERSE, ASKED_PORTS, ASKED_SOURCES, (*LISTENERS, None)))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(), st.sampled_from((MAIN, "guests")), st.integers(0, 1 << 32))
def test_cells_of_everything_decide_as_the_forwarder_does(table: Table, name: str, seed: int) -> None:
    cells = Cells(table)
    boxes = [
        Box(ALL_PORTS, sources, frozenset((*LISTENERS, None)))
        for sources in (IPV4_SOURCES, IPV6_SOURCES, NO_SOURCE)
    ]
    found = list(cells.of(name, None, boxes))
    assume(not any("lookups" in (cell.decision.why or "") for cell in found))
    # Of the cells in one box, which many share, each is looked at only if the connection is in it.
    by_box: dict[Box, list[Cell]] = {}
    for cell in found:
        by_box.setdefault(cell.box, []).append(cell)
    for host, port, source, listener in random.Random(seed).sample(EVERYTHING, 150):
        here = [
            cell
            for box, cells_there in by_box.items()
            if in_box(box, port, source, listener)
            for cell in cells_there
            if holds(cell, host)
        ]
        mine = sorted(here, key=rank)
        assert mine, (host, port, source, listener)
        if isinstance(host, bytes):
            assert len(mine) == 1, mine
        decision = table.decide(host, port, source, listener, name)
        assert told(mine[0].decision) == told(decision), (host, port, source, listener, mine[0], decision)


@pytest.mark.parametrize("text", ["2001:db8::5efe:a00:0/124", "::/0", "10.0.0.0/28"])
def test_examples_lie_in_their_cells(text: str) -> None:
    policy = build.policy([build.route(build.region(), Direct())], guard=build.GUARD)
    table = compile_policy(policy)
    region = build.region(text)
    for box in clients(policy)[MAIN]:
        for cell in Cells(table).of(MAIN, region.destinations, [box]):
            assert holds(cell, cell.example)
            assert told(table.decide(cell.example, 1)) == told(cell.decision)


boxes = st.builds(
    Box,
    st.sampled_from([ALL_PORTS, *PORTS]),
    st.sampled_from([IPV4_SOURCES, IPV6_SOURCES]),
    st.sampled_from([frozenset(LISTENERS), frozenset(("lan",))]),
)


@given(tables(), boxes, st.sampled_from(BLOCKS))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_partition_is_disjoint_and_complete(table: Table, box: Box, block: Prefix) -> None:
    leaf = table.world(MAIN).leaf(address_of(block.family, block.first))
    parts = partition(leaf.candidates, box)
    for port, source, listener in itertools.product(ASKED_PORTS, ASKED_SOURCES, LISTENERS):
        if in_box(box, port, source, listener):
            mine = [candidate for part, candidate in parts if in_box(part, port, source, listener)]
            assert len(mine) == 1
            won = leaf.find(port, source, listener)
            assert (mine[0] and mine[0].rule) is (won and won.rule)
