"""Opens sockets to addresses and to unix sockets: raw, non-blocking, and closed on every way out but one.

Several addresses of one host are raced (RFC 8305) by aiohappyeyeballs, four at a time. Every failure
is a DialError whose `failure` says what the client is told, by one table of error numbers.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import aiohappyeyeballs

from urelay.engine.ends import endpoint_of, far_end, own_end
from urelay.errors import DialError, Failure
from urelay.net.address import Address, Endpoint, address_text, printable
from urelay.net.paths import LONGEST

_AddressInfo: TypeAlias = tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]

_IN_FLIGHT = 4
"""Addresses of one host tried at the same time: a name with sixteen dead answers must not cost
sixteen descriptors."""

FAILURES = {
    errno.ECONNREFUSED: Failure.REFUSED,
    errno.ECONNRESET: Failure.REFUSED,
    errno.EHOSTUNREACH: Failure.HOST_UNREACHABLE,
    errno.EHOSTDOWN: Failure.HOST_UNREACHABLE,
    errno.ENOENT: Failure.HOST_UNREACHABLE,  # a unix socket that is not there
    errno.ENETUNREACH: Failure.NET_UNREACHABLE,
    errno.ENETDOWN: Failure.NET_UNREACHABLE,
    errno.EAFNOSUPPORT: Failure.NET_UNREACHABLE,  # IPv6 is off
    errno.EADDRNOTAVAIL: Failure.NET_UNREACHABLE,  # no source address, or no port left
    errno.ETIMEDOUT: Failure.TIMEOUT,
}
"""What a client is told of an error number; any other is Failure.ERROR."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the steps of one dial may take, in seconds."""

    address_s: float = 10.0
    """One address (an upstream's `connect` overrides it)"""
    total_s: float = 30.0
    """Everything: resolving, connecting, and what proxies take"""
    stagger_s: float = 0.25
    """Before the next address joins the race (RFC 8305, 8)"""


def failure_of(error: OSError) -> Failure:
    """What the client is told of an error."""
    if isinstance(error, TimeoutError):
        return Failure.TIMEOUT
    return FAILURES.get(error.errno or 0, Failure.ERROR)


def words(error: OSError) -> str:
    """An error in a few lower-case words, without the numbers and addresses libraries put in."""
    if error.errno is not None:
        return os.strerror(error.errno).lower()
    return "no answer in time" if isinstance(error, TimeoutError) else "no address answers"


def tcp_socket(family: int) -> socket.socket:
    """A non-blocking TCP socket that is to be connected. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


async def connect_tcp(
    endpoints: Sequence[Endpoint],
    timeouts: Timeouts,
    tries: list[str] | None = None,
    make_socket: Callable[[int], socket.socket] = tcp_socket,
) -> tuple[socket.socket, Endpoint]:
    """A socket connected to the first of `endpoints` (addresses, best first) that answers, and which.

    `tries` gets the text of each endpoint that was tried, in order; `make_socket` makes a socket of a
    family. Raises DialError when none answers: its failure is that of all of them when they agree, a
    timeout when one of them was still silent at the end, else host unreachable.
    """
    order = _interleaved(endpoints)
    failures: list[DialError] = []
    for start in range(0, len(order), _IN_FLIGHT):
        try:
            return await _race(order[start : start + _IN_FLIGHT], timeouts, tries, make_socket)
        except DialError as error:
            failures.append(error)
    if not failures:
        raise DialError(Failure.HOST_UNREACHABLE, "there is no address to connect to")
    kinds = {error.failure for error in failures}
    failure = kinds.pop() if len(kinds) == 1 else Failure.HOST_UNREACHABLE
    raise DialError(failure, "; ".join(str(error) for error in failures))


async def connect_unix(path: str, timeout_s: float) -> socket.socket:
    """A socket connected to the unix socket at `path`; raises DialError.

    A full backlog is waited for: connecting says EAGAIN then, and the kernel has nothing that tells
    when there is room again, so this asks again, ever less often.
    """
    if not path or "\0" in path or len(os.fsencode(path)) > LONGEST:
        # A leading NUL would be a name in the abstract namespace, which no file mode protects.
        raise DialError(Failure.ERROR, f"`{printable(path)}` is not the path of a unix socket")
    try:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:  # no descriptor left
        raise DialError(failure_of(error), f"{printable(path)}: {words(error)}") from None
    pause_s = 0.002
    try:
        async with asyncio.timeout(timeout_s):
            while (code := sock.connect_ex(os.fsencode(path))) == errno.EAGAIN:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, 0.1)
        if code:
            raise OSError(code, os.strerror(code))
    except OSError as error:
        sock.close()
        raise DialError(failure_of(error), f"{printable(path)}: {words(error)}") from None
    except BaseException:
        sock.close()
        raise
    return sock


async def _race(
    endpoints: Sequence[Endpoint],
    timeouts: Timeouts,
    tries: list[str] | None,
    make_socket: Callable[[int], socket.socket],
) -> tuple[socket.socket, Endpoint]:
    def open_socket(info: _AddressInfo) -> socket.socket:
        if tries is not None:
            tries.append(str(endpoint_of(info[0], info[4])))
        return make_socket(info[0])

    # Each address gets its whole time: the last one joins the race this much later than the first.
    timeout_s = timeouts.address_s + timeouts.stagger_s * (len(endpoints) - 1)
    try:
        async with asyncio.timeout(timeout_s):
            sock = await aiohappyeyeballs.start_connection(
                [_info(endpoint) for endpoint in endpoints],
                happy_eyeballs_delay=timeouts.stagger_s,
                interleave=0,
                socket_factory=open_socket,
            )
    except OSError as error:
        # Errors that differ come without a number: no single one of them is true of the host.
        mixed = error.errno is None and not isinstance(error, TimeoutError)
        failure = Failure.HOST_UNREACHABLE if mixed else failure_of(error)
        where = ", ".join(str(endpoint) for endpoint in endpoints)
        raise DialError(failure, f"{where}: {words(error)}") from None
    try:
        return sock, _checked_far_end(sock, endpoints)
    except BaseException:
        sock.close()
        raise


def _checked_far_end(sock: socket.socket, endpoints: Sequence[Endpoint]) -> Endpoint:
    """Where a socket leads; refuses one that is elsewhere, or connected to itself.

    A connection to a free local port can meet itself (both ends the same socket): the kernel calls
    it connected, and relaying over it would echo a client's bytes back.
    """
    try:
        far = far_end(sock)
    except OSError as error:
        raise DialError(failure_of(error), f"{endpoints[0]}: {words(error)}") from None
    if far is None or far not in endpoints:
        raise DialError(Failure.ERROR, f"connected to {far}, which was not asked for")
    if far == own_end(sock):
        raise DialError(Failure.REFUSED, f"{far}: nobody listens (the connection met itself)")
    return far


def _interleaved(endpoints: Sequence[Endpoint]) -> list[Endpoint]:
    """The families in turn, so that one that is dead costs one stagger (RFC 8305, 4)."""
    if not endpoints:
        return []
    first_kind = len(endpoints[0].host)
    one = [endpoint for endpoint in endpoints if len(endpoint.host) == first_kind]
    other = [endpoint for endpoint in endpoints if len(endpoint.host) != first_kind]
    paired = min(len(one), len(other))
    mixed = [endpoint for pair in zip(one, other, strict=False) for endpoint in pair]
    return mixed + one[paired:] + other[paired:]


def _info(endpoint: Endpoint) -> _AddressInfo:
    host: Address | str = endpoint.host
    if isinstance(host, str):
        raise DialError(Failure.ERROR, f"`{host}` is a name where an address is needed")
    if len(host) == 4:
        return socket.AF_INET, socket.SOCK_STREAM, 0, "", (address_text(host), endpoint.port)
    return socket.AF_INET6, socket.SOCK_STREAM, 0, "", (address_text(host), endpoint.port, 0, 0)
