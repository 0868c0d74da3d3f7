"""Which table is asked, which route wins there, and what the guard keeps closed.

Decisions without rewrites are judged by the oracle (test_oracle.py); here are the examples of the
language's pages, one by one.
"""

from __future__ import annotations

import pytest

from tests.strategies import GUARD, listener, policy, prefix, region, route, wall
from tests.table.questions import decide, line
from urelay.errors import UrelayError
from urelay.net.address import parse_address
from urelay.policy.model import (
    Deliver,
    Deny,
    Direct,
    Outcome,
    Route,
    Silent,
    TableChoice,
    Unix,
)
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

# --- precedence: the table of language.md, 4


def _to(where: str, deliver: Deliver, port: str = "", source: str = "", *, name: bool = False) -> Route:
    return route(region(where, port=port, source=source, name=name), deliver, _LINES[deliver])


# Each example has an A on line 1 and a B on line 2, told apart by what they do.
_A, _B = Deny(), Unix("/b")
_LINES: dict[Deliver, int] = {_A: 1, _B: 2}
_EXAMPLES: dict[str, tuple[Route, Route, str, str | None, str]] = {
    "a longer prefix": (
        _to("10.0.0.0/8", _A),
        _to("10.1.0.0/16", _B, port="80"),
        *("10.1.2.3:80", None, "unix 2"),
    ),
    "walk up": (
        _to("10.0.0.0/8", _A),
        _to("10.1.0.0/16", _B, port="80"),
        *("10.1.2.3:443", None, "deny 1"),
    ),
    "destination before port": (
        _to("any", _A, port="80"),
        _to("10.0.0.0/8 172.16.0.0/12", _B),
        *("10.1.1.1:80", None, "unix 2"),
    ),
    "fewer ports": (
        _to("any", _A, port="8000-8999"),
        _to("any", _B, port="8080"),
        *("192.0.2.1:8080", None, "unix 2"),
    ),
    "port before source": (
        _to("any", _A, source="10.0.0.0/8"),
        _to("any", _B, port="22"),
        *("192.0.2.1:22", "10.1.1.1", "unix 2"),
    ),
    "a name is never resolved to decide": (
        _to("93.184.216.0/24", _A),
        _to(".example.com", _B, name=True),
        *("www.example.com:80", None, "unix 2"),
    ),
    "a star before a dot": (
        _to(".example.com", _A, name=True),
        _to("*.example.com", _B, name=True),
        *("www.example.com:80", None, "unix 2"),
    ),
    "the apex goes to the dot": (
        _to(".example.com", _A, name=True),
        _to("*.example.com", _B, name=True),
        *("example.com:80", None, "deny 1"),
    ),
    "a longer name": (
        _to("*.example.com", _A, name=True),
        _to(".b.example.com", _B, name=True),
        *("a.b.example.com:80", None, "unix 2"),
    ),
    "a guest goes where the longer prefix says": (
        _to("10.0.0.0/8", _A, source="10.9.0.0/16"),
        _to("10.1.0.0/16", _B),
        *("10.1.1.1:80", "10.9.1.1", "unix 2"),
    ),
    "all of IPv4 is more than any": (
        _to("any", _A),
        _to("0.0.0.0/0 ::/0", _B),
        *("192.0.2.1:80", None, "unix 2"),
    ),
}


@pytest.mark.parametrize("example", _EXAMPLES.values(), ids=_EXAMPLES)
def test_the_most_specific_route_wins(example: tuple[Route, Route, str, str | None, str]) -> None:
    a, b, to, source, expected = example
    for order in ([a, b], [b, a]):
        assert line(decide(compile_policy(policy(order)), to, source)) == expected


def test_nothing_matches_means_deny_and_says_so() -> None:
    decision = decide(compile_policy(policy()), "192.0.2.1:80")
    assert (decision.outcome, decision.route, decision.wall) == (Outcome.DENY, None, None)
    assert decision.why == "no route matches"


def test_a_decision_is_a_constant_of_the_table() -> None:
    table = compile_policy(policy([route(region("any"), Direct())]))
    one, other = decide(table, "192.0.2.1:80"), decide(table, "[2001:db8::1]:443")
    assert one is other
    assert one.destination is None
    assert one.policy == table.digest


# --- tables


def _tables() -> Table:
    return compile_policy(
        policy(
            [
                route(region("any"), Direct(), 1),
                route(region("any"), Deny(), 2, table="guests"),
                route(region("any"), Silent(), 3, table="lab"),
            ],
            walls=[
                wall(region("192.0.2.0/24"), 8),
                wall(region("198.51.100.0/24"), 9, table="guests"),
            ],
            listeners=[
                listener("lan"),
                listener(
                    "box",
                    TableChoice("lab", prefix("10.0.0.0/8")),
                    TableChoice("guests", prefix("10.9.0.0/16")),
                ),
                listener("all", TableChoice("guests"), TableChoice("lab", prefix("10.0.0.0/8"))),
            ],
        )
    )


@pytest.mark.parametrize(
    ("on", "source", "expected"),
    [
        (None, None, "direct 1"),
        ("lan", "10.9.1.1", "direct 1"),
        ("nobody", "10.9.1.1", "direct 1"),
        ("box", "10.9.1.1", "deny 2"),
        ("box", "10.8.1.1", "silent 3"),
        ("box", "192.168.1.1", "direct 1"),
        ("box", None, "direct 1"),
        ("box", "fd00::1", "direct 1"),
        ("all", None, "deny 2"),
        ("all", "fd00::1", "deny 2"),
        ("all", "10.1.1.1", "silent 3"),
    ],
)
def test_the_listener_and_the_longest_source_choose_the_table(
    on: str | None, source: str | None, expected: str
) -> None:
    assert line(decide(_tables(), "8.8.8.8:80", source, on)) == expected


def test_a_table_can_be_asked_by_name() -> None:
    assert line(decide(_tables(), "8.8.8.8:80", within="lab")) == "silent 3"
    with pytest.raises(UrelayError, match="no table called `cellar`"):
        decide(_tables(), "8.8.8.8:80", within="cellar")


def test_top_level_walls_hold_in_every_table_and_others_in_their_own() -> None:
    table = _tables()
    for name in ("main", "guests", "lab"):
        assert line(decide(table, "192.0.2.7:80", within=name)) == "deny 8"
    assert line(decide(table, "198.51.100.7:80", within="guests")) == "deny 9"
    assert line(decide(table, "198.51.100.7:80", within="main")) == "direct 1"


def test_nothing_is_an_exception_to_a_wall() -> None:
    table = compile_policy(
        policy(
            [route(region("10.0.0.1", port="80", source="10.0.0.2", on="lan"), Direct(), 1)],
            walls=[wall(region("any", port="79-80"), 9)],
        )
    )
    assert line(decide(table, "10.0.0.1:80", "10.0.0.2", "lan")) == "deny 9"


# --- the guard


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "169.254.169.254", "0.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "ff02::1"],
)
def test_match_any_does_not_open_what_the_guard_closes(address: str) -> None:
    table = compile_policy(
        policy([route(region("any"), Direct()), route(region("0.0.0.0/0 ::/0"), Direct())], guard=GUARD)
    )
    assert table.decide(parse_address(address), 80).denied
    assert not table.decide(parse_address("8.8.8.8"), 80).denied


def test_a_route_that_names_a_guarded_range_opens_what_it_says() -> None:
    table = compile_policy(policy([route(region("127.0.0.1", port="8080"), Direct(), 1)], guard=GUARD))
    assert line(decide(table, "127.0.0.1:8080")) == "direct 1"
    assert line(decide(table, "127.0.0.1:8081")) == "deny guard 2"
    assert line(decide(table, "127.0.0.2:8080")) == "deny guard 2"


def test_at_an_equal_prefix_the_policys_own_route_replaces_the_guards() -> None:
    table = compile_policy(policy([route(region("127.0.0.0/8", port="1-1023"), Direct(), 1)], guard=GUARD))
    assert line(decide(table, "127.0.0.1:80")) == "direct 1"
    assert line(decide(table, "127.0.0.1:8080")) == "deny guard 2"


def test_our_own_listeners_are_guarded() -> None:
    listeners = [
        listener("socks", place="198.51.100.1 1080"),
        listener("wild", place="0.0.0.0 2525"),
        listener("away", place="198.51.100.1 3128", netns="lan"),
    ]
    table = compile_policy(policy([route(region("any"), Direct(), 7)], listeners=listeners))
    decision = decide(table, "198.51.100.1:1080")
    assert decision.denied
    assert decision.route == listeners[0].origin
    for free in ("198.51.100.1:1081", "198.51.100.1:3128", "8.8.8.8:2525", "0.0.0.0:2525"):
        assert line(decide(table, free)) == "direct 7"
