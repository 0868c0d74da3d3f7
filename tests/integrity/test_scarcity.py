"""With too few pipes bytes are copied; nothing fails for it and nothing stops, and the numbers say so."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.engine.rig import MIB
from tests.integrity.sizes import sizes
from tests.integrity.streams import Coded, Crowd, Plan, hear_all, pour
from tests.integrity.subject import Subject, descriptors_of

NOBODY = 65534
PAGES = Path("/proc/sys/fs/pipe-user-pages-soft")
PIPE_PAGES = 256


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@sizes("flows, size", (96, MIB), (2000, 2 * MIB))
def test_a_user_whose_pipes_the_kernel_makes_small_is_served_all_the_same(flows: int, size: int) -> None:
    """R24: as an unprivileged user, with more active flows than pipes of full size to be had."""
    allowed = int(PAGES.read_text())
    if not allowed or flows * PIPE_PAGES <= allowed:
        pytest.skip(f"{allowed} pages for pipes are enough for everybody here")
    rng = random.Random(24)
    crowd = Crowd(24)
    with Subject(uid=NOBODY, limits={"max_pipes": 4000, "per_source": 9000}) as subject:
        # Each takes a pipe and keeps it, for its reader never reads; the quota is spent.
        hogs = subject.pairs(allowed // PIPE_PAGES + 8)
        said = pour(Coded(1), *(client for client, _ in hogs))
        before = subject.report()
        assert before.pipes_refused > 0
        assert before.pipes_in_use < len(hogs)
        for number in range(flows):
            up = rng.randrange(size)
            # Most of two thousand have little room, or the kernel's memory for TCP is what runs short.
            pair = subject.pair(small=65_536 if number >= 200 else 0)
            crowd.add(pair, Plan(up, size - up), Plan(size - up, up))
        assert crowd.run(limit_s=600) == flows * size
        assert {record.end for record in subject.records(flows)} == {"eof"}
        assert subject.report().active == len(hogs)
        for (client, server), count in zip(hogs, said, strict=True):
            client.close()
            assert hear_all(server, Coded(1)) == (count, "eof")


def test_a_process_without_descriptors_for_pipes_copies() -> None:
    """R24: the limit on descriptors leaves room for the connections, and for no pipe."""
    with Subject(limits={"max_pipes": 4000}) as subject:
        base = sum(descriptors_of(subject.pid).values())
    crowd = Crowd(25)
    with Subject(limits={"max_pipes": 4000}, descriptors=base + 2 * 20 + 1) as subject:
        for _ in range(20):
            crowd.add(subject.pair(), Plan(2 * MIB, MIB), Plan(MIB, 2 * MIB))
        assert crowd.run(limit_s=100) == 60 * MIB
        report = subject.report()
        assert report.pipes_refused > 0
        assert report.pipes_open == 0
        assert {record.end for record in subject.records(20)} == {"eof"}
