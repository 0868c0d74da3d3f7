"""Connections at a high rate leave nothing: no memory, no descriptor, no timer, no task."""

from __future__ import annotations

import contextlib
import socket
import time

from tests.engine.rig import PATIENCE_S, reset
from tests.integrity.sizes import sizes
from tests.integrity.subject import Subject

BATCH = 50
GROWTH_BYTES = 1 << 20
GROWTH_OBJECTS = 300


@sizes("rate, seconds", (1000, 2), (5000, 30))
def test_connections_at_a_high_rate_leave_nothing(rate: int, seconds: int) -> None:
    """A byte each way; every tenth is reset, every tenth half-closed first. What is left is nothing."""
    listeners = [("socks", "socks", "127.0.0.1", None)]
    # The clients of the warm-up are as many at a time, so they take what memory that takes.
    with Subject(forget=True, listeners=listeners) as subject:
        visit(subject, rate, max(1.0, seconds / 10))
        subject.comes_to_rest()
        memory, objects = subject.memory()
        began = time.monotonic()
        served = visit(subject, rate, seconds)
        took_s = time.monotonic() - began
        subject.comes_to_rest()
        after, objects_after = subject.memory()
    print(f"{served} connections, {served / took_s:.0f}/s: {after - memory:+d} bytes")
    assert after - memory <= GROWTH_BYTES
    assert objects_after - objects <= GROWTH_OBJECTS


def visit(subject: Subject, rate: int, seconds: float) -> int:
    """Clients at that rate, if the machine can; for that many seconds' worth of them. How many there were."""
    began = time.monotonic()
    batches = int(rate * seconds) // BATCH
    for number in range(batches):
        a_batch(subject, number)
        # Paced: the next batch is due at its own moment.
        time.sleep(max(0.0, began + number * BATCH / rate - time.monotonic()))
    return batches * BATCH


def a_batch(subject: Subject, number: int) -> None:
    """A batch of clients at once; every fourth batch asks the SOCKS listener."""
    asks = number % 4 == 3
    address = subject.address("socks" if asks else "out")
    port = subject.server.getsockname()[1]
    request = b"\5\1\0\5\1\0\1\x7f\0\0\1" + port.to_bytes(2) if asks else b""
    clients = []
    for _ in range(BATCH):
        client = socket.socket()
        client.settimeout(PATIENCE_S)
        client.connect(address)
        client.sendall(request + b"x")
        clients.append(client)
    servers = [subject.server.accept()[0] for _ in range(BATCH)]
    for server in servers:
        server.settimeout(PATIENCE_S)
        assert server.recv(1) == b"x"
        server.sendall(b"y")
    for place, client in enumerate(clients):
        received = b""
        while len(received) < (13 if asks else 1):
            received += client.recv(16)
        assert received[-1:] == b"y"
        if place % 10 == 0:
            reset(client)
        elif place % 10 == 1:
            client.shutdown(socket.SHUT_WR)
        else:
            client.close()
    for server in servers:
        with contextlib.suppress(ConnectionResetError):
            assert server.recv(1) == b""
        server.close()
    for client in clients[1::10]:
        assert client.recv(1) == b""
        client.close()
