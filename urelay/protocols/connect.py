"""The server side of HTTP CONNECT (RFC 9110, 9.3.6): one request head in, one answer out.

Theory of operation. Bytes are kept until the blank line behind the head, 8 KiB at most, and what
stands behind that line is never looked at: it is the client's own and waits in `leftover`. h11 reads
the head, and only the head, so it can neither lose nor interpret a byte of the tunnel.

h11 forgives what the wild forgives. A proxy cannot, for where two programs read one head in two
ways, somebody smuggles. So a line that ends in anything but CR LF, a folded line, content of any
kind and a `Host` that names another destination are refused before or behind it. What is asked for
is the request target alone:

    what is wrong                                    answer
    no valid head; a target that is none             400 Bad Request
    no login, or a wrong one                         407, with Proxy-Authenticate (RFC 7617)
    a method of HTTP that is not CONNECT             405, with Allow
    any other method                                 501 Not Implemented
    a transfer coding h11 does not know              501 Not Implemented
    a head of more than 8 KiB                        431 Request Header Fields Too Large
    a version that is not 1.x                        505 HTTP Version Not Supported

INVARIANT: with users, a request exists only behind a right login. Every refusal is the last word:
the connection closes, and nothing that was sent behind it is ever parsed.

What became of a request is said in three places: the status, the `Proxy-Status` field (RFC 9209),
which tells apart what 502 cannot, and a line of text.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import Final, NoReturn

import h11

from urelay.errors import AddressError, Failure, ProtocolError
from urelay.net.address import Endpoint, Host, parse_host, parse_port, printable
from urelay.protocols.users import Users

HEAD_LIMIT: Final = 8192
"""Bytes of a request head, its blank line included (Apache and nginx draw the line there too)"""

_OTHER_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"PATCH"))

# The end of the head, or a line end that is not CR LF, whichever comes first.
_END_OR_STRAY = re.compile(rb"\r\n\r\n|\r[^\n]|(?<!\r)\n")
_FOLDED = re.compile(rb"\r\n[ \t]")
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_ENDS_BEHIND = 3
"""An end may have begun this many bytes before the ones that just came"""

_CHALLENGE = 'Proxy-Authenticate: Basic realm="urelay", charset="UTF-8"\r\n'
_ALLOW = "Allow: CONNECT\r\n"

_PHRASES: Final = {
    400: "Bad Request",
    403: "Forbidden",
    405: "Method Not Allowed",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}

# The status, the error type of RFC 9209, 2.3, and the words.
_ANSWERS: Final = {
    Failure.DENIED: (403, "http_request_denied", "denied"),
    Failure.REFUSED: (502, "connection_refused", "connection refused"),
    Failure.HOST_UNREACHABLE: (502, "destination_ip_unroutable", "host unreachable"),
    Failure.NET_UNREACHABLE: (502, "destination_ip_unroutable", "network unreachable"),
    Failure.TTL_EXPIRED: (502, "destination_ip_unroutable", "time to live expired"),
    Failure.NAME_NOT_FOUND: (502, "dns_error", "no such host"),
    Failure.TIMEOUT: (504, "connection_timeout", "no answer in time"),
    Failure.ERROR: (502, "proxy_internal_error", "the way out failed"),
}


@dataclass(frozen=True, slots=True)
class Request:
    """A CONNECT as the client asked for it, with the two answers it may get."""

    host: Host
    port: int
    """1 to 65535"""
    user: str | None
    """Who logged in"""

    def success(self, bound: Endpoint | None) -> bytes:
        """The answer to a connection that was made. HTTP has no field for `bound`, the relay's own end."""
        # No length and no coding (RFC 9110, 9.3.6): what follows the blank line is the tunnel.
        return b"HTTP/1.1 200 Connection Established\r\n\r\n"

    def failure(self, failure: Failure, reason: str | None = None) -> bytes:
        """The answer to one that was not made; close after sending it.

        `reason` is for the client to read; without one it is told what `failure` says by itself.
        """
        status, error, words = _ANSWERS[failure]
        text = printable(words if reason is None else reason, 200)
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return _answer(status, text, f'Proxy-Status: urelay; error={error}; details="{quoted}"\r\n')


class HttpServer:
    """One client's conversation up to its request.

    Feed `receive` what the client sends, until `request` is set or it raises. Then read no more for
    it: `leftover` holds the bytes the client sent behind its request, which belong to the
    destination. The answer is the request's `success` or `failure`, once it is known.
    """

    __slots__ = ("_buffer", "_refused", "_users", "leftover", "request")

    def __init__(self, users: Users | None = None) -> None:
        self._users = users
        self._buffer = bytearray()
        self._refused = False
        self.request: Request | None = None
        self.leftover = b""

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client; returns what to send to it now, which in HTTP is nothing yet.

        Raises ProtocolError when the conversation is over without a request: send its `reply`,
        then close.
        """
        if self._refused:
            raise ProtocolError("bytes behind a refused request")
        if self.request is not None:
            self.leftover += data
            return b""
        try:
            head = self._head(data)
            if head is not None:
                self.request = _read(head, self._users)
                self.leftover = bytes(self._buffer)
        except ProtocolError:
            self._refused = True
            raise
        finally:
            if self._refused or self.request is not None:
                self._buffer.clear()
        return b""

    def _head(self, data: bytes) -> bytes | None:
        """The whole head, taken from the front of the buffer; None while it is not whole.

        What it says depends on the first 8 KiB alone, however they are split.
        """
        buffer = self._buffer
        start = max(0, len(buffer) - _ENDS_BEHIND)
        buffer += data
        if buffer and buffer[0] not in _TOKEN_BYTES:
            _refuse(400, f"expected an HTTP request, got byte 0x{buffer[0]:02x}")
        found = _END_OR_STRAY.search(buffer, start, HEAD_LIMIT)
        if found is None:
            if len(buffer) >= HEAD_LIMIT:
                _refuse(431, f"a request head of more than {HEAD_LIMIT} bytes")
            return None
        if found.group() != b"\r\n\r\n":
            _refuse(400, "a line of the request does not end in CR LF")
        head = bytes(buffer[: found.end()])
        del buffer[: found.end()]
        return head


def _read(head: bytes, users: Users | None) -> Request:
    """The request that a whole head makes; raises ProtocolError with the answer to anything else."""
    if _FOLDED.search(head):
        _refuse(400, "a folded header line")
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
    connection.receive_data(head)
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        # Its text may quote any line of the head, and one of them may be a login.
        status = error.error_status_hint
        _refuse(status if status in _PHRASES else 400, "a malformed HTTP request")
    # A whole head is a request or an error.
    assert isinstance(event, h11.Request)
    if not event.http_version.startswith(b"1."):
        _refuse(505, f"HTTP version {event.http_version.decode('ascii')} is not 1.0 or 1.1")
    if event.method != b"CONNECT":
        method = printable(event.method.decode("ascii"), 20)
        known = event.method in _OTHER_METHODS
        _refuse(405 if known else 501, f"method `{method}` is not CONNECT", _ALLOW if known else "")
    fields: dict[bytes, list[bytes]] = {}
    for name, value in event.headers:
        fields.setdefault(name, []).append(value)
    if b"transfer-encoding" in fields or fields.get(b"content-length", [b"0"]) != [b"0"]:
        _refuse(400, "a CONNECT request with content")
    user = None if users is None else _login(fields.get(b"proxy-authorization", []), users)
    target = _target(event.target.decode("ascii"))
    for host in fields.get(b"host", []):
        # The same text in most requests.
        if host != event.target and not _names(host, target):
            _refuse(400, "the Host field names another destination than the request")
    return Request(target.host, target.port, user)


def _login(offered: list[bytes], users: Users) -> str:
    """Who logged in (RFC 7617); raises ProtocolError with a challenge for anything but a right login."""
    if not offered:
        _refuse(407, "no login", _CHALLENGE)
    if len(offered) > 1:
        _refuse(400, "more than one login")
    scheme, _, coded = offered[0].partition(b" ")
    if scheme.lower() != b"basic":
        _refuse(407, "a login that is not of the scheme Basic", _CHALLENGE)
    try:
        login = binascii.a2b_base64(coded.strip(b" "), strict_mode=True)
    except binascii.Error:
        login = b""
    user, colon, password = login.partition(b":")
    # Checked whatever it is, so that the time taken does not tell what was wrong with it.
    right = users.check(user, password)
    if not (right and colon):
        _refuse(407, "wrong user or password", _CHALLENGE)
    return user.decode("utf-8", "backslashreplace")


def _target(text: str) -> Endpoint:
    """What the authority form (RFC 9112, 3.2.3) spells; IPv6 may come without its brackets."""
    host, colon, port = text.rpartition(":")
    if not colon:
        _refuse(400, f"`{printable(text)}` is not HOST:PORT")
    try:
        return Endpoint(parse_host(host), parse_port(port))
    except AddressError as error:
        _refuse(400, str(error))


def _names(field: bytes, target: Endpoint) -> bool:
    """Whether a Host field names the target; many clients leave the port out."""
    text = field.decode("latin-1")
    host, _, port = text.rpartition(":")
    spellings = (text, host) if port == str(target.port) else (text,)
    return any(_host(spelling) == target.host for spelling in spellings)


def _host(text: str) -> Host | None:
    try:
        return parse_host(text)
    except AddressError:
        return None


def _refuse(status: int, message: str, fields: str = "") -> NoReturn:
    # The answers to other methods have no text: one to HEAD must not (RFC 9110, 9.3.2).
    text = "" if status in (405, 501) else message
    raise ProtocolError(message, _answer(status, text, fields)) from None


def _answer(status: int, text: str, fields: str) -> bytes:
    body = text + "\n" if text else ""
    kind = "Content-Type: text/plain\r\n" if body else ""
    return (
        f"HTTP/1.1 {status} {_PHRASES[status]}\r\n{fields}{kind}"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    ).encode("ascii")
