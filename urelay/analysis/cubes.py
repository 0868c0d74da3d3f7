"""Sets of addresses by their bits, and the bit-copying maps that rewriting is made of.

A *cube* fixes some bits of an address and leaves the others free; a prefix is a cube whose fixed bits
come first. Everything a policy does to an address (keep the host bits, embed it by RFC 6052, extract
it again) and everything the final check reads out of one (6to4, Teredo …) copies bits or
turns them over. So the addresses that such a *map* sends into a cube are a cube again, found bit by
bit: what holds for the image is traced back to the original exactly, without trying addresses.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from urelay.analysis.phrases import prefixes_between
from urelay.net.address import Address, Prefix, address_of


class Cube(NamedTuple):
    """The addresses that agree with `value` in every bit not in `free` (`value` has those at zero)."""

    family: int
    value: int
    free: int

    @property
    def size(self) -> int:
        """How many addresses."""
        return 1 << self.free.bit_count()

    @property
    def example(self) -> Address:
        """The lowest of them."""
        return address_of(self.family, self.value)

    @property
    def last(self) -> int:
        """The highest of them, as an integer."""
        return self.value | self.free

    @property
    def prefix(self) -> Prefix | None:
        """The prefix this is; None when a free bit stands before a fixed one."""
        if self.free & (self.free + 1):
            return None
        bits = 32 if self.family == 4 else 128
        return Prefix(self.family, self.value, bits - self.free.bit_length())

    def meet(self, other: Cube) -> Cube | None:
        """The addresses in both."""
        if self.family != other.family or (self.value ^ other.value) & ~(self.free | other.free):
            return None
        return Cube(self.family, self.value | other.value, self.free & other.free)

    def without(self, other: Cube) -> Iterator[Cube]:
        """The addresses not in `other`, as disjoint cubes."""
        common = self.meet(other)
        if common is None:
            yield self
            return
        rest = self
        while open_bits := rest.free & ~common.free:
            # The highest bit first: a prefix without a prefix stays a few prefixes.
            bit = 1 << (open_bits.bit_length() - 1)
            outside = rest.value | (bit & ~common.value)
            yield Cube(self.family, outside, rest.free & ~bit)
            rest = Cube(self.family, rest.value | (bit & common.value), rest.free & ~bit)


def cube_of(prefix: Prefix) -> Cube:
    """A prefix as a cube."""
    return Cube(prefix.family, prefix.first, prefix.last ^ prefix.first)


def cubes_between(family: int, first: int, last: int) -> list[Cube]:
    """The addresses `first` to `last` as disjoint cubes."""
    return [cube_of(prefix) for prefix in prefixes_between(family, first, last)]


class Run(NamedTuple):
    """`width` bits copied: from bit `source` on to bit `target` on (bit 0 is the lowest)."""

    source: int
    target: int
    width: int
    turned: bool = False
    """Every bit is turned over on the way (Teredo)"""


@dataclass(frozen=True, slots=True)
class BitMap:
    """A map between addresses: constant bits, and runs copied from the original."""

    source: int
    """The family it reads: 4 or 6"""
    target: int
    """The family it makes"""
    constant: int
    runs: tuple[Run, ...]

    def image(self, cube: Cube) -> Cube:
        """The smallest cube that holds the images: exactly them, as no bit is copied twice."""
        value, free = self.constant, 0
        for source, target, width, turned in self.runs:
            mask = (1 << width) - 1
            loose = (cube.free >> source) & mask
            fixed = (cube.value >> source) & mask
            if turned:
                fixed ^= mask & ~loose
            value |= fixed << target
            free |= loose << target
        return Cube(self.target, value, free)

    def origin(self, cube: Cube) -> Cube | None:
        """The addresses whose image lies in `cube`; None when there is none."""
        copied = value = 0
        free = (1 << (32 if self.source == 4 else 128)) - 1
        for source, target, width, turned in self.runs:
            mask = (1 << width) - 1
            copied |= mask << target
            loose = (cube.free >> target) & mask
            fixed = (cube.value >> target) & mask
            if turned:
                fixed ^= mask & ~loose
            value |= fixed << source
            free &= ~(mask << source) | (loose << source)
        if cube.family != self.target or (cube.value ^ self.constant) & ~(cube.free | copied):
            return None
        return Cube(self.source, value, free)


def onto(family: int, prefix: Prefix) -> BitMap:
    """Keep the host bits, replace the network bits; a single address replaces everything."""
    kept = prefix.bits - prefix.length
    runs = (Run(0, 0, kept),) if kept else ()
    return BitMap(family, prefix.family, prefix.first, runs)


def _places(length: int) -> tuple[tuple[int, int, int], ...]:
    """Where an IPv4 address stands under a NAT64 prefix (RFC 6052, 2.2): IPv4 bit, IPv6 bit, width.

    Bits 64 to 71 (from the left) are stepped over.
    """
    if length == 96:
        return ((0, 0, 32),)
    before = min(32, 64 - length)
    behind = 32 - before
    places = ((behind, 64 + (64 - length - before), before),) if before else ()
    return (*places, (0, 56 - behind, behind)) if behind else places


def embedding(prefix: Prefix) -> BitMap:
    """IPv4 into a NAT64 prefix."""
    runs = tuple(Run(four, six, width) for four, six, width in _places(prefix.length))
    return BitMap(4, 6, prefix.first, runs)


def extraction(length: int) -> BitMap:
    """IPv4 out of a NAT64 prefix of this length, whatever bits 64 to 71 are."""
    return BitMap(6, 4, 0, tuple(Run(six, four, width) for four, six, width in _places(length)))


U_OCTET_ZERO = Cube(6, 0, ((1 << 128) - 1) & ~(0xFF << 56))
"""The IPv6 addresses with bits 64 to 71 zero, as those under a NAT64 prefix of /64 or less must be."""

MAPPED = Cube(6, 0xFFFF << 32, 0xFFFF_FFFF)
"""::ffff:0:0/96: never a destination, since it becomes its IPv4 address on arrival."""

LOW_32 = BitMap(6, 4, 0, (Run(0, 0, 32),))
"""::/96, ::ffff:0:0:0/96, 64:ff9b::/96: the last 32 bits."""
SIX_TO_FOUR = BitMap(6, 4, 0, (Run(80, 0, 32),))
"""2002::/16, RFC 3056: bits 16 to 47."""
TEREDO_SERVER = BitMap(6, 4, 0, (Run(64, 0, 32),))
TEREDO_CLIENT = BitMap(6, 4, 0, (Run(0, 0, 32, turned=True),))
"""2001::/32, RFC 4380, 4."""


def image_through(maps: Sequence[BitMap], cube: Cube) -> Cube:
    """The image of a cube through maps, the first one first."""
    for step in maps:
        cube = step.image(cube)
    return cube


def origin_through(maps: Sequence[BitMap], cube: Cube) -> Cube | None:
    """The addresses that maps, the first one first, send into `cube`."""
    found: Cube | None = cube
    for step in reversed(maps):
        if found is None:
            return None
        found = step.origin(found)
    return found


def without_all(cube: Cube, others: Sequence[Cube]) -> Iterator[Cube]:
    """The addresses of `cube` in none of the others."""
    # A stack of its own: a policy's walls may be thousands, more than Python nests calls.
    waiting = [(cube, 0)]
    while waiting:
        part, at = waiting.pop()
        while at < len(others) and part.meet(others[at]) is None:
            at += 1
        if at == len(others):
            yield part
        else:
            waiting.extend((rest, at + 1) for rest in part.without(others[at]))


def remainder(cube: Cube, less: Sequence[Cube]) -> Cube | None:
    """Some addresses of `cube` in none of `less`; None when there are none."""
    return next(without_all(cube, less), None)
