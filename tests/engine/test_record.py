"""A record says everything the access log writes, and None for what never came to be."""

from __future__ import annotations

from urelay.engine.record import End, Record
from urelay.lang.source import Origin
from urelay.net.address import Endpoint
from urelay.policy.model import Outcome, RouteSettings
from urelay.table.decision import Decision

V6 = bytes.fromhex("20010db8000000000000000000000001")


def record(**changes: object) -> Record:
    whole = Record(
        7, 1700000000.25, "lan", Endpoint(bytes((10, 0, 0, 1)), 4711), Endpoint(V6, 443), "ann", None, None,
        (), 0, 0, 0.0015, End.EOF, None,
    )  # fmt: skip
    return whole._replace(**changes)  # type: ignore[arg-type]


def test_addresses_and_names_are_told_apart() -> None:
    one = record()
    assert (one.source, one.destination, one.name, one.port) == ("10.0.0.1:4711", "2001:db8::1", None, 443)
    other = record(asked=Endpoint("example.com", 80), client=None)
    assert (other.source, other.destination, other.name, other.port) == (None, None, "example.com", 80)


def test_nothing_asked_means_nothing_decided() -> None:
    one = record(asked=None)
    assert (one.destination, one.name, one.port, one.policy, one.outcome, one.route) == (None,) * 6
    assert (one.upstream, one.wall, one.table, one.tag, one.dialed) == (None,) * 5
    assert (one.rewrites, one.log) == ((), "end")


def test_a_decision_speaks_through_it() -> None:
    route = Origin("site.urr", 7, "match any -> via out")
    decision = Decision(
        Outcome.VIA, "guests", "digest", route=route, upstream="out",
        rewrites=(Endpoint(V6, 1), Endpoint("b.example", 2)), settings=RouteSettings(tag="t", log="off"),
    )  # fmt: skip
    one = record(decision=decision, way="[2001:db8::1]:1080")
    assert (one.outcome, one.table, one.policy) == (Outcome.VIA, "guests", "digest")
    assert (one.route, one.wall, one.upstream) == (route, None, "out")
    assert one.rewrites == ("[2001:db8::1]:1", "b.example:2")
    assert (one.tag, one.log, one.dialed) == ("t", "off", "[2001:db8::1]:1080")


def test_durations_are_whole_milliseconds() -> None:
    assert record().duration_ms == 2
