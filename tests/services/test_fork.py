"""A child does its one thing, deaf to what its parent hears, and its parent hears of nothing but its end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable

import pytest

from urelay.services.fork import fork

DEAF_TO = (signal.SIGUSR1, signal.SIGTERM)


def status_of(life: Callable[[], None]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(fork(life, DEAF_TO), 0)[1])


def test_a_child_ends_with_its_life_and_says_whether_it_failed(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ValueError("no such luck")

    assert status_of(lambda: None) == 0
    assert status_of(fail) == 1
    assert not caplog.records, "that was said in the child"


def test_nothing_that_was_to_come_happens_in_the_child() -> None:
    reading, writing = os.pipe()
    try:
        pid = fork(lambda: None, DEAF_TO)
        os.waitpid(pid, 0)
    finally:
        os.write(writing, b"once ")
        os.close(writing)
    with open(reading) as pipe:
        assert pipe.read() == "once "


def test_a_child_ignores_the_signals_and_its_parent_hears_none_of_them() -> None:
    ours, theirs = socket.socketpair()
    heard, wake = socket.socketpair()
    with ours, theirs, heard, wake:
        wake.setblocking(False)
        heard.setblocking(False)

        def live() -> None:
            theirs.sendall(b"listening")
            assert theirs.recv(9) == b"that's it"

        before = {number: signal.signal(number, lambda *_: None) for number in DEAF_TO}
        signal.set_wakeup_fd(wake.fileno())
        try:
            pid = fork(live, DEAF_TO)
            ours.recv(9, socket.MSG_WAITALL)
            for number in DEAF_TO:
                os.kill(pid, number)
            ours.sendall(b"that's it")
            assert os.waitpid(pid, 0)[1] == 0, "it was killed by a signal"
            with pytest.raises(BlockingIOError):
                heard.recv(1)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert heard.recv(1) == bytes([signal.SIGUSR1]), "the parent hears its own"
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
