"""Who asks which table: every client of every listener exactly once."""

from __future__ import annotations

from tests import strategies as build
from urelay.analysis.boxes import IPV4_SOURCES, IPV6_SOURCES, Box, Sources, audience, clients
from urelay.net.address import parse_address
from urelay.policy.model import (
    ALL_PORTS,
    MAIN,
    Action,
    Direct,
    Lookup,
    PortRange,
    Rewrite,
    TableChoice,
    ToPrefix,
)
from urelay.table.compile import compile_policy

TEN = build.prefix("10.0.0.0/8")
PART = build.prefix("10.1.0.0/16")


def test_every_source_uses_the_table_the_evaluator_says() -> None:
    policy = build.policy(
        listeners=[
            build.listener("lan"),
            build.listener("box", TableChoice("guests", TEN), TableChoice("staff", PART)),
        ],
        tables=["guests", "staff"],
    )
    table = compile_policy(policy)
    found = clients(policy)
    for text in (
        "0.0.0.0",
        "9.255.255.255",
        "10.0.0.0",
        "10.1.0.0",
        "10.1.255.255",
        "10.2.0.0",
        "11.0.0.0",
        "::",
    ):
        source = parse_address(text)
        one = Box(
            PortRange(1, 1), Sources(4 if len(source) == 4 else 6, *[int.from_bytes(source)] * 2), frozenset()
        )
        for name in ("lan", "box"):
            asked = one._replace(listeners=frozenset((name,)))
            homes = [home for home, boxes in found.items() for box in boxes if box.meets(asked)]
            assert homes == [table.world_for(name, source).name]


def test_without_listeners_nobody_asks_from_everywhere() -> None:
    assert audience(build.policy(), MAIN) == [
        Box(ALL_PORTS, sources, frozenset((None,))) for sources in (IPV4_SOURCES, IPV6_SOURCES)
    ]


def test_lookups_bring_the_clients_of_other_tables() -> None:
    asking = Action(Lookup("inner"), Rewrite(ToPrefix(TEN)))
    policy = build.policy(
        [
            build.route(build.region("192.0.0.0/8"), asking),
            build.route(build.region(), Direct(), table="inner"),
        ],
        listeners=[build.listener("lan"), build.listener("box", TableChoice("guests"))],
        tables=["guests", "inner", "unused"],
    )

    def names(table: str) -> set[str | None]:
        return {name for box in audience(policy, table) for name in box.listeners}

    assert names("inner") == {"lan"}
    assert names("guests") == {"box"}
    assert names("unused") == {"lan", "box"}


def test_a_region_leaves_disjoint_parts_of_a_box() -> None:
    box = Box(ALL_PORTS, IPV4_SOURCES, frozenset(("lan", "box")))
    parts = list(
        box.within(
            [PortRange(80, 90), PortRange(85, 95)], [PART, TEN, build.prefix("fd00::/8")], frozenset(("lan",))
        )
    )
    assert parts == [Box(PortRange(80, 95), Sources(4, TEN.first, TEN.last), frozenset(("lan",)))]
