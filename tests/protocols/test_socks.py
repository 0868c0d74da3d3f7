"""SOCKS4, 4a and 5: every refusal has its code, and no order of bytes reaches a request without a login."""

from __future__ import annotations

import ast
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.mutations import COUNT, halves, mutations
from urelay.errors import AddressError, Failure, ProtocolError
from urelay.net.address import Endpoint, Host, parse_address, parse_host
from urelay.protocols.socks import Request, SocksServer
from urelay.protocols.users import SaltedHash, Users

USERS = Users({b"alice": SaltedHash.of(b"open sesame"), b"x" * 255: SaltedHash.of(b"y" * 255)})

HELLO = b"\x05\x01\x00"
HELLO_BOTH = b"\x05\x02\x00\x02"
LOGIN = b"\x01\x05alice\x0bopen sesame"
V4_ADDRESS = bytes((192, 0, 2, 7))
V6_ADDRESS = parse_address("2001:db8::7")


def name5(name: bytes, port: int = 443) -> bytes:
    """A SOCKS5 CONNECT to a name field."""
    return b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2)


def request5(kind: int, field: bytes, port: int = 443, command: int = 1) -> bytes:
    """A SOCKS5 request of any kind."""
    return bytes((5, command, 0, kind)) + field + port.to_bytes(2)


def request4(
    address: bytes, user: bytes = b"", host: bytes | None = None, port: int = 80, command: int = 1
) -> bytes:
    """A SOCKS4 request; with `host`, a 4a one."""
    tail = b"" if host is None else host + b"\0"
    return bytes((4, command)) + port.to_bytes(2) + address + user + b"\0" + tail


@dataclass
class Outcome:
    """What a conversation came to."""

    sent: bytes
    request: Request | None
    leftover: bytes
    error: str | None
    most_kept: int


def converse(pieces: Iterable[bytes], users: Users | None = None) -> Outcome:
    """Feed the pieces; stop at an error, as a caller does."""
    server = SocksServer(users)
    sent = b""
    most = 0
    for piece in pieces:
        try:
            sent += server.receive(piece)
        except ProtocolError as error:
            assert server.request is None
            return Outcome(sent + error.reply, None, b"", str(error), most)
        most = max(most, len(server._buffer))
    return Outcome(sent, server.request, server.leftover, None, most)


def every_way(data: bytes, users: Users | None = None) -> Outcome:
    """Whole, byte by byte, in every split in two, and with data behind: all the same, which is returned."""
    whole = converse([data], users)
    ways = [converse([data[i : i + 1] for i in range(len(data))], users)]
    ways += [
        converse([data[:cut], data[cut:]], users) for cut in range(1, len(data), max(1, len(data) // 40))
    ]
    for way in ways:
        assert (way.sent, way.request, way.leftover) == (whole.sent, whole.request, whole.leftover)
        assert way.most_kept <= 520
        assert (way.error is None) == (whole.error is None)
    if whole.request is not None:
        trailed = converse([data + b"\x05\x01\x00early data"], users)
        assert (trailed.sent, trailed.request) == (whole.sent, whole.request)
        assert trailed.leftover == whole.leftover + b"\x05\x01\x00early data"
    return whole


@pytest.mark.parametrize(
    ("data", "version", "host", "port", "user"),
    [
        pytest.param(HELLO + request5(1, V4_ADDRESS), 5, V4_ADDRESS, 443, None, id="5-ipv4"),
        pytest.param(HELLO + request5(4, V6_ADDRESS), 5, V6_ADDRESS, 443, None, id="5-ipv6"),
        pytest.param(HELLO + name5(b"Example.COM."), 5, "example.com", 443, None, id="5-name"),
        pytest.param(HELLO + name5(b"[2001:db8::7]"), 5, V6_ADDRESS, 443, None, id="5-bracketed-ipv6"),
        pytest.param(HELLO + name5(b"2001:db8::7"), 5, V6_ADDRESS, 443, None, id="5-bare-ipv6-as-a-name"),
        pytest.param(HELLO + name5(b"192.0.2.7"), 5, V4_ADDRESS, 443, None, id="5-ipv4-as-a-name"),
        pytest.param(
            HELLO + request5(4, bytes(10) + b"\xff\xff" + V4_ADDRESS),
            5,
            V4_ADDRESS,
            443,
            None,
            id="5-mapped-ipv4",
        ),
        pytest.param(HELLO + name5(b"[::ffff:192.0.2.7]"), 5, V4_ADDRESS, 443, None, id="5-mapped-as-a-name"),
        pytest.param(HELLO_BOTH + name5(b"a", 1), 5, "a", 1, None, id="5-many-methods"),
        pytest.param(HELLO + name5(b"a", 65535), 5, "a", 65535, None, id="5-last-port"),
        pytest.param(
            HELLO + name5(b".".join([b"a" * 62] * 4) + b"."),
            5,
            ".".join(["a" * 62] * 4),
            443,
            None,
            id="5-long-name",
        ),
        pytest.param(request4(V4_ADDRESS), 4, V4_ADDRESS, 80, None, id="4"),
        pytest.param(request4(V4_ADDRESS, b"fred"), 4, V4_ADDRESS, 80, "fred", id="4-user"),
        pytest.param(request4(V4_ADDRESS, b"u" * 255), 4, V4_ADDRESS, 80, "u" * 255, id="4-longest-user"),
        pytest.param(request4(V4_ADDRESS, b"\xff"), 4, V4_ADDRESS, 80, "\\xff", id="4-user-of-odd-bytes"),
        pytest.param(request4(bytes(4)), 4, bytes(4), 80, None, id="4-unspecified-is-not-4a"),
        pytest.param(request4(b"\0\0\0\1", b"u", b"Example.com"), 4, "example.com", 80, "u", id="4a"),
        pytest.param(request4(b"\0\0\0\xff", b"", b"[2001:db8::7]"), 4, V6_ADDRESS, 80, None, id="4a-ipv6"),
    ],
)
def test_a_request_is_read(data: bytes, version: int, host: Host, port: int, user: str | None) -> None:
    outcome = every_way(data)
    assert outcome.error is None
    assert outcome.request == Request(version, host, port, user)
    assert outcome.sent == (b"\x05\x00" if version == 5 else b"")
    assert outcome.leftover == b""


FAILED5 = b"\x05\x01\x00\x01" + bytes(6)
REJECTED4 = b"\x00\x5b" + bytes(6)


@pytest.mark.parametrize(
    ("data", "sent", "error"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", b"", "expected SOCKS version 4 or 5, got 71", id="http"),
        pytest.param(b"\x05\x00", b"\x05\xff", "the client does not offer no login", id="no-methods"),
        pytest.param(b"\x05\x01\x02", b"\x05\xff", "the client does not offer no login", id="login-only"),
        pytest.param(
            HELLO + request5(1, V4_ADDRESS, command=2),
            b"\x05\x00\x05\x07\x00\x01" + bytes(6),
            "command 2 is not CONNECT",
            id="5-bind",
        ),
        pytest.param(
            HELLO + request5(1, V4_ADDRESS, command=3),
            b"\x05\x00\x05\x07\x00\x01" + bytes(6),
            "command 3 is not CONNECT",
            id="5-udp",
        ),
        pytest.param(
            HELLO + b"\x05\x01\x00\x02aaaaaaaa",
            b"\x05\x00\x05\x08\x00\x01" + bytes(6),
            "there is no SOCKS address type 2",
            id="5-address-type",
        ),
        pytest.param(
            HELLO + b"\x05\x01\x01\x01" + V4_ADDRESS + b"\0\x50",
            b"\x05\x00" + FAILED5,
            "the reserved byte is 1, not 0",
            id="5-reserved",
        ),
        pytest.param(
            HELLO + LOGIN,
            b"\x05\x00" + FAILED5,
            "expected SOCKS version 5, got 1",
            id="5-login-not-asked-for",
        ),
        pytest.param(
            HELLO + request5(1, V4_ADDRESS, 0),
            b"\x05\x00" + FAILED5,
            "port 0 cannot be connected to",
            id="5-port-0",
        ),
        pytest.param(HELLO + name5(b""), b"\x05\x00" + FAILED5, "an empty host name", id="5-empty-name"),
        pytest.param(
            HELLO + name5(b"127.0.0.1\0.example.com"),
            b"\x05\x00" + FAILED5,
            r"`127.0.0.1\x00.example.com` is not a host name",
            id="5-nul-in-a-name",
        ),
        pytest.param(
            HELLO + name5("①②⑦.0.0.1".encode()),
            b"\x05\x00" + FAILED5,
            r"`\xe2\x91\xa0\xe2\x91\xa1\xe2\x91\xa6.0.0.1` is not a host name: it is not ASCII",
            id="5-not-ascii",
        ),
        pytest.param(
            HELLO + name5(b"0177.1"),
            b"\x05\x00" + FAILED5,
            "`0177.1` looks like an address and is not one",
            id="5-numeric",
        ),
        pytest.param(
            HELLO + name5(b"[fe80::1%eth0]"),
            b"\x05\x00" + FAILED5,
            "`fe80::1%eth0` is not an IPv6 address",
            id="5-zone",
        ),
        pytest.param(request4(V4_ADDRESS, command=2), REJECTED4, "command 2 is not CONNECT", id="4-bind"),
        pytest.param(request4(V4_ADDRESS, port=0), REJECTED4, "port 0 cannot be connected to", id="4-port-0"),
        pytest.param(
            request4(V4_ADDRESS, b"u" * 256),
            REJECTED4,
            "a SOCKS4 user id of more than 255 bytes",
            id="4-user-too-long",
        ),
        pytest.param(
            request4(b"\0\0\0\1", b"", b"h" * 256),
            REJECTED4,
            "a SOCKS4 host name of more than 255 bytes",
            id="4a-name-too-long",
        ),
        pytest.param(request4(b"\0\0\0\1", b"", b""), REJECTED4, "an empty host name", id="4a-empty-name"),
        pytest.param(
            request4(b"\0\0\0\1", b"", b"ex ample.com"),
            REJECTED4,
            "`ex ample.com` is not a host name",
            id="4a-space",
        ),
    ],
)
def test_a_refusal_has_its_own_code_and_says_why(data: bytes, sent: bytes, error: str) -> None:
    outcome = every_way(data)
    assert outcome.request is None
    assert outcome.sent == sent
    assert outcome.error is not None
    assert outcome.error.startswith(error)


@pytest.mark.parametrize(
    ("data", "sent", "error"),
    [
        pytest.param(
            HELLO + name5(b"a"), b"\x05\xff", "the client does not offer user and password", id="none"
        ),
        pytest.param(
            HELLO_BOTH + b"\x01\x05alice\x05wrong" + name5(b"a"), b"\x05\x02\x01\x01", "wrong", id="wrong"
        ),
        pytest.param(HELLO_BOTH + b"\x01\x03bob\x05wrong", b"\x05\x02\x01\x01", "wrong", id="unknown"),
        pytest.param(HELLO_BOTH + b"\x01\x00\x00", b"\x05\x02\x01\x01", "wrong user or password", id="empty"),
        pytest.param(
            HELLO_BOTH + b"\x05" + LOGIN[1:], b"\x05\x02", "expected login version 1, got 5", id="version"
        ),
        pytest.param(HELLO_BOTH + name5(b"a"), b"\x05\x02", "expected login version 1, got 5", id="skipped"),
        pytest.param(request4(V4_ADDRESS, b"alice"), REJECTED4, "SOCKS4 has no password", id="socks4"),
        pytest.param(
            request4(b"\0\0\0\1", b"alice", b"a"), REJECTED4, "SOCKS4 has no password", id="socks4a"
        ),
    ],
)
def test_users_are_asked_for_and_nothing_else_will_do(data: bytes, sent: bytes, error: str) -> None:
    outcome = every_way(data, USERS)
    assert outcome.request is None
    assert outcome.sent == sent
    assert outcome.error is not None
    assert outcome.error.startswith(error)


@pytest.mark.parametrize(
    ("login", "user"),
    [
        pytest.param(LOGIN, "alice", id="plain"),
        pytest.param(b"\x01\xff" + b"x" * 255 + b"\xff" + b"y" * 255, "x" * 255, id="longest"),
    ],
)
def test_a_right_login_opens_the_way(login: bytes, user: str) -> None:
    outcome = every_way(HELLO_BOTH + login + name5(b"example.com"), USERS)
    assert outcome.request == Request(5, "example.com", 443, user)
    assert outcome.sent == b"\x05\x02\x01\x00"


def test_the_password_is_in_no_text() -> None:
    server = SocksServer(USERS)
    with pytest.raises(ProtocolError) as caught:
        server.receive(HELLO_BOTH + b"\x01\x05alice\x06hunter")
    assert "hunter" not in str(caught.value) + repr(caught.value) + repr(server)
    assert server._buffer == b""


def test_a_refused_client_stays_refused() -> None:
    server = SocksServer(USERS)
    with pytest.raises(ProtocolError):
        server.receive(HELLO)
    for _ in range(3):
        with pytest.raises(ProtocolError, match="bytes behind a refused request") as caught:
            server.receive(HELLO_BOTH + LOGIN + name5(b"a"))
        assert caught.value.reply == b""
    assert server.request is None


def test_data_behind_the_request_is_kept_exact() -> None:
    server = SocksServer()
    server.receive(HELLO + name5(b"a") + b"one")
    assert server.receive(b"two") == b""
    assert server.leftover == b"onetwo"


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failure.ERROR, 1),
        (Failure.DENIED, 2),
        (Failure.NET_UNREACHABLE, 3),
        (Failure.HOST_UNREACHABLE, 4),
        (Failure.NAME_NOT_FOUND, 4),
        (Failure.TIMEOUT, 4),
        (Failure.REFUSED, 5),
        (Failure.TTL_EXPIRED, 6),
    ],
)
def test_every_failure_has_its_reply(failure: Failure, code: int) -> None:
    assert Request(5, "a", 1, None).failure(failure) == bytes((5, code, 0, 1)) + bytes(6)
    assert Request(4, "a", 1, None).failure(failure) == REJECTED4


def test_no_failure_is_without_a_reply() -> None:
    for failure in Failure:
        assert Request(5, "a", 1, None).failure(failure)[1] in range(1, 7)


@pytest.mark.parametrize(
    ("version", "bound", "reply"),
    [
        (5, Endpoint(V4_ADDRESS, 4660), b"\x05\x00\x00\x01" + V4_ADDRESS + b"\x12\x34"),
        (5, Endpoint(V6_ADDRESS, 4660), b"\x05\x00\x00\x04" + V6_ADDRESS + b"\x12\x34"),
        (5, None, b"\x05\x00\x00\x01" + bytes(6)),
        (4, Endpoint(V4_ADDRESS, 4660), b"\x00\x5a\x12\x34" + V4_ADDRESS),
        (4, Endpoint(V6_ADDRESS, 4660), b"\x00\x5a" + bytes(6)),
        (4, None, b"\x00\x5a" + bytes(6)),
    ],
)
def test_success_tells_the_relays_own_end(version: int, bound: Endpoint | None, reply: bytes) -> None:
    assert Request(version, "a", 1, None).success(bound) == reply


# --- S6: the login machine


def shuffled_conversation(rng: random.Random) -> list[bytes]:
    """Messages in any order, some of them broken, cut into random pieces."""
    known = [
        HELLO,
        HELLO_BOTH,
        b"\x05\x01\x02",
        b"\x05\xff" + bytes(range(255)),
        b"\x01\x05alice\x05wrong",
        b"\x01\x03bob\x0bopen sesame",
        b"\x01\x05alice\x00",
        b"\x05" + LOGIN[1:],
        name5(b"example.com"),
        request5(1, V4_ADDRESS),
        request5(4, V6_ADDRESS, command=3),
        request4(V4_ADDRESS, b"alice"),
        request4(b"\0\0\0\1", b"alice", b"open sesame"),
        rng.randbytes(rng.randrange(8)),
    ]
    stream = b"".join(rng.choices(known, k=rng.randint(1, 6)))
    pieces = []
    while stream:
        cut = rng.choice((1, 2, 3, 7, len(stream)))
        pieces.append(stream[:cut])
        stream = stream[cut:]
    return pieces


def test_no_order_of_messages_connects_without_a_login() -> None:
    """S6: none of the messages holds the right login, so no conversation ends in a request."""
    rng = random.Random(6)
    for _ in range(50_000):
        pieces = shuffled_conversation(rng)
        outcome = converse(pieces, USERS)
        assert outcome.request is None, pieces


@given(st.lists(st.sampled_from([HELLO, HELLO_BOTH, LOGIN, name5(b"a"), request4(V4_ADDRESS)]), max_size=6))
@example([HELLO_BOTH, LOGIN, name5(b"a"), HELLO])
@example([HELLO_BOTH, LOGIN, HELLO, LOGIN])
def test_a_request_comes_behind_the_right_login_only(messages: list[bytes]) -> None:
    """What follows the login may be read as a request though it was meant as another message."""
    outcome = converse(messages, USERS)
    if outcome.request is not None:
        assert messages[:2] == [HELLO_BOTH, LOGIN]
        assert outcome.request.user == "alice"
    if messages[:3] == [HELLO_BOTH, LOGIN, name5(b"a")]:
        assert outcome.request == Request(5, "a", 443, "alice")


# --- S11: hostile bytes


@given(st.binary(max_size=700), st.lists(st.integers(1, 40), max_size=30), st.booleans())
def test_splitting_changes_nothing(data: bytes, cuts: list[int], with_users: bool) -> None:
    users = USERS if with_users else None
    whole = converse([data], users)
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    split = converse([*pieces, data[at:]], users)
    assert (split.sent, split.request, split.leftover) == (whole.sent, whole.request, whole.leftover)


def test_mutated_conversations_raise_protocol_errors_only() -> None:
    """S11: 100,000 seeded mutations: no other exception, and never more than 520 bytes kept."""
    seeds = [
        HELLO + name5(b"www.example.com"),
        HELLO + request5(4, V6_ADDRESS),
        HELLO_BOTH + LOGIN + name5(b"www.example.com"),
        request4(V4_ADDRESS, b"alice"),
        request4(b"\0\0\0\1", b"alice", b"www.example.com"),
    ]
    started = time.process_time()
    accepted = 0
    for number, data in mutations(seeds, bytes(255), b"x" * 300):
        outcome = converse(halves(number, data), USERS if number & 1 else None)
        assert outcome.most_kept <= 520
        if outcome.request is not None:
            accepted += 1
            assert data.endswith(outcome.leftover)
    assert accepted > COUNT / 100
    assert time.process_time() - started < 30


# --- S1: the corpus of spellings


def corpus() -> list[tuple[bytes, str, str]]:
    """The rows of the corpus: target, class, spelling."""
    rows = []
    text = (Path(__file__).parent.parent / "corpus" / "acl.tsv").read_text("utf-8")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            target, kind, spelling = line.split("\t")
            rows.append((parse_address(target), kind, ast.literal_eval(spelling)))
    return rows


def spell_in_name_field(spelling: str) -> list[bytes]:
    """The spelling as a client would send it in SOCKS5's and in SOCKS4a's name field."""
    field = spelling.encode("utf-8", "surrogateescape")
    streams = []
    if len(field) <= 255:
        streams.append(HELLO + name5(field))
    if b"\0" not in field:
        streams.append(request4(b"\0\0\0\1", b"", field))
    return streams


def test_no_spelling_of_an_address_becomes_a_name_or_another_address() -> None:
    """S1 on the wire: a `malformed` row is refused, a `literal` one is its target."""
    rows = corpus()
    assert len(rows) > 300
    for target, kind, spelling in rows:
        for stream in spell_in_name_field(spelling):
            outcome = converse([stream])
            host = outcome.request.host if outcome.request else None
            if kind == "literal":
                assert host == target, spelling
            elif kind == "malformed":
                # Two rows are spelt as their target is; those are simply that address.
                assert host in (None, target), spelling
                assert host is None or parse_host(spelling) == target, spelling
            elif kind == "embed":
                assert isinstance(host, bytes), spelling
            else:
                assert kind == "name"
                # A name outside ASCII is refused; a name is decided again on what it resolves to.
                assert host is None or isinstance(host, str), spelling


def test_an_ipv6_field_is_the_address_the_text_spells() -> None:
    """S1 over SOCKS5's binary IPv6 field: the same host as the text of it."""
    tried = 0
    for _, _, spelling in corpus():
        try:
            host = parse_host(spelling)
        except AddressError:
            continue
        if isinstance(host, bytes):
            field = host if len(host) == 16 else bytes(10) + b"\xff\xff" + host
            outcome = converse([HELLO + request5(4, field)])
            assert outcome.request is not None
            assert outcome.request.host == host
            tried += 1
    assert tried > 50
