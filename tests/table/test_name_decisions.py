"""Host names: decided unresolved, settled by the address, and no way past a denial (S3)."""

from __future__ import annotations

import pytest

from tests.strategies import GUARD, listener, policy, prefix, region, route, upstream, wall
from tests.table.questions import decide, line, rewriting, settle
from urelay.net.address import Endpoint
from urelay.policy.model import (
    Deny,
    Direct,
    Lookup,
    Route,
    TableChoice,
    ToName,
    ToNat64,
    ToPrefix,
    UpstreamKind,
    Via,
)
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

# --- names


def _names(*extra: Route) -> Table:
    return compile_policy(
        policy(
            [
                route(region("any"), Direct(), 1),
                route(region("10.0.0.0/8"), Deny(), 2),
                route(region("10.1.0.0/16"), Via("remote"), 3),
                route(region(".corp.example", name=True), Direct(), 4),
                route(region(".tor.example", name=True), Via("remote"), 5),
                route(region(".four.example", name=True), Via("four"), 6),
                route(region(".bad.example", name=True), Deny(), 7),
                *extra,
            ],
            guard=GUARD,
            walls=[wall(region("10.66.0.0/16"), 9), wall(region(".evil.example", name=True), 10)],
            upstreams=[
                upstream("remote"),
                upstream("four", UpstreamKind.SOCKS4),
                upstream("wg", UpstreamKind.DIRECT),
                upstream("local", dns="local"),
                upstream("mixed", UpstreamKind.FIRST, members=("remote", "wg")),
                upstream("group", UpstreamKind.SPREAD, members=("remote", "inner")),
                upstream("inner", UpstreamKind.FIRST, members=("remote",)),
                upstream("secure", UpstreamKind.DIRECT, tls=True, via="group"),
                upstream("sealed", UpstreamKind.DIRECT, tls=True, via="local"),
                upstream("twice", UpstreamKind.DIRECT, tls=True, via="secure"),
                upstream("away", UpstreamKind.DIRECT, tls=True, via="wg"),
            ],
        )
    )


def test_a_name_that_only_any_matches_is_decided_by_its_address() -> None:
    table = _names()
    assert line(settle(table, "www.example.com:80", "8.8.8.8")) == "direct 1"
    assert line(settle(table, "www.example.com:80", "10.2.0.1")) == "deny 2"
    assert line(settle(table, "www.example.com:80", "10.66.0.1")) == "deny 9"
    assert line(settle(table, "www.example.com:80", "127.0.0.1")) == "deny guard 2"
    sent = settle(table, "www.example.com:80", "10.1.0.1")
    assert (line(sent), str(sent.destination)) == ("via 3", "10.1.0.1:80")


def test_a_name_route_stands_and_walls_and_guard_are_asked_about_the_address() -> None:
    table = _names()
    assert line(settle(table, "www.corp.example:80", "10.2.0.1")) == "direct 4"
    assert line(settle(table, "www.corp.example:80", "10.66.0.1")) == "deny 9"
    assert line(settle(table, "www.corp.example:80", "::1")) == "deny guard 7"
    assert line(settle(table, "www.corp.example:80", "::ffff:127.0.0.1")) == "deny guard 2"
    assert str(settle(table, "www.corp.example:80", "2001:db8::1").destination) == "[2001:db8::1]:80"


def test_an_upstream_that_takes_names_gets_the_name() -> None:
    decision = decide(_names(), "www.tor.example:80")
    assert (line(decision), decision.needs_address, decision.destination) == ("via 5", False, None)


def test_refusals_of_names_need_no_address() -> None:
    for name, expected in (("a.bad.example", "deny 7"), ("a.evil.example", "deny 10")):
        decision = decide(_names(), f"{name}:80")
        assert (line(decision), decision.needs_address) == (expected, False)


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("remote", True),
        ("four", False),
        ("wg", False),
        ("local", False),
        ("mixed", False),
        ("group", True),
        ("inner", True),
        ("secure", True),
        ("sealed", False),
        ("twice", True),
        ("away", False),
    ],
)
def test_who_hands_on_takes_names_only_if_all_it_hands_to_do(name: str, takes: bool) -> None:
    table = _names(route(region("some.example", name=True), Via(name), 8))
    assert decide(table, "some.example:80").needs_address is not takes
    assert (name in table.name_takers) is takes


def test_a_name_can_be_rewritten_to_a_name_and_asked_about_again() -> None:
    table = _names(
        route(region("192.0.2.9"), rewriting(Lookup("main"), ToName("db.corp.example")), 11),
        route(region("old.example", name=True), rewriting(Direct(), ToName("new.example"), "8080"), 12),
        route(region("gone.example", name=True), rewriting(Via("remote"), ToName("new.example")), 13),
        route(region("dark.example", name=True), rewriting(Lookup("main"), ToName("a.evil.example")), 14),
    )
    first = decide(table, "192.0.2.9:80")
    assert (line(first), str(first.destination), first.needs_address) == (
        "direct 4",
        "db.corp.example:80",
        True,
    )
    second = decide(table, "old.example:80")
    assert str(second.destination) == "new.example:8080"
    settled = settle(table, "old.example:80", "10.2.3.4")
    assert (line(settled), str(settled.destination)) == ("direct 12", "10.2.3.4:8080")
    third = decide(table, "gone.example:80")
    assert (str(third.destination), third.needs_address) == ("new.example:80", False)
    assert line(decide(table, "dark.example:80")) == "deny 10"


def test_an_address_rewrite_of_a_name_waits_for_its_address() -> None:
    table = _names(
        route(region("v6.example", name=True), rewriting(Direct(), ToNat64(prefix("2001:db8:64::/96"))), 11),
        route(
            region("map.example", name=True), rewriting(Lookup("main"), ToPrefix(prefix("10.1.0.0/16"))), 12
        ),
        route(region("fix.example", name=True), rewriting(Direct(), ToPrefix(prefix("10.0.0.5"))), 13),
    )
    settled = settle(table, "v6.example:80", "8.8.8.8")
    assert (line(settled), str(settled.destination)) == ("direct 11", "[2001:db8:64::808:808]:80")
    assert line(settle(table, "v6.example:80", "10.66.0.1")) == "deny 9"
    assert line(settle(table, "v6.example:80", "127.0.0.1")) == "deny guard 2"
    refused = settle(table, "v6.example:80", "2001:db8::1")
    assert (line(refused), refused.why) == (
        "deny 11",
        "2001:db8::1 is not IPv4 and has no place under 2001:db8:64::/96",
    )
    mapped = settle(table, "map.example:80", "192.0.2.7")
    assert (line(mapped), str(mapped.destination)) == ("via 3", "10.1.2.7:80")
    fixed = decide(table, "fix.example:80")
    assert (line(fixed), fixed.needs_address, str(fixed.destination)) == ("direct 13", False, "10.0.0.5:80")


def test_a_port_rewrite_of_any_is_decided_by_the_address_at_the_port_that_was_asked() -> None:
    table = compile_policy(
        policy(
            [
                route(region("any", port="80"), rewriting(Direct(), port="8080"), 1),
                route(region("10.0.0.0/8", port="80"), Deny(), 2),
            ]
        )
    )
    assert str(decide(table, "www.example.com:80").destination) == "www.example.com:8080"
    assert line(settle(table, "www.example.com:80", "10.0.0.1")) == "deny 2"
    settled = settle(table, "www.example.com:80", "8.8.8.8")
    assert (str(settled.destination), len(settled.rewrites)) == ("8.8.8.8:8080", 1)


def test_a_name_does_not_slip_past_the_table_it_came_through() -> None:
    """A lookup for `any` hands a name on; its address is still judged by the first table."""
    table = compile_policy(
        policy(
            [
                route(region("any"), Direct(), 1),
                route(region("any"), Lookup("main"), 2, table="guests"),
                route(region("10.0.0.0/8"), Deny(), 3, table="guests"),
                route(region(".corp.example", name=True), Lookup("main"), 4, table="guests"),
            ],
            walls=[wall(region("172.16.0.0/12"), 9, table="guests")],
            listeners=[listener("box", TableChoice("guests"))],
        )
    )
    assert line(settle(table, "www.example.com:80", "8.8.8.8", on="box")) == "direct 1"
    assert line(settle(table, "www.example.com:80", "10.0.0.1", on="box")) == "deny 3"
    assert line(settle(table, "www.corp.example:80", "172.16.0.1", on="box")) == "deny 9"


# --- S3: a rule for the name, for the address, or for both


_RULES = {
    "name": [route(region(".example.com", name=True), Deny(), 1)],
    "address": [route(region("10.0.0.0/8"), Deny(), 2)],
}
_RULES["both"] = _RULES["name"] + _RULES["address"]


@pytest.mark.parametrize("rules", _RULES)
@pytest.mark.parametrize("walls", [False, True], ids=["denied", "forbidden"])
def test_deny_wins_for_the_name_and_for_what_it_resolves_to(rules: str, walls: bool) -> None:
    """S3: rule for {name, address, both} x asked by {name, literal}; a literal matches no name rule."""
    chosen = _RULES[rules]
    table = compile_policy(
        policy(
            [route(region("any"), Direct(), 9)], walls=[wall(one.region, one.origin.line) for one in chosen]
        )
        if walls
        else policy([route(region("any"), Direct(), 9), *chosen])
    )
    by_name = decide(table, "www.example.com:80")
    if by_name.needs_address:
        by_name = settle(table, "www.example.com:80", "10.0.0.1")
    assert by_name.denied
    assert decide(table, "10.0.0.1:80").denied is (rules != "name")
    other = settle(table, "www.other.example:80", "10.0.0.1")
    assert other.denied is (rules != "name")
    assert not settle(table, "www.other.example:80", "8.8.8.8").denied


def test_a_connection_is_resolved_once() -> None:
    """An answer that would be rewritten to yet another name ends there, instead of being resolved."""
    table = _names(route(region("192.0.2.0/24"), rewriting(Direct(), ToName("db.corp.example")), 11))
    settled = settle(table, "www.example.com:80", "192.0.2.1")
    assert line(settled) == "deny 11"
    assert settled.why == "the address of a host name leads to another host name"


def test_the_destination_of_a_settled_decision_is_what_to_dial() -> None:
    table = compile_policy(policy([route(region("any"), Direct(), 1)]))
    decision = table.decide("www.example.com", 80)
    settled = table.settle(decision, "www.example.com", bytes(10) + b"\xff\xff\x08\x08\x08\x08", 80)
    assert settled.destination == Endpoint(bytes((8, 8, 8, 8)), 80)
