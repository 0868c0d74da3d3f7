"""The client side of HTTP CONNECT (RFC 9110, 9.3.6): one request out, one answer in, the rest exact.

Bytes are kept until the blank line behind a head, 16 KiB at most for all heads together, and h11
reads each head alone. So it does not matter how an answer is cut: headers that come late are not
taken for the tunnel, and what the far side says right behind the answer stands in `leftover`.
Interim answers (1xx) are passed over; a 2xx, whatever its fields say, opens the tunnel.

Everything else is a failure in the terms of the client that waits. Status codes are poor at that:
proxies say 502 or 503 of a port that refused and of a name nobody knows. Where a proxy has a
`Proxy-Status` field (RFC 9209), its error type is believed instead. It is a claim by the proxy, as the
status is, and it decides nothing but the words of the refusal.
"""

from __future__ import annotations

import binascii
import re
from typing import Final, Protocol

import h11

from urelay.errors import AddressError, Failure, ProtocolError
from urelay.net.address import Endpoint, parse_host

HEADS_LIMIT: Final = 16_384
"""Bytes of all heads of one answer (the default of Apache, nginx and curl is 8 KiB for a line)"""

# RFC 9112, 2.2: a recipient may take a lone LF for a line end. This one is nobody's proxy: it may.
_END = re.compile(rb"\n\r?\n")
_ENDS_BEHIND = 2
"""An end may have begun this many bytes before the ones that just came"""
_BEGINNING = b"HTTP/"

# Of those not listed here nothing is known but that it failed.
_BY_STATUS: Final = {
    403: (Failure.DENIED, "its rules deny the destination"),
    407: (Failure.ERROR, "it refuses the login"),
    502: (Failure.HOST_UNREACHABLE, "it cannot reach the destination"),
    503: (Failure.HOST_UNREACHABLE, "it cannot reach the destination"),
    504: (Failure.TIMEOUT, "the destination did not answer it in time"),
}
_NO_LOGIN = "it asks for a login"

# RFC 9209, 2.3: those that speak of the destination.
_BY_ERROR: Final = {
    b"http_request_denied": (Failure.DENIED, "its rules deny the destination"),
    b"destination_ip_prohibited": (Failure.DENIED, "its rules deny the destination"),
    b"connection_refused": (Failure.REFUSED, "connection refused"),
    b"destination_ip_unroutable": (Failure.HOST_UNREACHABLE, "host unreachable"),
    b"destination_unavailable": (Failure.HOST_UNREACHABLE, "host unreachable"),
    b"destination_not_found": (Failure.NAME_NOT_FOUND, "no such host"),
    b"dns_error": (Failure.NAME_NOT_FOUND, "no such host"),
    b"dns_timeout": (Failure.TIMEOUT, "its name server did not answer in time"),
    b"connection_timeout": (Failure.TIMEOUT, "the destination did not answer it in time"),
    b"proxy_internal_error": (Failure.ERROR, "it failed"),
}
_ERROR = re.compile(rb";\s*error=([a-z_]+)")


class Login(Protocol):
    """A user and a password, as bytes."""

    @property
    def user(self) -> bytes:
        """Without a colon (RFC 7617, 2)."""

    @property
    def password(self) -> bytes:
        """Any bytes."""


class ConnectError(ProtocolError):
    """There is no tunnel; `failure` is what the client that waits is told."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class HttpClient:
    """One tunnel through one proxy.

    Send what `request` returns, then feed `receive` what comes until `done` is set or it raises.
    `leftover` then holds the bytes that came behind the answer: they belong to the tunnel, before
    all that is still to be read. Nothing of a login is ever shown.
    """

    __slots__ = ("_buffer", "_connection", "_heads", "_login", "_target", "done", "leftover")

    def __init__(self, target: Endpoint, login: Login | None = None) -> None:
        """Raises ConnectError for a host that is none: it would be sent as it is."""
        if isinstance(target.host, str) and not _is_name(target.host):
            raise ConnectError(Failure.ERROR, "the destination is not a host name")
        self._target = str(target).encode("ascii")
        self._login = login
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADS_LIMIT)
        self._buffer = bytearray()
        self._heads = 0
        """Bytes of the heads that were read"""
        self.done = False
        self.leftover = b""

    def request(self) -> bytes:
        """What to send to the proxy, once."""
        headers = [(b"Host", self._target)]
        if (login := self._login) is not None:
            coded = binascii.b2a_base64(login.user + b":" + login.password, newline=False)
            headers.append((b"Proxy-Authorization", b"Basic " + coded))
        sent = self._connection.send(h11.Request(method=b"CONNECT", target=self._target, headers=headers))
        assert sent is not None
        return sent

    def receive(self, data: bytes) -> None:
        """Take bytes from the proxy. Raises ConnectError when there will be no tunnel; then close."""
        if self.done:
            self.leftover += data
            return
        start = max(0, len(self._buffer) - _ENDS_BEHIND)
        self._buffer += data
        while not self.done:
            head = self._head(start)
            if head is None:
                return
            self._read(head)
            start = 0
        self.leftover = bytes(self._buffer)
        self._buffer.clear()

    def _head(self, start: int) -> bytes | None:
        buffer = self._buffer
        if buffer[: len(_BEGINNING)] != _BEGINNING[: len(buffer)]:
            raise ConnectError(Failure.ERROR, "it answers what is not HTTP")
        room = HEADS_LIMIT - self._heads
        found = _END.search(buffer, start, room)
        if found is None:
            if len(buffer) >= room:
                raise ConnectError(Failure.ERROR, f"its answer is longer than {HEADS_LIMIT} bytes")
            return None
        self._heads += found.end()
        head = bytes(buffer[: found.end()])
        del buffer[: found.end()]
        return head

    def _read(self, head: bytes) -> None:
        self._connection.receive_data(head)
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError:
            raise ConnectError(Failure.ERROR, "it answers what is not HTTP") from None
        if isinstance(event, h11.InformationalResponse):
            return
        # A whole head is an answer or an error.
        assert isinstance(event, h11.Response)
        if not 200 <= event.status_code < 300:
            raise self._refusal(event)
        self.done = True

    def _refusal(self, response: h11.Response) -> ConnectError:
        status = response.status_code
        failure, words = _BY_STATUS.get(status, (Failure.ERROR, "it refuses"))
        if status == 407 and self._login is None:
            words = _NO_LOGIN
        for name, value in response.headers:
            # The first member speaks for the proxy nearest to the destination (RFC 9209, 2).
            if name == b"proxy-status" and (found := _ERROR.search(value)):
                failure, words = _BY_ERROR.get(found[1], (failure, words))
                break
        return ConnectError(failure, f"{words} (HTTP {status})")


def _is_name(text: str) -> bool:
    try:
        return parse_host(text) == text
    except AddressError:
        return False
