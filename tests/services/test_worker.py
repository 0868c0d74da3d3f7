"""Workers number connections without meeting each other, also where one takes another's place."""

from __future__ import annotations

from itertools import islice

from urelay.services.worker import interleaved


def test_no_two_workers_give_the_same_number_and_none_is_left_out() -> None:
    counts = memoryview(bytearray(8 * 3)).cast("Q")
    given = [list(islice(interleaved(counts, number), 4)) for number in range(3)]
    assert given == [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9, 12]]
    assert sum(counts) == 12


def test_a_successor_goes_on_where_the_other_stopped() -> None:
    counts = memoryview(bytearray(8 * 2)).cast("Q")
    assert list(islice(interleaved(counts, 1), 3)) == [2, 4, 6]
    assert list(islice(interleaved(counts, 1), 2)) == [8, 10]
