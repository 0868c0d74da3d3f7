"""A proxy is asked in exact bytes; whatever it answers ends in an exact tunnel or a DialError."""

from __future__ import annotations

import asyncio
import base64
import socket
import traceback
from collections.abc import Sequence

import pytest

from tests.engine.socks_peers import Scripted
from tests.engine.test_connect import FAST, run
from tests.mutations import COUNT, halves, mutations
from tests.strategies import upstream
from urelay.engine.connect import connect_tcp
from urelay.engine.logins import Credentials
from urelay.engine.proxies import Stream, _Octets, ask, converse
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint, parse_endpoint
from urelay.policy.model import Upstream, UpstreamKind

SOCKS5 = upstream("corp")
SOCKS4 = upstream("old", UpstreamKind.SOCKS4)
HTTP = upstream("web", UpstreamKind.HTTP)
V4 = parse_endpoint("192.0.2.7:443")
V6 = parse_endpoint("[2001:db8::7]:443")
NAME = parse_endpoint("www.example.com:443")

V4_REQUEST = b"\x05\x01\x00\x01\xc0\x00\x02\x07\x01\xbb"
V4_REPLY = b"\x05\x00\x00\x01\x0a\x00\x00\x01\x12\x34"


async def received(sock: socket.socket, length: int) -> bytes:
    """The next bytes of a socket."""
    data = b""
    loop = asyncio.get_running_loop()
    while len(data) < length and (piece := await loop.sock_recv(sock, length - len(data))):
        data += piece
    return data


def asked_of(
    steps: Sequence[tuple[int, Sequence[bytes]]],
    kind: object = SOCKS5,
    target: Endpoint = V4,
    login: Credentials | None = None,
    expect: bytes = b"",
    before: bytes = b"",
) -> bytes:
    """Ask a scripted proxy, see that the tunnel is `expect`; returns what the proxy got.

    `before` is what was read of its answer before it was asked.
    """
    peer = Scripted(steps)

    async def main() -> None:
        async with peer.serving():
            sock, _ = await connect_tcp([peer.at], FAST)
            try:
                early = await ask(sock, kind, login, target, before)  # type: ignore[arg-type]
                assert early + await received(sock, len(expect) + 1 - len(early)) == expect
            finally:
                sock.close()

    run(main)
    return peer.received


def refusal(
    steps: Sequence[tuple[int, Sequence[bytes]]],
    kind: object = SOCKS5,
    target: Endpoint = V4,
    login: Credentials | None = None,
) -> DialError:
    """What a scripted proxy's answer becomes."""
    with pytest.raises(DialError) as caught:
        asked_of(steps, kind, target, login)
    return caught.value


@pytest.mark.parametrize(
    ("target", "request_bytes"),
    [
        pytest.param(V4, V4_REQUEST, id="ipv4"),
        pytest.param(V6, b"\x05\x01\x00\x04\x20\x01\x0d\xb8" + bytes(11) + b"\x07\x01\xbb", id="ipv6"),
        pytest.param(NAME, b"\x05\x01\x00\x03\x0fwww.example.com\x01\xbb", id="name"),
        pytest.param(
            parse_endpoint("_under.xn--bcher-kva.example:1"),
            b"\x05\x01\x00\x03\x1c_under.xn--bcher-kva.example\x00\x01",
            id="odd-name",
        ),
    ],
)
def test_socks5_is_asked_in_exact_bytes(target: Endpoint, request_bytes: bytes) -> None:
    steps = [(3, [b"\x05\x00"]), (len(request_bytes), [V4_REPLY])]
    assert asked_of(steps, target=target) == b"\x05\x01\x00" + request_bytes


@pytest.mark.parametrize(
    ("user", "password"),
    [(b"alice", b"open sesame"), ("zoë".encode(), "pässword".encode()), (b"u" * 255, b"\xff" * 255)],
    ids=["plain", "utf-8", "longest"],
)
def test_a_login_is_sent_as_octets(user: bytes, password: bytes) -> None:
    login = b"\x01" + bytes([len(user)]) + user + bytes([len(password)]) + password
    steps = [(4, [b"\x05\x02"]), (len(login), [b"\x01\x00"]), (len(V4_REQUEST), [V4_REPLY])]
    got = asked_of(steps, login=Credentials(user, password))
    assert got == b"\x05\x02\x00\x02" + login + V4_REQUEST


@pytest.mark.parametrize(
    ("target", "login", "request_bytes"),
    [
        pytest.param(V4, None, b"\x04\x01\x01\xbb\xc0\x00\x02\x07\x00", id="4"),
        pytest.param(
            V4, Credentials(b"al\xfe", b""), b"\x04\x01\x01\xbb\xc0\x00\x02\x07al\xfe\x00", id="user"
        ),
        pytest.param(NAME, None, b"\x04\x01\x01\xbb\0\0\0\1\0www.example.com\0", id="4a"),
    ],
)
def test_socks4_is_asked_in_exact_bytes(
    target: Endpoint, login: Credentials | None, request_bytes: bytes
) -> None:
    steps = [(len(request_bytes), [b"\x00\x5a" + bytes(6)])]
    assert asked_of(steps, SOCKS4, target, login) == request_bytes


def test_socks4_is_not_asked_for_ipv6() -> None:
    error = refusal([(1, [])], SOCKS4, V6)
    assert error.failure is Failure.NET_UNREACHABLE
    assert str(error) == "upstream `old` is a SOCKS4 proxy, which knows no IPv6"


REPLIES = {
    "ipv4": V4_REPLY,
    "ipv6": b"\x05\x00\x00\x04" + bytes(range(16)) + b"\x12\x34",
    "name": b"\x05\x00\x00\x03\x04host\x12\x34",
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_a_reply_may_come_in_any_pieces_and_what_follows_is_the_tunnel(reply: bytes) -> None:
    """S10: split at every byte, and coalesced with what the server behind it says first."""
    for cut in range(len(reply) + 1):
        for banner in (b"", b"S", b"220 mail\r\n" * 409):
            pieces = [piece for piece in (reply[:cut], reply[cut:] + banner) if piece]
            steps = [(3, [b"\x05", b"\x00"]), (len(V4_REQUEST), pieces)]
            asked_of(steps, expect=banner)


def test_a_socks4_reply_may_come_in_any_pieces() -> None:
    reply = b"\x00\x5a\x12\x34\x0a\x00\x00\x01"
    for cut in range(len(reply) + 1):
        steps = [(9, [piece for piece in (reply[:cut], reply[cut:] + b"hello") if piece])]
        asked_of(steps, SOCKS4, expect=b"hello")


@pytest.mark.parametrize(
    ("code", "failure", "words"),
    [
        (1, Failure.ERROR, "it failed"),
        (2, Failure.DENIED, "its rules deny the destination"),
        (3, Failure.NET_UNREACHABLE, "network unreachable"),
        (4, Failure.HOST_UNREACHABLE, "host unreachable"),
        (5, Failure.REFUSED, "connection refused"),
        (6, Failure.TTL_EXPIRED, "time to live expired"),
        (7, Failure.ERROR, "it does not know the command"),
        (8, Failure.ERROR, "it does not know the type of address"),
        (99, Failure.ERROR, "invalid reply code"),
    ],
)
def test_a_refusal_by_the_proxy_is_the_clients(code: int, failure: Failure, words: str) -> None:
    error = refusal([(3, [b"\x05\x00"]), (10, [bytes((5, code, 0, 1)) + bytes(6)])])
    assert error.failure is failure
    assert str(error).startswith(f"upstream `corp`: {words}")


@pytest.mark.parametrize("code", [0x5B, 0x5C, 0x5D, 0x00])
def test_a_socks4_refusal_is_one_failure(code: int) -> None:
    assert refusal([(9, [bytes((0, code)) + bytes(6)])], SOCKS4).failure is Failure.ERROR


LOGIN = Credentials(b"canary-user", b"canary-password")


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([(4, [b"\x05\xff"])], id="no-method"),
        pytest.param([(4, [b"\x05\x01"])], id="gssapi"),
        pytest.param([(4, [b"\x05\x77"])], id="method-unknown"),
        pytest.param([(4, [b"\x04\x00"])], id="version"),
        pytest.param([(4, [b"\x05\x02"]), (29, [b"\x01\x01"])], id="wrong-login"),
        pytest.param([(4, [b"\x05\x02"]), (29, [b"\x05\x00"])], id="login-version"),
        pytest.param([(4, [b"\x05\x02"]), (29, [])], id="closed-in-login"),
        pytest.param(
            [(4, [b"\x05\x00"]), (10, [b"\x05\x00\x00\x03\x02\xff\xfe\x12\x34"])], id="name-not-utf-8"
        ),
        pytest.param([(4, [b"\x05\x00"]), (10, [b"\x05\x00\x00\x09" + bytes(20)])], id="address-type"),
        pytest.param([(4, [b"\x05\x00"]), (10, [b"\x05\x00\x01\x01" + bytes(6)])], id="reserved"),
        pytest.param([(4, [b"\x05\x00"]), (10, [b"HTTP/1.1 400 Bad Request\r\n\r\n"])], id="http"),
        pytest.param([(4, [b"\xff" * 1_000_000])], id="endless"),
        pytest.param([(4, [b"\x05\x00"]), (10, [b"\x05\x00\x00\x03\xff" + b"x" * 100])], id="cut-in-name"),
    ],
)
def test_an_answer_that_is_none_is_a_clean_failure_without_secrets(
    steps: list[tuple[int, list[bytes]]],
) -> None:
    """S10 and S16: nothing but DialError leaves, and neither it nor its traceback shows the login."""
    error = refusal(steps, login=LOGIN)
    assert error.failure is Failure.ERROR
    assert str(error).startswith("upstream `corp`")
    shown = "".join(traceback.format_exception(error)) + repr(error)
    assert "canary" not in shown


def test_a_proxy_that_closes_at_any_byte_is_a_clean_failure() -> None:
    for cut in range(len(V4_REPLY)):
        error = refusal([(3, [b"\x05\x00"]), (10, [V4_REPLY[:cut]] if cut else [])])
        assert error.failure is Failure.ERROR
        assert str(error) == "upstream `corp` closed the connection before its reply was whole"


class Said(Stream):
    """An answer that has come already, in pieces, and then the end."""

    def __init__(self, *pieces: bytes) -> None:
        self.early = b""
        self.rest = [piece for piece in pieces if piece]

    async def write(self, data: bytes) -> None:
        assert data

    async def read(self, max_bytes: int = 4096) -> bytes:
        if not self.rest:
            raise EOFError
        piece = self.rest.pop(0)
        if piece[max_bytes:]:
            self.rest.insert(0, piece[max_bytes:])
        return piece[:max_bytes]


@pytest.mark.parametrize(
    ("kind", "seeds", "count"),
    [
        pytest.param(
            SOCKS5,
            [b"\x05\x00" + reply + b"220 mail" for reply in REPLIES.values()],
            COUNT - COUNT // 5,
            id="socks5",
        ),
        pytest.param(SOCKS4, [b"\x00\x5a\x12\x34\x0a\x00\x00\x01220 mail"], COUNT // 5, id="socks4"),
    ],
)
def test_mutated_replies_end_in_an_exact_tunnel_or_a_dial_error(
    kind: Upstream, seeds: list[bytes], count: int
) -> None:
    """S10, S11: 100,000 seeded mutations of both versions' replies."""
    opened = 0
    for number, data in mutations(seeds, b"\x05\x00", b"x" * 300, count=count):
        stream = Said(*halves(number, data))
        conversation = converse(stream, kind, None, V4)
        try:
            # It waits for nothing but the stream, so it runs to its end at once.
            conversation.send(None)
        except StopIteration as end:
            tunnel = end.value + b"".join(stream.rest)
        except DialError:
            continue
        assert data.endswith(tunnel)
        opened += 1
    assert opened > count / 100


def test_what_the_library_keeps_of_a_login_shows_nothing() -> None:
    octets = _Octets.of(b"canary\xff")
    assert octets.encode("ascii") == b"canary\xff"
    assert len(octets) == 7
    assert "canary" not in repr(octets)
    assert "canary" not in repr([octets])


# --- HTTP


def head_of(target: bytes, *fields: bytes) -> bytes:
    """What a proxy is sent for a target."""
    return b"\r\n".join((b"CONNECT " + target + b" HTTP/1.1", b"Host: " + target, *fields)) + b"\r\n\r\n"


HEAD = head_of(b"192.0.2.7:443")
OPEN = b"HTTP/1.1 200 OK\r\nVia: 1.1 web\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "text"),
    [(V4, b"192.0.2.7:443"), (V6, b"[2001:db8::7]:443"), (NAME, b"www.example.com:443")],
    ids=["ipv4", "ipv6", "name"],
)
def test_http_is_asked_in_exact_bytes(target: Endpoint, text: bytes) -> None:
    head = head_of(text)
    assert asked_of([(len(head), [OPEN])], HTTP, target) == head


def test_http_is_sent_a_login() -> None:
    head = head_of(b"192.0.2.7:443", b"Proxy-Authorization: Basic YWxpY2U6b3BlbiBzZXNhbWU=")
    assert asked_of([(len(head), [OPEN])], HTTP, login=Credentials(b"alice", b"open sesame")) == head


@pytest.mark.parametrize("size", [1, 100, 4096, 20_000])
def test_what_comes_behind_an_http_answer_is_the_tunnel_however_it_is_cut(size: int) -> None:
    """S10: coalesced with the answer, or cut off it at any byte."""
    banner = (b"220 hello\r\n\r\n" * size)[:size]
    for cut in range(0, len(OPEN) + 1, 1 if size == 100 else 9):
        pieces = [piece for piece in (OPEN[:cut], OPEN[cut:] + banner) if piece]
        asked_of([(len(HEAD), pieces)], HTTP, expect=banner)


@pytest.mark.parametrize(
    ("answer", "failure", "words"),
    [
        (b"HTTP/1.1 403 Forbidden", Failure.DENIED, "its rules deny the destination (HTTP 403)"),
        (b"HTTP/1.1 407 Login", Failure.ERROR, "it asks for a login (HTTP 407)"),
        (b"HTTP/1.1 502 Bad", Failure.HOST_UNREACHABLE, "it cannot reach the destination (HTTP 502)"),
        (b"HTTP/1.1 504 Late", Failure.TIMEOUT, "the destination did not answer it in time (HTTP 504)"),
        (
            b"HTTP/1.1 502 Bad\r\nProxy-Status: x; error=connection_refused",
            Failure.REFUSED,
            "connection refused (HTTP 502)",
        ),
        (b"SSH-2.0-OpenSSH", Failure.ERROR, "it answers what is not HTTP"),
        (b"HTTP/1.1 200 " + b"x" * 1_000_000, Failure.ERROR, "its answer is longer than 16384 bytes"),
        (
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000,
            Failure.ERROR,
            "its answer is longer than 16384 bytes",
        ),
    ],
    ids=["403", "407", "502", "504", "refused", "ssh", "endless-line", "mebibyte"],
)
def test_an_http_refusal_is_the_clients(answer: bytes, failure: Failure, words: str) -> None:
    error = refusal([(len(HEAD), [answer + b"\r\n\r\n"])], HTTP)
    assert (error.failure, str(error)) == (failure, f"upstream `web`: {words}")


def test_an_http_proxy_that_closes_at_any_byte_is_a_clean_failure() -> None:
    login = Credentials(b"canary-user", b"canary-password")
    coded = base64.b64encode(b"canary-user:canary-password")
    head = head_of(b"192.0.2.7:443", b"Proxy-Authorization: Basic " + coded)
    for cut in range(len(OPEN)):
        error = refusal([(len(head), [OPEN[:cut]] if cut else [])], HTTP, login=login)
        assert error.failure is Failure.ERROR
        assert str(error) == "upstream `web` closed the connection before its reply was whole"
        shown = "".join(traceback.format_exception(error))
        assert "canary" not in shown
        assert coded.decode() not in shown


@pytest.mark.parametrize(
    ("kind", "steps", "answer"),
    [
        pytest.param(HTTP, [(len(HEAD), [b"\r\n\r\nlate"])], b"HTTP/1.1 200 OK", id="http"),
        pytest.param(HTTP, [(len(HEAD), [b"late"])], b"HTTP/1.1 200 OK\r\n\r\n", id="http-whole"),
        pytest.param(SOCKS5, [(13, [V4_REPLY[4:], b"late"])], b"\x05\x00" + V4_REPLY[:4], id="socks5"),
        pytest.param(SOCKS5, [(13, [b"late"])], b"\x05\x00" + V4_REPLY, id="socks5-whole"),
    ],
)
def test_what_was_read_before_is_read_first(
    kind: object, steps: list[tuple[int, list[bytes]]], answer: bytes
) -> None:
    """In a chain the next proxy's bytes may have come with the answer of the one before."""
    asked_of(steps, kind, expect=b"late", before=answer)


def test_what_was_read_before_and_not_asked_for_is_handed_on() -> None:
    asked_of(
        [(13, [b"and late"])], SOCKS5, expect=b"early and late", before=b"\x05\x00" + V4_REPLY + b"early "
    )
    long = b"early " * 2000
    asked_of([(len(HEAD), [b"and late"])], HTTP, expect=long + b"and late", before=OPEN + long)
