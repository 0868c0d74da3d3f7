"""A leaf finds the winner of one connection, however many candidates it holds."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.strategies import LISTENERS, policy, ports, prefix, region, route
from urelay.net.address import Prefix, address_of
from urelay.policy.model import ALL_PORTS, Direct, Outcome, PortRange
from urelay.table.compile import compile_policy
from urelay.table.decision import Decision
from urelay.table.leaf import Candidate, Layer, Leaf

_RULE = route(region("any"), Direct())
_SOURCES = [prefix(text) for text in ("10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "::/0")]

port_ranges = st.builds(lambda a, b: PortRange(min(a, b), max(a, b)), st.integers(1, 40), st.integers(1, 40))
candidates = st.builds(
    Candidate,
    ports=st.none() | port_ranges,
    source=st.none() | st.sampled_from(_SOURCES),
    listeners=st.none() | st.frozensets(st.sampled_from(LISTENERS), min_size=1),
    rule=st.just(_RULE),
    decision=st.none(),
)


def _candidate(port: str = "", source: str = "", on: str = "") -> Candidate:
    return Candidate(
        ports(port) if port else None,
        prefix(source) if source else None,
        frozenset(on.split()) or None,
        _RULE,
        None,
    )


def _matches(candidate: Candidate, port: int, source: bytes | None, listener: str | None) -> bool:
    first, last = candidate.ports or ALL_PORTS
    return (
        first <= port <= last
        and (candidate.source is None or (source is not None and candidate.source.holds(source)))
        and (candidate.listeners is None or listener in candidate.listeners)
    )


@given(
    st.lists(candidates, min_size=1, max_size=30),
    st.integers(1, 42),
    st.sampled_from(
        [None, b"\x0a\x01\x00\x01", b"\x0a\x02\x00\x01", b"\xc0\x00\x02\x01", b"\xfd" + bytes(15)]
    ),
    st.sampled_from([None, *LISTENERS]),
)
def test_the_winner_is_the_first_that_matches_in_order_of_precedence(
    found: list[Candidate], port: int, source: bytes | None, listener: str | None
) -> None:
    expected = next(
        (c for c in sorted(found, key=lambda c: c.order) if _matches(c, port, source, listener)), None
    )
    winner = Leaf((), (Layer(found),), False).find(port, source, listener)
    assert (winner and winner.order) == (expected and expected.order)
    assert winner is expected


@pytest.mark.parametrize("families", [(4,), (6,), (4, 6)], ids=str)
def test_many_sources_are_found_as_by_a_scan(families: tuple[int, ...]) -> None:
    chance = random.Random(len(families))
    found = []
    for number in range(2000):
        bits = 32 if chance.choice(families) == 4 else 128
        length = chance.randrange(8, 25)
        source = Prefix(
            4 if bits == 32 else 6, chance.getrandbits(bits) >> (bits - length) << (bits - length), length
        )
        candidate = _candidate(on=chance.choice(("", "lan")), port=chance.choice(("", "80", "80-89")))
        found.append(replace(candidate, source=None if number % 500 == 0 else source))
    unequal = list({(*candidate.order, candidate.source): candidate for candidate in found}.values())
    leaf = Leaf((), (Layer(unequal),), False)
    ordered = sorted(unequal, key=lambda candidate: candidate.order)
    for _ in range(500):
        near = chance.choice(unequal).source
        asked = None if near is None else address_of(near.family, chance.choice((near.first, near.last)))
        port, listener = chance.choice((80, 85, 90)), chance.choice((None, "lan"))
        expected = next((c for c in ordered if _matches(c, port, asked, listener)), None)
        assert leaf.find(port, asked, listener) is expected


@given(
    st.lists(candidates, max_size=5),
    st.lists(candidates, max_size=5),
    st.sampled_from([None, b"\x0a\x01\x00\x01", b"\xfd" + bytes(15)]),
    st.sampled_from([None, *LISTENERS]),
)
def test_but_for_the_special_ports_the_usual_decision_stands(
    walls: list[Candidate], routes: list[Candidate], source: bytes | None, listener: str | None
) -> None:
    layers = [
        Layer(replace(one, decision=Decision(Outcome.DENY, "main", "")) for one in found)
        for found in (walls, [*routes, _candidate()])
        if found
    ]
    leaf = Leaf(tuple(layers[:-1]), (layers[-1],), False)
    assume(leaf.usual is not None)
    for port in {*range(1, 42)} - leaf.special:
        winner = leaf.find(port, source, listener)
        assert winner is not None
        assert winner.decision is leaf.usual


@pytest.mark.parametrize(
    ("before", "special"),
    [
        ([], set()),
        (["25"], {25}),
        (["135-139", "445"], {135, 136, 137, 138, 139, 445}),
        (["1024-65535"], None),
        (["8000-8063", "22"], None),
    ],
    ids=["none", "one", "some", "a wide range", "too many"],
)
def test_few_ports_are_special_or_nothing_is_usual(before: list[str], special: set[int] | None) -> None:
    decision = Decision(Outcome.DIRECT, "main", "")
    rows = [*(_candidate(port=port, on="lan") for port in before), replace(_candidate(), decision=decision)]
    leaf = Leaf((), (Layer(rows),), False)
    assert leaf.usual is (None if special is None else decision)
    assert leaf.special == (special or set())


def test_fewer_ports_come_before_a_longer_source_before_a_named_listener() -> None:
    weakest_first = [
        _candidate(),
        _candidate(on="lan"),
        _candidate(source="10.0.0.0/8"),
        _candidate(source="10.1.0.0/16"),
        _candidate(port="8000-8999"),
        _candidate(port="8080"),
    ]
    layer = Layer(weakest_first)
    assert list(layer.candidates) == weakest_first[::-1]


def test_nothing_follows_a_candidate_that_asks_for_nothing() -> None:
    compiled = compile_policy(
        policy(
            [
                route(region("any"), Direct(), 1),
                route(region("10.0.0.0/8", port="80"), Direct(), 2),
                route(region("10.1.0.0/16"), Direct(), 3),
            ]
        )
    )
    v4 = compiled.world("main").v4
    lines = {
        str(Prefix(4, first, 32)): [c.rule.origin.line for c in leaf.candidates]
        for first, _, leaf in v4.intervals()
    }
    assert lines == {
        "0.0.0.0/32": [1],
        "10.0.0.0/32": [2, 1],
        "10.1.0.0/32": [3],
        "10.2.0.0/32": [2, 1],
        "11.0.0.0/32": [1],
    }


def test_leaves_that_decide_the_same_are_the_same() -> None:
    compiled = compile_policy(policy([route(region("10.0.0.0/8 192.0.2.0/24 198.51.100.7"), Direct())]))
    leaves = [leaf for _, _, leaf in compiled.world("main").v4.intervals()]
    assert len(leaves) == 7
    assert len(set(leaves)) == 2
