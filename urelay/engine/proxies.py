"""Asks proxies for connections, over sockets that are already connected.

SOCKS is spoken with python-socks. Its own Proxy opens its TCP connection itself, resolves through
getaddrinfo and knows no unix sockets; so this uses its connectors, the part that speaks the protocol,
over our sockets. They read exactly what a reply holds, byte by byte of it, so what a server says
first stays in the socket. Its HTTP connector does not, so CONNECT is urelay.protocols.connect_client:
there no length tells where an answer ends, and what was read behind the end is handed on as *early*
bytes, which whoever uses the socket next takes before he reads.

What a proxy answers is hostile: it is bounded (at most 262 bytes are read a reply of SOCKS, 16 KiB of
HTTP), it ends in success or in a DialError, and no exception of a library leaves, since some of them
show secrets.
"""

from __future__ import annotations

import asyncio
import encodings.idna  # noqa: F401  the library's codec for names, else imported by the first of them
import socket
from typing import Final

from python_socks import ProxyType
from python_socks._abc import AsyncResolver, AsyncSocketStream
from python_socks._connectors.factory_async import create_connector
from python_socks._protocols.errors import ReplyError

from urelay.engine.connect import failure_of, words
from urelay.engine.logins import Credentials
from urelay.errors import Blame, DialError, Failure
from urelay.net.address import Endpoint, host_text, printable
from urelay.policy.model import Upstream, UpstreamKind

KINDS: Final = frozenset((UpstreamKind.SOCKS4, UpstreamKind.SOCKS5, UpstreamKind.HTTP))
"""The kinds of proxy that can be asked."""

_SOCKS: Final = {UpstreamKind.SOCKS4: ProxyType.SOCKS4, UpstreamKind.SOCKS5: ProxyType.SOCKS5}
_READ_BYTES = 4096

# RFC 1928, 6, in our words. SOCKS4 has one code for every failure (0x5b) and two about identd: none
# of them says what happened, so all are ERROR, and of the destination, since it may have been denied.
# A proxy that cannot get there answers fast: another may try, and this one stays in use.
_ANSWERS5 = {
    1: (Failure.ERROR, Blame.UNFIT, "it failed"),
    2: (Failure.DENIED, Blame.DESTINATION, "its rules deny the destination"),
    3: (Failure.NET_UNREACHABLE, Blame.UNFIT, "network unreachable"),
    4: (Failure.HOST_UNREACHABLE, Blame.UNFIT, "host unreachable"),
    5: (Failure.REFUSED, Blame.DESTINATION, "connection refused"),
    6: (Failure.TTL_EXPIRED, Blame.UNFIT, "time to live expired"),
    7: (Failure.ERROR, Blame.UNFIT, "it does not know the command"),
    8: (Failure.ERROR, Blame.UNFIT, "it does not know the type of address"),
}
# What an HTTP proxy says of the destination; anything else is a login refused, or no HTTP.
_BLAME_HTTP = {
    Failure.DENIED: Blame.DESTINATION,
    Failure.REFUSED: Blame.DESTINATION,
    Failure.HOST_UNREACHABLE: Blame.UNFIT,
    Failure.NAME_NOT_FOUND: Blame.UNFIT,
    Failure.TIMEOUT: Blame.UNFIT,
}


async def ask(
    sock: socket.socket, upstream: Upstream, login: Credentials | None, target: Endpoint, early: bytes = b""
) -> bytes:
    """Have the proxy at the other end of `sock` connect to `target`; then `sock` leads there.

    `upstream` is of a kind in KINDS; a host name is sent as it is. `early`: what was read of `sock`
    before. Returns what was read of it behind the proxy's answer. Raises DialError, and `sock` stays
    the caller's to close.
    """
    return await converse(_Stream(sock, early), upstream, login, target)


async def converse(stream: Stream, upstream: Upstream, login: Credentials | None, target: Endpoint) -> bytes:
    """`ask`, over whatever reads and writes; it waits for nothing but `stream`."""
    try:
        if upstream.kind is UpstreamKind.HTTP:
            return await _ask_http(stream, upstream, login, target)
        await _ask_socks(stream, upstream, login, target)
    except EOFError:
        what = f"upstream `{upstream.name}` closed the connection before its reply was whole"
        raise DialError(Failure.ERROR, what, Blame.UNCLEAR) from None
    except OSError as error:
        # The proxy was reached and then failed: a reset here says nothing of the destination.
        failure = Failure.TIMEOUT if failure_of(error) is Failure.TIMEOUT else Failure.ERROR
        what = f"upstream `{upstream.name}`: {words(error)} while asking it"
        raise DialError(failure, what, Blame.UNCLEAR) from None
    return stream.early


async def _ask_http(stream: Stream, upstream: Upstream, login: Credentials | None, target: Endpoint) -> bytes:
    # Imported by the first that needs it: h11 takes 10 ms, which most relays never have to spend.
    from urelay.protocols.connect_client import ConnectError, HttpClient

    try:
        client = HttpClient(target, login)
        await stream.write(client.request())
        while not client.done:
            client.receive(await stream.read())
    except ConnectError as error:
        blame = _BLAME_HTTP.get(error.failure, Blame.UNCLEAR)
        raise DialError(error.failure, f"upstream `{upstream.name}`: {error}", blame) from None
    return client.leftover + stream.early


async def _ask_socks(stream: Stream, upstream: Upstream, login: Credentials | None, target: Endpoint) -> None:
    kind = _SOCKS[upstream.kind]
    if kind is ProxyType.SOCKS4 and isinstance(target.host, bytes) and len(target.host) == 16:
        # Left to itself the library would send the text of the address as a host name.
        what = f"upstream `{upstream.name}` is a SOCKS4 proxy, which knows no IPv6"
        raise DialError(Failure.NET_UNREACHABLE, what, Blame.UNFIT)
    user = password = None
    if login is not None:
        user, password = _Octets.of(login.user), _Octets.of(login.password)
    connector = create_connector(kind, user, password, True, _NoResolver())
    try:
        await connector.connect(stream, host_text(target.host), target.port)
    except ReplyError as error:
        # Without a code it is no reply to the request: a login refused, or bytes that are not SOCKS.
        blame = Blame.UNCLEAR if error.error_code is None else Blame.DESTINATION
        failure, told = Failure.ERROR, _lowered(str(error))
        if kind is ProxyType.SOCKS5:
            failure, blame, told = _ANSWERS5.get(error.error_code or 0, (failure, blame, told))
        raise DialError(failure, f"upstream `{upstream.name}`: {told}", blame) from None
    except ValueError:
        # Bound addresses of a wrong length, names that are no UTF-8.
        what = f"upstream `{upstream.name}` answers what is not SOCKS"
        raise DialError(Failure.ERROR, what, Blame.UNCLEAR) from None


class Stream(AsyncSocketStream):
    """What a conversation with a proxy is led over."""

    early: bytes
    """Read already, and not yet taken"""

    async def read(self, max_bytes: int = _READ_BYTES) -> bytes:
        """At least one byte; raises EOFError at the end, and OSError."""
        raise NotImplementedError

    async def read_exactly(self, n: int) -> bytes:
        """So many bytes; raises EOFError when the end comes first, and OSError."""
        data = await self.read(n)
        while len(data) < n:
            data += await self.read(n - len(data))
        return data


class _Stream(Stream):
    """The three things a connector does with a socket; it opens and closes nothing."""

    def __init__(self, sock: socket.socket, early: bytes) -> None:
        self.early = early
        """Read of the socket, and not yet taken"""
        self._sock = sock
        self._loop = asyncio.get_running_loop()

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def read(self, max_bytes: int = _READ_BYTES) -> bytes:
        if self.early:
            piece, self.early = self.early[:max_bytes], self.early[max_bytes:]
        else:
            piece = await self._loop.sock_recv(self._sock, max_bytes)
        if not piece:
            raise EOFError
        return piece


class _NoResolver(AsyncResolver):
    """Names are sent or were resolved before: the connector has no business asking."""


class _Octets(str):
    """A login as python-socks wants it, which is ASCII text, sent as what RFC 1929 has: octets.

    Each character is one byte, so the lengths the library counts are right; its reprs show nothing.
    """

    __slots__ = ()

    @classmethod
    def of(cls, octets: bytes) -> _Octets:
        return cls(octets.decode("latin-1"))

    def encode(self, encoding: str = "latin-1", errors: str = "strict") -> bytes:
        """The octets, whatever encoding is asked for."""
        return super().encode("latin-1")

    def __repr__(self) -> str:
        return "<login>"


def _lowered(text: str) -> str:
    shown = printable(text)
    return shown[:1].lower() + shown[1:]
