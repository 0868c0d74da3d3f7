"""A process that runs out of descriptors for real: who is connected goes on, who waits is served later."""

from __future__ import annotations

import contextlib
import select
import socket
import subprocess
import sys
import time

from tests.engine.rig import PATIENCE_S


def test_a_process_without_descriptors_hurts_nobody_connected_and_recovers() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
        server.settimeout(PATIENCE_S)
        command = [sys.executable, "-m", "tests.engine.tiny_relay", str(server.getsockname()[1]), "60"]
        relay = stack.enter_context(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        assert relay.stdout is not None
        assert relay.stdin is not None
        assert relay.stderr is not None
        stack.callback(relay.kill)
        address = ("127.0.0.1", int(relay.stdout.readline()))
        live = stack.enter_context(socket.create_connection(address, PATIENCE_S))
        far, _ = server.accept()
        stack.enter_context(far)
        crowd = contextlib.ExitStack()
        for _ in range(200):
            crowd.enter_context(socket.create_connection(address, PATIENCE_S))
        slowest = 0.0
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            started = time.monotonic()
            live.sendall(b"ping")
            assert far.recv(4) == b"ping"
            slowest = max(slowest, time.monotonic() - started)
            # The server plays along, so that the relay's connections are real ones.
            while select.select([server], [], [], 0)[0]:
                crowd.enter_context(server.accept()[0])
            select.select([], [], [], 0.01)
        assert slowest < 0.5
        crowd.close()
        _newcomer_is_served(address, server)
        relay.stdin.close()
        cpu_s, pauses = relay.stdout.readline().split()
        complaints = relay.stderr.read().splitlines()
        assert relay.wait(PATIENCE_S) == 0
        assert int(pauses) >= 2
        assert float(cpu_s) < 2
        assert 1 <= len(complaints) <= 4
        assert all("accepting pauses: too many open files" in line for line in complaints)


def _newcomer_is_served(address: tuple[str, int], server: socket.socket) -> None:
    """One of those who come now: others of the crowd, gone already, may be accepted before it."""
    with socket.create_connection(address, PATIENCE_S) as client:
        client.sendall(b"me")
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            other, _ = server.accept()
            with other, contextlib.suppress(ConnectionResetError):
                other.settimeout(PATIENCE_S)
                if other.recv(2) == b"me":
                    return
    raise AssertionError("the relay never recovered")
