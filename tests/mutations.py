"""Bad input for parsers: good messages with bytes changed, cut off, lost, doubled and added; always the same.

The random numbers of thousands of edits are drawn in one go: drawn one by one they take longer than
most of the parsers they are meant for.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence

COUNT = 100_000
"""How many of them every parser gets in every run."""

_AT_A_TIME = 4096
_NUMBERS = 8
"""16-bit numbers for a mutation: one for the whole, two for each of its edits, which are three at most"""


def mutations(
    seeds: Sequence[bytes], *words: bytes, end: bytes = b"", count: int = COUNT
) -> Iterator[tuple[int, bytes]]:
    """`count` mutations of the seeds, one to three edits each, with their number.

    `words` mean something in the format, or are longer than it allows, and are put in beside mere
    noise; `end` is what makes a message whole, and stands behind what is cut off.
    """
    rng = random.Random(count)
    noise = rng.randbytes(256 + 32)
    words = (*words, b"\0", b"\r\n", b"\xff" * 99)
    for begun in range(0, count, _AT_A_TIME):
        drawn = array("H", rng.randbytes(2 * _NUMBERS * _AT_A_TIME))
        for number in range(begun, min(begun + _AT_A_TIME, count)):
            at = (number - begun) * _NUMBERS
            edits, seed = divmod(drawn[at], 0x5556)
            data = bytearray(seeds[seed % len(seeds)])
            for edit in range(at + 1, at + 3 + 2 * edits, 2):
                place = drawn[edit] * len(data) >> 16
                amount, kind = divmod(drawn[edit + 1], 8)
                begin = amount & 255
                match kind:
                    case 0 | 1 | 2:
                        data[place : place + 1] = noise[begin : begin + 1]
                    case 3:
                        data[place:] = noise[begin : begin + (amount >> 9)] + end
                    case 4:
                        del data[place : place + 1 + amount % 5]
                    case 5:
                        data[place:place] = data[place : place + 1 + amount % 40]
                    case 6:
                        data[place:place] = noise[begin : begin + (amount >> 8)]
                    case _:
                        data[place:place] = words[amount % len(words)]
            yield number, bytes(data)


def halves(number: int, data: bytes) -> tuple[bytes, bytes]:
    """The data in two parts, either of which may be empty."""
    cut = number % (len(data) + 1)
    return data[:cut], data[cut:]
