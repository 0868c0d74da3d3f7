"""What was said before an end is heard, however it came: by a close, a reset, or the death of a process."""

from __future__ import annotations

import random
import socket
import statistics
import subprocess
import time

import pytest

from tests.engine.rig import MIB, PATIENCE_S
from tests.integrity.sizes import sizes
from tests.integrity.streams import Coded, Crowd, Plan, hear_all, pour
from tests.integrity.subject import Subject, descriptors_of, until

# --- R4


@sizes("trials", 300, 10_000)
@pytest.mark.parametrize("backlog", [0, 100_000], ids=["idle", "with bytes before it"])
def test_last_bytes_and_both_ends_in_one_event_arrive_as_bytes_and_an_end(trials: int, backlog: int) -> None:
    """R4: the client has half-closed; the server's last bytes, its FIN and the hang-up come at once."""
    coded = Coded(4)
    batch = 50
    with Subject() as subject:
        for _ in range(0, trials, batch):
            pairs = subject.pairs(batch)
            for client, server in pairs:
                client.shutdown(socket.SHUT_WR)
                assert server.recv(1) == b""
            for _, server in pairs:
                if backlog:
                    server.sendall(coded.piece(0, backlog))
                server.send(coded.piece(backlog, 4))
                server.close()
            for client, _ in pairs:
                assert hear_all(client, coded) == (backlog + 4, "eof")
            subject.forget()
        assert {record.end for record in subject.records(trials)} == {"eof"}


# --- R5


@sizes("trials, stall_s", (12, 0.3), (1000, 5.0))
def test_all_that_was_said_before_a_close_waits_for_its_reader(trials: int, stall_s: float) -> None:
    """R5: the producer fills all there is and closes; the consumer begins to read much later."""
    coded = Coded(5)
    batch = min(trials, 20)
    with Subject() as subject:
        for _ in range(0, trials, batch):
            pairs = subject.pairs(batch, small=65_536)
            turned = [pair[:: 1 if number % 2 else -1] for number, pair in enumerate(pairs)]
            said = pour(coded, *(producer for producer, _ in turned))
            for producer, _ in turned:
                producer.close()
            assert subject.report().active == batch
            time.sleep(stall_s)
            for (_, consumer), count in zip(turned, said, strict=True):
                assert hear_all(consumer, coded) == (count, "eof")
            subject.forget()
        assert {record.end for record in subject.records(trials)} == {"eof"}


# --- R7


@sizes("trials, size", (40, MIB), (1000, 4 * MIB))
def test_a_reset_comes_after_every_byte_before_it(trials: int, size: int) -> None:
    """R7: one side says all and resets; the other, at 10 MiB a second, hears all, and then the reset."""
    rng = random.Random(7)
    with Subject() as subject:
        for first in range(0, trials, 40):
            crowd = Crowd(first)
            for _ in range(40):
                pace = 10 * MIB
                client = Plan(0, size, is_reset=True, pace=pace, reads=(65_536,))
                server = Plan(size + 1, 0, resets_after=size, resets_when_acknowledged=True)
                both = (client, server) if rng.random() < 0.5 else (server, client)
                crowd.add(subject.pair(), *both)
            crowd.run(limit_s=100)
            records = subject.records(40)
            assert {record.end for record in records} == {"reset"}
            assert {record.bytes_down + record.bytes_up for record in records} == {size}


# --- R19

HEARD_S = 0.5
"""Five times the promise, for the median: far below any timer that could have been waited for instead"""


class Killed:
    """Another process that has some sockets and does nothing with them, until it is killed."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self._process = subprocess.Popen(["sleep", "600"], pass_fds=[sock.fileno() for sock in socks])
        for sock in socks:
            sock.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def two_sides(subject: Subject, flows: int) -> tuple[list[socket.socket], list[socket.socket]]:
    """Those who will be killed, clients and servers in turn, and those who will live."""
    pairs = subject.pairs(flows)
    return (
        [pair[number % 2] for number, pair in enumerate(pairs)],
        [pair[1 - number % 2] for number, pair in enumerate(pairs)],
    )


def times_to_hear(survivors: list[socket.socket], expected: str) -> list[float]:
    """How long each needs, from now on, to hear its end, and nothing before it."""
    began = time.monotonic()
    took = []
    for sock in survivors:
        sock.settimeout(PATIENCE_S)
        try:
            heard = "bytes" if sock.recv(1) else "eof"
        except ConnectionError:
            heard = "reset"
        took.append(time.monotonic() - began)
        assert heard == expected
    return took


def freed(subject: Subject, flows: int) -> None:
    """The relay lets go of every socket of the flows that ended."""
    until(
        lambda: descriptors_of(subject.pid)["socket"] <= subject.baseline.sockets,
        lambda: f"{descriptors_of(subject.pid)['socket']} sockets left of {flows} flows",
    )


def test_a_killed_peer_is_an_end_of_file_for_the_other() -> None:
    """R19, nothing on its way."""
    with Subject() as subject:
        doomed, survivors = two_sides(subject, 40)
        process = Killed(doomed)
        process.kill()
        took = times_to_hear(survivors, "eof")
        assert statistics.median(took) <= HEARD_S
        for sock in survivors:
            sock.close()
        freed(subject, 40)
        assert {record.end for record in subject.records(40)} == {"eof"}


def test_a_peer_killed_while_it_read_nothing_resets_the_one_who_writes() -> None:
    """R19, back-pressured: the relay waits to write when the reader dies."""
    with Subject() as subject:
        doomed, survivors = two_sides(subject, 20)
        pour(Coded(19), *survivors)
        process = Killed(doomed)
        assert subject.report().active == 20
        process.kill()
        took = times_to_hear(survivors, "reset")
        assert statistics.median(took) <= HEARD_S
        # Nobody needs to close anything for it.
        freed(subject, 20)
        assert {record.end for record in subject.records(20)} == {"reset"}


def test_a_peer_killed_behind_its_back_pressure_is_heard_to_its_last_byte_and_then_reset() -> None:
    """R19, back-pressured both ways: nobody reads anything, and the relay reads neither when one dies."""
    coded = Coded(20)
    with Subject() as subject:
        doomed, survivors = two_sides(subject, 6)
        pour(coded, *survivors)
        poured = pour(coded, *doomed)
        process = Killed(doomed)
        process.kill()
        for sock, said in zip(survivors, poured, strict=True):
            sock.settimeout(PATIENCE_S)
            heard, end = hear_all(sock, coded)
            assert end == "reset"
            # What the relay had not read yet went with the reset.
            assert 0 < heard <= said
        freed(subject, 6)
        records = subject.records(6)
        assert {record.end for record in records} == {"reset"}


def test_a_peer_killed_behind_its_back_pressure_waits_for_no_reader_for_ever() -> None:
    """R19: the time a reset waits for is over, and every descriptor is back."""
    with Subject(limits={"reset_drain_s": 0.5}) as subject:
        doomed, survivors = two_sides(subject, 20)
        pour(Coded(19), *survivors)
        pour(Coded(20), *doomed)
        process = Killed(doomed)
        process.kill()
        freed(subject, 20)
        assert {record.end for record in subject.records(20)} == {"reset"}
