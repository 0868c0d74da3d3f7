"""`between` and `around` are what `intervals` says, cut to a range or picked by an address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import strategies as build
from urelay.net.address import address_of
from urelay.policy.model import MAIN, Direct
from urelay.table.compile import compile_policy

WHERE = "10.0.0.0/8 10.1.0.0/16 10.1.2.3 2001:db8::/32 2001:db8::/64 2001:db8::1 2001:db8:0:0:8000::/65"
WORLD = compile_policy(
    build.policy(
        [build.route(build.region(block), Direct(), line) for line, block in enumerate(WHERE.split())]
    )
).world(MAIN)
BLOCKS = [build.prefix(text) for text in WHERE.split()]


@pytest.mark.parametrize("family", [4, 6])
@given(data=st.data())
def test_ranges_are_the_intervals_cut(family: int, data: st.DataObject) -> None:
    table = WORLD.v4 if family == 4 else WORLD.v6
    top = (1 << (32 if family == 4 else 128)) - 1
    edges = [
        min(max(edge, 0), top)
        for block in BLOCKS
        if block.family == family
        for edge in (block.first - 1, block.first, block.last, block.last + 1)
    ]
    numbers = st.sampled_from([0, top, *edges]) | st.integers(0, top)
    first, last = sorted((data.draw(numbers), data.draw(numbers)))
    expected = [
        (max(first, start), min(last, end), leaf)
        for start, end, leaf in table.intervals()
        if start <= last and end >= first
    ]
    assert list(table.between(first, last)) == expected
    ((start, end),) = [(start, end) for start, end, _ in table.intervals() if start <= first <= end]
    assert table.around(address_of(family, first)) == (start, end)
