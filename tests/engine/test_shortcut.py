"""One proxy, or a unix socket, is reached without a task: every byte, every failure, nothing left."""

# ruff: noqa: F811

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests import strategies as by_hand
from tests.engine.rig import MIB, PATIENCE_S, in_thread, pattern, read_all, reset
from tests.engine.test_connect import refusing
from tests.engine.test_relay import World, endpoint, exactly, socks5, world  # noqa: F401
from urelay.engine.connect import Timeouts
from urelay.engine.dial import Dialer
from urelay.engine.logins import Credentials
from urelay.engine.record import End
from urelay.engine.resolve import Resolver
from urelay.net.address import Endpoint
from urelay.policy.model import ListenerKind, Unix, UpstreamKind, Via
from urelay.table.compile import compile_policy

Make = Callable[..., World]
TARGET = Endpoint(bytes((192, 0, 2, 9)), 443)
REQUEST = socks5(TARGET.host, TARGET.port)  # type: ignore[arg-type]
GRANTED = b"\5\0\0\1\x7f\0\0\1\x12\x34"


def through(
    here: World,
    gate: Endpoint | str,
    kind: UpstreamKind = UpstreamKind.SOCKS5,
    login: Credentials | None = None,
    **options: object,
) -> None:
    """Everything goes through the proxy at `gate` from now on, which the test plays."""
    if isinstance(gate, str):
        corp = replace(by_hand.upstream("corp", kind, unix=gate, **options), endpoint=None)
    else:
        corp = replace(by_hand.upstream("corp", kind, **options), endpoint=gate)
    policy = by_hand.policy([by_hand.route(by_hand.region("any"), Via("corp"))], upstreams=[corp])
    dialer = Dialer(Resolver(), {} if login is None else {"corp": login}, Timeouts())
    here.thread.call(lambda: here.relay.replace(compile_policy(policy), dialer))


@contextlib.contextmanager
def at_path(path: Path, backlog: int = 16) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        server.settimeout(PATIENCE_S)
        yield server


def accepted(server: socket.socket) -> socket.socket:
    other, _ = server.accept()
    other.settimeout(PATIENCE_S)
    return other


def turn(here: World) -> None:
    """Let the relay see what has come so far."""
    before = here.stats().wakeups
    for _ in range(50):
        if here.stats().wakeups > before:
            break


def test_no_task_is_made_for_one_proxy(world: Make) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate))
    here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
    other = here.accepted(gate)
    assert exactly(other, 3) == b"\5\1\0"
    stats = here.stats()
    assert (stats.active, stats.dialing) == (1, 0)
    other.close()


@pytest.mark.parametrize("cut", [*range(len(GRANTED) + 1), -1])
def test_an_answer_may_come_in_any_pieces_and_what_follows_is_the_servers(world: Make, cut: int) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate))
    banner = b"220 ready\r\n" + pattern(9000)
    client = here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
    client.sendall(b"HELO")
    other = here.accepted(gate)
    assert exactly(other, 3) == b"\5\1\0"
    if cut < 0:
        other.sendall(b"\5")
        turn(here)
        other.sendall(b"\0")
    else:
        other.sendall(b"\5\0")
    assert exactly(other, len(REQUEST)) == REQUEST
    other.sendall(GRANTED[:cut])
    turn(here)
    other.sendall(GRANTED[cut:] + banner)
    assert exactly(client, len(banner)) == banner
    assert exactly(other, 4) == b"HELO"
    other.close()
    assert read_all(client) == b""
    client.close()
    record = here.record()
    assert (record.end, record.upstream, record.dialed) == (End.EOF, "corp", str(endpoint(gate)))
    assert record.tries == (str(endpoint(gate)), f"corp to {TARGET}")
    assert (record.bytes_up, record.bytes_down) == (4, len(banner))


def test_a_megabyte_behind_the_answer_is_kept(world: Make) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate))
    client = here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
    other = here.accepted(gate)
    assert exactly(other, 3) == b"\5\1\0"
    other.sendall(b"\5\0")
    exactly(other, len(REQUEST))
    sending = in_thread(lambda: (other.sendall(GRANTED + pattern(MIB)), other.shutdown(socket.SHUT_WR)))
    assert read_all(client) == pattern(MIB)
    sending.join()
    client.close()
    assert here.record().end is End.EOF
    other.close()


def test_a_login_is_sent_and_kept_to_ourselves(world: Make) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate), login=Credentials(b"ann", b"secret"))
    here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
    other = here.accepted(gate)
    assert exactly(other, 4) == b"\5\2\0\2"
    other.sendall(b"\5\2")
    assert exactly(other, 12) == b"\1\3ann\6secret"
    other.sendall(b"\1\1")
    other.close()
    assert here.record().end is End.ERROR
    assert "secret" not in repr(here.records)


@pytest.mark.parametrize(
    ("code", "end", "reply"),
    [(1, End.ERROR, 1), (2, End.DENIED, 2), (3, End.REFUSED, 3), (4, End.REFUSED, 4), (5, End.REFUSED, 5)],
)
def test_a_refusal_is_told_in_the_clients_terms(world: Make, code: int, end: End, reply: int) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate))
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0" + REQUEST)
    other = here.accepted(gate)
    exactly(other, 3)
    other.sendall(b"\5\0")
    exactly(other, len(REQUEST))
    other.sendall(bytes((5, code, 0, 1)) + bytes(6))
    assert read_all(client)[2:4] == bytes((5, reply))
    assert read_all(other) == b""
    assert (here.record().end, here.record().dialed) == (end, None)


@pytest.mark.parametrize("said", [b"", b"\5", b"HTTP/1.1 400 No\r\n\r\n", b"\5\xff"])
def test_a_proxy_that_speaks_nonsense_or_leaves_is_a_clean_failure(world: Make, said: bytes) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate))
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0" + REQUEST)
    other = here.accepted(gate)
    exactly(other, 3)
    other.sendall(said)
    other.shutdown(socket.SHUT_WR)
    assert read_all(client)[2:4] == b"\5\1"
    assert here.record().end is End.ERROR
    other.close()


def test_a_client_that_leaves_frees_the_proxy(world: Make) -> None:
    here = world()
    gate = here.server()
    through(here, endpoint(gate))
    client = here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
    other = here.accepted(gate)
    exactly(other, 3)
    reset(client)
    assert other.recv(1) == b""
    assert here.record().end is End.RESET
    other.close()


def test_a_proxy_that_says_nothing_has_the_time_of_a_dial(world: Make) -> None:
    here = world()
    gate = here.server()
    corp = replace(by_hand.upstream("corp"), endpoint=endpoint(gate))
    policy = by_hand.policy([by_hand.route(by_hand.region("any"), Via("corp"))], upstreams=[corp])
    dialer = Dialer(Resolver(), {}, Timeouts(total_s=0.3))
    here.thread.call(lambda: here.relay.replace(compile_policy(policy), dialer))
    address = here.listen(ListenerKind.SOCKS)
    client = here.connect(address)
    client.sendall(b"\5\1\0" + REQUEST)
    other = here.accepted(gate)
    began = time.monotonic()
    assert read_all(client)[2:4] == b"\5\4"
    # Neither the time to connect nor that of a handshake, which are 10 s each.
    assert time.monotonic() - began < 8
    assert here.record().end is End.TIMEOUT
    assert "upstream `corp`" in (here.record().error or "")
    other.close()


def test_nobody_at_the_proxys_address_is_told_with_its_name(world: Make) -> None:
    here = world()
    with refusing() as gate:
        through(here, gate)
        client = here.connect(here.listen(ListenerKind.SOCKS))
        client.sendall(b"\5\1\0" + REQUEST)
        read_all(client)
        record = here.record()
    assert record.error == f"upstream `corp`: {gate}: connection refused"
    assert (record.tries, record.dialed) == ((str(gate),), None)


def test_a_proxy_on_a_unix_socket(world: Make, tmp_path: Path) -> None:
    here = world()
    with at_path(tmp_path / "proxy.sock") as gate:
        through(here, str(tmp_path / "proxy.sock"), UpstreamKind.SOCKS4)
        client = here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
        with accepted(gate) as other:
            assert exactly(other, 9) == b"\4\1\1\xbb\xc0\0\2\x09\0"
            other.sendall(b"\0\x5a" + bytes(6) + b"first")
            assert exactly(client, 5) == b"first"
        assert read_all(client) == b""
        client.close()
        assert here.record().dialed == str(tmp_path / "proxy.sock")


def to_unix(here: World, path: Path) -> None:
    policy = by_hand.policy([by_hand.route(by_hand.region("any"), Unix(str(path)))])
    here.thread.call(lambda: here.relay.replace(compile_policy(policy), here.relay.rules.dialer))


def test_a_unix_socket_is_reached_without_a_task(world: Make, tmp_path: Path) -> None:
    here = world()
    with at_path(tmp_path / "web.sock") as server:
        to_unix(here, tmp_path / "web.sock")
        client = here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        with accepted(server) as other:
            assert read_all(other) == b"hello"
        assert read_all(client) == b""
        assert here.record().dialed == str(tmp_path / "web.sock")


def test_a_unix_socket_whose_backlog_is_full_is_waited_for(world: Make, tmp_path: Path) -> None:
    here = world()
    with at_path(tmp_path / "busy.sock", backlog=0) as server, contextlib.ExitStack() as waiting:
        before_us = 0
        while True:
            one = waiting.enter_context(socket.socket(socket.AF_UNIX))
            one.setblocking(False)
            try:
                one.connect(str(tmp_path / "busy.sock"))
            except BlockingIOError:
                break
            before_us += 1
        to_unix(here, tmp_path / "busy.sock")
        client = here.connect(here.listen(ListenerKind.FORWARD, to=TARGET))
        client.sendall(b"patient")
        client.shutdown(socket.SHUT_WR)
        for _ in range(before_us):
            accepted(server).close()
        with accepted(server) as other:
            assert read_all(other) == b"patient"
        assert read_all(client) == b""


def test_a_unix_socket_that_is_not_there_is_an_unreachable_host(world: Make, tmp_path: Path) -> None:
    here = world()
    to_unix(here, tmp_path / "nothing.sock")
    client = here.connect(here.listen(ListenerKind.SOCKS))
    client.sendall(b"\5\1\0" + REQUEST)
    assert read_all(client)[2:4] == b"\5\4"
    assert here.record().error == f"{tmp_path}/nothing.sock: no such file or directory"
