"""A lookup finds the longest prefix, and the intervals are all addresses, once, in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import addresses, prefixes
from urelay.net.address import Address, Prefix, address_of
from urelay.table.prefixes import PrefixTable, build, keys_of

Answer = tuple[Prefix, ...]


def _table(family: int, blocks: list[Prefix]) -> PrefixTable[Answer]:
    """A table whose answer is every block around an address, outermost first."""
    keys = [key for number, block in enumerate(blocks) for key in keys_of(family, [block], number)]
    memo: dict[tuple[tuple[int, ...], Answer], Answer] = {}

    def overlay(rules: tuple[int, ...], around: Answer) -> Answer:
        assert len({blocks[rule] for rule in rules}) == 1
        assert list(rules) == sorted(set(rules))
        return memo.setdefault((rules, around), (*around, blocks[rules[0]]))

    return build(family, keys, (), overlay)


def _around(blocks: list[Prefix], address: Address) -> Answer:
    return tuple(sorted({block for block in blocks if block.holds(address)}, key=lambda block: block.length))


@given(st.lists(prefixes, max_size=12), st.lists(addresses, min_size=1, max_size=20))
def test_the_answer_is_the_chain_of_prefixes_around_an_address(
    blocks: list[Prefix], asked: list[Address]
) -> None:
    for family, width in ((4, 4), (6, 16)):
        mine = [block for block in blocks if block.family == family]
        table = _table(family, mine)
        edges = [place for block in mine for place in (block.first, block.last)]
        for address in [
            *(a for a in asked if len(a) == width),
            *(address_of(family, edge) for edge in edges),
        ]:
            assert table.lookup(address) == _around(mine, address)


@given(st.lists(prefixes, max_size=12))
def test_the_intervals_cover_everything_once_and_never_repeat_a_neighbour(blocks: list[Prefix]) -> None:
    for family, bits in ((4, 32), (6, 128)):
        table = _table(family, [block for block in blocks if block.family == family])
        expected, before = 0, None
        for first, last, answer in table.intervals():
            assert first == expected
            assert last >= first
            assert answer is not before
            assert table.lookup(address_of(family, first)) is answer
            assert table.lookup(address_of(family, last)) is answer
            expected, before = last + 1, answer
        assert expected == 1 << bits
        assert len(table) == sum(1 for _ in table.intervals())


@pytest.mark.parametrize("family", [4, 6])
def test_many_prefixes_are_found_as_by_a_scan(family: int) -> None:
    """Enough of them that the leading-bits index has its full size."""
    chance = random.Random(family)
    bits = 32 if family == 4 else 128
    blocks = list(
        {
            Prefix(family, chance.getrandbits(bits) >> (bits - length) << (bits - length), length)
            for length in chance.choices(range(bits // 4, bits + 1), k=20_000)
        }
    )
    table = _table(family, blocks)
    by_place = {block[1:]: block for block in blocks}
    for _ in range(20_000):
        block = chance.choice(blocks)
        number = chance.choice(
            (block.first - 1, block.first, block.last, block.last + 1, chance.getrandbits(bits))
        )
        number %= 1 << bits
        around = [
            by_place[place, length]
            for length in range(bits + 1)
            if (place := number >> (bits - length) << (bits - length), length) in by_place
        ]
        assert table.lookup(address_of(family, number)) == tuple(around)


def test_an_empty_table_answers_everything_with_its_base() -> None:
    for family in (4, 6):
        table = _table(family, [])
        assert len(table) == 1
        assert table.lookup(bytes(4 if family == 4 else 16)) == ()


def test_the_same_answer_side_by_side_is_one_interval() -> None:
    halves = [Prefix(4, 0, 1), Prefix(4, 1 << 31, 1)]
    everywhere = "everywhere"
    table = build(4, keys_of(4, halves, 7), "outside", lambda rules, around: everywhere)
    assert list(table.intervals()) == [(0, (1 << 32) - 1, everywhere)]
