"""A cube is its addresses, and a map's image and origin are those of every single address."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from urelay.analysis.cubes import (
    LOW_32,
    SIX_TO_FOUR,
    TEREDO_CLIENT,
    TEREDO_SERVER,
    U_OCTET_ZERO,
    BitMap,
    Cube,
    Run,
    cube_of,
    cubes_between,
    embedding,
    extraction,
    onto,
    without_all,
)
from urelay.net import nat64
from urelay.net.address import Prefix, address_of, host_prefix, parse_address

LOW = 0xFF  # the universe of the exhaustive tests: the last eight bits of IPv4


def members(cube: Cube) -> set[int]:
    return {number for number in range(LOW + 1) if number & ~cube.free == cube.value}


@st.composite
def small_cubes(draw: st.DrawFn) -> Cube:
    free = draw(st.integers(0, LOW))
    return Cube(4, draw(st.integers(0, LOW)) & ~free, free)


@given(small_cubes(), small_cubes())
def test_meet_and_without_are_those_of_sets(one: Cube, other: Cube) -> None:
    common = one.meet(other)
    assert (members(common) if common else set()) == members(one) & members(other)
    left = [members(part) for part in one.without(other)]
    assert sum(map(len, left)) == len(set().union(*left))
    assert set().union(*left) == members(one) - members(other)


@given(st.integers(0, LOW), st.integers(0, LOW))
def test_cubes_between_are_the_interval(one: int, other: int) -> None:
    first, last = sorted((one, other))
    parts = [members(cube) for cube in cubes_between(4, first, last)]
    assert sum(map(len, parts)) == last - first + 1
    assert set().union(*parts) == set(range(first, last + 1))


@given(small_cubes(), small_cubes(), st.booleans(), st.integers(0, LOW))
def test_image_and_origin_agree_with_single_addresses(
    one: Cube, other: Cube, turned: bool, constant: int
) -> None:
    move = BitMap(4, 4, constant & 0xC3, (Run(0, 2, 3, turned), Run(5, 5, 1)))

    def image(number: int) -> int:
        return move.image(Cube(4, number, 0)).value

    assert members(move.image(one)) == {image(number) for number in members(one)}
    origin = move.origin(other)
    found = members(origin) if origin else set()
    assert found == {number for number in range(LOW + 1) if image(number) in members(other)}


@pytest.mark.parametrize("length", nat64.LENGTHS)
@given(ipv4=st.binary(min_size=4, max_size=4), noise=st.binary(min_size=16, max_size=16))
def test_nat64_maps_are_those_of_the_evaluator(length: int, ipv4: bytes, noise: bytes) -> None:
    network = int.from_bytes(parse_address("2001:db8:122:344::")) >> (128 - length) << (128 - length)
    prefix = Prefix(6, network, length)
    embedded = nat64.embed(prefix, ipv4)
    assert embedding(prefix).image(cube_of(host_prefix(ipv4))).example == embedded
    spread = Cube(6, int.from_bytes(noise), 0)
    assert (
        nat64.embedded_ipv4(
            address_of(6, prefix.first | spread.value & (prefix.last ^ prefix.first)), (prefix,)
        )[0]
        == extraction(length)
        .image(Cube(6, prefix.first | spread.value & (prefix.last ^ prefix.first), 0))
        .example
    )
    assert U_OCTET_ZERO.meet(cube_of(host_prefix(embedded))) is not None


@pytest.mark.parametrize(
    ("text", "maps"),
    [
        ("::ffff:0:10.1.2.3", [LOW_32]),
        ("64:ff9b::10.1.2.3", [LOW_32]),
        ("2002:a01:203::1", [SIX_TO_FOUR]),
        ("2001:0:a01:203::f5fe:fdfc", [TEREDO_SERVER, TEREDO_CLIENT]),
    ],
)
def test_readings_are_those_of_the_evaluator(text: str, maps: list[BitMap]) -> None:
    cube = cube_of(host_prefix(parse_address(text)))
    assert tuple(dict.fromkeys(move.image(cube).example for move in maps)) == nat64.embedded_ipv4(
        cube.example
    )


def test_more_cubes_are_taken_away_than_calls_may_nest() -> None:
    whole = cube_of(Prefix(4, 0, 0))
    odd = [cube_of(Prefix(4, number << 16 | 1 << 8, 24)) for number in range(sys.getrecursionlimit() + 200)]
    rest = list(without_all(whole, odd))
    assert sum(cube.size for cube in rest) == whole.size - sum(cube.size for cube in odd)


def test_onto_keeps_the_host_bits() -> None:
    target = Prefix(4, int.from_bytes(parse_address("10.20.30.0")), 24)
    assert onto(4, target).image(cube_of(host_prefix(parse_address("198.51.100.7")))).example == bytes(
        (10, 20, 30, 7)
    )
    whole = onto(4, target).origin(cube_of(host_prefix(parse_address("10.20.30.7"))))
    assert whole is not None
    assert whole.size == 1 << 24
    assert onto(4, target).origin(cube_of(host_prefix(parse_address("10.20.31.7")))) is None
