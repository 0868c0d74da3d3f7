"""Longest-prefix match over disjoint intervals.

Theory of operation. Nested prefixes are flattened once, when a policy is compiled: a sweep over the
prefixes in order of place keeps a stack of those that contain the current one, and writes down
every point at which the answer changes. What remains is a sorted array of starting points and a
list of answers beside it, so a lookup is one bisection and no walking up, whatever the nesting.
Neighbours with the very same answer are one interval.

IPv4 starts stand in one flat array of 32-bit integers, with an index on the leading bits that leaves
the bisection one or two entries, or none. IPv6 starts are two arrays of 64-bit halves: nearly every
bisection ends in the upper half. A trie in C follows pointers, which at 100,000 prefixes costs as much
as Python does here, and at a million twice that; the arrays stay in the cache.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from urelay.net.address import Address, Prefix

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# A key is a prefix and the number of a rule in one integer, so that a million of them sort fast:
# first address, then length (a containing prefix before those in it), then the rule.
_RULE_BITS = 24
_LENGTH_BITS = 8
MAX_RULES = 1 << _RULE_BITS

_MOST_INDEX_BITS = 20
_from_bytes = int.from_bytes  # one attribute less to look up, for every connection


class PrefixTable(Protocol[T_co]):
    """Answers for every address of one family."""

    def lookup(self, packed: Address) -> T_co:
        """The answer for an address of this family."""
        ...

    def intervals(self) -> Iterator[tuple[int, int, T_co]]:
        """Every interval as (first, last, answer), in order; together they are all addresses."""
        ...

    def between(self, first: int, last: int) -> Iterator[tuple[int, int, T_co]]:
        """The intervals that meet `first` to `last`, cut to it, in order."""
        ...

    def around(self, packed: Address) -> tuple[int, int]:
        """The first and last address of the interval that holds an address of this family."""
        ...

    def __len__(self) -> int:
        """How many intervals there are; at least 1."""
        ...


def keys_of(family: int, prefixes: Iterable[Prefix], rule: int) -> list[int]:
    """The sort keys of one rule's prefixes of one family. `rule` is below MAX_RULES."""
    return [
        ((first << _LENGTH_BITS) | length) << _RULE_BITS | rule
        for its_family, first, length in prefixes
        if its_family == family
    ]


def build(
    family: int, keys: list[int], base: T, overlay: Callable[[tuple[int, ...], T], T]
) -> PrefixTable[T]:
    """The table of `keys` (which is sorted in place and consumed).

    `base` is the answer outside all prefixes. `overlay(rules, around)` is the answer inside a
    prefix that `rules` name (in ascending order, without repeats) and that lies in a place where the
    answer was `around`; it must give the same object for the same arguments.
    """
    keys.sort()
    if family == 4:
        starts: MutableSequence[int] = array("I")
        answers = _sweep(32, keys, starts, base, overlay)
        return Ipv4Table(starts, answers)
    points: list[int] = []
    answers = _sweep(128, keys, points, base, overlay)
    return Ipv6Table(points, answers)


def _sweep(
    bits: int,
    keys: list[int],
    starts: MutableSequence[int],
    base: T,
    overlay: Callable[[tuple[int, ...], T], T],
) -> list[T]:
    """Fill `starts` and return the answers beside them."""
    answers = [base]
    starts.append(0)
    # The prefixes around the current place, outermost first: where each ends (exclusive), its answer.
    stack = [(1 << bits, base)]
    end, around = stack[0]

    def change(start: int, answer: T) -> None:
        if starts[-1] == start:
            # An inner prefix begins where the outer one does, or one begins where another ended.
            answers[-1] = answer
            if len(answers) > 1 and answers[-2] is answer:
                del answers[-1], starts[-1]
        elif answers[-1] is not answer:
            starts.append(start)
            answers.append(answer)

    rule_mask = MAX_RULES - 1
    length_mask = (1 << _LENGTH_BITS) - 1
    at, count = 0, len(keys)
    while at < count:
        key = keys[at]
        at += 1
        place = key >> _RULE_BITS
        rules: tuple[int, ...] = (key & rule_mask,)
        while at < count and keys[at] >> _RULE_BITS == place:
            rule = keys[at] & rule_mask
            if rule != rules[-1]:
                rules += (rule,)
            at += 1
        first = place >> _LENGTH_BITS
        while end <= first:
            stack.pop()
            change(end, stack[-1][1])
            end, around = stack[-1]
        around = overlay(rules, around)
        change(first, around)
        end = first + (1 << (bits - (place & length_mask)))
        stack.append((end, around))
    while len(stack) > 1:
        end = stack.pop()[0]
        if end >> bits == 0:
            change(end, stack[-1][1])
    keys.clear()
    return answers


class Ipv4Table(Generic[T]):
    """Intervals of 32-bit addresses.

    A lookup waits for memory more than it computes, so what it reads is kept small: answers are
    numbers of one byte, or as few as do.
    """

    __slots__ = ("_answers", "_cuts", "_index", "_numbers", "_shift")

    def __init__(self, starts: MutableSequence[int], answers: list[T]) -> None:
        """Intervals by their starts (the first is 0), and the answer of each."""
        # Where an interval ends and the next one starts: as many stand before an address as intervals.
        self._cuts = cuts = starts[1:]
        # One cut a bucket, roughly: a larger index would only fill the cache.
        bits = min(max(len(starts).bit_length(), 4), _MOST_INDEX_BITS)
        self._shift = shift = 32 - bits
        # _index[high] is how many cuts stand at or before `high << shift`.
        counts = [0] * ((1 << bits) + 1)
        round_up = (1 << shift) - 1
        for cut in cuts:
            counts[(cut + round_up) >> shift] += 1
        self._index = array("I", accumulate(counts))
        distinct = {id(answer): answer for answer in answers}
        numbers = {identity: number for number, identity in enumerate(distinct)}
        self._answers = list(distinct.values())
        self._numbers = array(_typecode(len(distinct)), map(numbers.__getitem__, map(id, answers)))

    def lookup(self, packed: Address) -> T:
        """The answer for 4 bytes."""
        value = _from_bytes(packed)
        high = value >> self._shift
        index = self._index
        at = index[high]
        end = index[high + 1]
        if at != end:  # in half of all places there is no cut, and 100 ns are saved
            at = bisect_right(self._cuts, value, at, end)
        return self._answers[self._numbers[at]]

    def intervals(self) -> Iterator[tuple[int, int, T]]:
        """See PrefixTable."""
        return self.between(0, (1 << 32) - 1)

    def between(self, first: int, last: int) -> Iterator[tuple[int, int, T]]:
        """See PrefixTable."""
        cuts, answers, numbers = self._cuts, self._answers, self._numbers
        at = bisect_right(cuts, first)
        while first <= last:
            end = cuts[at] - 1 if at < len(cuts) else last
            yield first, min(end, last), answers[numbers[at]]
            first, at = end + 1, at + 1

    def around(self, packed: Address) -> tuple[int, int]:
        """See PrefixTable."""
        at = bisect_right(self._cuts, int.from_bytes(packed))
        first = self._cuts[at - 1] if at else 0
        return first, (self._cuts[at] if at < len(self._cuts) else 1 << 32) - 1

    def __len__(self) -> int:
        return len(self._numbers)


def _typecode(count: int) -> str:
    """The smallest array that holds numbers below `count`."""
    return "B" if count <= 1 << 8 else "H" if count <= 1 << 16 else "I"


class Ipv6Table(Generic[T]):
    """Intervals of 128-bit addresses."""

    __slots__ = ("_answers", "_lower", "_upper")

    def __init__(self, starts: Sequence[int], answers: list[T]) -> None:
        self._upper = array("Q", (start >> 64 for start in starts))
        self._lower = array("Q", (start & 0xFFFF_FFFF_FFFF_FFFF for start in starts))
        self._answers = answers

    def lookup(self, packed: Address) -> T:
        """The answer for 16 bytes."""
        upper = int.from_bytes(packed[:8])
        found = bisect_right(self._upper, upper)
        if self._upper[found - 1] == upper:
            # Some intervals start inside this very /64; the lower halves of those are in order.
            lower = int.from_bytes(packed[8:])
            found = bisect_right(self._lower, lower, bisect_left(self._upper, upper, 0, found), found)
        return self._answers[found - 1]

    def intervals(self) -> Iterator[tuple[int, int, T]]:
        """See PrefixTable."""
        starts = [(high << 64) | low for high, low in zip(self._upper, self._lower, strict=True)]
        for at, answer in enumerate(self._answers):
            yield starts[at], (starts[at + 1] if at + 1 < len(starts) else 1 << 128) - 1, answer

    def between(self, first: int, last: int) -> Iterator[tuple[int, int, T]]:
        """See PrefixTable."""
        at = self._place(first) - 1
        while first <= last:
            end = self._start(at + 1) - 1 if at + 1 < len(self) else last
            yield first, min(end, last), self._answers[at]
            first, at = end + 1, at + 1

    def around(self, packed: Address) -> tuple[int, int]:
        """See PrefixTable."""
        at = self._place(int.from_bytes(packed))
        return self._start(at - 1), (self._start(at) if at < len(self) else 1 << 128) - 1

    def _start(self, at: int) -> int:
        return (self._upper[at] << 64) | self._lower[at]

    def _place(self, value: int) -> int:
        """How many intervals start at or before an address."""
        upper = value >> 64
        found = bisect_right(self._upper, upper)
        lower = value & 0xFFFF_FFFF_FFFF_FFFF
        return bisect_right(self._lower, lower, bisect_left(self._upper, upper, 0, found), found)

    def __len__(self) -> int:
        return len(self._upper)
