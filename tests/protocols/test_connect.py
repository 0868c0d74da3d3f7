"""HTTP CONNECT, the server: one strict head, the tunnel's bytes exact, no request without a login."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.mutations import COUNT, halves, mutations
from tests.protocols.test_socks import corpus
from urelay.errors import AddressError, Failure, ProtocolError
from urelay.net.address import Endpoint, Host, parse_address, parse_host
from urelay.protocols.connect import HEAD_LIMIT, HttpServer, Request
from urelay.protocols.users import SaltedHash, Users

USERS = Users({b"alice": SaltedHash.of(b"open sesame"), "zoë".encode(): SaltedHash.of(b"a:b")})
V4 = bytes((192, 0, 2, 7))
V6 = parse_address("2001:db8::7")
LAST = b"\r\n\r\n"


def connect(target: bytes, *fields: bytes, version: bytes = b"1.0", method: bytes = b"CONNECT") -> bytes:
    """A request head; HTTP/1.0 needs no Host."""
    return b"\r\n".join((method + b" " + target + b" HTTP/" + version, *fields)) + LAST


def basic(login: bytes, scheme: bytes = b"Basic") -> bytes:
    """The field of a login."""
    return b"Proxy-Authorization: " + scheme + b" " + base64.b64encode(login)


LOGIN = basic(b"alice:open sesame")


@dataclass
class Outcome:
    """What a conversation came to."""

    request: Request | None
    leftover: bytes
    sent: bytes
    error: str | None
    most_kept: int

    @property
    def status(self) -> int:
        """Of the answer to a refused request; 0 for none."""
        return int(self.sent[9:12]) if self.sent else 0


def converse(pieces: Iterable[bytes], users: Users | None = None) -> Outcome:
    """Feed the pieces; stop at an error, as a caller does."""
    server = HttpServer(users)
    most = 0
    for piece in pieces:
        try:
            assert server.receive(piece) == b""
        except ProtocolError as error:
            assert server.request is None
            assert server._buffer == b""
            return Outcome(None, b"", error.reply, str(error), most)
        most = max(most, len(server._buffer))
    return Outcome(server.request, server.leftover, b"", None, most)


def every_way(data: bytes, users: Users | None = None) -> Outcome:
    """Whole, byte by byte, in splits in two, and with data behind: all the same, which is returned."""
    whole = converse([data], users)
    ways = [converse((data[i : i + 1] for i in range(len(data))), users)]
    ways += [
        converse([data[:cut], data[cut:]], users) for cut in range(1, len(data), max(1, len(data) // 40))
    ]
    for way in ways:
        assert (way.sent, way.request, way.leftover) == (whole.sent, whole.request, whole.leftover)
        assert way.error == whole.error
        assert way.most_kept < HEAD_LIMIT
    behind = b"GET / HTTP/1.1\r\n\r\n\0\xff"
    trailed = converse([data + behind], users)
    if whole.request is not None:
        assert (trailed.request, trailed.leftover) == (whole.request, whole.leftover + behind)
    elif whole.error is not None:
        assert (trailed.sent, trailed.error) == (whole.sent, whole.error)
    return whole


ACCEPTED = [
    pytest.param(connect(b"example.com:443"), "example.com", 443, id="1.0"),
    pytest.param(connect(b"example.com:443", b"Host: example.com:443", version=b"1.1"), "example.com", 443),
    pytest.param(connect(b"example.com:443", b"Host: example.com", version=b"1.1"), "example.com", 443),
    pytest.param(connect(b"a.test:1", b"host:\tA.test.:1 ", version=b"1.1"), "a.test", 1, id="host-spelling"),
    pytest.param(connect(b"example.com:443", b"Host: example.com:443"), "example.com", 443, id="1.0-host"),
    pytest.param(connect(b"a.test:1", b"Host: a.test", version=b"1.9"), "a.test", 1, id="1.9"),
    pytest.param(connect(b"EXAMPLE.com.:65535"), "example.com", 65535, id="case-and-dot"),
    pytest.param(connect(b"192.0.2.7:80"), V4, 80, id="ipv4"),
    pytest.param(connect(b"[2001:db8::7]:443"), V6, 443, id="ipv6"),
    pytest.param(connect(b"2001:db8::7:443"), V6, 443, id="ipv6-without-brackets"),
    pytest.param(
        connect(b"2001:db8::7:443", b"Host: 2001:db8::7:443", version=b"1.1"), V6, 443, id="ipv6-host-alike"
    ),
    pytest.param(
        connect(b"[2001:db8::7]:443", b"Host: 2001:db8::7", version=b"1.1"), V6, 443, id="ipv6-bare-host"
    ),
    pytest.param(
        connect(b"[2001:db8::443]:443", b"Host: [2001:db8::443]", version=b"1.1"),
        parse_address("2001:db8::443"),
        443,
        id="ipv6-that-ends-like-its-port",
    ),
    pytest.param(connect(b"[::ffff:192.0.2.7]:80"), V4, 80, id="mapped"),
    pytest.param(connect(b"[::1]:80"), parse_address("::1"), 80, id="loopback-is-for-the-policy"),
    pytest.param(connect(b"_a.xn--bcher-kva.test:80"), "_a.xn--bcher-kva.test", 80, id="odd-name"),
    pytest.param(connect(b"a:80"), "a", 80, id="one-label"),
    pytest.param(connect(b"a:80", b"Content-Length: 0"), "a", 80, id="no-content-said"),
    pytest.param(connect(b"a:80", b"Connection: keep-alive", b"Proxy-Connection: x"), "a", 80, id="fields"),
    pytest.param(connect(b"a:80", b"Expect: 100-continue"), "a", 80, id="expect"),
    pytest.param(connect(b"a:80", b"Upgrade: websocket"), "a", 80, id="upgrade"),
    pytest.param(connect(b"a:80", b"X: \x01\xff\xfe"), "a", 80, id="odd-value"),
    pytest.param(connect(b"a:80", b"X:"), "a", 80, id="empty-value"),
    pytest.param(connect(b"a:80", LOGIN), "a", 80, id="login-not-asked-for"),
    pytest.param(
        connect(b"a:80", b"X: " + b"x" * (HEAD_LIMIT - len(connect(b"a:80", b"X: ")))), "a", 80, id="longest"
    ),
]


@pytest.mark.parametrize(("data", "host", "port"), ACCEPTED)
def test_a_request_is_read(data: bytes, host: Host, port: int) -> None:
    outcome = every_way(data)
    assert outcome.error is None
    assert outcome.request == Request(host, port, None)
    assert outcome.leftover == b""


def bad_target(target: bytes, id: str) -> object:
    return pytest.param(connect(target), 400, None, id=f"target-{id}")


HEADS = [
    # Line ends and whitespace
    pytest.param(b"CONNECT a:80 HTTP/1.0\n\n", 400, "a line", id="bare-lf"),
    pytest.param(b"CONNECT a:80 HTTP/1.0\r\nX: y\n\r\n", 400, "a line", id="bare-lf-in-a-field"),
    pytest.param(b"CONNECT a:80 HTTP/1.0\r\nX: y\r\n\n", 400, "a line", id="bare-lf-at-the-end"),
    pytest.param(b"CONNECT a:80 HTTP/1.0\r\rX", 400, "a line", id="bare-cr"),
    pytest.param(b"CONNECT a:80 HTTP/1.0\r\nX: a\rb\r\n\r\n", 400, "a line", id="bare-cr-in-a-field"),
    pytest.param(b"CONNECT a:80 HTTP/1.0\r\n\rX", 400, "a line", id="bare-cr-at-the-end"),
    pytest.param(b"\r\n" + connect(b"a:80"), 400, "expected an HTTP request, got byte 0x0d", id="empty-line"),
    pytest.param(b" " + connect(b"a:80"), 400, "expected an HTTP request", id="space-first"),
    pytest.param(connect(b"a:80", b"X: y", b" folded"), 400, "a folded", id="obs-fold"),
    pytest.param(connect(b"a:80", b"X: y", b"\tfolded"), 400, "a folded", id="obs-fold-tab"),
    pytest.param(connect(b"a:80", b" X: y"), 400, "a folded", id="obs-fold-first"),
    pytest.param(connect(b"a:80", b"X : y"), 400, "a malformed", id="space-before-colon"),
    pytest.param(connect(b"a:80", b": y"), 400, "a malformed", id="no-field-name"),
    pytest.param(connect(b"a:80", b"no colon"), 400, "a malformed", id="no-colon"),
    pytest.param(connect(b"a:80", b"X: a\0b"), 400, "a malformed", id="nul-in-a-value"),
    pytest.param(connect(b"a:80", b"X\0: b"), 400, "a malformed", id="nul-in-a-name"),
    pytest.param(connect(b"a:80", b"X\x80: b"), 400, "a malformed", id="field-name-not-ascii"),
    pytest.param(connect(b"a:80", b"X: a\vb"), 400, "a malformed", id="vertical-tab"),
    pytest.param(b"CONNECT  a:80 HTTP/1.0" + LAST, 400, "a malformed", id="two-spaces"),
    pytest.param(b"CONNECT\ta:80 HTTP/1.0" + LAST, 400, "a malformed", id="tab"),
    pytest.param(b"CONNECT a:80 HTTP/1.0 " + LAST, 400, "a malformed", id="space-behind"),
    pytest.param(b"CONNECT a:80" + LAST, 400, "a malformed", id="no-version"),
    pytest.param(b"CONNECT HTTP/1.0" + LAST, 400, "a malformed", id="no-target"),
    pytest.param(b"CONNECT" + LAST, 400, "a malformed", id="method-alone"),
    pytest.param(b"CONNECT a:80 http/1.0" + LAST, 400, "a malformed", id="version-in-lower-case"),
    pytest.param(b"CONNECT a:80 HTTP/1" + LAST, 400, "a malformed", id="version-without-minor"),
    pytest.param(b"CONNECT a:80 HTTP/1.10" + LAST, 400, "a malformed", id="version-too-long"),
    # Not HTTP at all
    pytest.param(b"\x05\x01\x00", 400, "expected an HTTP request, got byte 0x05", id="socks5"),
    pytest.param(b"\x16\x03\x01\x02\x00", 400, "expected an HTTP request, got byte 0x16", id="tls"),
    pytest.param(b"\xff", 400, "expected an HTTP request, got byte 0xff", id="not-ascii"),
    # Versions
    pytest.param(connect(b"a:80", version=b"0.9"), 505, "HTTP version 0.9", id="0.9"),
    pytest.param(connect(b"a:80", version=b"2.0"), 505, "HTTP version 2.0", id="2.0"),
    pytest.param(b"PRI * HTTP/2.0\r\n\r\n", 505, "HTTP version 2.0", id="http2-preface"),
    # Methods
    *(
        pytest.param(
            connect(b"http://a/", b"Host: a", method=m, version=b"1.1"), 405, "method", id=m.decode()
        )
        for m in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH")
    ),
    pytest.param(connect(b"/", b"Host: a", method=b"GET", version=b"1.1"), 405, "method `GET`", id="origin"),
    pytest.param(connect(b"a:80", method=b"connect"), 501, "method `connect`", id="method-in-lower-case"),
    pytest.param(connect(b"a:80", method=b"BREW"), 501, "method `BREW`", id="method-unknown"),
    pytest.param(connect(b"a:80", method=b"CONNECTX"), 501, "method `CONNECTX`", id="method-longer"),
    pytest.param(connect(b"a:80", method=b"B" * 4000), 501, "method `BBBB", id="method-endless"),
    pytest.param(connect(b"a:80", method=b"CO(NNECT"), 400, "a malformed", id="method-no-token"),
    # Content
    pytest.param(connect(b"a:80", b"Content-Length: 5"), 400, "a CONNECT request with", id="cl"),
    pytest.param(connect(b"a:80", b"Content-Length: 00"), 400, None, id="cl-zeros"),
    pytest.param(connect(b"a:80", b"Content-Length: -1"), 400, None, id="cl-negative"),
    pytest.param(connect(b"a:80", b"Content-Length: +0"), 400, None, id="cl-sign"),
    pytest.param(connect(b"a:80", b"Content-Length: 0x0"), 400, None, id="cl-hex"),
    pytest.param(connect(b"a:80", b"Content-Length: " + b"1" * 30), 400, None, id="cl-endless"),
    pytest.param(connect(b"a:80", b"Content-Length: 0", b"Content-Length: 5"), 400, None, id="cl-twice"),
    pytest.param(connect(b"a:80", b"Content-Length: 0, 5"), 400, None, id="cl-list"),
    pytest.param(connect(b"a:80", b"Transfer-Encoding: chunked"), 400, "a CONNECT request with", id="te"),
    pytest.param(
        connect(b"a:80", b"Content-Length: 5", b"Transfer-Encoding: chunked"), 400, "a CONNECT", id="cl-te"
    ),
    pytest.param(
        connect(b"a:80", b"Transfer-Encoding: chunked", b"Content-Length: 0"), 400, "a CONNECT", id="te-cl-0"
    ),
    pytest.param(connect(b"a:80", b"Transfer-Encoding: gzip"), 501, "a malformed", id="te-unknown"),
    pytest.param(connect(b"a:80", b"Transfer-Encoding: gzip, chunked"), 501, "a malformed", id="te-list"),
    pytest.param(connect(b"a:80", b"Transfer-Encoding: xchunked"), 501, "a malformed", id="te-prefix"),
    pytest.param(
        connect(b"a:80", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        501,
        None,
        id="te-twice",
    ),
    pytest.param(connect(b"a:80", b"Transfer-Encoding : chunked"), 400, "a malformed", id="te-space"),
    # Host
    pytest.param(connect(b"a:80", version=b"1.1"), 400, "a malformed", id="no-host"),
    pytest.param(
        connect(b"a:80", b"Host: a", b"Host: a", version=b"1.1"), 400, "a malformed", id="two-hosts"
    ),
    pytest.param(connect(b"a:80", b"Host: b", version=b"1.1"), 400, "the Host field", id="host-other"),
    pytest.param(connect(b"a:80", b"Host: a:81", version=b"1.1"), 400, "the Host field", id="host-port"),
    pytest.param(connect(b"a:80", b"Host: a:080", version=b"1.1"), 400, "the Host field", id="host-080"),
    pytest.param(connect(b"a:80", b"Host:", version=b"1.1"), 400, "the Host field", id="host-empty"),
    pytest.param(connect(b"a:80", b"Host: a b", version=b"1.1"), 400, "the Host field", id="host-space"),
    pytest.param(connect(b"a:80", b"Host: u@a", version=b"1.1"), 400, "the Host field", id="host-userinfo"),
    pytest.param(connect(b"a:80", b"Host: \xff", version=b"1.1"), 400, "the Host field", id="host-odd"),
    pytest.param(connect(b"a:80", b"Host: b"), 400, "the Host field", id="1.0-host-other"),
    pytest.param(
        connect(b"127.0.0.1:80", b"Host: example.com", version=b"1.1"), 400, "the Host", id="host-better"
    ),
    # Targets
    bad_target(b"http://example.com:443", "absolute"),
    bad_target(b"http://example.com/", "absolute-path"),
    bad_target(b"https://example.com:443/", "absolute-https"),
    bad_target(b"//example.com:443", "network-path"),
    bad_target(b"/", "origin-form"),
    bad_target(b"/example.com:443", "origin-form-with-a-port"),
    bad_target(b"*", "asterisk"),
    bad_target(b"*:443", "asterisk-with-a-port"),
    bad_target(b"user@example.com:443", "userinfo"),
    bad_target(b"user:password@example.com:443", "userinfo-with-password"),
    bad_target(b"example.com@127.0.0.1:443", "userinfo-like-a-host"),
    bad_target(b"example.com", "no-port"),
    bad_target(b"example.com:", "empty-port"),
    bad_target(b":443", "empty-host"),
    bad_target(b":", "colon"),
    bad_target(b"192.0.2.7", "ipv4-alone"),
    bad_target(b"[2001:db8::7]", "ipv6-alone"),
    bad_target(b"[2001:db8::7]:", "ipv6-empty-port"),
    bad_target(b"[2001:db8::7]443", "ipv6-no-colon"),
    bad_target(b"[2001:db8::7:443", "bracket-open"),
    bad_target(b"2001:db8::7]:443", "bracket-closed"),
    bad_target(b"[[2001:db8::7]]:443", "brackets-twice"),
    bad_target(b"[example.com]:443", "name-in-brackets"),
    bad_target(b"[192.0.2.7]:443", "ipv4-in-brackets"),
    bad_target(b"[]:443", "empty-brackets"),
    bad_target(b"[fe80::1%eth0]:443", "zone"),
    bad_target(b"[fe80::1%25eth0]:443", "zone-escaped"),
    bad_target(b"[v1.x]:443", "ip-future"),
    bad_target(b"::443", "unspecified-without-a-port"),
    bad_target(b"example.com:0", "port-0"),
    bad_target(b"example.com:00", "port-00"),
    bad_target(b"example.com:65536", "port-65536"),
    bad_target(b"example.com:65979", "port-wraps-to-443"),
    bad_target(b"example.com:4294967739", "port-wraps-at-32-bits"),
    bad_target(b"example.com:" + b"4" * 4000, "port-endless"),
    bad_target(b"example.com:+80", "port-plus"),
    bad_target(b"example.com:-80", "port-minus"),
    bad_target(b"example.com:080", "port-080"),
    bad_target(b"example.com:0x50", "port-hex"),
    bad_target(b"example.com:8_0", "port-underscore"),
    bad_target(b"example.com:80.0", "port-fraction"),
    bad_target(b"example.com:http", "port-name"),
    bad_target(b"example.com:80:80", "two-ports"),
    bad_target(b"example.com:80/", "path"),
    bad_target(b"example.com:80?x", "query"),
    bad_target(b"example.com:80#x", "fragment"),
    bad_target(b"example.com%00.a:80", "percent-nul"),
    bad_target(b"%31%32%37.0.0.1:80", "percent-digits"),
    bad_target(b"127.1:80", "127.1"),
    bad_target(b"0177.0.0.1:80", "octal"),
    bad_target(b"0x7f.0.0.1:80", "hex"),
    bad_target(b"2130706433:80", "decimal"),
    bad_target(b"017700000001:80", "octal-number"),
    bad_target(b"127.0.0.01:80", "leading-zero"),
    bad_target(b"127.0.0.256:80", "octet-256"),
    bad_target(b"127.0.0.1.:80", "ipv4-with-a-dot"),
    bad_target(b"127.0.0.1.1:80", "five-octets"),
    bad_target(b"1.2.3:80", "three-octets"),
    bad_target(b"a..b:80", "empty-label"),
    bad_target(b".a:80", "leading-dot"),
    bad_target(b"-a.b:80", "leading-hyphen"),
    bad_target(b"a,b:80", "comma"),
    bad_target(b"a;b:80", "semicolon"),
    bad_target(b"a\\b:80", "backslash"),
    bad_target(b"a'b:80", "quote"),
    bad_target(b"$(a):80", "shell"),
    bad_target(b"a" * 64 + b".b:80", "label-of-64"),
    bad_target(b".".join([b"a" * 60] * 5) + b":80", "name-of-300"),
    pytest.param(b"CONNECT a b:80 HTTP/1.0" + LAST, 400, "a malformed", id="target-space"),
    pytest.param(b"CONNECT a\0b:80 HTTP/1.0" + LAST, 400, "a malformed", id="target-nul"),
    pytest.param(connect("①②⑦.0.0.1:80".encode()), 400, "a malformed", id="target-not-ascii"),
    # Size
    pytest.param(b"C" * HEAD_LIMIT, 431, "a request head of more than 8192 bytes", id="endless-line"),
    pytest.param(
        connect(b"a:80", b"X: " + b"x" * (HEAD_LIMIT + 1 - len(connect(b"a:80", b"X: ")))),
        431,
        None,
        id="8193",
    ),
    pytest.param(connect(b"a:80", *[b"X: y"] * 4000), 431, None, id="many-fields"),
    pytest.param(connect(b"a:80", b"X: " + b"x" * (1 << 20)), 431, None, id="a-mebibyte"),
]


@pytest.mark.parametrize(("data", "status", "error"), HEADS)
def test_a_head_that_is_not_exactly_a_connect_is_refused(data: bytes, status: int, error: str | None) -> None:
    """S8. The answer closes the connection, and nothing behind the head is looked at."""
    outcome = every_way(data)
    assert outcome.request is None
    assert outcome.status == status
    assert outcome.error is not None
    if error is not None:
        assert outcome.error.startswith(error)
    head, _, body = outcome.sent.partition(LAST)
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d\r\n" % len(body) in head
    assert (b"\r\nAllow: CONNECT\r\n" in head) == (status == 405)
    assert body == (b"" if status in (405, 501) else outcome.error.encode() + b"\n")


def test_the_table_is_as_long_as_it_should_be() -> None:
    assert len(ACCEPTED) + len(HEADS) >= 150


def test_a_refused_client_stays_refused() -> None:
    server = HttpServer(USERS)
    with pytest.raises(ProtocolError):
        server.receive(connect(b"a:80"))
    for _ in range(3):
        with pytest.raises(ProtocolError, match="bytes behind a refused request") as caught:
            server.receive(connect(b"a:80", LOGIN))
        assert caught.value.reply == b""
    assert server.request is None


def test_data_behind_the_request_is_kept_exact() -> None:
    server = HttpServer()
    server.receive(connect(b"a:80") + b"\r\n\r\none")
    assert server.receive(b"two\n") == b""
    assert server.leftover == b"\r\n\r\nonetwo\n"


# --- logins


@pytest.mark.parametrize(
    ("field", "user"),
    [
        pytest.param(LOGIN, "alice", id="plain"),
        pytest.param(basic(b"alice:open sesame", b"bAsIc"), "alice", id="scheme-in-any-case"),
        pytest.param(basic(b"alice:open sesame", b"Basic  "), "alice", id="spaces"),
        pytest.param(basic("zoë".encode() + b":a:b"), "zoë", id="utf-8-and-colons"),
    ],
)
def test_a_right_login_opens_the_way(field: bytes, user: str) -> None:
    assert every_way(connect(b"a:80", field), USERS).request == Request("a", 80, user)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param([], "no login", id="none"),
        pytest.param([basic(b"alice:wrong")], "wrong user or password", id="wrong"),
        pytest.param([basic(b"bob:open sesame")], "wrong user or password", id="unknown"),
        pytest.param([basic(b"alice:")], "wrong user or password", id="no-password"),
        pytest.param([basic(b":")], "wrong user or password", id="empty"),
        pytest.param([basic(b"alice")], "wrong user or password", id="no-colon"),
        pytest.param([basic(b"alice:open sesame ")], "wrong user or password", id="longer"),
        pytest.param([basic(b"Alice:open sesame")], "wrong user or password", id="case"),
        pytest.param([basic(b"alice:open sesame", b"Bearer")], "a login that is not", id="bearer"),
        pytest.param([basic(b"alice:open sesame", b"Basicx")], "a login that is not", id="scheme-longer"),
        pytest.param([b"Proxy-Authorization: Basic"], "wrong user or password", id="scheme-alone"),
        pytest.param([b"Proxy-Authorization:"], "a login that is not", id="empty-field"),
        pytest.param([b"Proxy-Authorization: Basic ====="], "wrong user or password", id="padding-alone"),
        pytest.param([LOGIN[:-1]], "wrong user or password", id="padding-short"),
        pytest.param([LOGIN + b"AAAA"], "wrong user or password", id="padding-inside"),
        pytest.param([LOGIN.replace(b"Basic ", b"Basic !")], "wrong user or password", id="not-base64"),
        pytest.param([b"Proxy-Authorization: Basic \xff\xfe"], "wrong user or password", id="not-ascii"),
        pytest.param([LOGIN.replace(b"Proxy-", b"")], "no login", id="the-servers-field"),
        pytest.param([b"X-" + LOGIN], "no login", id="another-field"),
    ],
)
def test_users_are_asked_for_and_nothing_else_will_do(fields: list[bytes], error: str) -> None:
    outcome = every_way(connect(b"a:80", *fields), USERS)
    assert outcome.request is None
    assert outcome.status == 407
    assert outcome.error is not None
    assert outcome.error.startswith(error)
    assert b'\r\nProxy-Authenticate: Basic realm="urelay", charset="UTF-8"\r\n' in outcome.sent


def test_no_users_at_all_are_nobody() -> None:
    """An empty file of users is no open door."""
    for fields in ((), (LOGIN,), (basic(b":"),)):
        assert every_way(connect(b"a:80", *fields), Users({})).status == 407


def test_two_logins_are_none() -> None:
    outcome = every_way(connect(b"a:80", LOGIN, LOGIN), USERS)
    assert (outcome.status, outcome.error) == (400, "more than one login")


def test_a_target_is_not_looked_at_before_the_login() -> None:
    assert every_way(connect(b"nonsense"), USERS).status == 407


def test_a_colon_is_wanted_even_where_a_password_is_empty() -> None:
    users = Users({b"alice": SaltedHash.of(b"")})
    assert converse([connect(b"a:80", basic(b"alice"))], users).status == 407
    assert converse([connect(b"a:80", basic(b"alice:"))], users).request is not None


@pytest.mark.parametrize(
    "data",
    [
        connect(b"a:80", basic(b"alice:hunter2")),
        connect(b"a:80", basic(b"alice:hunter2") + b"\0"),
        connect(b"a:80", b"X", basic(b"alice:hunter2")),
        connect(b"a:80", basic(b"alice:hunter2"), basic(b"alice:hunter2")),
    ],
)
def test_the_password_is_in_no_text(data: bytes) -> None:
    server = HttpServer(USERS)
    with pytest.raises(ProtocolError) as caught:
        server.receive(data)
    shown = str(caught.value) + repr(caught.value) + repr(server) + caught.value.reply.decode()
    assert "hunter2" not in shown
    assert base64.b64encode(b"alice:hunter2").decode() not in shown
    assert server._buffer == b""


# --- S6: the login machine


def test_no_order_of_messages_connects_without_a_login() -> None:
    """S6: none of the pieces holds the right login, so no conversation ends in a request."""
    pieces = [
        connect(b"a:80"),
        connect(b"a:80", basic(b"alice:wrong")),
        connect(b"a:80", basic(b"bob:open sesame")),
        connect(b"a:80", LOGIN.replace(b"Proxy-", b"")),
        connect(b"a:80", LOGIN.replace(b"Basic", b"Digest")),
        connect(b"a:80", basic(b"alice:open sesame\n")),
        connect(b"a:80", LOGIN, LOGIN),
        connect(b"a:80", b"X: y", b" " + LOGIN),
        connect(b"http://a/", LOGIN, method=b"GET"),
        LOGIN + b"\r\n",
        b"CONNECT a:80 HTTP/1.0\r\n",
        b"\r\n",
        b"\5\1\0",
        b"alice:open sesame",
    ]
    # The right login may only stand where no head around it can be one.
    harmless = pieces[:-5]
    rng = random.Random(6)
    for _ in range(20_000):
        stream = b"".join(rng.choices(harmless, k=rng.randint(1, 4)))
        if rng.random() < 0.3:
            stream = rng.choice(pieces[-3:]) + stream
        cuts = sorted(rng.choices(range(len(stream) + 1), k=rng.randint(0, 4)))
        split = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
        assert converse(split, USERS).request is None, stream


@given(
    st.lists(
        st.sampled_from([connect(b"a:80"), connect(b"a:80", LOGIN), connect(b"a:80", basic(b"a:b"))]),
        max_size=5,
    )
)
@example([connect(b"a:80"), connect(b"a:80", LOGIN)])
@example([connect(b"a:80", LOGIN), connect(b"a:80")])
def test_a_request_comes_from_the_first_head_and_a_right_login_only(heads: list[bytes]) -> None:
    outcome = converse(heads, USERS)
    right = bool(heads) and LOGIN in heads[0]
    assert (outcome.request == Request("a", 80, "alice")) == right
    assert outcome.leftover == (b"".join(heads[1:]) if right else b"")


# --- answers


@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        (Failure.DENIED, b"403 Forbidden", b"http_request_denied"),
        (Failure.REFUSED, b"502 Bad Gateway", b"connection_refused"),
        (Failure.HOST_UNREACHABLE, b"502 Bad Gateway", b"destination_ip_unroutable"),
        (Failure.NET_UNREACHABLE, b"502 Bad Gateway", b"destination_ip_unroutable"),
        (Failure.TTL_EXPIRED, b"502 Bad Gateway", b"destination_ip_unroutable"),
        (Failure.NAME_NOT_FOUND, b"502 Bad Gateway", b"dns_error"),
        (Failure.TIMEOUT, b"504 Gateway Timeout", b"connection_timeout"),
        (Failure.ERROR, b"502 Bad Gateway", b"proxy_internal_error"),
    ],
)
def test_every_failure_has_its_answer(failure: Failure, status: bytes, error: bytes) -> None:
    answer = Request("a", 1, None).failure(failure)
    head, _, body = answer.partition(LAST)
    assert head.startswith(
        b"HTTP/1.1 " + status + b"\r\nProxy-Status: urelay; error=" + error + b"; details="
    )
    assert head.endswith(b"\r\nContent-Length: %d\r\nConnection: close" % len(body))


def test_no_failure_is_without_an_answer() -> None:
    for failure in Failure:
        assert Request("a", 1, None).failure(failure).startswith(b"HTTP/1.1 ")


def test_a_reason_is_told_and_cannot_break_out() -> None:
    answer = Request("a", 1, None).failure(Failure.DENIED, 'by "x"\\y\r\nX: é' + "z" * 500)
    head, _, body = answer.partition(LAST)
    assert rb'details="by \"x\"\\\\y\\r\\nX: \\xe9zzz' in head
    assert body.startswith(rb'by "x"\\y\r\nX: \xe9zzz')
    assert len(answer) < 1000
    assert len(head.split(b"\r\n")) == 5
    assert answer.isascii()


def test_success_is_a_bare_200() -> None:
    for bound in (None, Endpoint(V4, 4660)):
        assert Request("a", 1, None).success(bound) == b"HTTP/1.1 200 Connection Established\r\n\r\n"


# --- S11: hostile bytes


@given(
    st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from(
                [b"CONNECT ", b"a:80", b" HTTP/1.1", b"\r\n", b"\r", b"\n", b"Host: a", b"X: ", b" ", LOGIN]
            )
        ).map(b"".join),
    ),
    st.lists(st.integers(1, 40), max_size=30),
    st.booleans(),
)
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
    """S11: 100,000 seeded mutations: no other exception, and a request is what its head says."""
    seeds = [
        connect(b"www.example.com:443", b"Host: www.example.com:443", version=b"1.1"),
        connect(b"[2001:db8::7]:443", b"Host: [2001:db8::7]", version=b"1.1"),
        connect(b"192.0.2.7:80", LOGIN, b"Content-Length: 0"),
        connect(b"2001:db8::7:443"),
    ]
    started = time.process_time()
    accepted = 0
    for number, data in mutations(seeds, b"\n", b" ", b":", b"Host: b\r\n", end=LAST):
        outcome = converse(halves(number, data), USERS if number & 1 else None)
        assert outcome.most_kept < HEAD_LIMIT
        if outcome.request is not None:
            accepted += 1
            line = data.split(b"\r\n")[0]
            assert line.startswith(b"CONNECT ")
            assert data.endswith(LAST + outcome.leftover)
            assert parse_host(line.split(b" ")[1].rpartition(b":")[0].decode()) == outcome.request.host
    assert accepted > COUNT / 100
    assert time.process_time() - started < 60


def test_a_head_a_byte_at_a_time_costs_no_more_than_its_length() -> None:
    """S11: what was searched is not searched again, so 8 KiB byte by byte take milliseconds."""
    data = connect(b"a:80", *[b"X: y"] * 1000)
    assert 6000 < len(data) < HEAD_LIMIT
    started = time.process_time()
    assert converse(data[i : i + 1] for i in range(len(data))).request is not None
    assert time.process_time() - started < 0.5


# --- S1: the corpus of spellings


def spell_as_target(spelling: str) -> list[bytes]:
    """The spelling as a client would send it in a CONNECT, as it is and in brackets."""
    field = spelling.encode("utf-8", "surrogateescape")
    return [connect(field + b":443"), connect(b"[" + field + b"]:443")]


def test_no_spelling_of_an_address_becomes_a_name_or_another_address() -> None:
    """S1 on the wire: a `malformed` row is refused, a `literal` one is its target."""
    rows = corpus()
    assert len(rows) > 300
    for target, kind, spelling in rows:
        for number, stream in enumerate(spell_as_target(spelling)):
            outcome = converse([stream])
            host = outcome.request.host if outcome.request else None
            if number == 1:
                # In brackets nothing is a name, and an address is what it is without them.
                assert host is None or host == bare(spelling), spelling
            elif kind == "literal":
                assert host == target, spelling
            elif kind == "malformed":
                # Two rows are spelt as their target is; those are simply that address.
                assert host in (None, target), spelling
                assert host is None or parse_host(spelling) == target, spelling
            elif kind == "embed":
                assert isinstance(host, bytes), spelling
            else:
                assert kind == "name"
                assert host is None or isinstance(host, str), spelling


def bare(spelling: str) -> Host | None:
    """The address of a spelling; None for a name and for what is refused."""
    try:
        host = parse_host(spelling)
    except AddressError:
        return None
    return host if isinstance(host, bytes) else None
