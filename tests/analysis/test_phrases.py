"""What findings print can be pasted into a policy and means the same there."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urelay.analysis.phrases import merged, ports_text, prefixes_between, stretch_text
from urelay.policy.model import ALL_PORTS, PortRange

EDGES = st.sampled_from([0, 1, 2, 255, 256, 2**31, 2**32 - 2, 2**32 - 1]) | st.integers(0, 2**32 - 1)


@given(EDGES, EDGES)
def test_prefixes_between_are_the_fewest_that_fit(one: int, other: int) -> None:
    first, last = sorted((one, other))
    found = prefixes_between(4, first, last)
    assert found[0].first == first
    assert found[-1].last == last
    assert all(before.last + 1 == after.first for before, after in itertools.pairwise(found))
    assert len(found) <= 62
    for before, after in itertools.pairwise(found):
        together = before.length == after.length and before.first % (1 << (33 - before.length)) == 0
        assert not together, "two halves of one prefix"


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)).map(lambda p: (p[0], p[0] + p[1]))))
def test_merged_intervals_are_the_same_numbers(intervals: list[tuple[int, int]]) -> None:
    found = merged(intervals)
    numbers = {number for first, last in intervals for number in range(first, last + 1)}
    assert {number for first, last in found for number in range(first, last + 1)} == numbers
    assert all(before[1] + 1 < after[0] for before, after in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([ALL_PORTS], ""),
        ([PortRange(443, 443)], " port 443"),
        ([PortRange(80, 80), PortRange(81, 90), PortRange(443, 443)], " port { 80-90, 443 }"),
        ([PortRange(1, 80), PortRange(81, 65535)], ""),
    ],
)
def test_ports_read_as_a_clause(ports: list[PortRange], text: str) -> None:
    assert ports_text(ports) == text


def test_a_stretch_is_a_prefix_where_it_can_be() -> None:
    assert stretch_text(4, 10 << 24, (11 << 24) - 1) == "10.0.0.0/8"
    assert stretch_text(4, 10 << 24, 10 << 24) == "10.0.0.0"
    assert stretch_text(4, (10 << 24) + 1, (10 << 24) + 6) == "10.0.0.1-10.0.0.6"
