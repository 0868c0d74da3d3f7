"""Turns the places that a policy names into listening sockets: all of them, or none.

The daemon asks for every listener of a policy at once. Whatever fails is collected, so one start
tells all that is wrong; then everything opened meanwhile is closed again and StartError carries the
list. A socket is known by its *key*, the place it listens on, not by its listener's name: when a
policy is reloaded, a listener that was renamed, or that became another kind on the same port, keeps
its socket, and no waiting client is lost.

Descriptors inherited from whoever started us (`fd N`, `fd env NAME`) are taken only if they were
open when the process began: a number must never come to mean one of our own sockets. They are
borrowed (duplicated) until everything else is known to be right, and ours from then on.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from urelay.errors import StartError
from urelay.namespaces.enter import identity, listening_socket
from urelay.net.address import address_text, printable
from urelay.policy.model import ListenerKind, PlaceKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from urelay.net.address import Endpoint
    from urelay.policy.model import Listener, Place

BACKLOG = 4096
"""How many clients may wait to be accepted; the kernel cuts it to net.core.somaxconn."""

# Not in Python's socket module: linux/in.h, linux/in6.h.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75

_STANDARD_STREAMS = (0, 1, 2)
_DESCRIPTOR = re.compile(r"[0-9]{1,7}")

_WHY_NOT_BOUND = {
    errno.EADDRINUSE: "the port is in use",
    errno.EACCES: "a port this low needs CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "no interface there has this address",
    errno.EAFNOSUPPORT: "this machine has no such address family",
}
"""What binding says, for the person who must act; anything else speaks in the system's words."""

Key: TypeAlias = "tuple[Place, tuple[int, int] | None]"
"""A place, and the identity of the namespace it is in (None: our own)."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A listener and its socket: listening, non-blocking, not inherited by children."""

    listener: Listener
    key: Key
    sock: socket.socket


class Opener:
    """Opens what listeners ask for. `inherited` are the descriptors this process was started with."""

    def __init__(self, environ: Mapping[str, str], inherited: Iterable[int]) -> None:
        self._environ = environ
        self._inherited = set(inherited).difference(_STANDARD_STREAMS)

    def open(
        self, listeners: Iterable[Listener], held: Mapping[Key, socket.socket] | None = None
    ) -> list[Opened]:
        """A socket for each listener, in their order.

        `held` are the sockets the relay listens on already: where a key fits, the listener gets
        another descriptor of that socket. Raises StartError with every listener that failed; then
        all that was opened here is closed again. `held` stays as it is, either way.
        """
        spare = dict(held or {})
        opened: list[Opened] = []
        problems = []
        claimed: set[int] = set()
        for listener in listeners:
            try:
                key = _key(listener)
                again = spare.pop(key, None)
                sock = self._open(listener, claimed) if again is None else _duplicate(again.fileno())
                opened.append(Opened(listener, key, sock))
                _set_options(listener, sock)
            except StartError as error:
                problems.append(f"{listener.origin}: listener `{listener.name}`: {error}")
        if problems:
            for one in opened:
                one.sock.close()
            raise StartError(*problems)
        for descriptor in claimed:
            os.close(descriptor)
        self._inherited -= claimed
        return opened

    def _open(self, listener: Listener, claimed: set[int]) -> socket.socket:
        place = listener.place
        if place.kind is PlaceKind.ADDRESS and place.endpoint is not None:
            return _listen(place.endpoint, listener.netns)
        if place.kind is PlaceKind.FD and place.fd is not None:
            return self._take(place.fd, claimed)
        if place.kind is PlaceKind.FD_ENV and place.text is not None:
            return self._take(self._descriptor_in(place.text), claimed)
        # urelay.policy.unserved names these before anything is opened.
        raise StartError(f"a place of the kind `{place.kind}` cannot be served")

    def _descriptor_in(self, variable: str) -> int:
        text = self._environ.get(variable)
        if text is None:
            raise StartError(f"the environment variable `{printable(variable)}` is not set")
        if not _DESCRIPTOR.fullmatch(text):
            raise StartError(
                f"the environment variable `{variable}` is `{printable(text)}`, which is no descriptor"
            )
        return int(text)

    def _take(self, descriptor: int, claimed: set[int]) -> socket.socket:
        if descriptor in claimed:
            raise StartError(f"descriptor {descriptor} belongs to another listener")
        if descriptor not in self._inherited:
            raise StartError(f"descriptor {descriptor} was not handed to this process")
        sock = _duplicate(descriptor)
        try:
            _check_listening(sock, f"descriptor {descriptor}")
        except StartError:
            sock.close()
            raise
        claimed.add(descriptor)
        return sock


def inherited_descriptors() -> frozenset[int]:
    """Every descriptor that is open now; to be called before the process opens any of its own."""
    # The folder's own descriptor is in the list too, and closed by the time we look.
    return frozenset(int(name) for name in os.listdir("/proc/self/fd") if _is_open(int(name)))


def _key(listener: Listener) -> Key:
    return listener.place, None if listener.netns is None else identity(listener.netns)


def _listen(endpoint: Endpoint, netns: str | None) -> socket.socket:
    """A socket that listens on an address, perhaps in another namespace."""
    if isinstance(endpoint.host, str):
        raise StartError(f"`{printable(endpoint.host)}` is a name; a listener needs an address")
    address = endpoint.host
    try:
        return listening_socket(netns, lambda: _bind(address, endpoint.port))
    except OSError as error:
        where = f" in the network namespace `{printable(netns)}`" if netns is not None else ""
        raise StartError(f"cannot listen on {endpoint}{where}: {_reason(error)}") from None


def _bind(address: bytes, port: int) -> socket.socket:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # A port whose last connections still linger in TIME_WAIT can be bound again at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `[::]` means every address, IPv4 too, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address_text(address), port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _duplicate(descriptor: int) -> socket.socket:
    """A socket object with a descriptor of its own; raises StartError."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise StartError(f"descriptor {descriptor} is not a socket")
        return socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise StartError(f"descriptor {descriptor} cannot be used: {_reason(error)}") from None


def _check_listening(sock: socket.socket, called: str) -> None:
    """Raises StartError unless it is a TCP socket that listens."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        raise StartError(f"{called} is not a TCP socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise StartError(f"{called} is a TCP socket that does not listen")


def _set_options(listener: Listener, sock: socket.socket) -> None:
    """What every listening socket needs, however it came to us; safe to repeat."""
    sock.setblocking(False)
    # Accepted sockets inherit it, which saves a call for each.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if listener.kind is ListenerKind.TRANSPARENT:
        # Needed where TPROXY brings the connections, and then CAP_NET_RAW is there. Local routes
        # (`ip route add local …`) do without, so not being allowed is no reason to stop.
        with contextlib.suppress(PermissionError):
            if sock.family == socket.AF_INET:
                sock.setsockopt(socket.IPPROTO_IP, _IP_TRANSPARENT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _reason(error: OSError) -> str:
    known = _WHY_NOT_BOUND.get(error.errno or 0)
    return known or (error.strerror or str(error)).lower()
