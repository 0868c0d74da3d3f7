"""The two ends of a socket: what the kernel calls them, as Endpoints.

Texts are what accept(2) and getsockname(2) yield through Python: canonical, and with the interface of a
link-local address behind a `%`, of which the policy knows nothing. An IPv4 client of an IPv6 socket
is mapped there and IPv4 here.
"""

from __future__ import annotations

import functools
import socket
from socket import SocketType
from typing import TYPE_CHECKING

from urelay.net.address import Address, Endpoint, unmap

if TYPE_CHECKING:
    from collections.abc import Sequence

_INET = int(socket.AF_INET)
_INET6 = int(socket.AF_INET6)
_UNIX = int(socket.AF_UNIX)
_new = tuple.__new__


@functools.lru_cache(maxsize=4096)
def packed(text: str) -> Address:
    """The address the kernel wrote as `text`."""
    # Cached: a relay sees the same few clients and destinations again and again.
    if ":" not in text:
        return socket.inet_pton(_INET, text)
    return unmap(socket.inet_pton(_INET6, text.partition("%")[0]))


def endpoint_of(family: int, address: object) -> Endpoint | None:
    """A socket address of the kernel's, unmapped; None on a unix socket, and for what came by one."""
    if family not in (_INET, _INET6) or not isinstance(address, tuple):
        return None
    return Endpoint(packed(address[0]), address[1])


def own_end(sock: SocketType) -> Endpoint | None:
    """The local address of a socket, unmapped; None for a unix socket."""
    if sock.family == _UNIX:
        return None
    address = sock.getsockname()
    # Not Endpoint(…), whose __new__ is a function of Python's: this is asked for every client's destination.
    return _new(Endpoint, (packed(address[0]), address[1]))


def far_end(sock: SocketType) -> Endpoint | None:
    """The address a socket is connected to, unmapped; None for a unix socket. Raises OSError."""
    return endpoint_of(sock.family, sock.getpeername())


@functools.lru_cache(maxsize=4096)
def kernel_text(address: Address) -> str:
    """The text of an address as `connect` wants it."""
    return socket.inet_ntop(_INET if len(address) == 4 else _INET6, address)


def sockaddr(endpoint: Endpoint) -> tuple[int, Sequence[object]]:
    """The family of an endpoint that is an address, and what `connect` and `bind` want."""
    assert isinstance(endpoint.host, bytes)
    return (_INET if len(endpoint.host) == 4 else _INET6), (kernel_text(endpoint.host), endpoint.port)
