"""HTTP CONNECT, the client: exact bytes out, the tunnel exact however the answer comes, clean failures."""

from __future__ import annotations

import base64
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutations import COUNT, halves, mutations
from urelay.errors import Failure
from urelay.net.address import Endpoint, parse_endpoint
from urelay.protocols.connect import HttpServer, Request
from urelay.protocols.connect_client import HEADS_LIMIT, ConnectError, HttpClient
from urelay.protocols.users import SaltedHash, Users

TARGET = parse_endpoint("www.example.com:443")
BANNER = b"\r\n\r\n220 the server speaks first\r\nHTTP/1.1 407 not for you\r\n\r\n\0\xff"


@dataclass(frozen=True)
class Credentials:
    """A login as the engine has it, though this one shows itself."""

    user: bytes
    password: bytes


def asked(target: Endpoint, login: Credentials | None = None) -> bytes:
    return HttpClient(target, login).request()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("www.example.com:443", b"www.example.com:443"),
        ("192.0.2.7:80", b"192.0.2.7:80"),
        ("[2001:db8::7]:443", b"[2001:db8::7]:443"),
        ("_under.xn--bcher-kva.example:1", b"_under.xn--bcher-kva.example:1"),
    ],
)
def test_a_proxy_is_asked_in_exact_bytes(target: str, text: bytes) -> None:
    assert asked(parse_endpoint(target)) == b"CONNECT " + text + b" HTTP/1.1\r\nHost: " + text + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("user", "password"),
    [
        (b"alice", b"open sesame"),
        ("zoë".encode(), b"a:b"),
        (b"u" * 255, b"\xff" * 255),
        (b"u" * 256, b"p" * 256),
    ],
    ids=["plain", "utf-8", "longest", "longer"],
)
def test_a_login_is_one_field_of_octets(user: bytes, password: bytes) -> None:
    head = asked(TARGET, Credentials(user, password))
    field = b"Proxy-Authorization: Basic " + base64.b64encode(user + b":" + password)
    assert head.endswith(b"\r\n" + field + b"\r\n\r\n")
    assert head.count(b"\r\n") == 4


@pytest.mark.parametrize(
    "host",
    [
        "a\r\nX: y",
        "a b",
        "a\0b",
        "a\nb",
        "",
        "a/b",
        "u@a",
        "[a]",
        "é.test",
        "127.1",
        "A.test",
        "a.",
        "a:b",
        "::1",
    ],
)
def test_a_host_that_is_none_is_never_sent(host: str) -> None:
    with pytest.raises(ConnectError) as caught:
        HttpClient(Endpoint(host, 80))
    assert caught.value.failure is Failure.ERROR
    assert host == "" or host not in str(caught.value)


@pytest.mark.parametrize("host", ["www.example.com", "192.0.2.7", "2001:db8::7", "a"])
@pytest.mark.parametrize("user", [None, "alice"])
def test_our_own_server_understands_it(host: str, user: str | None) -> None:
    target = parse_endpoint(f"[{host}]:443" if ":" in host else f"{host}:443")
    users = None if user is None else Users({b"alice": SaltedHash.of(b"open sesame")})
    server = HttpServer(users)
    server.receive(asked(target, None if user is None else Credentials(b"alice", b"open sesame")))
    assert server.request == Request(target.host, 443, user)


# --- answers


def tunnel(pieces: Iterable[bytes], login: Credentials | None = None) -> HttpClient:
    """A client that was fed an answer in these pieces."""
    client = HttpClient(TARGET, login)
    client.request()
    for piece in pieces:
        client.receive(piece)
    return client


OPENING = [
    pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="200"),
    pytest.param(b"HTTP/1.0 200 Connection established\r\n\r\n", id="1.0"),
    pytest.param(b"HTTP/1.1 200\r\n\r\n", id="no-phrase"),
    pytest.param(b"HTTP/1.1 200 \r\n\r\n", id="empty-phrase"),
    pytest.param(b"HTTP/1.1 204 None\r\n\r\n", id="204"),
    pytest.param(b"HTTP/1.1 299 ?\r\n\r\n", id="299"),
    pytest.param(b"HTTP/1.1 200 OK\r\nVia: 1.1 corp\r\nX-Late: y\r\n\r\n", id="fields"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", id="length-is-ignored"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", id="coding-is-ignored"),
    pytest.param(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", id="close-is-ignored"),
    pytest.param(b"HTTP/1.1 200 OK\r\nProxy-Status: x; error=dns_error\r\n\r\n", id="status-decides"),
    pytest.param(b"HTTP/1.1 200 OK\n\n", id="bare-lf"),
    pytest.param(b"HTTP/1.1 200 OK\nVia: x\n\r\n", id="mixed-line-ends"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", id="100-first"),
    pytest.param(
        b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" * 5 + b"HTTP/1.1 200 OK\r\nA: b\r\n\r\n", id="many-1xx"
    ),
    pytest.param(b"HTTP/1.1 200 \xff\xfe\r\nX: \xff\r\n\r\n", id="not-utf-8"),
    pytest.param(
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEADS_LIMIT - 24) + b"\r\n\r\n", id="longest"
    ),
]  # fmt: skip


@pytest.mark.parametrize("answer", OPENING)
def test_a_2xx_opens_a_tunnel_that_is_exact(answer: bytes) -> None:
    """S10: split at every byte, byte by byte, and coalesced with what the server says first."""
    assert len(answer) <= HEADS_LIMIT
    step = max(1, len(answer) // 400)
    for cut in range(0, len(answer) + 1, step):
        client = tunnel([answer[:cut], answer[cut:] + BANNER])
        assert client.done
        assert client.leftover == BANNER, cut
    client = tunnel(answer[i : i + 1] for i in range(len(answer)))
    assert (client.done, client.leftover) == (True, b"")
    client.receive(b"more")
    assert client.leftover == b"more"
    for size in (1, 100, 4096):
        assert tunnel([answer + b"\r" * size]).leftover == b"\r" * size
    assert not tunnel([answer[:-1]]).done


REFUSALS = [
    (b"HTTP/1.1 403 Forbidden", Failure.DENIED, "its rules deny the destination (HTTP 403)"),
    (b"HTTP/1.1 407 Login", Failure.ERROR, "it asks for a login (HTTP 407)"),
    (b"HTTP/1.1 502 Bad Gateway", Failure.HOST_UNREACHABLE, "it cannot reach the destination (HTTP 502)"),
    (b"HTTP/1.1 503 Busy", Failure.HOST_UNREACHABLE, "it cannot reach the destination (HTTP 503)"),
    (b"HTTP/1.1 504 Late", Failure.TIMEOUT, "the destination did not answer it in time (HTTP 504)"),
    (b"HTTP/1.1 400 Bad", Failure.ERROR, "it refuses (HTTP 400)"),
    (b"HTTP/1.1 404 Not Found", Failure.ERROR, "it refuses (HTTP 404)"),
    (b"HTTP/1.1 405 No", Failure.ERROR, "it refuses (HTTP 405)"),
    (b"HTTP/1.1 500 Oops", Failure.ERROR, "it refuses (HTTP 500)"),
    (b"HTTP/1.1 302 Elsewhere\r\nLocation: http://portal/", Failure.ERROR, "it refuses (HTTP 302)"),
]


@pytest.mark.parametrize(("head", "failure", "words"), REFUSALS)
def test_a_refusal_by_the_proxy_is_the_clients(head: bytes, failure: Failure, words: str) -> None:
    answer = head + b"\r\nContent-Length: 5\r\n\r\nwhy it"
    for pieces in ([answer], [answer[i : i + 1] for i in range(len(answer))]):
        with pytest.raises(ConnectError) as caught:
            tunnel(pieces)
        assert (caught.value.failure, str(caught.value)) == (failure, words)


def test_a_login_that_is_refused_is_told_apart_from_one_that_is_missing() -> None:
    with pytest.raises(ConnectError, match=r"^it refuses the login \(HTTP 407\)$"):
        tunnel([b"HTTP/1.1 407 No\r\n\r\n"], Credentials(b"a", b"b"))


@pytest.mark.parametrize("failure", Failure)
def test_what_our_own_server_says_comes_back_as_it_was(failure: Failure) -> None:
    """RFC 9209 tells apart what 502 cannot; two kinds of unreachable stay one."""
    with pytest.raises(ConnectError) as caught:
        tunnel([Request("a", 1, None).failure(failure)])
    same = {Failure.NET_UNREACHABLE: Failure.HOST_UNREACHABLE, Failure.TTL_EXPIRED: Failure.HOST_UNREACHABLE}
    assert caught.value.failure is same.get(failure, failure)


@pytest.mark.parametrize(
    ("field", "failure"),
    [
        (b"a; error=connection_refused, b; error=dns_error", Failure.REFUSED),
        (b"a;error=dns_timeout", Failure.TIMEOUT),
        (b'a; received-status=502, b; error=destination_ip_prohibited; details="x"', Failure.DENIED),
        (b"a; error=a_new_one", Failure.HOST_UNREACHABLE),
        (b"error=connection_refused", Failure.HOST_UNREACHABLE),
        (b"", Failure.HOST_UNREACHABLE),
    ],
)
def test_the_proxy_nearest_to_the_destination_knows_best(field: bytes, failure: Failure) -> None:
    with pytest.raises(ConnectError) as caught:
        tunnel([b"HTTP/1.1 502 Bad\r\nProxy-Status: " + field + b"\r\n\r\n"])
    assert caught.value.failure is failure


NONSENSE = [
    pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", id="ssh"),
    pytest.param(b"\x05\x00", id="socks"),
    pytest.param(b"\x15\x03\x01\x00\x02\x02\x46", id="tls"),
    pytest.param(b"<html>", id="html"),
    pytest.param(b"http/1.1 200 OK\r\n\r\n", id="lower-case"),
    pytest.param(b"\r\nHTTP/1.1 200 OK\r\n\r\n", id="empty-line-first"),
    pytest.param(b"HTTP/1.1\r\n\r\n", id="no-status"),
    pytest.param(b"HTTP/1.1 20 OK\r\n\r\n", id="short-status"),
    pytest.param(b"HTTP/1.1 2000 OK\r\n\r\n", id="long-status"),
    pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", id="status-in-letters"),
    pytest.param(b"HTTP/1.1 099 OK\r\n\r\n", id="status-below-100"),
    pytest.param(b"HTTP/11 200 OK\r\n\r\n", id="version"),
    pytest.param(b"HTTP/1.1 200 O\0K\r\n\r\n", id="nul"),
    pytest.param(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", id="no-colon"),
    pytest.param(b"HTTP/1.1 200 OK\r\n folded\r\n\r\n", id="folded-first"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n", id="space-before-colon"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", id="length"),
    pytest.param(b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n", id="101"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\nrubbish", id="rubbish-behind-100"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * (1 << 20), id="1-MiB-field"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEADS_LIMIT + b"\r\n\r\n", id="whole-but-too-long"),
    pytest.param(b"HTTP/1.1 200 " + b"x" * (1 << 20), id="endless-phrase"),
    pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, id="endless-1xx"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n", id="too-many-fields"),
]


@pytest.mark.parametrize("answer", NONSENSE)
def test_an_answer_that_is_none_is_a_clean_failure_without_secrets(answer: bytes) -> None:
    """S10 and S16: nothing but ConnectError leaves, and neither it nor its traceback shows the login."""
    login = Credentials(b"canary-user", b"canary-password")
    coded = base64.b64encode(b"canary-user:canary-password").decode()
    pieces = [answer[i : i + 1] for i in range(min(len(answer), HEADS_LIMIT + 1))]
    for way in ([answer], pieces):
        with pytest.raises(ConnectError) as caught:
            tunnel(way, login)
        assert caught.value.failure is Failure.ERROR
        assert str(caught.value).startswith(
            ("it answers what is not HTTP", "its answer is longer than 16384")
        )
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
        assert "canary" not in shown
        assert coded not in shown


def test_no_repr_shows_a_login() -> None:
    client = HttpClient(TARGET, Credentials(b"canary-user", b"canary-password"))
    client.request()
    shown = repr(client) + repr(client._connection)
    assert "canary" not in shown


@given(
    st.lists(
        st.sampled_from(
            [
                b"HTTP/1.1 ",
                b"200 OK",
                b"100 x",
                b"502 x",
                b"\r\n",
                b"\n",
                b"\r",
                b"X: y",
                b"Proxy-Status: a;error=dns_error",
            ]
        ),
        max_size=14,
    ).map(b"".join),
    st.lists(st.integers(1, 20), max_size=20),
)
def test_splitting_changes_nothing(data: bytes, cuts: list[int]) -> None:
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    assert end([*pieces, data[at:]]) == end([data])


def end(pieces: Iterable[bytes]) -> object:
    """What an answer comes to."""
    try:
        client = tunnel(pieces)
    except ConnectError as error:
        return error.failure, str(error)
    return client.done, client.leftover


def test_mutated_answers_raise_the_protocols_own_error_only() -> None:
    """S11: 100,000 seeded mutations: a tunnel, patience or a ConnectError."""
    seeds = [
        b"HTTP/1.1 200 Connection established\r\nVia: 1.1 corp\r\n\r\n" + BANNER,
        b'HTTP/1.0 407 Login\r\nProxy-Authenticate: Basic realm="x"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 502 Bad\r\nProxy-Status: a; error=dns_error\r\n\r\n",
    ]
    started = time.process_time()
    opened = 0
    for number, data in mutations(seeds, b"\n", b" ", b":", end=b"\r\n\r\n"):
        outcome = end(halves(number, data))
        if isinstance(outcome, tuple) and outcome[0] is True:
            opened += 1
            assert data.endswith(outcome[1])
    assert opened > COUNT / 100
    assert time.process_time() - started < 60
