"""On one port the first byte chooses the protocol, for good, and logins hold whatever it chooses."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.mutations import COUNT, halves, mutations
from tests.protocols import test_connect, test_socks
from urelay.errors import ProtocolError
from urelay.protocols import connect, socks
from urelay.protocols.connect import HttpServer
from urelay.protocols.mixed import MixedServer
from urelay.protocols.socks import SocksServer
from urelay.protocols.users import Users

V4_REQUEST = test_socks.request5(1, test_socks.V4_ADDRESS)


def converse(data: bytes, users: Users | None = None, size: int = 4096) -> tuple[MixedServer, bytes]:
    """Feed a conversation in pieces of `size`; the server and what it sent."""
    server = MixedServer(users)
    sent = b""
    for start in range(0, len(data), size):
        sent += server.receive(data[start : start + size])
    return server, sent


@pytest.mark.parametrize("size", [1, 7, 4096])
@pytest.mark.parametrize(
    ("data", "request_", "reply"),
    [
        pytest.param(
            test_socks.HELLO + V4_REQUEST,
            socks.Request(5, test_socks.V4_ADDRESS, 443, None),
            b"\5\0",
            id="socks5",
        ),
        pytest.param(
            test_socks.request4(test_socks.V4_ADDRESS, b"fred"),
            socks.Request(4, test_socks.V4_ADDRESS, 80, "fred"),
            b"",
            id="socks4",
        ),
        pytest.param(
            test_socks.request4(b"\0\0\0\1", b"", b"example.com"),
            socks.Request(4, "example.com", 80, None),
            b"",
            id="socks4a",
        ),
        pytest.param(
            test_connect.connect(b"example.com:443"),
            connect.Request("example.com", 443, None),
            b"",
            id="connect",
        ),
    ],
)
def test_each_protocol_is_served(data: bytes, request_: object, reply: bytes, size: int) -> None:
    server, sent = converse(data + b"\5early", size=size)
    assert server.request == request_
    assert server.leftover == b"\5early"
    assert sent == reply


def test_nothing_is_asked_before_the_first_byte() -> None:
    server = MixedServer()
    assert server.receive(b"") == b""
    assert (server.request, server.leftover) == (None, b"")


@pytest.mark.parametrize("first", [byte for byte in range(256) if byte not in (4, 5, *range(65, 91))])
def test_any_other_first_byte_is_refused_for_good(first: int) -> None:
    server = MixedServer()
    with pytest.raises(ProtocolError, match=rf"^expected SOCKS or HTTP, got byte 0x{first:02x}$") as caught:
        server.receive(bytes((first,)))
    assert caught.value.reply == b""
    for data in (test_socks.HELLO, test_connect.connect(b"a:80")):
        with pytest.raises(ProtocolError, match="bytes behind a refused request"):
            server.receive(data)
    assert server.request is None


@pytest.mark.parametrize("first", range(65, 91))
def test_every_upper_case_letter_is_http(first: int) -> None:
    with pytest.raises(ProtocolError) as caught:
        MixedServer().receive(bytes((first,)) + b"X / HTTP/1.0\r\n\r\n")
    assert caught.value.reply.startswith(b"HTTP/1.1 501 ")


def test_a_refusal_speaks_the_protocol_that_was_chosen() -> None:
    for data, reply in (
        (test_socks.HELLO + test_socks.name5(b"127.1"), b"\5\0\5\1"),
        (test_connect.connect(b"127.1:80"), b"HTTP/1.1 400 "),
    ):
        with pytest.raises(ProtocolError) as caught:
            MixedServer().receive(data)
        assert caught.value.reply.startswith(reply)


def test_a_login_is_asked_for_in_either_protocol() -> None:
    users = test_connect.USERS
    for data, user in (
        (test_socks.HELLO_BOTH + test_socks.LOGIN + V4_REQUEST, "alice"),
        (test_connect.connect(b"a:80", test_connect.LOGIN), "alice"),
    ):
        server, _ = converse(data, users)
        assert server.request is not None
        assert server.request.user == user
    for data in (
        test_socks.HELLO + V4_REQUEST,
        test_socks.request4(test_socks.V4_ADDRESS, b"alice"),
        test_connect.connect(b"a:80"),
        test_connect.connect(b"a:80", test_connect.basic(b"alice:wrong")),
    ):
        with pytest.raises(ProtocolError):
            converse(data, users)


def test_it_is_the_server_of_that_protocol_byte_for_byte() -> None:
    """What each server says of its own cases, this one says too."""
    for case in test_connect.HEADS:
        data = case.values[0]  # type: ignore[attr-defined]
        if 65 <= data[0] <= 90:
            with pytest.raises(ProtocolError) as caught:
                MixedServer().receive(data)
            assert caught.value.reply == test_connect.converse([data]).sent
    plain = SocksServer()
    assert plain.receive(test_socks.HELLO) == MixedServer().receive(test_socks.HELLO)


def test_mutated_conversations_are_what_the_chosen_server_makes_of_them() -> None:
    """S11: 100,000 seeded mutations: the first byte chooses, and nothing is added to what it chose."""
    seeds = [
        test_socks.HELLO + V4_REQUEST,
        test_socks.HELLO_BOTH + test_socks.LOGIN + test_socks.name5(b"www.example.com"),
        test_socks.request4(b"\0\0\0\1", b"fred", b"example.com"),
        test_connect.connect(b"example.com:443"),
    ]
    chosen = dict.fromkeys((None, SocksServer, HttpServer), 0)
    for number, data in mutations(seeds, b"CONNECT ", b"\4\1", end=b"\r\n\r\n"):
        kind = _kind(data)
        chosen[kind] += 1
        server = MixedServer(test_socks.USERS if number & 1 else None)
        said = fate(server, halves(number, data))
        if kind is None:
            assert server.request is None
        elif number % 8 == 0:
            # What the servers themselves make of it has tests of its own: these are samples.
            alone = kind(test_socks.USERS if number & 1 else None)
            assert said == fate(alone, [data])
            assert (server.request, server.leftover) == (alone.request, alone.leftover)
    assert min(chosen.values()) > COUNT / 100


def _kind(data: bytes) -> type[SocksServer] | type[HttpServer] | None:
    """Whose conversation begins so."""
    if data[:1] in (b"\4", b"\5"):
        return SocksServer
    return HttpServer if data[:1].isalpha() and data[:1].isupper() else None


def fate(server: MixedServer | SocksServer | HttpServer, pieces: Iterable[bytes]) -> bytes:
    """What a server says to some pieces, up to its refusal, which is a ProtocolError."""
    said = b""
    try:
        for piece in pieces:
            said += server.receive(piece)
    except ProtocolError as error:
        return said + error.reply
    return said
