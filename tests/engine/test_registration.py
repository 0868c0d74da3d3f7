"""Registered for a slot ("P"): clients come from whoever keeps the list, which is asked again."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import strategies as by_hand
from tests.engine.rig import PATIENCE_S, read_all
from tests.engine.test_receiver import accepted_elsewhere
from tests.engine.test_relay import World, endpoint, world
from urelay.engine import registration
from urelay.engine.record import End
from urelay.engine.registration import apply_for
from urelay.policy.model import ListenerKind, Place, PlaceKind, TableChoice

__all__ = ["world"]

Make = Callable[..., World]

ASKED = bytes.fromhex("01 00 00 00 00 00 00 07")
GRANTED = bytes.fromhex("80 00 00 00")
DELIVERY = bytes.fromhex("03 00 00 00")


class Sender:
    """python-socketbox's side: somebody who keeps a list of those who want clients."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE_S)
        self.sock.bind(str(path))
        self.sock.listen()

    def asked(self) -> socket.socket:
        """Whoever connects next and asks for slot 7."""
        one, _ = self.sock.accept()
        one.settimeout(PATIENCE_S)
        assert one.recv(100) == ASKED
        return one


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again in a moment, not in a second."""
    monkeypatch.setattr(registration, "_AGAIN_S", 0.02)


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    made = Sender(tmp_path / "slots")
    with made.sock:
        yield made


def listen(here: World, path: Path) -> socket.socket:
    """A listener of `here` that forwards to the server returned, registered for slot 7."""
    server = here.server()
    sock = apply_for(str(path), 7)
    listener = by_hand.listener("box", TableChoice("main"), kind=ListenerKind.FORWARD)
    place = Place(PlaceKind.SOCKETBOX, text=str(path), slot=7)
    listener = replace(listener, place=place, to=endpoint(server))
    here.thread.call(lambda: here.relay.add_listener(listener, sock))
    return server


def is_served(here: World, one: socket.socket, server: socket.socket) -> bool:
    with accepted_elsewhere() as (client, inner):
        socket.send_fds(one, [DELIVERY], [inner.fileno()])
        inner.close()
        other = here.accepted(server)
        other.sendall(b"answer")
        other.close()
        return read_all(client) == b"answer"


def test_clients_of_a_slot_are_served(
    world: Make, tmp_path: Path, sender: Sender, caplog: pytest.LogCaptureFixture
) -> None:
    here = world()
    server = listen(here, tmp_path / "slots")
    with sender.asked() as one:
        one.send(GRANTED)
        for number in (1, 2, 3):
            assert is_served(here, one, server)
            assert here.record(number).end is End.EOF
        assert here.stats().accepted == 3
        assert caplog.messages == []


@pytest.mark.parametrize("refusal", [b"", b"\x81\0\0\0", GRANTED + b"\0", b"x" * 5000])
def test_a_list_that_is_lost_is_asked_again(
    world: Make, tmp_path: Path, sender: Sender, caplog: pytest.LogCaptureFixture, refusal: bytes
) -> None:
    """The descriptor keeps its number, so whoever else holds it holds the new connection."""
    here = world()
    server = listen(here, tmp_path / "slots")
    with sender.asked() as one:
        one.send(GRANTED)
        assert is_served(here, one, server)
        if refusal:
            one.send(refusal)
            assert one.recv(1) == b""
    with sender.asked() as one:
        one.send(GRANTED)
        assert is_served(here, one, server)
    said = [line for line in caplog.messages if "slot 7" in line]
    assert "lost slot 7" in said[0]
    assert said[1] == "listener `box` is registered for slot 7 again"


def test_a_sender_that_is_gone_is_asked_once_it_is_back(
    world: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world()
    first = Sender(tmp_path / "slots")
    server = listen(here, tmp_path / "slots")
    one = first.asked()
    first.sock.close()
    one.close()
    second = Sender(tmp_path / "slots")
    with second.sock, second.asked() as one:
        one.send(GRANTED)
        assert is_served(here, one, server)
        here.thread.call(lambda: here.relay.remove_listener("box"))
        assert one.recv(1) == b""
    assert len([line for line in caplog.messages if "lost slot 7" in line]) == 1


def test_a_listener_that_goes_meanwhile_asks_no_more(world: Make, tmp_path: Path) -> None:
    here = world()
    before = len(os.listdir("/proc/self/fd"))
    sender = Sender(tmp_path / "slots")
    listen(here, tmp_path / "slots")
    sender.asked().close()
    sender.sock.close()
    here.thread.call(lambda: here.relay.remove_listener("box"))
    # The listener's server is still there.
    assert len(os.listdir("/proc/self/fd")) == before + 1
