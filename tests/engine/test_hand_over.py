"""`to socketbox`: the client's very socket arrives at another's door, nothing of it lost or left here."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.rig import PATIENCE_S, read_all, read_until_reset
from tests.engine.test_receiver import Box
from tests.engine.test_relay import LOOPBACK, World, endpoint, exactly, socks5, world
from urelay.engine.record import End
from urelay.policy.model import ListenerKind, Outcome, Unix
from urelay.protocols.fd_passing import DESCRIPTOR_SIZE, HAND_OVER, descriptors

__all__ = ["world"]

Make = Callable[..., World]


def box_at(path: Path) -> socket.socket:
    box = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    box.settimeout(PATIENCE_S)
    box.bind(str(path))
    return box


def received(box: socket.socket) -> socket.socket:
    """The connection that was handed over; it came as socketbox would have sent it."""
    data, ancillary, flags, _ = box.recvmsg(16, socket.CMSG_SPACE(4 * DESCRIPTOR_SIZE))
    (descriptor,) = descriptors(ancillary)
    assert (data, flags & socket.MSG_CTRUNC) == (HAND_OVER, 0)
    assert os.get_blocking(descriptor)
    return socket.socket(fileno=descriptor)


def fill(sender: socket.socket) -> int:
    """How many datagrams a non-blocking sender could send."""
    for sent in itertools.count():
        try:
            sender.send(b"x")
        except BlockingIOError:
            return sent
    raise AssertionError


def to(path: object) -> Unix:
    return Unix(str(path), Outcome.SOCKETBOX)


def test_a_client_goes_on_with_its_next_owner(world: Make, tmp_path: Path) -> None:
    here = world(("127.0.0.0/8", to(f"{tmp_path}/{{port}}-{{listener}}.box")))
    address = here.listen(ListenerKind.TRANSPARENT)
    with box_at(tmp_path / f"{address[1]}-transparent.box") as box:
        client = here.connect(address)
        client.sendall(b"question")
        with received(box) as inner:
            assert inner.getpeername() == client.getsockname()
            assert inner.getsockname() == client.getpeername()
            record = here.record()
            assert here.thread.call(lambda: len(here.relay.poller)) == 1
            assert exactly(inner, 8) == b"question"
            inner.sendall(b"answer")
        assert read_all(client) == b"answer"
    assert (record.outcome, record.end, record.error) == (Outcome.SOCKETBOX, End.EOF, None)
    assert record.dialed == f"{tmp_path}/{address[1]}-transparent.box"
    assert record.source == "{}:{}".format(*client.getsockname())


def test_a_socks_client_has_its_answer_first(world: Make, tmp_path: Path) -> None:
    here = world(("127.0.0.0/8", to(tmp_path / "box")))
    with box_at(tmp_path / "box") as box:
        client = here.connect(here.listen(ListenerKind.SOCKS))
        client.sendall(b"\5\1\0" + socks5(LOOPBACK, 80))
        with received(box) as inner:
            inner.sendall(b"hello")
            assert exactly(client, 17) == b"\5\0" + b"\5\0\0\1" + bytes(6) + b"hello"
            client.sendall(b"more")
            assert exactly(inner, 4) == b"more"
        assert here.thread.call(lambda: len(here.relay.poller)) == 1
    assert here.record().end is End.EOF


@pytest.mark.parametrize(
    ("make", "code", "error"),
    [("nothing", 4, "no such file"), ("a stream", 1, "wrong type"), ("stale", 5, "connection refused")],
)
def test_nobody_receives(world: Make, tmp_path: Path, make: str, code: int, error: str) -> None:
    path = tmp_path / "box"
    if make != "nothing":
        kind = socket.SOCK_STREAM if make == "a stream" else socket.SOCK_DGRAM
        other = socket.socket(socket.AF_UNIX, kind)
        other.bind(str(path))
        if make == "a stream":
            other.listen()
        else:
            other.close()
    here = world(("127.0.0.0/8", to(path)))
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0" + socks5(LOOPBACK, 80))
    assert read_all(client)[2:4] == bytes((5, code))
    assert error in (here.record().error or "")
    assert here.is_reset(here.listen(ListenerKind.TRANSPARENT))
    if make == "a stream":
        other.close()


def test_a_full_queue_is_no_place_to_wait(world: Make, tmp_path: Path) -> None:
    here = world(("127.0.0.0/8", to(tmp_path / "box")))
    address = here.listen(ListenerKind.TRANSPARENT)
    with box_at(tmp_path / "box") as box, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
        filler.connect(str(tmp_path / "box"))
        filler.setblocking(False)
        queued = fill(filler)
        assert here.is_reset(address)
        assert "too many connections wait there" in (here.record().error or "")
        for _ in range(queued):
            box.recv(1)
        client = here.connect(address)
        received(box).close()
        assert read_all(client) == b""


def test_who_sent_more_than_its_request_stays_and_is_told(world: Make, tmp_path: Path) -> None:
    here = world(("127.0.0.0/8", to(tmp_path / "box")))
    with box_at(tmp_path / "box"):
        client = here.connect(here.listen(ListenerKind.SOCKS))
        client.sendall(b"\5\1\0" + socks5(LOOPBACK, 80) + b"early")
        assert read_all(client)[2:4] == b"\5\1"
    assert "more than its request" in (here.record().error or "")


def test_from_one_relay_s_box_to_another_s(world: Make, tmp_path: Path) -> None:
    inner = world()
    server = inner.server()
    Box(inner, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    outer = world(("127.0.0.0/8", to(tmp_path / "box")))
    client = outer.connect(outer.listen(ListenerKind.TRANSPARENT))
    other = inner.accepted(server)
    other.sendall(b"hello")
    other.close()
    assert read_all(client) == b"hello"
    client.close()
    assert (outer.record().end, inner.record().end) == (End.EOF, End.EOF)
    assert inner.record().bytes_down == 5


def test_a_box_of_our_own_is_no_way_out(world: Make, tmp_path: Path) -> None:
    """Under whatever path: what is handed over would come in again, and be handed over again."""
    (tmp_path / "link").symlink_to(tmp_path / "box")
    here = world(("127.0.0.0/8", to(tmp_path / "link")))
    Box(here, tmp_path / "box", ListenerKind.TRANSPARENT)
    assert here.is_reset(here.listen(ListenerKind.TRANSPARENT))
    assert here.record().error == f"{tmp_path}/link is our own listener `box`"
    assert here.stats().accepted == 1


def test_a_socket_that_its_sender_keeps_is_forgotten_here(world: Make, tmp_path: Path) -> None:
    """The kernel reports a watched socket until its last descriptor is closed, which is not ours."""
    here = world(("127.0.0.0/8", Unix(str(tmp_path / "nowhere"))))
    box = Box(here, tmp_path / "box", ListenerKind.SOCKS)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = here.connect(listening.getsockname())
        kept, _ = listening.accept()
    with kept:
        box.hand(kept.fileno())
        client.sendall(b"\1")
        assert here.record().end is End.ERROR
        wakeups = here.stats().wakeups
        for _ in range(20):
            client.sendall(b"x")
            assert kept.recv(1) == b"x"
        assert here.stats().wakeups - wakeups < 10
    assert read_until_reset(client) == b""
