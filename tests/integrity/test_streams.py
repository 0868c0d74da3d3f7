"""Every byte arrives, once, in its place and its stream, by every path; each stream ends as it was ended."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.engine.rig import MIB
from tests.integrity.sizes import sizes
from tests.integrity.streams import Coded, Crowd, Plan
from tests.integrity.subject import Subject

# --- R2

PATHS: dict[str, dict[str, Any]] = {
    "splice": {"limits": {"max_pipes": 4000}},
    "copy": {"limits": {"max_pipes": 0}},
    # Too few pipes for everybody, so streams lose theirs and get another; some sockets refuse for good.
    "switch": {"limits": {"max_pipes": 9}, "refuse_splices": 50},
}
GIB = 1 << 30


@sizes("total, streams", (48 * MIB, 60), (10 * GIB, 200))
@pytest.mark.parametrize("path", PATHS)
def test_every_byte_arrives_in_its_place_by_every_path(path: str, total: int, streams: int) -> None:
    """R2: both ways at once; 30 % of the streams half-close, 5 % are reset and deliver an exact prefix."""
    rng = random.Random(2)
    crowd = Crowd(2)
    with Subject(**PATHS[path]) as subject:
        plans = [plan_of_a_stream(rng, number / streams, total // streams) for number in range(streams)]
        for number, plan in enumerate(plans):
            # Every other has so little room that the relay must hold what it has read.
            crowd.add(subject.pair(small=65_536 * (number % 2)), *plan)
        heard = crowd.run(limit_s=1700)
        ends = [record.end for record in subject.records(streams)]
    assert heard > total * 0.8
    assert ends.count("reset") == sum(left.is_reset or right.is_reset for left, right in plans)
    assert set(ends) == {"eof", "reset"}


def plan_of_a_stream(rng: random.Random, place: float, size: int) -> tuple[Plan, Plan]:
    """What both sides of a stream do; `place`, from 0 to 1, says which kind of stream it is."""
    up = rng.randrange(1, size)
    down = size - up
    pause_s = rng.choice([0, 0, 0.01])
    if place < 0.05:
        left = Plan(up, down, resets_after=rng.randrange(up), pause_s=pause_s)
        right = Plan(down, up, is_reset=True, pause_s=pause_s)
    elif place < 0.2:
        left = Plan(up, down, closes_early=True, pause_s=pause_s)
        right = Plan(down, up, pause_s=pause_s)
    elif place < 0.35:
        left = Plan(up // 8, size - up // 8, closes_early=True)
        right = Plan(size - up // 8, up // 8, waits_for_end=True, pause_s=pause_s)
    else:
        left, right = Plan(up, down, pause_s=pause_s), Plan(down, up, pause_s=pause_s)
    return (left, right) if rng.random() < 0.5 else (right, left)


# --- R3


@sizes("transfers, most", (100, 3 * MIB // 2), (10_000, 8 * MIB))
def test_no_transfer_stalls_whatever_its_reader_does(transfers: int, most: int) -> None:
    """R3: small buffers, readers that pause at random; a watchdog for each, a hundred at a time."""
    rng = random.Random(3)
    with Subject() as subject:
        for first in range(0, transfers, 100):
            crowd = Crowd(first)
            for _ in range(100):
                size = rng.randrange(most // 3, most)
                speaker = Plan(size, 0, closes_early=True)
                hearer = Plan(0, size, pause_s=rng.choice([0.0, 0.002, 0.02]))
                both = (speaker, hearer) if rng.random() < 0.5 else (hearer, speaker)
                crowd.add(subject.pair(small=rng.choice([4096, 16_384, 65_536])), *both)
            crowd.run(limit_s=100)
            ends = [record.end for record in subject.records(100)]
            assert ends == ["eof"] * 100


# --- the harness


def test_a_wrong_byte_is_found_and_named() -> None:
    """Otherwise the tests above would prove nothing."""
    coded, other = Coded(1), Coded(2)
    data = bytearray(coded.piece(5000, 3000))
    coded.check(5000, bytes(data))
    data[100] ^= 1
    with pytest.raises(AssertionError, match="wrong at offset 5100"):
        coded.check(5000, bytes(data))
    with pytest.raises(AssertionError, match=r"wrong at offset 5000.*bytes from 8 further on"):
        coded.check(5000, bytes(coded.piece(5008, 64)))
    with pytest.raises(AssertionError, match="another stream"):
        coded.check(5000, bytes(other.piece(5000, 64)))
