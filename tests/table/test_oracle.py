"""S22: the table decides as a linear scan over the policy does, always.

Hypothesis looks for the smallest disagreement; the seeded run is for quantity. Both draw from a
universe so small that routes nest, overlap and shadow one another.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import reference
from tests.strategies import Connection, RandomPolicies, connections, policies
from urelay.policy.model import Policy
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table


def _table_verdict(table: Table, asked: Connection) -> reference.Verdict:
    decision = table.decide(asked.host, asked.port, asked.source, asked.listener, asked.table)
    return decision.outcome, decision.table, decision.route, decision.upstream


def _agree(policy: Policy, table: Table, asked: Connection) -> None:
    expected, found = reference.decide(policy, asked), _table_verdict(table, asked)
    assert found == expected, f"{asked} in {policy.tables}, walls {policy.walls}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), st.lists(connections, min_size=8, max_size=25))
def test_the_table_decides_as_a_linear_scan_does(policy: Policy, asked: list[Connection]) -> None:
    table = compile_policy(policy)
    for connection in asked:
        _agree(policy, table, connection)


def _seeded(rule_sets: int, connections_each: int) -> None:
    chance = random.Random(22)
    for _ in range(rule_sets):
        draw = RandomPolicies(chance)
        policy = draw.policy(routes=chance.randrange(1, 30))
        table = compile_policy(policy)
        for _ in range(connections_each):
            _agree(policy, table, draw.connection())


@pytest.mark.parametrize(
    ("rule_sets", "connections_each"),
    [(150, 200), pytest.param(2000, 500, marks=(pytest.mark.long, pytest.mark.timeout(1200)))],
    ids=["thirty thousand", "a million"],
)
def test_random_connections_are_decided_as_by_the_scan(rule_sets: int, connections_each: int) -> None:
    _seeded(rule_sets, connections_each)
