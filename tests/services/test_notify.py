"""The service manager hears READY, RELOADING and STOPPING, on paths and on abstract sockets."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from urelay.services.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket and the NOTIFY_SOCKET that leads to it."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.bind(path if request.param == "path" else "\0" + path)
        yield sock, path if request.param == "path" else "@" + path


def test_each_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier(address)
    notifier.ready("serving 3 listeners")
    assert sock.recv(4096) == b"READY=1\nSTATUS=serving 3 listeners"
    notifier.stopping("waiting for 2 connections")
    assert sock.recv(4096) == b"STOPPING=1\nSTATUS=waiting for 2 connections"


def test_reloading_carries_the_time_systemd_253_waits_for(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    before = time.monotonic_ns() // 1000
    Notifier(address).reloading()
    first, second = sock.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    name, _, value = second.partition(b"=")
    assert name == b"MONOTONIC_USEC"
    assert before <= int(value) <= time.monotonic_ns() // 1000


def test_a_status_cannot_smuggle_in_an_assignment(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    Notifier(address).ready("x\nMAINPID=1")
    assert sock.recv(4096) == b"READY=1\nSTATUS=x MAINPID=1"


@pytest.mark.parametrize("address", [None, "", "/no/such/socket", "/" + "x" * 200, "a\0b"])
def test_no_manager_is_no_failure(address: str | None) -> None:
    Notifier(address).ready("on my own")


def test_a_manager_that_does_not_read_cannot_hold_us(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        notifier = Notifier(path)
        started = time.monotonic()
        for _ in range(2000):
            notifier.ready("again")
        assert time.monotonic() - started < 20
