"""Turns the places that a policy names into listening sockets: all of them, or none.

The daemon asks for every listener of a policy at once. Whatever fails is collected, so one start
tells all that is wrong; then everything opened meanwhile is closed again and StartError carries the
list. A socket is known by its *key*, the place it listens on, not by its listener's name: when a
policy is reloaded, a listener that was renamed, or that became another kind on the same port, keeps
its socket, and no waiting client is lost.

What was handed to this process is urelay.services.handed's business, the files of unix sockets
urelay.services.unix_place's.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from urelay.errors import StartError
from urelay.namespaces.enter import identity, socket_inside
from urelay.net.address import address_text, printable
from urelay.policy.model import ListenerKind, PlaceKind
from urelay.services.handed import HandedOver, duplicate
from urelay.services.slot_place import register_at
from urelay.services.unix_place import OWNER_ONLY, SocketFile, listen_at, receive_at, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence

    from urelay.net.address import Endpoint
    from urelay.policy.model import Listener, Place

_log = logging.getLogger(__name__)

BACKLOG = 4096
"""How many clients may wait to be accepted; the kernel cuts it to net.core.somaxconn."""

# Not in Python's socket module: linux/in.h, linux/in6.h.
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75

_BY_LOCAL_ADDRESS = frozenset({ListenerKind.TRANSPARENT, ListenerKind.REDIRECT})
"""These learn from the socket's own address where its clients want to go"""

_WHY_NOT_BOUND = {
    errno.EADDRINUSE: "the port is in use",
    errno.EACCES: "a port this low needs CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "no interface there has this address",
    errno.EAFNOSUPPORT: "this machine has no such address family",
}
"""What binding says, for the person who must act; anything else speaks in the system's words."""


class Key(NamedTuple):
    """What makes a socket the same one after a reload."""

    place: Place
    namespace: tuple[int, int] | None
    """The identity of the namespace it is in; None: our own"""
    number: int = 0
    """Which of several at this place: systemd may hand over more than one under a name"""


@dataclass(frozen=True, slots=True)
class Opened:
    """A listener and its socket: listening, non-blocking, not inherited by children."""

    listener: Listener
    key: Key
    sock: socket.socket


class Opener:
    """Opens what listeners ask for. `inherited` are the descriptors this process was started with."""

    def __init__(self, environ: MutableMapping[str, str], inherited: Iterable[int]) -> None:
        self._handed = HandedOver(environ, inherited)
        self._files: dict[Key, SocketFile] = {}

    def open(
        self,
        listeners: Iterable[Listener],
        held: Mapping[Key, socket.socket] | None = None,
        then: Callable[[Sequence[Opened]], None] | None = None,
    ) -> list[Opened]:
        """The sockets of each listener, in their order: one, or as many as systemd handed over.

        `held` are the sockets the relay listens on already: where a key fits, the listener gets
        another descriptor of that socket. `then` is called with what was opened, and may still raise
        StartError for a reason of its own. Raises StartError with every listener that failed; then
        all that was opened here is closed again. `held` stays as it is, either way.
        """
        spare = dict(held or {})
        opened: list[Opened] = []
        problems = []
        claimed: set[int] = set()
        made: dict[Key, SocketFile] = {}
        for listener in listeners:
            try:
                for key, sock in self._sockets(listener, spare, claimed, made):
                    opened.append(Opened(listener, key, sock))
                    _check(listener, sock)
                    _set_options(listener, sock)
            except StartError as error:
                problems.append(f"{listener.origin}: listener `{listener.name}`: {error}")
        if not problems and then is not None:
            try:
                then(opened)
            except StartError as error:
                problems += error.problems
        if problems:
            for one in opened:
                one.sock.close()
            for file in made.values():
                file.remove()
            raise StartError(*problems)
        self._handed.keep(claimed)
        self._settle_files(opened, made)
        return opened

    def close_others(self) -> None:
        """Close the inherited descriptors nobody asked for, and name what systemd handed over in vain."""
        for name in self._handed.close_others():
            _log.warning("no listener uses the socket `%s` that systemd handed over", name)

    def close(self) -> None:
        """Remove the files of unix sockets: the relay is at its end."""
        while self._files:
            self._files.popitem()[1].remove()

    def _sockets(
        self,
        listener: Listener,
        spare: dict[Key, socket.socket],
        claimed: set[int],
        made: dict[Key, SocketFile],
    ) -> Iterator[tuple[Key, socket.socket]]:
        place = listener.place
        key = key_of(listener)
        again = sorted(one for one in spare if one[:2] == key[:2])
        if again:
            for one in again:
                yield one, duplicate(spare.pop(one).fileno())
        elif place.kind is PlaceKind.ADDRESS and place.endpoint is not None:
            yield key, _listen(place.endpoint, listener.netns)
        elif place.kind is PlaceKind.FD and place.fd is not None:
            yield key, self._handed.numbered(place.fd, claimed)
        elif place.text is None:
            raise AssertionError(f"a place of the kind `{place.kind}` without its text")
        elif place.kind is PlaceKind.FD_ENV:
            yield key, self._handed.numbered(self._handed.in_variable(place.text), claimed)
        elif place.kind is PlaceKind.SYSTEMD:
            for number, descriptor in enumerate(self._handed.from_systemd(place.text)):
                yield key._replace(number=number), self._handed.numbered(descriptor, claimed)
        elif place.kind is PlaceKind.UNIX:
            sock, made[key] = listen_at(place.text, _mode(listener), BACKLOG)
            yield key, sock
        elif place.slot is not None:
            yield key, register_at(place.text, place.slot)
        else:
            sock, made[key] = receive_at(place.text, _mode(listener))
            yield key, sock

    def _settle_files(self, opened: Iterable[Opened], made: Mapping[Key, SocketFile]) -> None:
        """Remove the files of sockets that are no longer listened on; keep the others to their mode."""
        by_key = {one.key: one.listener for one in opened}
        for key in list(self._files):
            if key not in by_key:
                self._files.pop(key).remove()
            elif key.place.text is not None:
                # A file that was taken away, or replaced, meanwhile is nobody's to change.
                with contextlib.suppress(OSError):
                    set_mode(key.place.text, _mode(by_key[key]))
        self._files.update(made)


def key_of(listener: Listener) -> Key:
    """What the socket of a listener is known by; the first, where systemd handed over several."""
    return Key(listener.place, None if listener.netns is None else identity(listener.netns))


def _mode(listener: Listener) -> int:
    return OWNER_ONLY if listener.file_mode is None else listener.file_mode


def _listen(endpoint: Endpoint, netns: str | None) -> socket.socket:
    """A socket that listens on an address, perhaps in another namespace."""
    if isinstance(endpoint.host, str):
        raise StartError(f"`{printable(endpoint.host)}` is a name; a listener needs an address")
    address = endpoint.host
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        sock = socket.socket(family, kind) if netns is None else socket_inside(netns, family, kind)
        _bind(sock, address, endpoint.port)
    except OSError as error:
        where = f" in the network namespace `{printable(netns)}`" if netns is not None else ""
        raise StartError(f"cannot listen on {endpoint}{where}: {_reason(error)}") from None
    return sock


def _bind(sock: socket.socket, address: bytes, port: int) -> None:
    try:
        # A port whose last connections still linger in TIME_WAIT can be bound again at once.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sock.family == socket.AF_INET6:
            # `[::]` means every address, IPv4 too, whatever net.ipv6.bindv6only says.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((address_text(address), port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise


def _check(listener: Listener, sock: socket.socket) -> None:
    """Raises StartError unless it is a stream socket that listens, and of use to this listener."""
    if listener.place.kind is PlaceKind.SOCKETBOX:
        return
    called = {
        PlaceKind.FD: f"descriptor {listener.place.fd}",
        PlaceKind.FD_ENV: f"the descriptor in `{listener.place.text}`",
        PlaceKind.SYSTEMD: f"the socket `{listener.place.text}` of systemd",
    }.get(listener.place.kind, "the socket")
    families = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
    if sock.family not in families or sock.type != socket.SOCK_STREAM:
        raise StartError(f"{called} is not a TCP socket")
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise StartError(f"{called} is a socket that does not listen")
    by_address = listener.kind in _BY_LOCAL_ADDRESS and "accept-proxy" not in listener.options
    if by_address and sock.family == socket.AF_UNIX:
        raise StartError(f"{called} is a unix socket, which has no destination: `{listener.kind}` needs one")


def _set_options(listener: Listener, sock: socket.socket) -> None:
    """What every listening socket needs, however it came to us; safe to repeat."""
    sock.setblocking(False)
    if sock.family == socket.AF_UNIX:
        return
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


def _reason(error: OSError) -> str:
    known = _WHY_NOT_BOUND.get(error.errno or 0)
    return known or (error.strerror or str(error)).lower()
