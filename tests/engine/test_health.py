"""Who failed is set aside, ever longer; one connection at a time finds out whether it is back."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from tests.strategies import upstream
from urelay.engine.health import FIRST_PAUSE_S, LONGEST_PAUSE_S, Condition, Health
from urelay.lang.source import Origin
from urelay.net.address import parse_endpoint
from urelay.policy.model import HealthCheck, Setting, UpstreamKind


def test_it_works_until_it_does_not() -> None:
    assert Condition("a").ready(0)


def test_each_failure_doubles_the_pause_up_to_a_minute() -> None:
    condition, now, pauses = Condition("a"), 100.0, []
    for _ in range(9):
        condition.begin(now)
        condition.failed(now, now, "why")
        pauses.append(condition.due() - now)
        assert not condition.ready(condition.due() - 0.001)
        now = condition.due()
        assert condition.ready(now)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (FIRST_PAUSE_S, LONGEST_PAUSE_S) == (1, 60)


def test_one_connection_tries_it_while_the_others_wait() -> None:
    condition = Condition("a")
    condition.failed(0, 0, "why")
    assert condition.ready(1)
    condition.begin(1)
    assert not condition.ready(1.5)
    condition.worked(1.6)
    assert condition.ready(1.6)


def test_a_try_that_is_never_settled_blocks_it_for_a_while_only() -> None:
    condition = Condition("a")
    condition.failed(0, 0, "why")
    condition.begin(1)
    assert condition.ready(2)


def test_one_outage_counts_once() -> None:
    """A hundred connections under way when it goes down fail together."""
    condition = Condition("a")
    for number in range(100):
        condition.failed(began=number / 1000, now=10 + number / 1000, why="why")
    assert condition.ready(11.001)


def test_who_comes_and_goes_stays_away_longer_each_time() -> None:
    condition, now, pauses = Condition("a"), 0.0, []
    for _ in range(4):
        condition.failed(now, now, "why")
        pauses.append(condition.due() - now)
        now = condition.due()
        condition.worked(now)
    assert pauses == [1, 2, 4, 8]
    condition.worked(now + LONGEST_PAUSE_S + 1)
    condition.failed(now + 100, now + 100, "why")
    assert condition.due() - (now + 100) == FIRST_PAUSE_S


def test_with_a_check_no_client_is_made_to_try() -> None:
    condition = Condition("a")
    condition.failed(0, 0, "why")
    assert condition.ready(1000)
    assert not condition.ready(1000, checked=True)
    condition.worked(1000)
    assert condition.ready(1000, checked=True)


def test_it_is_told_when_it_changes_and_not_each_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    condition = Condition("corp")
    for now in range(5):
        condition.failed(now, now, "connection refused")
    for now in range(5):
        condition.worked(10 + now)
    assert caplog.messages == [
        "upstream `corp` is set aside: connection refused",
        "upstream `corp` works again",
    ]


# --- from one policy to the next

CORP = upstream("corp", login="x", connect=5.0)
OLD = upstream("old", UpstreamKind.SOCKS4, via="corp")
OUT = upstream("out", UpstreamKind.FIRST, members=("corp", "old"))


def named(*upstreams: object) -> dict[str, object]:
    return {one.name: one for one in upstreams}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("again", "same"),
    [
        (replace(CORP, origin=Origin("other.urr", 7, "upstream corp")), True),
        (replace(CORP, options={name: CORP.options[name] for name in ("connect", "login")}), True),
        (replace(CORP, endpoint=parse_endpoint("192.0.2.2:1080")), False),
        (upstream("corp", login="y", connect=5.0), False),
        (upstream("corp", UpstreamKind.SOCKS4, login="x", connect=5.0), False),
        (upstream("corp", login="x"), False),
    ],
    ids=["another line", "another order", "another place", "another login", "another kind", "fewer options"],
)
def test_what_leads_the_same_way_keeps_its_condition(again: object, same: bool) -> None:
    health = Health()
    before = health.adopt(named(CORP, OLD, OUT))  # type: ignore[arg-type]
    for condition in before.values():
        condition.failed(0, 0, "why")
    after = health.adopt(named(again, OLD, OUT))  # type: ignore[arg-type]
    # What is reached through another upstream, or made of it, is what that is.
    assert {name: condition.suspect for name, condition in after.items()} == dict.fromkeys(after, same)


def test_a_new_name_for_the_same_way_keeps_it_and_what_is_gone_is_forgotten() -> None:
    health = Health()
    health.adopt(named(CORP))["corp"].failed(0, 0, "why")  # type: ignore[arg-type]
    assert health.adopt(named(replace(CORP, name="hq")))["hq"].suspect  # type: ignore[arg-type]
    assert health.adopt({}) == {}
    assert not health.adopt(named(CORP))["corp"].suspect  # type: ignore[arg-type]


def test_every_kind_of_option_can_be_compared() -> None:
    check = Setting(HealthCheck(parse_endpoint("192.0.2.1:80"), 1.0), OUT.origin)
    group = replace(OUT, options={"check": check})
    health = Health()
    health.adopt(named(CORP, OLD, group))["out"].failed(0, 0, "why")  # type: ignore[arg-type]
    assert health.adopt(named(CORP, OLD, group))["out"].suspect  # type: ignore[arg-type]
