"""A small message is passed on at once: no timer of the kernel's stands between it and the other side."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time

import pytest

from tests.integrity.sizes import sizes
from tests.integrity.subject import Subject

STEP_S = 0.03
"""A delayed acknowledgement takes 40 ms, and so does Nagle's algorithm; SPLICE_F_MORE takes 200 ms"""
ASK_LOCALHOST = b"\5\1\0\3\x09localhost"


def through_socks(subject: Subject) -> tuple[socket.socket, socket.socket]:
    """By name, which is the long way out."""
    client = subject.connect("socks")
    client.sendall(b"\5\1\0" + ASK_LOCALHOST + subject.server.getsockname()[1].to_bytes(2))
    server, _ = subject.server.accept()
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    greeting = b""
    while len(greeting) < 12:
        greeting += client.recv(12 - len(greeting))
    return client, server


def exchange(near: socket.socket, far: socket.socket, segments: tuple[int, ...]) -> float:
    """Seconds for these segments there, and as many bytes back the same way."""
    size = sum(segments)
    began = time.perf_counter()
    for speaker, hearer in ((near, far), (far, near)):
        for segment in segments:
            speaker.send(bytes(segment))
        left = size
        while left:
            left -= len(hearer.recv(left))
    return time.perf_counter() - began


@sizes("rounds", 250, 10_000)
@pytest.mark.parametrize("way", ["forward", "socks"])
@pytest.mark.parametrize("segments", [(100,), (5, 49, 17, 30, 8)], ids=["one segment", "five segments"])
def test_small_messages_wait_for_no_timer(way: str, segments: tuple[int, ...], rounds: int) -> None:
    """R25: of the round trips, next to none takes a step of 40 or 200 ms."""
    routes = [("127.0.0.0/8", "direct"), ("localhost", "direct")]
    with Subject(routes=routes, listeners=[("socks", "socks", "127.0.0.1", None)]) as subject:
        pair = subject.pair() if way == "forward" else through_socks(subject)
        took = [exchange(*pair, segments) for _ in range(rounds)]
        pair[1].close()
    steps = sum(each >= STEP_S for each in took)
    # A busy machine lets a process wait now and then, a timer all the time.
    assert steps <= rounds // 10, statistics.quantiles(took, n=20)


@sizes("rounds", 150, 2000)
def test_small_messages_between_large_ones_wait_for_no_timer(rounds: int) -> None:
    """R25: the last of a large one is spliced, and the kernel is not told that more comes."""
    with Subject() as subject:
        near, far = subject.pair()
        took = [
            send_and_hear(near, far, 300_000) if number % 3 == 0 else exchange(near, far, (100,))
            for number in range(rounds)
        ]
    assert sum(each >= STEP_S for each in took) <= rounds // 10, statistics.quantiles(took, n=20)


def send_and_hear(near: socket.socket, far: socket.socket, size: int) -> float:
    """Seconds until the last byte of a large message is there."""
    began = time.perf_counter()
    near.setblocking(False)
    view = memoryview(bytes(size))
    said = heard = 0
    while heard < size:
        with contextlib.suppress(BlockingIOError):
            said += near.send(view[said : said + 65_536])
        if said > heard:
            heard += len(far.recv(65_536))
    near.settimeout(20)
    return time.perf_counter() - began
