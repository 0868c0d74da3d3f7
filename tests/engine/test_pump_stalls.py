"""A stalled reader costs one burst and holds up nobody else, and nothing spins while it waits."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import threading
from collections.abc import Callable

import pytest

from tests.engine.rig import MIB, Rig, exchange, in_thread, no_descriptor_left, pattern, read_all, reset
from urelay.engine.limits import Limits
from urelay.engine.record import End


def test_stalled_readers_cost_a_burst_each_and_no_more() -> None:
    """Eight flows whose readers never read, both ways, each offered all it takes."""
    with no_descriptor_left():
        rig = Rig()
        runs = [rig.flow() for _ in range(8)]
        before = _resident()
        offered = rig.stall(*(sock for run in runs for sock in (run.client, run.server)))
        grown = _resident() - before
        held = rig.held()
        assert offered > 16 * MIB
        assert len(held) == 16
        assert 0 < max(held) <= 65536
        assert _pipe_bytes(rig) <= 16 * 65536
        assert grown <= MIB
        for run in runs:
            reset(run.client)
            reset(run.server)
        rig.close()


@pytest.mark.parametrize("connected", [True, False])
@pytest.mark.parametrize("downwards", [True, False])
@pytest.mark.parametrize("resume", ["by the reader", "after a half-close"])
def test_a_stalled_flow_goes_on_where_it_stopped(
    rig: Rig, resume: str, downwards: bool, connected: bool
) -> None:
    run = rig.flow(small=16384, connected=connected)
    writer, reader = (run.server, run.client) if downwards else (run.client, run.server)
    sent = rig.stall(writer)
    more = b"" if resume == "after a half-close" else pattern(1 << 18)[sent % (1 << 18) :]
    sent += len(more)

    def say() -> None:
        writer.setblocking(True)
        writer.sendall(more)
        writer.shutdown(socket.SHUT_WR)

    saying = in_thread(say)
    got = read_all(reader)
    saying.join()
    assert len(got) == sent
    assert got == (pattern(1 << 18) * (sent // (1 << 18) + 1))[:sent]


def test_a_pipe_that_held_a_clients_bytes_is_never_given_to_another(rig: Rig) -> None:
    victim = rig.flow(small=65536)
    rig.stall(victim.client)
    assert rig.thread.call(lambda: rig.pump.pipes.in_use) == 1
    reset(victim.client)
    reset(victim.server)
    victim.ended.wait()
    for _ in range(3):
        other = rig.flow()
        data = pattern(MIB, 99)
        up, _down = exchange(other, data, b"")
        assert up == data


def _pipe_bytes(rig: Rig) -> int:
    def count() -> int:
        total = 0
        for each in rig.directions():
            if each.pipe is not None:
                raw = fcntl.ioctl(each.pipe.reader, termios.FIONREAD, b"\0\0\0\0")
                total += struct.unpack("i", raw)[0]
        return total

    return rig.thread.call(count)


def _resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_reader_that_takes_nothing_is_given_up(make_rig: Callable[[Limits], Rig]) -> None:
    rig = make_rig(Limits(stalled_s=0.4))
    run = rig.flow(small=4096)
    rig.stall(run.client)
    ended = run.ended.wait()
    assert (ended.end, ended.error) == (End.TIMEOUT, "the server took no byte for 0.4 s")


@pytest.mark.parametrize(
    "state", ["idle", "half closed", "stalled", "stalled and half closed", "stalled and dead"]
)
def test_nothing_spins(rig: Rig, state: str) -> None:
    run = rig.flow(small=4096)
    if "stalled" in state:
        rig.stall(run.client)
    if "half closed" in state:
        run.client.shutdown(socket.SHUT_WR)
    if "dead" in state:
        reset(run.client)
    rig.rest()
    before = rig.thread.call(lambda: rig.poller.batches)
    threading.Event().wait(0.3)
    assert rig.thread.call(lambda: rig.poller.batches) - before <= 3
    assert not run.ended.done.is_set()
