"""A reset stays a reset, never an end of file, and never overtakes what was read before it."""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
import time
from collections.abc import Callable

import pytest

from tests.engine.rig import (
    Ended,
    OneFlow,
    Placeholder,
    Rig,
    Run,
    pattern,
    read_all,
    read_until_reset,
    reset,
    tcp_pair,
)
from urelay.engine.limits import Limits
from urelay.engine.record import End


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_reset_arrives_as_a_reset_at_once(rig: Rig, side: str) -> None:
    delays = []
    for number in range(300):
        run = rig.flow()
        near, far = (run.client, run.server) if side == "client" else (run.server, run.client)
        if number % 3:
            near.sendall(b"hello")
            assert far.recv(5) == b"hello"
        if number % 3 == 2:
            far.sendall(b"unread")
        started = time.monotonic()
        reset(near)
        read_until_reset(far)
        delays.append(time.monotonic() - started)
        far.close()
        ended = run.ended.wait()
        assert (ended.end, ended.error) == (End.RESET, f"reset by the {side}")
    delays.sort()
    # Nine in ten: the machine may let us wait, a timer of the relay's would hold up each.
    assert delays[len(delays) * 9 // 10] <= 0.1


@pytest.mark.parametrize("small", [0, 16384], ids=["large buffers", "small buffers"])
def test_a_reset_comes_after_all_that_was_read_before_it(rig: Rig, small: int) -> None:
    """The relay has taken the bytes; a reset that overtakes them would destroy them."""
    for _ in range(10):
        run = rig.flow(small=small)
        rig.stall(run.server)
        taken = rig.thread.call(lambda: sum(each.count + each.held for each in rig.directions()))
        reset(run.server)
        got = read_until_reset(run.client)
        assert len(got) >= taken > 0
        block = pattern(1 << 18)
        assert got == (block * (len(got) // len(block) + 1))[: len(got)]
        run.client.close()
        assert run.ended.wait().end is End.RESET


def test_a_reset_waits_for_a_stalled_reader_only_so_long(make_rig: Callable[[Limits], Rig]) -> None:
    rig = make_rig(Limits(reset_drain_s=0.3))
    run = rig.flow(small=4096)
    rig.stall(run.server)
    started = time.monotonic()
    reset(run.server)
    assert run.ended.wait().end is End.RESET
    assert 0.25 <= time.monotonic() - started < 15


def test_a_client_that_closes_with_an_answer_under_way_resets_the_server(rig: Rig) -> None:
    """A full close looks like a half-close until something is written to it."""
    run = rig.flow()
    run.client.sendall(b"question")
    run.client.close()
    assert read_all(run.server) == b"question"
    with pytest.raises(ConnectionError):
        pour(run.server)
    assert run.ended.wait().end is End.RESET


def test_both_sides_reset_at_once(rig: Rig) -> None:
    for _ in range(50):
        run = rig.flow()
        run.client.sendall(b"x")
        run.server.sendall(b"y")
        reset(run.client)
        reset(run.server)
        assert run.ended.wait().end is End.RESET


def pour(sock: socket.socket) -> None:
    while True:
        sock.sendall(bytes(10_000))


def test_a_server_that_was_reset_before_anything_was_read_has_its_last_words_delivered(rig: Rig) -> None:
    """The client takes them slowly, and was never heard of before: it must be told of room all the same."""
    server, outer = tcp_pair()
    last_words = pattern(1 << 17)
    outer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
    server.sendall(last_words)
    reset(server)
    arrived = struct.unpack("i", fcntl.ioctl(outer, termios.FIONREAD, bytes(4)))[0]
    assert arrived > 1 << 16
    client, inner = tcp_pair(4096)
    client.sendall(b"too late")
    inner.setblocking(False)
    outer.setblocking(False)
    run = Run(client, server, Ended())
    rig.runs.append(run)

    def start() -> None:
        rig.poller.add(outer, Placeholder())
        OneFlow(run.ended).open_connected(rig.pump, inner, outer, 0)

    rig.thread.call(start)
    assert read_until_reset(client) == last_words[:arrived]
    assert run.ended.wait().end is End.RESET
