"""Bytes arrive, whole and in order, by every path; what ends one way leaves the other open."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable

import pytest

from tests.engine.rig import (
    MIB,
    Rig,
    Run,
    exchange,
    in_thread,
    pattern,
    read_all,
    read_until_reset,
    reset,
    tcp_pair,
)
from urelay.engine.limits import Limits
from urelay.engine.record import End

# --- bytes


@pytest.mark.parametrize("size", [1, 4096, 65535, 65536, 65537, 3 * MIB])
def test_both_directions_arrive_whole_and_are_counted(rig: Rig, size: int) -> None:
    run = rig.flow()
    up, down = pattern(size, 1), pattern(size // 2 + 1, 2)
    assert exchange(run, up, down) == (up, down)
    ended = run.ended.wait()
    assert (ended.end, ended.error) == (End.EOF, None)
    assert (ended.bytes_up, ended.bytes_down) == (len(up), len(down))


def test_client_bytes_from_before_the_hand_over_come_first(rig: Rig) -> None:
    early = pattern(5000)
    run = rig.flow(early=early)
    run.client.sendall(b"then this")
    run.client.shutdown(socket.SHUT_WR)
    assert read_all(run.server) == early + b"then this"


@pytest.mark.parametrize("size", [1, 5000, MIB])
def test_bytes_from_behind_a_proxys_answer_come_first(rig: Rig, size: int) -> None:
    """Without a word from either side, too: they wait for no event."""
    early = pattern(size)
    run = rig.flow(early_down=early)
    got = b""
    while len(got) < size:
        got += run.client.recv(size - len(got))
    run.server.sendall(b"then this")
    run.server.close()
    assert (got, read_all(run.client)) == (early, b"then this")
    run.client.close()
    assert run.ended.wait().bytes_down == size + 9


@pytest.mark.parametrize("path", ["splice", "copy", "source refuses splice", "destination refuses splice"])
def test_each_way_of_moving_bytes_keeps_them(
    make_rig: Callable[[Limits], Rig], path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.splice
    calls = []

    def splice(src: int, dst: int, count: int, **more: int) -> int:
        # Mid-stream on purpose: the third burst is the first that fails.
        calls.append(count)
        refuses = "source" if _is_pipe(dst) else "destination"
        if len(calls) > 4 and path.startswith(refuses):
            raise OSError(errno.EINVAL, "no splice here")
        return real(src, dst, count, **more)

    monkeypatch.setattr(os, "splice", splice)
    rig = make_rig(Limits(max_pipes=0 if path == "copy" else 8))
    run = rig.flow()
    up, down = pattern(4 * MIB), pattern(4 * MIB, 7)
    assert exchange(run, up, down) == (up, down)
    assert bool(calls) == (path != "copy")


def _is_pipe(fd: int) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")
    except OSError:
        return False


def test_a_flow_turns_from_copying_to_splicing_and_back(rig: Rig) -> None:
    run = rig.flow()
    digest = hashlib.sha256()
    got = hashlib.sha256()
    rng = random.Random(5)
    parts = [pattern(rng.choice([1, 100, 9000, 70_000, 600_000]), seed) for seed in range(60)]

    def say() -> None:
        for number, part in enumerate(parts):
            digest.update(part)
            run.client.sendall(part)
            if number % 7 == 0:
                # A pause that lets the relay see the source empty.
                run.server.settimeout(20)
        run.client.shutdown(socket.SHUT_WR)

    sending = in_thread(say)
    while part := run.server.recv(rng.choice([100, 5000, 300_000])):
        got.update(part)
    sending.join()
    assert got.digest() == digest.digest()


def test_urgent_data_keeps_its_place_and_stops_nothing(rig: Rig) -> None:
    run = rig.flow()
    run.client.sendall(b"before")
    run.client.send(b"!", socket.MSG_OOB)
    run.client.sendall(b"after")
    run.client.shutdown(socket.SHUT_WR)
    assert read_all(run.server) == b"before!after"


@pytest.mark.parametrize("turn", range(12))
def test_urgent_data_in_the_middle_of_a_large_transfer_stops_nothing(rig: Rig, turn: int) -> None:
    # Several turns, for a splice in front of urgent data says "end of file" only if the end is there already.
    run = rig.flow()
    data = pattern(2 * MIB)

    def say() -> None:
        run.client.sendall(data)
        run.client.send(b"!", socket.MSG_OOB)
        run.client.sendall(data)
        run.client.shutdown(socket.SHUT_WR)

    sending = in_thread(say)
    got = read_all(run.server)
    sending.join()
    # The byte itself may be lost to a read that came before it was announced as urgent.
    assert got in (data + b"!" + data, data + data)


# --- half-closes


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_close_leaves_the_other_way_open(rig: Rig, first: str) -> None:
    run = rig.flow()
    near, far = (run.client, run.server) if first == "client" else (run.server, run.client)
    near.sendall(b"question")
    near.shutdown(socket.SHUT_WR)
    assert read_all(far) == b"question"
    assert not run.ended.done.is_set()
    answer = pattern(5 * MIB)
    sending = in_thread(lambda: (far.sendall(answer), far.shutdown(socket.SHUT_WR)))
    assert read_all(near) == answer
    sending.join()
    assert run.ended.wait().end is End.EOF


def test_last_bytes_and_end_in_one_event_on_a_half_closed_flow(rig: Rig) -> None:
    for _ in range(200):
        run = rig.flow()
        run.client.shutdown(socket.SHUT_WR)
        assert run.server.recv(1) == b""
        run.server.sendall(b"last")
        run.server.close()
        assert read_all(run.client) == b"last"
        run.client.close()
        assert run.ended.wait().end is End.EOF


def test_what_was_sent_before_a_close_arrives_however_long_the_reader_stalls(rig: Rig) -> None:
    """The producer is gone while the relay still holds its bytes."""
    runs = [rig.flow(small=8192) for _ in range(30)]
    data = pattern(600_000)
    sending = [in_thread(lambda run=run: (run.client.sendall(data), run.client.close())) for run in runs]
    for run in reversed(runs):
        assert read_all(run.server) == data
        run.server.close()
        assert run.ended.wait().end is End.EOF
    for thread in sending:
        thread.join()


# --- unix sockets


def unix_flow(rig: Rig) -> Run:
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    return rig.flow(server_pair=(ours, theirs))


def test_a_unix_socket_takes_and_gives_bytes_and_half_closes(rig: Rig) -> None:
    run = unix_flow(rig)
    up, down = pattern(3 * MIB), pattern(2 * MIB, 3)
    assert exchange(run, up, down) == (up, down)
    assert run.ended.wait().end is End.EOF


def test_a_unix_server_that_closes_closes_the_client(rig: Rig) -> None:
    run = unix_flow(rig)
    run.server.sendall(b"bye")
    run.server.close()
    assert read_all(run.client) == b"bye"
    assert run.ended.wait().end is End.EOF


def test_a_reset_closes_a_unix_server(rig: Rig) -> None:
    run = unix_flow(rig)
    reset(run.client)
    assert run.server.recv(1) == b""
    assert run.ended.wait().end is End.RESET


# --- time


def test_an_idle_flow_is_reset_and_a_busy_one_is_not(make_rig: Callable[[Limits], Rig]) -> None:
    rig = make_rig(Limits(half_closed_s=1.0))
    idle = rig.flow(idle_s=1.0)
    # Longer, so that a machine which stops for a second is not taken for a flow that does.
    busy = rig.flow(idle_s=2.0)
    until = time.monotonic() + 2.5
    while not idle.ended.done.wait(0.1) or time.monotonic() < until:
        busy.client.sendall(b"x")
        assert busy.server.recv(1) == b"x"
    ended = idle.ended.wait()
    assert (ended.end, ended.error) == (End.TIMEOUT, "no byte for 1 s")
    assert read_until_reset(idle.client) == b""
    assert read_until_reset(idle.server) == b""
    assert not busy.ended.done.is_set()


def test_a_half_closed_flow_is_reaped_and_an_open_one_is_not(make_rig: Callable[[Limits], Rig]) -> None:
    rig = make_rig(Limits(half_closed_s=0.4))
    half, whole = rig.flow(), rig.flow()
    half.client.shutdown(socket.SHUT_WR)
    started = time.monotonic()
    ended = half.ended.wait()
    assert (ended.end, ended.error) == (End.TIMEOUT, "no byte for 0.4 s, half closed")
    assert 0.3 <= time.monotonic() - started <= 10
    assert not whole.ended.done.is_set()


def test_long_lived_flows_get_keepalives(make_rig: Callable[[Limits], Rig]) -> None:
    rig = make_rig(Limits(keepalive_from_s=0.01))
    run = rig.flow()
    inner = rig.thread.call(lambda: [each.src for each in rig.directions()])
    deadline = time.monotonic() + 20
    while not all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) for sock in inner):
        threading.Event().wait(0.02)
        assert time.monotonic() < deadline
    assert inner[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    assert not run.ended.done.is_set()


# --- at rest


def test_idle_flows_hold_no_pipe(rig: Rig) -> None:
    runs = [rig.flow() for _ in range(20)]
    data = pattern(MIB)
    for run in runs:
        sending = in_thread(lambda run=run: run.client.sendall(data))
        got = b""
        while len(got) < len(data):
            got += run.server.recv(MIB)
        sending.join()
    rig.rest()
    assert rig.thread.call(lambda: rig.pump.pipes.in_use) == 0


def test_a_busy_flow_lets_others_have_their_turn(rig: Rig) -> None:
    bulk, ping = rig.flow(), rig.flow()
    stop = threading.Event()

    def pour() -> None:
        block = bytes(MIB)
        while not stop.is_set():
            bulk.client.sendall(block)
        bulk.client.shutdown(socket.SHUT_WR)

    pouring, draining = in_thread(pour), in_thread(lambda: read_all_away(bulk.server))
    took = []
    for _ in range(100):
        started = time.monotonic()
        ping.client.sendall(b"?")
        assert ping.server.recv(1) == b"?"
        took.append(time.monotonic() - started)
    stop.set()
    pouring.join()
    draining.join()
    assert sorted(took)[90] < 0.5


@pytest.mark.parametrize(("size", "pieces", "gathers"), [(MIB, 8, True), (100, 100, False)])
def test_large_data_gathers_between_waits_and_small_messages_do_not(
    rig: Rig, size: int, pieces: int, gathers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    gather = rig.poller.gather

    def counted() -> None:
        asked.append(1)
        gather()

    monkeypatch.setattr(rig.poller, "gather", counted)
    run = rig.flow()
    piece = pattern(size)
    for _ in range(pieces):
        sending = in_thread(functools.partial(run.client.sendall, piece))
        assert read_exactly(run.server, size) == piece
        sending.join()
    assert bool(asked) == gathers


def read_exactly(sock: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size and (part := sock.recv(size - len(got))):
        got += part
    return bytes(got)


def read_all_away(sock: socket.socket) -> None:
    while sock.recv(MIB):
        continue


def test_pairs_are_plain_loopback_connections() -> None:
    """The rig's own promise: otherwise the tests above would prove nothing."""
    near, far = tcp_pair()
    near.sendall(b"x")
    assert far.recv(1) == b"x"
    reset(near)
    assert read_until_reset(far) == b""
    far.close()
