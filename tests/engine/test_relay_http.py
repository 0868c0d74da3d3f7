"""HTTP CONNECT through a relay at work: answered behind the dial, exact both ways, closed after a refusal."""

# ruff: noqa: F811

from __future__ import annotations

import base64
import contextlib
import random
import socket
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests import strategies as by_hand
from tests.engine.rig import MIB, PATIENCE_S, in_thread, pattern, read_all, read_until_reset, reset
from tests.engine.test_relay import (
    LOOPBACK,
    OPEN,
    Broken,
    World,
    endpoint,
    exactly,
    socks5,
    table,
    world,  # noqa: F401
)
from urelay.engine.connect import Timeouts
from urelay.engine.dial import Dialer
from urelay.engine.logins import Credentials
from urelay.engine.record import End
from urelay.engine.resolve import Resolver
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint
from urelay.policy.model import Deny, DenyHow, Direct, ListenerKind, Outcome, Silent, UpstreamKind, Via
from urelay.protocols.users import SaltedHash, Users
from urelay.table.compile import compile_policy

Make = Callable[..., World]
GRANTED = b"HTTP/1.1 200 Connection Established\r\n\r\n"
USERS = Users({b"ann": SaltedHash.of(b"secret")})


def connect(host: str, port: int, *fields: bytes) -> bytes:
    """A request as curl makes it."""
    target = f"{host}:{port}".encode()
    lines = (b"CONNECT " + target + b" HTTP/1.1", b"Host: " + target, *fields)
    return b"\r\n".join(lines) + b"\r\n\r\n"


def login(text: bytes) -> bytes:
    return b"Proxy-Authorization: Basic " + base64.b64encode(text)


def until(condition: Callable[[], object]) -> None:
    """Wait for it, with a deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# --- through


@pytest.mark.parametrize("kind", [ListenerKind.HTTP, ListenerKind.MIXED])
def test_connect_with_everything_in_one_segment(world: Make, kind: ListenerKind) -> None:
    """Client bytes behind the head are the server's first ones; the 200 is the client's first."""
    here = world()
    server = here.server()
    client = here.connect(here.listen(kind))
    client.sendall(connect("127.0.0.1", endpoint(server).port) + b"early")
    client.shutdown(socket.SHUT_WR)
    other = here.accepted(server)
    assert read_all(other) == b"early"
    other.sendall(pattern(MIB))
    other.close()
    assert read_all(client) == GRANTED + pattern(MIB)
    assert (here.record().bytes_up, here.record().bytes_down) == (5, MIB)


def test_a_head_a_byte_at_a_time(world: Make) -> None:
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.HTTP))
    for byte in connect("127.0.0.1", endpoint(server).port):
        client.sendall(bytes((byte,)))
    assert exactly(client, len(GRANTED)) == GRANTED
    here.accepted(server).close()


def test_a_long_head_and_much_behind_it(world: Make) -> None:
    """More than one read of the relay's, and the head ends inside one of them."""
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.HTTP))
    data = pattern(MIB)
    head = connect("127.0.0.1", endpoint(server).port, b"X: " + b"x" * 7000)
    sending = in_thread(lambda: (client.sendall(head + data), client.shutdown(socket.SHUT_WR)))
    other = here.accepted(server)
    assert read_all(other) == data
    sending.join()
    other.close()
    assert read_all(client) == GRANTED


def test_a_mixed_listener_serves_both(world: Make) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.MIXED)
    http, socks = here.connect(address), here.connect(address)
    http.sendall(connect("127.0.0.1", endpoint(server).port))
    assert exactly(http, len(GRANTED)) == GRANTED
    socks.sendall(b"\5\1\0" + socks5(LOOPBACK, endpoint(server).port))
    assert exactly(socks, 4) == b"\5\0\5\0"


# --- refused


def answer(client: socket.socket) -> tuple[int, str]:
    """Status and text of an answer, behind which the connection is closed."""
    head, _, body = read_all(client).decode("ascii").partition("\r\n\r\n")
    assert "\r\nConnection: close" in head
    return int(head.split(" ")[1]), body.rstrip("\n")


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (DenyHow.DEFAULT, (403, "denied by test.urr:1")),
        (DenyHow.REFUSED, (502, "connection refused")),
        (DenyHow.HOST_UNREACHABLE, (502, "host unreachable")),
        (DenyHow.NET_UNREACHABLE, (502, "network unreachable")),
        (DenyHow.TTL_EXPIRED, (502, "time to live expired")),
    ],
)
def test_a_denied_client_is_told_in_its_own_terms(world: Make, how: DenyHow, told: tuple[int, str]) -> None:
    here = world(("any", Deny(how)))
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("8.8.8.8", 53) + connect("8.8.4.4", 53))
    assert answer(client) == told
    client.close()
    assert (here.record().end, here.record().outcome) == (End.DENIED, Outcome.DENY)
    assert here.stats().accepted == 1


def test_deny_silently_holds_without_a_word(world: Make) -> None:
    here = world(("any", Silent()), handshake_s=0.4)
    started = time.monotonic()
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("8.8.8.8", 53))
    assert client.recv(1) == b""
    assert time.monotonic() - started >= 0.35
    assert here.record().outcome is Outcome.SILENT


def test_nobody_listening_is_a_bad_gateway(world: Make) -> None:
    here = world()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = endpoint(closed)
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("127.0.0.1", nowhere.port))
    assert answer(client) == (502, "connection refused")
    assert (here.record().end, here.record().error) == (End.REFUSED, f"{nowhere}: connection refused")


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (Failure.NAME_NOT_FOUND, (502, "no such host")),
        (Failure.TIMEOUT, (504, "no answer in time")),
        (Failure.DENIED, (403, "upstream `inner` at 10.0.0.1")),
        (Failure.ERROR, (502, "the way out failed")),
    ],
)
def test_a_way_out_that_fails_is_told_by_its_kind(
    world: Make, failure: Failure, told: tuple[int, str]
) -> None:
    """The log names addresses and upstreams; whoever connects is told the kind, and why it is denied."""
    here = world(("any", Direct()), dialer=Broken(DialError(failure, "upstream `inner` at 10.0.0.1")))
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("www.example.com", 443))
    assert answer(client) == told
    assert here.record().error == "upstream `inner` at 10.0.0.1"


def test_an_answer_of_a_name_server_that_the_policy_denies_is_a_denial(world: Make) -> None:
    here = world(("any", Direct()))
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("localhost", 80))
    status, why = answer(client)
    assert status == 403
    assert why.startswith("denied by guard.urr:")


def test_a_client_that_leaves_stops_the_dialling(world: Make) -> None:
    dialer = Broken(None)
    here = world(("any", Direct()), dialer=dialer)
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("www.example.com", 443))
    until(lambda: dialer.asked)
    reset(client)
    assert dialer.cancelled.wait(PATIENCE_S)
    assert here.record().end is End.RESET


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET http://example.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n", 405),
        (b"BREW a:80 HTTP/1.0\r\n\r\n", 501),
        (b"CONNECT a:80 HTTP/1.0\n\n", 400),
        (b"CONNECT 127.1:80 HTTP/1.0\r\n\r\n", 400),
        (b"CONNECT a:80 HTTP/2.0\r\n\r\n", 505),
        (b"CONNECT a:80 HTTP/1.0\r\nX: " + b"x" * 9000, 431),
        (b"CONNECT a:80 HTTP/1.0\r\n" + b"X: y\r\n" * 20_000, 431),
    ],
)
def test_a_request_that_is_none_is_answered_and_nothing_behind_it_is_read(
    world: Make, sent: bytes, status: int
) -> None:
    here = world(*OPEN)
    server = here.server()
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(sent + connect("127.0.0.1", endpoint(server).port))
    if len(sent) < 60_000:
        assert answer(client)[0] == status
    else:
        # Who floods instead of reading may lose the answer.
        with contextlib.suppress(ConnectionResetError):
            assert read_all(client).startswith(b"HTTP/1.1 431")
    assert here.record().end is End.ERROR
    assert here.record().decision is None
    assert here.stats().accepted == 1


def test_a_stranger_at_a_mixed_listener_is_reset(world: Make) -> None:
    here = world()
    client = here.connect(here.listen(ListenerKind.MIXED))
    client.sendall(b"\x16\x03\x01\x02\x00")
    assert read_until_reset(client) == b""
    assert here.record().error == "expected SOCKS or HTTP, got byte 0x16"


# --- logins


@pytest.mark.parametrize("kind", [ListenerKind.HTTP, ListenerKind.MIXED])
def test_a_login_is_needed_where_there_are_users(world: Make, kind: ListenerKind) -> None:
    here = world()
    server = here.server()
    address = here.listen(kind, users=USERS)
    port = endpoint(server).port
    bad = [(), (login(b"ann:wrong"),), (login(b"bob:secret"),), (b"Proxy-Authorization: Bearer x",)]
    for number, fields in enumerate(bad, 1):
        client = here.connect(address)
        client.sendall(connect("127.0.0.1", port, *fields) + connect("127.0.0.1", port, login(b"ann:secret")))
        got = read_all(client)
        assert got.startswith(b"HTTP/1.1 407 ")
        assert got.count(b"HTTP/1.1") == 1
        assert b"\r\nProxy-Authenticate: Basic " in got
        assert here.record(number).user is None
    good = here.connect(address)
    good.sendall(connect("127.0.0.1", port, login(b"ann:secret")))
    assert exactly(good, len(GRANTED)) == GRANTED
    here.accepted(server).close()
    good.close()
    assert here.record(5).user == "ann"
    assert "secret" not in repr(here.records)


# --- out through an HTTP proxy


def proxy_of(here: World) -> socket.socket:
    """Where the proxy that everything goes through from now on is to be played."""
    gate = here.server()
    corp = replace(by_hand.upstream("corp", UpstreamKind.HTTP), endpoint=endpoint(gate))
    routes = compile_policy(
        by_hand.policy([by_hand.route(by_hand.region("any"), Via("corp"))], upstreams=[corp])
    )
    dialer = Dialer(Resolver(), {"corp": Credentials(b"ann", b"secret")}, Timeouts())
    here.thread.call(lambda: here.relay.replace(routes, dialer))
    return gate


@pytest.mark.parametrize("kind", [ListenerKind.FORWARD, ListenerKind.SOCKS, ListenerKind.HTTP])
def test_what_the_server_says_first_reaches_the_client_whole(world: Make, kind: ListenerKind) -> None:
    """S10: the proxy's answer is cut at a random byte, and the server's words come in the same segment."""
    rng = random.Random(10)
    here = world()
    gate = proxy_of(here)
    address = here.listen(kind, to=Endpoint(bytes((192, 0, 2, 1)), 25))
    reply = b"HTTP/1.1 200 OK\r\nVia: 1.1 corp\r\n\r\n"
    banner = b"220 ready\r\n" + pattern(3000)
    asking = {
        ListenerKind.FORWARD: (b"", b""),
        ListenerKind.SOCKS: (b"\5\1\0" + socks5(bytes((192, 0, 2, 1)), 25), b"\5\0\5\0\0\1"),
        ListenerKind.HTTP: (connect("192.0.2.1", 25), GRANTED),
    }
    request, granted = asking[kind]
    for number in range(12):
        client = here.connect(address)
        client.sendall(request)
        other = here.accepted(gate)
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += other.recv(4096)
        assert head == connect("192.0.2.1", 25, login(b"ann:secret"))
        cut = rng.randrange(len(reply)) if number else len(reply)
        other.sendall(reply[:cut])
        other.sendall(reply[cut:] + banner)
        got = exactly(client, len(granted) + (6 if kind is ListenerKind.SOCKS else 0))
        assert got.startswith(granted)
        assert exactly(client, len(banner)) == banner
        client.sendall(b"HELO")
        assert exactly(other, 4) == b"HELO"
        other.sendall(b"250")
        other.close()
        assert read_all(client) == b"250"
        client.close()
        assert here.record(number + 1).bytes_down == len(banner) + 3
    assert (here.record().upstream, here.record().end) == ("corp", End.EOF)
    assert "secret" not in repr(here.records)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"HTTP/1.1 403 No\r\n\r\n", (403, "upstream `corp`: its rules deny the destination (HTTP 403)")),
        (b"HTTP/1.1 407 No\r\n\r\n", (502, "the way out failed")),
        (b"HTTP/1.1 502 No\r\n\r\n", (502, "host unreachable")),
        (b"HTTP/1.1 502 No\r\nProxy-Status: x; error=dns_error\r\n\r\n", (502, "no such host")),
        (b"HTTP/1.1 504 No\r\n\r\n", (504, "no answer in time")),
        (b"rubbish", (502, "the way out failed")),
        (b"", (502, "the way out failed")),
    ],
)
def test_a_refusal_by_the_proxy_is_told_on(world: Make, said: bytes, told: tuple[int, str]) -> None:
    here = world()
    gate = proxy_of(here)
    client = here.connect(here.listen(ListenerKind.HTTP))
    client.sendall(connect("192.0.2.1", 25))
    other = here.accepted(gate)
    assert other.recv(4096).startswith(b"CONNECT 192.0.2.1:25 ")
    other.sendall(said)
    other.shutdown(socket.SHUT_WR)
    assert answer(client) == told
    assert other.recv(1) == b""


def test_a_reload_in_the_middle_of_a_head_changes_nothing_for_it(world: Make) -> None:
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.HTTP))
    head = connect("127.0.0.1", endpoint(server).port)
    client.sendall(head[:20])
    until(lambda: here.stats().handshaking)
    here.thread.call(lambda: here.relay.replace(table(("any", Deny())), here.relay.rules.dialer))
    client.sendall(head[20:])
    assert exactly(client, len(GRANTED)) == GRANTED
