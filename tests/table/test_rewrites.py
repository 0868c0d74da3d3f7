"""Where a rewrite leads, and that nothing reaches by it what walls and guard keep closed (S4)."""

from __future__ import annotations

import pytest

from tests.strategies import GUARD, policy, prefix, region, route, upstream, wall
from tests.table.questions import decide, line, rewriting, settle
from urelay.errors import AddressError
from urelay.policy.model import (
    Deny,
    DenyHow,
    Direct,
    FromNat64,
    Lookup,
    Outcome,
    Policy,
    ToName,
    ToNat64,
    ToPrefix,
    Unix,
    Via,
)
from urelay.table.compile import compile_policy
from urelay.table.evaluate import MAX_LOOKUPS

# --- rewrites


def test_a_prefix_keeps_the_host_bits_and_ports_keep_their_place() -> None:
    table = compile_policy(
        policy(
            [
                route(region("198.51.100.0/24"), rewriting(Direct(), ToPrefix(prefix("10.20.30.0/24"))), 1),
                route(region("198.51.100.8", port="8000-8099"), rewriting(Via("x"), port="9000-9099"), 2),
                route(
                    region("198.51.100.9", port="80 443"),
                    rewriting(Direct(), ToPrefix(prefix("10.0.0.5")), "8080"),
                    3,
                ),
            ],
            upstreams=[upstream("x")],
        )
    )
    decision = decide(table, "198.51.100.77:443")
    assert str(decision.destination) == "10.20.30.77:443"
    assert decision.rewrites == (decision.destination,)
    assert str(decide(table, "198.51.100.8:8042").destination) == "198.51.100.8:9042"
    assert str(decide(table, "198.51.100.9:443").destination) == "10.0.0.5:8080"


def test_a_rewritten_destination_is_held_against_walls_and_guard() -> None:
    table = compile_policy(
        policy(
            [
                route(region("any"), Direct(), 1),
                route(region("198.51.100.0/24"), rewriting(Direct(), ToPrefix(prefix("10.0.0.0/24"))), 2),
                route(
                    region("198.51.101.0/24"), rewriting(Via("x"), ToPrefix(prefix("126.255.254.0/24"))), 3
                ),
                route(region("198.51.0.0/16"), rewriting(Via("x"), ToPrefix(prefix("169.254.0.0/16"))), 4),
                route(region("198.0.0.0/8"), rewriting(Via("x"), ToPrefix(prefix("127.0.0.0/8"))), 5),
                route(region("0.0.0.0/1"), rewriting(Direct(), ToPrefix(prefix("128.0.0.0/1"))), 6),
                route(region("192.0.2.1"), rewriting(Direct(), ToPrefix(prefix("127.0.0.1"))), 7),
            ],
            guard=GUARD,
            walls=[wall(region("10.0.0.5"), 9)],
            upstreams=[upstream("x")],
        )
    )
    assert line(decide(table, "198.51.100.4:80")) == "direct 2"
    walled = decide(table, "198.51.100.5:80")
    assert line(walled) == "deny 9"
    assert str(walled.destination) == "10.0.0.5:80"
    # Named by the rewrite, as it is or as a part of what the guard closes: open.
    assert line(decide(table, "198.51.7.7:80")) == "via 4"
    assert line(decide(table, "198.7.7.7:80")) == "via 5"
    assert line(decide(table, "192.0.2.1:80")) == "direct 7"
    # A wider rewrite that happens to lead there names nothing.
    assert line(decide(table, "100.1.1.1:80")) == "deny guard 4"


def test_a_policy_route_for_the_new_address_opens_the_guard_too() -> None:
    to_loopback = rewriting(Direct(), ToName("app.example"))
    table = compile_policy(
        policy(
            [route(region("192.0.2.1"), to_loopback, 1), route(region("127.0.0.1", port="80"), Direct(), 2)],
            guard=GUARD,
        )
    )
    decision = decide(table, "192.0.2.1:80")
    assert decision.needs_address
    assert str(decision.destination) == "app.example:80"
    assert line(settle(table, "192.0.2.1:80", "127.0.0.1")) == "direct 1"
    assert line(settle(table, "192.0.2.1:80", "127.0.0.2")) == "deny guard 2"


def test_lookup_starts_again_at_the_walls_with_the_new_destination() -> None:
    table = compile_policy(
        policy(
            [
                route(region("10.0.0.0/8"), Deny(DenyHow.NET_UNREACHABLE), 1),
                route(region("10.1.0.0/16"), Direct(), 2),
                route(
                    region("198.51.100.0/24"),
                    rewriting(Lookup("main"), ToPrefix(prefix("10.1.7.0/24")), "81"),
                    3,
                ),
                route(
                    region("198.51.101.0/24"), rewriting(Lookup("main"), ToPrefix(prefix("10.2.7.0/24"))), 4
                ),
                route(region("any"), Lookup("main"), 5, table="guests"),
                route(
                    region("198.51.102.0/24"),
                    rewriting(Lookup("main"), ToPrefix(prefix("198.51.100.0/24"))),
                    6,
                ),
            ],
            walls=[wall(region("10.1.7.9"), 9)],
        )
    )
    first = decide(table, "198.51.100.1:80", within="guests")
    assert line(first) == "direct 2"
    assert first.table == "main"
    assert str(first.destination) == "10.1.7.1:81"
    second = decide(table, "198.51.101.1:80")
    assert (line(second), second.deny_how) == ("deny 1", DenyHow.NET_UNREACHABLE)
    assert line(decide(table, "198.51.100.9:80")) == "deny 9"
    twice = decide(table, "198.51.102.1:80")
    assert [str(step) for step in twice.rewrites] == ["198.51.100.1:80", "10.1.7.1:81"]
    assert twice.destination == twice.rewrites[-1]


def test_a_loop_that_no_check_stopped_ends_in_a_denial() -> None:
    table = compile_policy(
        policy([route(region("any"), rewriting(Lookup("main"), ToPrefix(prefix("10.0.0.1"))), 1)])
    )
    decision = decide(table, "8.8.8.8:80")
    assert decision.denied
    assert decision.why == f"more than {MAX_LOOKUPS} lookups, one after the other"
    assert len(decision.rewrites) == MAX_LOOKUPS


def test_a_route_that_refuses_rewrites_nothing() -> None:
    table = compile_policy(
        policy([route(region("any"), rewriting(Deny(), ToNat64(prefix("2001:db8::/96"))), 1)])
    )
    for to in ("8.8.8.8:80", "[::1]:80", "www.example.com:80"):
        decision = decide(table, to)
        assert (line(decision), decision.rewrites, decision.needs_address) == ("deny 1", (), False)


def test_what_cannot_be_rewritten_is_denied_and_says_why() -> None:
    table = compile_policy(
        policy([route(region("::/0"), rewriting(Direct(), ToPrefix(prefix("10.0.0.0/8"))), 1)])
    )
    decision = decide(table, "[2001:db8::1]:80")
    assert line(decision) == "deny 1"
    assert decision.why == "2001:db8::1 cannot be rewritten to 10.0.0.0/8"


def test_a_unix_socket_gets_the_rewritten_destination_and_no_final_check() -> None:
    table = compile_policy(
        policy(
            [route(region("192.0.2.1"), rewriting(Unix("/run/{address}"), ToPrefix(prefix("127.0.0.1"))), 1)],
            guard=GUARD,
        )
    )
    decision = decide(table, "192.0.2.1:80")
    assert (decision.outcome, decision.template) == (Outcome.UNIX, "/run/{address}")
    assert str(decision.destination) == "127.0.0.1:80"


def test_bytes_that_are_no_address_are_refused() -> None:
    with pytest.raises(AddressError, match="4 or 16 bytes, not 5"):
        compile_policy(policy()).decide(bytes(5), 80)


def test_a_mapped_address_is_decided_as_the_ipv4_address_it_is() -> None:
    table = compile_policy(policy([route(region("any"), Direct(), 1), route(region("10.0.0.1"), Deny(), 2)]))
    assert line(table.decide(bytes(10) + b"\xff\xff\x0a\x00\x00\x01", 80)) == "deny 2"


# --- NAT64


def _clat(under: str, **more: object) -> Policy:
    return policy(
        [
            route(region("0.0.0.0/0"), rewriting(Direct(), ToNat64(prefix(under))), 1, table="clat"),
            route(region("any"), Direct(), 2),
            route(region(under), rewriting(Lookup("main"), FromNat64(prefix(under))), 3),
        ],
        guard=GUARD,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    "under",
    [
        "64:ff9b::/96",
        "2001:db8::/32",
        "2001:db8::/40",
        "2001:db8::/48",
        "2001:db8::/56",
        "2001:db8::/64",
        "2001:db8::/96",
        "2001:db8::5ff:6464:0:0/96",
    ],
)
def test_what_goes_in_on_one_side_comes_out_on_the_other(under: str) -> None:
    table = compile_policy(_clat(under))
    inward = decide(table, "8.8.8.8:53", within="clat")
    assert line(inward) == "direct 1"
    assert inward.destination is not None
    outward = table.decide(*inward.destination)
    assert line(outward) == "direct 2"
    assert str(outward.destination) == "8.8.8.8:53"


@pytest.mark.parametrize("under", ["64:ff9b::/96", "2001:db8:64::/96", "2001:db8::5ff:6464:0:0/96"])
def test_a_denied_address_stays_denied_in_every_spelling(under: str) -> None:
    """S4: the IPv4 address inside is held against walls and guard, whichever way it came."""
    walled = _clat(under, walls=[wall(region("198.18.0.7 8.8.4.4"), 9)])
    table = compile_policy(walled)
    inside = under.split("/")[0].removesuffix("0:0")
    for address in ("127.0.0.1", "169.254.169.254", "8.8.4.4", "0.0.0.0", "255.255.255.255"):
        assert decide(table, f"[{inside}{address}]:80").denied, address
        assert decide(table, f"{address}:80", within="clat").denied, address


def test_an_ipv4_address_inside_a_prefix_that_is_only_passed_on_is_judged_too() -> None:
    """The policy opens the well-known prefix as it stands; some router beyond translates it."""
    table = compile_policy(
        policy(
            [route(region("64:ff9b::/96"), Direct(), 1)],
            guard=GUARD,
            walls=[wall(region("8.8.4.4"), 9)],
        )
    )
    assert line(decide(table, "[64:ff9b::8.8.8.8]:80")) == "direct 1"
    assert line(decide(table, "[64:ff9b::127.0.0.1]:80")) == "deny guard 2"
    assert line(decide(table, "[64:ff9b::8.8.4.4]:80")) == "deny 9"


def test_an_isatap_identifier_makes_no_hole_in_an_ipv6_route() -> None:
    """It may stand under any prefix; only the guarded link-local ones reach a host by themselves."""
    table = compile_policy(policy([route(region("any"), Direct(), 1)], guard=GUARD))
    assert line(decide(table, "[2001:db8::5efe:127.0.0.1]:80")) == "direct 1"


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "100.64.0.1", "192.168.1.1", "192.0.2.1", "198.18.0.1", "203.0.113.9"]
)
def test_the_well_known_prefix_carries_only_global_addresses(address: str) -> None:
    table = compile_policy(_clat("64:ff9b::/96"))
    for decision in (
        decide(table, f"{address}:80", within="clat"),
        decide(table, f"[64:ff9b::{address}]:80"),
    ):
        assert decision.denied
        assert decision.why is not None
        assert "RFC 6052, 3.1" in decision.why
    assert not decide(compile_policy(_clat("2001:db8:64::/96")), f"{address}:80", within="clat").denied


def test_a_bent_address_under_a_nat64_prefix_is_denied() -> None:
    table = compile_policy(_clat("2001:db8::/32"))
    decision = decide(table, "[2001:db8:808:808:100::]:80")
    assert decision.denied
    assert decision.why is not None
    assert "bits 64 to 71" in decision.why
