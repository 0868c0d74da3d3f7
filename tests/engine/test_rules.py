"""Plans are remembered, the same however the source was told, and never more than so many."""

from __future__ import annotations

import pytest

from tests.engine.test_relay import OPEN, table
from urelay.engine import rules
from urelay.engine.connect import Timeouts
from urelay.engine.dial import Dialer
from urelay.engine.resolve import Resolver
from urelay.engine.rules import Rules
from urelay.net.address import Endpoint
from urelay.policy.model import Deny, Outcome

HOST = bytes((10, 1, 2, 3))
SOURCE = bytes((192, 0, 2, 1))


def some_rules() -> Rules:
    return Rules(table(*OPEN, ("10.9.0.0/16", Deny())), Dialer(Resolver(), {}, Timeouts()))


def test_a_plan_is_the_call_to_make_and_is_made_once() -> None:
    some = some_rules()
    question = (HOST, 80, SOURCE, "lan")
    plan = some.plan(question)
    assert (plan.decision.outcome, plan.target, plan.address) == (
        Outcome.DIRECT, Endpoint(HOST, 80), ("10.1.2.3", 80),
    )  # fmt: skip
    assert some.plans == {question: plan}


def test_what_takes_more_than_a_socket_has_no_target() -> None:
    plan = some_rules().plan((bytes((10, 9, 0, 1)), 80, SOURCE, "lan"))
    assert (plan.decision.outcome, plan.target) == (Outcome.DENY, None)


@pytest.mark.parametrize("text", ["192.0.2.1", "::ffff:192.0.2.1"])
def test_a_source_as_the_kernel_writes_it_is_that_address(text: str) -> None:
    some = some_rules()
    assert some.plan((HOST, 80, text, "lan")) == some.plan((HOST, 80, SOURCE, "lan"))


def test_no_more_plans_are_remembered_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_REMEMBERED", 8)
    some = some_rules()
    for port in range(1, 100):
        assert some.plan((HOST, port, SOURCE, "lan")).port == port
        assert len(some.plans) <= 8
