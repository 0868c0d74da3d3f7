"""Who a PROXY header announces, where it leads by each `as`, and that nothing goes on without one."""

from __future__ import annotations

import pytest

from tests.strategies import prefix
from urelay.engine.announced import Announcer, KnownSession, destination_in
from urelay.engine.session import (
    DIAL,
    RESET,
    SESSIONS,
    Announced,
    Ask,
    AskedSession,
    HandOver,
    Refuse,
    Reply,
)
from urelay.errors import Failure
from urelay.net.address import Endpoint, parse_endpoint
from urelay.policy.model import AcceptProxy, HeaderTarget, ListenerKind, Outcome
from urelay.protocols.proxy_header import Header, header_v1, header_v2
from urelay.table.decision import Decision

CLIENT = parse_endpoint("192.0.2.7:51000")
ADDRESS = parse_endpoint("198.51.100.9:443")
NAMED = Endpoint("www.example.com", 443)
INNER = parse_endpoint("[2001:db8::77]:8443")
INNER_NAMED = Endpoint("www.example.com", 8443)
SOCKS5 = b"\5\1\0\5\1\0\1\x0a\1\2\3\0\x50"


def announcer(
    target: HeaderTarget = HeaderTarget.NAME, to: Endpoint | None = None, *senders: str
) -> Announcer:
    return Announcer(AcceptProxy(tuple(map(prefix, senders)), target), to, None)


def announced(data: bytes, by: Announcer | None = None) -> Announced:
    command = (by or announcer()).session().receive(data)
    assert isinstance(command, Announced), command
    return command


# --- where it leads

WITH_ALL = Header(CLIENT, ADDRESS, "www.example.com", INNER)
NAME, ADDRESS_ONLY, INNER_FIRST = HeaderTarget.NAME, HeaderTarget.ADDRESS, HeaderTarget.INNER


@pytest.mark.parametrize(
    ("header", "target", "expected"),
    [
        (Header(CLIENT, ADDRESS), NAME, ADDRESS),
        (Header(CLIENT, ADDRESS, "www.example.com"), NAME, NAMED),
        (Header(CLIENT, ADDRESS, bytes((192, 0, 2, 80))), NAME, parse_endpoint("192.0.2.80:443")),
        (WITH_ALL, NAME, NAMED),
        (Header(CLIENT, ADDRESS), ADDRESS_ONLY, ADDRESS),
        (WITH_ALL, ADDRESS_ONLY, ADDRESS),
        (Header(CLIENT, ADDRESS), INNER_FIRST, ADDRESS),
        (Header(CLIENT, ADDRESS, "www.example.com"), INNER_FIRST, ADDRESS),
        (Header(CLIENT, ADDRESS, None, INNER), INNER_FIRST, INNER),
        (WITH_ALL, INNER_FIRST, INNER_NAMED),
        (Header(), NAME, None),
        (Header(), ADDRESS_ONLY, None),
        (Header(authority="www.example.com"), NAME, None),
    ],
)
def test_the_destination_in_a_header(header: Header, target: HeaderTarget, expected: Endpoint | None) -> None:
    assert destination_in(header, target) == expected


# --- conversations


@pytest.mark.parametrize("make", [header_v1, header_v2])
def test_a_client_is_announced_and_asks_at_once(make: object) -> None:
    assert callable(make)
    command = announced(make(CLIENT, ADDRESS) + b"early")
    assert command.source == CLIENT
    assert command.then == Ask(ADDRESS)
    assert command.session.decided(Decision(Outcome.DIRECT, "main", "digest")) is DIAL
    assert command.session.dialed(None) == HandOver(early=b"early")
    assert command.session.failed(Failure.REFUSED) is RESET


def test_a_name_in_the_header_is_what_it_asks_for() -> None:
    assert announced(header_v2(CLIENT, ADDRESS, "www.example.com")).then == Ask(NAMED)
    by = announcer(HeaderTarget.ADDRESS)
    assert announced(header_v2(CLIENT, ADDRESS, "www.example.com"), by).then == Ask(ADDRESS)


def test_a_header_byte_by_byte() -> None:
    session = announcer().session()
    data = header_v2(CLIENT, ADDRESS)
    for at in range(len(data) - 1):
        assert session.receive(data[at : at + 1]) == Reply(b"")
    assert isinstance(session.receive(data[-1:]), Announced)


def test_a_forwarder_takes_the_source_only() -> None:
    for data in (header_v2(CLIENT, ADDRESS, "www.example.com"), header_v1(None, ADDRESS)):
        command = announced(data, announcer(to=INNER))
        assert command.then == Ask(INNER)
    assert announced(header_v2(CLIENT, ADDRESS), announcer(to=INNER)).source == CLIENT


def test_a_socks_client_goes_on_in_its_own_session() -> None:
    by = Announcer(AcceptProxy(()), None, SESSIONS[ListenerKind.SOCKS])
    command = announced(header_v2(CLIENT, ADDRESS) + SOCKS5, by)
    assert command.source == CLIENT
    assert isinstance(command.session, AskedSession)
    assert command.then == Ask(parse_endpoint("10.1.2.3:80"), None, b"\5\0")
    waiting = announced(header_v2(CLIENT, ADDRESS), by)
    assert waiting.then == Reply(b"")
    assert waiting.session.receive(SOCKS5) == Ask(parse_endpoint("10.1.2.3:80"), None, b"\5\0")


def test_an_http_client_goes_on_in_its_own_session() -> None:
    request = b"CONNECT 10.1.2.3:80 HTTP/1.1\r\nHost: 10.1.2.3:80\r\n\r\n"
    by = Announcer(AcceptProxy(()), None, SESSIONS[ListenerKind.MIXED])
    asked = Ask(parse_endpoint("10.1.2.3:80"))
    assert announced(header_v2(CLIENT, ADDRESS) + request, by).then == asked
    waiting = announced(header_v2(CLIENT, ADDRESS), by)
    assert waiting.then == Reply(b"")
    assert waiting.session.receive(request) == asked


@pytest.mark.parametrize("data", [header_v1(None, ADDRESS), header_v2(None, ADDRESS)])
def test_a_header_without_addresses_names_no_destination(data: bytes) -> None:
    command = announced(data)
    assert command.source is None
    assert command.then == Refuse(error="the PROXY header names no destination")


@pytest.mark.parametrize("where", ["0.0.0.0:80", "[::]:80"])
def test_no_connection_is_made_to_the_address_of_all_zeros(where: str) -> None:
    """A client of u-relay-tproxy that named a domain has no address beside it."""
    destination = parse_endpoint(where)
    assert isinstance(KnownSession(destination).receive(b""), Refuse)
    assert isinstance(KnownSession(Endpoint(CLIENT.host, 0)).receive(b""), Refuse)
    assert announced(header_v2(CLIENT, destination, "a.example")).then == Ask(Endpoint("a.example", 80))


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"\5\1\0", b"PROXY TCP4 x\r\n"])
def test_what_is_no_header_is_refused_without_a_word(data: bytes) -> None:
    command = announcer().session().receive(data)
    assert isinstance(command, Refuse)
    assert command.reply == b""
    assert command.error


# --- who is believed


def test_senders_are_believed_by_their_address() -> None:
    by = announcer(HeaderTarget.NAME, None, "192.0.2.0/28", "2001:db8::/32")
    assert by.believes(parse_endpoint("192.0.2.15:1"))
    assert by.believes(parse_endpoint("[2001:db8::1]:1"))
    assert not by.believes(parse_endpoint("192.0.2.16:1"))
    assert not by.believes(parse_endpoint("[2001:db9::1]:1"))
    assert not by.believes(parse_endpoint("[::]:1"))


def test_who_has_no_address_was_let_in_by_a_file() -> None:
    assert announcer().believes(None)
    assert not announcer().believes(CLIENT)
