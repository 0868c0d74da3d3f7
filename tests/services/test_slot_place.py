"""A relay says that it serves when its slot is its own, and says otherwise why not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from urelay.errors import StartError
from urelay.protocols.fd_passing import GRANTED
from urelay.services import slot_place
from urelay.services.slot_place import register_at


def answering(path: Path, answer: Callable[[socket.socket], object]) -> threading.Thread:
    """Somebody at `path` who reads one request and answers it."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listening.bind(str(path))
    listening.listen()

    def work() -> None:
        with listening:
            one, _ = listening.accept()
            with one:
                assert one.recv(100) == bytes.fromhex("01000000ffffffff")
                answer(one)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_it_is_registered(tmp_path: Path) -> None:
    thread = answering(tmp_path / "slots", lambda one: (one.send(GRANTED), one.send(b"next")))
    with register_at(str(tmp_path / "slots"), 0xFFFFFFFF) as sock:
        thread.join()
        assert not sock.getblocking()
        assert sock.recv(100) == b"next"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda one: None, "the registration was refused: no reply"),
        (lambda one: one.send(b"\x81\0\0\0"), "the registration was refused: 81 00 00 00"),
        (lambda one: one.send(GRANTED + b"\0"), "refused: 80 00 00 00 00"),
        (lambda one: one.recv(1), "no answer in 0.05 s"),
    ],
)
def test_it_is_refused(
    tmp_path: Path, answer: Callable[[socket.socket], object], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "no answer" in why:
        monkeypatch.setattr(slot_place, "_PATIENCE_S", 0.05)
    thread = answering(tmp_path / "slots", answer)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        StartError, match=f"cannot register for slot 4294967295 at `{tmp_path}/slots`: .*{why}"
    ):
        register_at(str(tmp_path / "slots"), 0xFFFFFFFF)
    thread.join()
    assert len(os.listdir("/proc/self/fd")) < before


@pytest.mark.parametrize(("make", "why"), [("nothing", "no such file"), ("datagram", "wrong type")])
def test_nobody_is_there(tmp_path: Path, make: str, why: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        if make == "datagram":
            other.bind(str(tmp_path / "slots"))
        with pytest.raises(StartError, match=why):
            register_at(str(tmp_path / "slots"), 7)
