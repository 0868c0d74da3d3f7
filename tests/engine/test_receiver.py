"""Handed-over clients: what each sender puts round a descriptor is served, and nothing handed in leaks."""

from __future__ import annotations

import array
import contextlib
import os
import resource
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import strategies as by_hand
from tests.e2e.rig import until
from tests.engine.rig import read_all
from tests.engine.test_relay import LOOPBACK, World, endpoint, exactly, socks5, world
from urelay.engine.record import End
from urelay.net.address import Endpoint, parse_endpoint
from urelay.policy.model import (
    AcceptProxy,
    Action,
    Direct,
    ListenerKind,
    Place,
    PlaceKind,
    PortRange,
    Rewrite,
    TableChoice,
    ToPrefix,
)
from urelay.protocols.proxy_header import header_v2

__all__ = ["world"]

Make = Callable[..., World]
CLIENT = parse_endpoint("192.0.2.7:51000")


class Box:
    """A relay's socketbox, and those who hand over to it."""

    def __init__(self, here: World, path: Path, kind: ListenerKind, **settings: object) -> None:
        self.here = here
        self.path = str(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(self.path)
        to = settings.pop("to", None)
        assert to is None or isinstance(to, Endpoint)
        listener = by_hand.listener("box", TableChoice("main"), kind=kind, **settings)
        place = Place(PlaceKind.SOCKETBOX, text=self.path)
        here.thread.call(lambda: here.relay.add_listener(replace(listener, place=place, to=to), sock))

    def hand(self, *descriptors: int, message: bytes = b"\0") -> None:
        """Send it these descriptors, and let go of them."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            # Not send_fds: it forgets the address (CPython 3.11).
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            sender.sendmsg([message], [rights], 0, self.path)


@contextlib.contextmanager
def accepted_elsewhere(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, socket.socket]]:
    """A TCP connection that somebody else accepted: the client's end, and the one to hand over."""
    with socket.create_server((host, 0)) as listening:
        client = socket.create_connection(listening.getsockname(), 20)
        inner, _ = listening.accept()
    with client, inner:
        yield client, inner


@pytest.mark.parametrize(
    "message", [b"\0", b"\0\0", b"\3\0\0\0", b"x" * 128], ids=["A", "haproxy", "P", "any"]
)
def test_a_client_is_served_whoever_handed_it_over(world: Make, tmp_path: Path, message: bytes) -> None:
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    with accepted_elsewhere() as (client, inner):
        own = "{}:{}".format(*client.getsockname())
        box.hand(inner.fileno(), message=message)
        inner.close()
        other = here.accepted(server)
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert read_all(other) == b"question"
        other.sendall(b"answer")
        other.close()
        assert read_all(client) == b"answer"
    record = here.record()
    assert (record.listener, record.source, record.end) == ("box", own, End.EOF)


def test_a_transparent_client_goes_where_its_socket_says(world: Make, tmp_path: Path) -> None:
    """It connected to 127.0.0.1, where only the port of the server is rewritten to."""
    with socket.create_server(("127.0.0.2", 0)) as target:
        port = target.getsockname()[1]
        onto = Action(Direct(), Rewrite(ToPrefix(by_hand.prefix("127.0.0.2")), PortRange(port, port)))
        here = world(("127.0.0.1", onto))
        box = Box(here, tmp_path / "box", ListenerKind.TRANSPARENT)
        with accepted_elsewhere() as (client, inner):
            asked = "{}:{}".format(*inner.getsockname())
            box.hand(inner.fileno())
            inner.close()
            other = here.accepted(target)
            other.sendall(b"here")
            other.close()
            assert read_all(client) == b"here"
    record = here.record()
    assert f"{record.destination}:{record.port}" == asked
    assert record.dialed == f"127.0.0.2:{port}"


def test_an_ipv4_client_of_an_ipv6_socket_is_an_ipv4_client(world: Make, tmp_path: Path) -> None:
    """socketbox accepts on IPv6 sockets only."""
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listening:
        client = socket.create_connection(("127.0.0.1", listening.getsockname()[1]), 20)
        inner, _ = listening.accept()
    with client, inner:
        box.hand(inner.fileno())
        inner.close()
        here.accepted(server).close()
        assert read_all(client) == b""
    assert (here.record().source or "").startswith("127.0.0.1:")


def test_a_socks_client_is_handed_over_before_it_spoke(world: Make, tmp_path: Path) -> None:
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.SOCKS)
    with accepted_elsewhere() as (client, inner):
        box.hand(inner.fileno())
        inner.close()
        client.sendall(b"\5\1\0" + socks5(LOOPBACK, endpoint(server).port))
        assert exactly(client, 4) == b"\5\0\5\0"
        here.accepted(server).close()


def test_a_unix_end_needs_to_be_told_where(world: Make, tmp_path: Path) -> None:
    """HAProxy hands over one end of a socketpair, which has no address."""
    here = world()
    server = here.server()
    transparent = Box(here, tmp_path / "transparent", ListenerKind.TRANSPARENT)
    announced = Box(
        here, tmp_path / "announced", ListenerKind.TRANSPARENT, **{"accept-proxy": AcceptProxy(())}
    )
    for box, number in ((transparent, 1), (announced, 2)):
        client, inner = socket.socketpair()
        client.settimeout(20)
        with client, inner:
            box.hand(inner.fileno(), message=b"\0\0")
            inner.close()
            with contextlib.suppress(BrokenPipeError):
                client.sendall(header_v2(CLIENT, endpoint(server)) + b"early")
            if number == 2:
                other = here.accepted(server)
                assert exactly(other, 5) == b"early"
                other.sendall(b"answer")
                other.close()
                assert read_all(client) == b"answer"
        record = here.record(number)
        if number == 1:
            assert (record.end, record.error) == (End.ERROR, "its socket does not tell where it wants to go")
            assert record.source is None
        else:
            assert (record.source, record.destination, record.end) == (str(CLIENT), "127.0.0.1", End.EOF)


def test_a_tcp_client_is_not_believed_because_of_the_file_it_came_by(world: Make, tmp_path: Path) -> None:
    """`accept-proxy` alone speaks of senders without an address: this one has one, of its own choice."""
    here = world()
    box = Box(here, tmp_path / "box", ListenerKind.TRANSPARENT, **{"accept-proxy": AcceptProxy(())})
    with accepted_elsewhere() as (client, inner):
        box.hand(inner.fileno())
        inner.close()
        assert read_all_or_reset(client) == b""
    assert "not believed" in (here.record().error or "")


def read_all_or_reset(sock: socket.socket) -> bytes:
    try:
        return read_all(sock)
    except ConnectionResetError:
        return b""


# --- what is handed in and is no client


def a_file() -> int:
    return os.open(os.devnull, os.O_RDONLY)


def a_datagram_socket() -> int:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()


def a_seqpacket_end() -> int:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    right.close()
    return left.detach()


def a_listening_socket() -> int:
    return socket.create_server(("127.0.0.1", 0)).detach()


def an_unconnected_socket() -> int:
    return socket.socket(socket.AF_INET6, socket.SOCK_STREAM).detach()


def an_unconnected_unix_socket() -> int:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()


WRONG = [
    a_file, a_datagram_socket, a_seqpacket_end, a_listening_socket, an_unconnected_socket,
    an_unconnected_unix_socket,
]  # fmt: skip


@pytest.mark.parametrize("make", WRONG)
def test_what_is_no_client_is_closed_and_the_next_is_served(
    world: Make, tmp_path: Path, make: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    descriptor = make()
    identity = os.fstat(descriptor)
    box.hand(descriptor)
    os.close(descriptor)
    with accepted_elsewhere() as (client, inner):
        box.hand(inner.fileno())
        inner.close()
        here.accepted(server).close()
        assert read_all(client) == b""
    assert here.record().end is End.EOF
    assert here.stats().accepted == 1
    assert "was handed what it cannot serve" in caplog.text
    if stat.S_ISSOCK(identity.st_mode):
        assert identity.st_ino not in open_inodes()


def open_inodes() -> set[int]:
    inodes = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            inodes.add(os.stat(f"/proc/self/fd/{name}").st_ino)
    return inodes


def test_of_several_descriptors_the_first_is_the_client(
    world: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    left, right = socket.socketpair()
    right.settimeout(20)
    with left, right, accepted_elsewhere() as (client, inner):
        box.hand(inner.fileno(), *[left.fileno()] * 252)
        inner.close()
        left.close()
        # Every copy is closed: its other end sees the end.
        assert right.recv(1) == b""
        here.accepted(server).close()
        assert read_all(client) == b""
    assert "253 descriptors" in caplog.text


def test_messages_without_descriptors_are_nothing_and_said_once_a_second(
    world: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        for size in (0, 1, 128, 5000):
            sender.sendto(b"x" * size, box.path)
    with accepted_elsewhere() as (client, inner):
        box.hand(inner.fileno())
        inner.close()
        here.accepted(server).close()
        assert read_all(client) == b""
    assert here.record().end is End.EOF
    assert here.stats().accepted == 1
    said = [line for line in caplog.messages if "without a descriptor" in line]
    assert 1 <= len(said) <= 3


def test_a_client_that_left_meanwhile_costs_nothing(world: Make, tmp_path: Path) -> None:
    here = world()
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    with accepted_elsewhere() as (client, inner):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        until(lambda: inner.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0, "the reset arrives")
        box.hand(inner.fileno())
    with accepted_elsewhere() as (client, inner):
        box.hand(inner.fileno())
        inner.close()
        here.accepted(server).close()
        assert read_all(client) == b""


def test_out_of_descriptors_it_pauses_and_goes_on(world: Make, tmp_path: Path) -> None:
    """The kernel closes what does not fit (MSG_CTRUNC); the queue behind it waits for better times."""
    here = world(accept_pause_s=0.05)
    server = here.server()
    box = Box(here, tmp_path / "box", ListenerKind.FORWARD, to=endpoint(server))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        (lost, lost_inner), (kept, kept_inner) = (stack.enter_context(accepted_elsewhere()) for _ in range(2))
        sender = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        filler = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    filler.append(os.dup(0))
            sender.connect(box.path)
            socket.send_fds(sender, [b"\0"], [lost_inner.fileno()])
            lost_inner.close()
            filler.append(os.dup(0))
            assert read_all_or_reset(lost) == b""
        finally:
            for descriptor in filler:
                os.close(descriptor)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        box.hand(kept_inner.fileno())
        kept_inner.close()
        here.accepted(server).close()
        assert read_all(kept) == b""
    assert here.stats().accept_pauses >= 1
