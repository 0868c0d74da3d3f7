"""A relay behind a load balancer: headers must come, from whom it trusts, in time; then the client counts."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from tests import strategies as by_hand
from tests.engine.rig import read_all, read_until_reset
from tests.engine.test_relay import LOOPBACK, World, endpoint, exactly, socks5, world
from urelay.engine.record import End
from urelay.net.address import Endpoint, parse_endpoint
from urelay.policy.model import AcceptProxy, Deny, Direct, HeaderTarget, ListenerKind
from urelay.protocols.proxy_header import header_v1, header_v2
from urelay.protocols.users import SaltedHash, Users

__all__ = ["world"]

CLIENT = parse_endpoint("192.0.2.7:51000")
TRUSTED = AcceptProxy((by_hand.prefix("127.0.0.0/8"),))
STRANGERS = AcceptProxy((by_hand.prefix("10.0.0.0/8"),))

Make = Callable[..., World]


@pytest.mark.parametrize("make", [header_v1, header_v2])
def test_the_header_says_whose_connection_it_is_and_where_it_goes(
    world: Make, make: Callable[[Endpoint, Endpoint], bytes]
) -> None:
    here = world()
    server = here.server()
    client = here.connect(here.listen(ListenerKind.TRANSPARENT, **{"accept-proxy": TRUSTED}))
    client.sendall(make(CLIENT, endpoint(server)) + b"early")
    other = here.accepted(server)
    assert exactly(other, 5) == b"early"
    client.sendall(b" and late")
    client.shutdown(socket.SHUT_WR)
    assert read_all(other) == b" and late"
    other.sendall(b"answer")
    other.close()
    assert read_all(client) == b"answer"
    record = here.record()
    assert (record.source, record.end, record.error) == (str(CLIENT), End.EOF, None)
    assert (record.destination, record.port) == ("127.0.0.1", endpoint(server).port)
    assert (record.bytes_up, record.bytes_down) == (14, 6)


def test_the_policy_asks_about_the_client_in_the_header(world: Make) -> None:
    here = world(("any", Deny()), ("127.0.0.0/8", Direct()))
    address = here.listen(ListenerKind.TRANSPARENT, **{"accept-proxy": TRUSTED})
    client = here.connect(address)
    client.sendall(header_v2(CLIENT, parse_endpoint("203.0.113.9:80")))
    assert read_until_reset(client) == b""
    record = here.record()
    assert (record.end, record.source, record.destination) == (End.DENIED, str(CLIENT), "203.0.113.9")


def test_a_name_in_the_header_is_asked_for(world: Make) -> None:
    here = world(("localhost", Direct()), ("127.0.0.0/8", Direct()), ("::1", Direct()))
    server = here.server()
    port = endpoint(server).port
    client = here.connect(here.listen(ListenerKind.TRANSPARENT, **{"accept-proxy": TRUSTED}))
    client.sendall(header_v2(CLIENT, Endpoint(bytes(4), port), "localhost"))
    here.accepted(server).close()
    assert read_all(client) == b""
    client.close()
    assert (here.record().name, here.record().dialed) == ("localhost", str(endpoint(server)))


def test_the_address_alone_counts_where_the_policy_says_so(world: Make) -> None:
    here = world()
    server = here.server()
    accept = AcceptProxy(TRUSTED.senders, HeaderTarget.ADDRESS)
    client = here.connect(here.listen(ListenerKind.TRANSPARENT, **{"accept-proxy": accept}))
    client.sendall(header_v2(CLIENT, endpoint(server), "nowhere.example"))
    here.accepted(server).close()
    assert read_all(client) == b""
    client.close()
    assert here.record().name is None


def test_a_socks_listener_behind_a_load_balancer(world: Make) -> None:
    here = world()
    server = here.server()
    address = here.listen(
        ListenerKind.SOCKS, users=Users({b"ann": SaltedHash.of(b"secret")}), **{"accept-proxy": TRUSTED}
    )
    header = header_v2(CLIENT, parse_endpoint("198.51.100.1:1080"))
    login = b"\5\1\2\1\3ann\6secret"
    good, bad = here.connect(address), here.connect(address)
    bad.sendall(header + b"\5\1\2\1\3ann\5wrong")
    assert read_all(bad) == b"\5\2\1\1"
    for byte in header + login + socks5(LOOPBACK, endpoint(server).port):
        good.sendall(bytes((byte,)))
    assert exactly(good, 8)[:6] == b"\5\2\1\0\5\0"
    other = here.accepted(server)
    other.sendall(b"hello")
    other.close()
    assert read_all(good)[6:] == b"hello"
    good.close()
    # Who tried a wrong password is the client, not the load balancer.
    assert (here.record(1).source, here.record(1).error) == (str(CLIENT), "wrong user or password")
    assert (here.record(2).source, here.record(2).user) == (str(CLIENT), "ann")


def test_a_forwarder_goes_where_it_goes(world: Make) -> None:
    here = world()
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server), **{"accept-proxy": TRUSTED})
    headers = (
        (header_v2(CLIENT, parse_endpoint("203.0.113.9:80"), "elsewhere.example"), str(CLIENT)),
        (header_v1(None, CLIENT), None),
    )
    for number, (header, source) in enumerate(headers, 1):
        client = here.connect(address)
        own = "{}:{}".format(*client.getsockname())
        client.sendall(header)
        here.accepted(server).close()
        assert read_all(client) == b""
        client.close()
        assert here.record(number).source == (source or own)


@pytest.mark.parametrize("kind", [ListenerKind.TRANSPARENT, ListenerKind.SOCKS])
def test_an_untrusted_sender_is_reset_whatever_it_says(world: Make, kind: ListenerKind) -> None:
    here = world()
    address = here.listen(kind, **{"accept-proxy": STRANGERS})
    assert here.is_reset(address)
    record = here.record()
    assert record.end is End.DENIED
    assert "127.0.0.1" in (record.source or "")
    assert "not believed" in (record.error or "")


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "expected a PROXY header"),
        (b"\5\1\0", "expected a PROXY header"),
        (header_v1(CLIENT, CLIENT)[:-2] + b" and more\r\n", "expected 6 words"),
        (header_v2(CLIENT, CLIENT)[:14] + b"\xff\xff", "65,551 bytes"),
        (header_v2(CLIENT, CLIENT)[:13] + b"\x31" + bytes(2), "0x31"),
        (header_v1(None, CLIENT), "names no destination"),
        (header_v2(None, CLIENT), "names no destination"),
    ],
)
def test_without_a_header_nothing_goes_on(world: Make, data: bytes, error: str) -> None:
    here = world()
    client = here.connect(here.listen(ListenerKind.TRANSPARENT, **{"accept-proxy": TRUSTED}))
    client.sendall(data)
    assert read_until_reset(client) == b""
    record = here.record()
    assert record.end is End.ERROR
    assert error in (record.error or "")
    assert record.asked is None


@pytest.mark.parametrize("data", [b"", b"PROXY TCP4 192.0.2.7", header_v2(CLIENT, CLIENT)[:-1]])
def test_a_header_has_its_own_short_time(world: Make, data: bytes) -> None:
    here = world(header_s=0.2, handshake_s=60.0)
    began = time.monotonic()
    client = here.connect(here.listen(ListenerKind.SOCKS, **{"accept-proxy": TRUSTED}))
    client.sendall(data)
    assert read_until_reset(client) == b""
    assert 0.15 < time.monotonic() - began < 20
    assert (here.record().end, here.record().error) == (End.TIMEOUT, "no PROXY header in 0.2 s")


def test_behind_the_header_the_handshake_has_its_usual_time(world: Make) -> None:
    here = world(header_s=60.0, handshake_s=0.3)
    client = here.connect(here.listen(ListenerKind.SOCKS, **{"accept-proxy": TRUSTED}))
    client.sendall(header_v2(CLIENT, CLIENT))
    assert read_until_reset(client) == b""
    assert (here.record().end, here.record().error) == (End.TIMEOUT, "no complete request in 0.3 s")


def test_a_client_s_share_is_that_of_the_address_in_the_header(world: Make) -> None:
    """Everybody comes from the load balancer; two of one client are too many, two clients are not."""
    here = world(per_source=1)
    server = here.server()
    address = here.listen(ListenerKind.TRANSPARENT, **{"accept-proxy": TRUSTED})
    other_client = parse_endpoint("192.0.2.8:51000")
    held = []
    for source in (CLIENT, other_client):
        client = here.connect(address)
        client.sendall(header_v2(source, endpoint(server)))
        held.append((client, here.accepted(server)))
    third = here.connect(address)
    third.sendall(header_v2(CLIENT._replace(port=51001), endpoint(server)))
    assert read_until_reset(third) == b""
    assert here.record(1).end is End.DENIED
    assert "more than 1 connections from one address" in (here.record(1).error or "")
    for client, other in held:
        client.close()
        other.close()
    assert {here.record(2).source, here.record(3).source} == {str(CLIENT), str(other_client)}
    # Both places are free again.
    again = here.connect(address)
    again.sendall(header_v2(CLIENT, endpoint(server)))
    here.accepted(server).close()
    assert read_all(again) == b""
    again.close()
    assert here.record(4).end is End.EOF
