"""`capture tcp`: every port of every address of a namespace, brought to one listening socket.

Two halves. Routes and rules (urelay.namespaces.routes) make every address a local one, so that a
connection to anywhere is delivered here at all. Then something must bring every port to the one socket:

    sk_lookup   a BPF program that names the socket when the kernel looks for one: the cheapest way;
                needs CAP_BPF and CAP_NET_ADMIN on the host; gone with the descriptor of its link
    tproxy      nftables rules; need CAP_NET_ADMIN in the namespace only, so they work rootless

Both leave out the addresses of the namespace's own interfaces: what is addressed to them stays with the
programs that listen there. Interfaces come and go, so the kernel is asked to tell (`monitor`), and the
list is read anew (`refresh`).

The routes outlive us if we are killed. Then no connection of the namespace gets anywhere, and none
passes by the policy (IPv6 is refused; IPv4 has nobody who may answer in another's name, and waits); the
next start finds what is left by its number, and replaces it. Another relay
that still captures here is told from a dead one by an abstract unix socket in the namespace, which
the kernel takes away with its owner.

The listening socket needs IP_TRANSPARENT: it answers with addresses that no interface has.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from typing import TYPE_CHECKING, Final

from urelay.errors import AddressError, StartError
from urelay.namespaces.enter import chore_inside, socket_inside
from urelay.namespaces.steering import LookupSteering, NftSteering
from urelay.net.address import Prefix, host_prefix, parse_address

if TYPE_CHECKING:
    from urelay.namespaces.steering import Steering
    from urelay.net.address import Address

SK_LOOKUP: Final = "sk_lookup"
TPROXY: Final = "tproxy"
WAYS: Final = (SK_LOOKUP, TPROXY)
"""In the order they are tried"""

_LOCK = "\0urelay-capture"
_LOOPBACK = (Prefix(4, 127 << 24, 8), Prefix(6, 1, 128))
# linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR
_ADDRESS_GROUPS = 0x10 | 0x100
# linux/in.h, linux/in6.h
_IP_TRANSPARENT = 19
_IPV6_TRANSPARENT = 75
_FLAGS = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
_NOT_HERE = frozenset({errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
"""What a kernel without socket lookup programs, or one that does not let us, says"""


class Capture:
    """The connections of one namespace, captured for as long as this is open."""

    def __init__(
        self, netns: str | None, sock: socket.socket, *, born: bool = True, ways: tuple[str, ...] = WAYS
    ) -> None:
        """Begin. `netns` None is our own namespace; `born`: also what connects from inside it.

        `sock` listens there, and stays the caller's. Raises StartError; then nothing is left behind.
        """
        self._netns = netns
        self._busy = threading.Lock()
        self._closed = False
        with contextlib.ExitStack() as undo:
            self._lock = undo.enter_context(_locked(netns))
            self.monitor = undo.enter_context(_monitor(netns))
            """Readable when an address came or went: then `drain` it and `refresh`"""
            found = addresses(netns)
            self._own = own_prefixes(found)
            families = _families(sock, found)
            _check_transparent(sock)
            self.way, self._steering = _steered(netns, sock, self._own, families, ways)
            undo.callback(self._steering.close)
            undo.callback(self._remove)
            plan = {"families": families, "born": born, "nft": self._steering.ruleset}
            try:
                chore_inside(netns, "install", plan)
            except OSError as error:
                raise StartError(f"cannot capture connections: {_reason(error)}") from None
            undo.pop_all()

    def point_at(self, sock: socket.socket) -> None:
        """Bring everything to another socket from now on; raises StartError."""
        _check_transparent(sock)
        with self._busy:
            try:
                self._steering.point_at(sock)
            except OSError as error:
                raise StartError(f"cannot capture connections: {_reason(error)}") from None

    def drain(self) -> None:
        """Read what the monitor has to say. It does not matter what, or whether it had to drop some."""
        while True:
            try:
                self.monitor.recv(65536)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise

    def refresh(self) -> None:
        """Read anew which addresses are the namespace's own; raises StartError and OSError."""
        with self._busy:
            if self._closed:
                return
            own = own_prefixes(addresses(self._netns))
            if own != self._own:
                self._steering.keep(own)
                self._own = own

    def close(self) -> None:
        """Take everything away."""
        with self._busy:
            if self._closed:
                return
            self._closed = True
            self._remove()
            self._steering.close()
            self.monitor.close()
            self._lock.close()

    def abandon(self) -> None:
        """Let go of it in a process that was forked: it stays as it is, and is another's to end."""
        self._closed = True
        self._steering.close()
        self.monitor.close()
        self._lock.close()

    def _remove(self) -> None:
        # The namespace may be gone, and with it all that was in it.
        with contextlib.suppress(StartError, OSError):
            chore_inside(self._netns, "remove", {})


def remove_leftovers(netns: str | None) -> None:
    """Take away what a relay left that was killed; raises StartError, also if one is at work there."""
    with _locked(netns):
        try:
            chore_inside(netns, "remove", {})
        except OSError as error:
            raise StartError(f"cannot remove what captures connections: {_reason(error)}") from None


def _steered(
    netns: str | None, sock: socket.socket, own: frozenset[Prefix], families: list[int], ways: tuple[str, ...]
) -> tuple[str, Steering]:
    """The first way that this kernel lets us go; the last is tried by whoever loads its ruleset."""
    if SK_LOOKUP in ways:
        try:
            return SK_LOOKUP, LookupSteering(netns, sock, own)
        except OSError as error:
            if TPROXY not in ways or error.errno not in _NOT_HERE:
                raise StartError(f"cannot capture connections by sk_lookup: {_reason(error)}") from None
    return TPROXY, NftSteering(netns, sock, own, families)


def _locked(netns: str | None) -> socket.socket:
    """What shows that we capture there; raises StartError if another relay does."""
    sock = _socket(netns, socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        sock.bind(_LOCK)
    except OSError:
        sock.close()
        raise StartError("another relay captures the connections of this namespace") from None
    return sock


def _monitor(netns: str | None) -> socket.socket:
    sock = _socket(netns, socket.AF_NETLINK, socket.SOCK_RAW)
    sock.bind((0, _ADDRESS_GROUPS))
    return sock


def _socket(netns: str | None, family: int, kind: int) -> socket.socket:
    if netns is None:
        return socket.socket(family, kind | _FLAGS)
    return socket_inside(netns, family, kind | _FLAGS)


def addresses(netns: str | None) -> list[Address]:
    """The addresses of the namespace's interfaces; raises StartError and OSError."""
    answer = chore_inside(netns, "addresses", {}).get("addresses")
    # A child in somebody's user namespace may say anything.
    if not isinstance(answer, list):
        raise StartError("the addresses of the network namespace cannot be read")
    try:
        return [parse_address(str(text)) for text in answer]
    except AddressError as error:
        raise StartError(f"the addresses of the network namespace cannot be read: {error}") from None


def own_prefixes(found: list[Address]) -> frozenset[Prefix]:
    """What programs of the namespace keep: the addresses of its interfaces, and all of loopback."""
    hosts = (host_prefix(address) for address in found)
    others = (host for host in hosts if not any(prefix.covers(host) for prefix in _LOOPBACK))
    return frozenset((*_LOOPBACK, *others))


def _families(sock: socket.socket, found: list[Address]) -> list[int]:
    """Which connections are brought to a socket: `[::]` takes both families.

    A namespace without `::1` has IPv6 switched off (net.ipv6.conf.all.disable_ipv6): nothing of it can
    be captured, and nothing of it can happen.
    """
    if sock.family == socket.AF_INET:
        return [4]
    only = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) or sock.getsockname()[0] != "::"
    families = [6] if only else [4, 6]
    return families if bytes(15) + b"\1" in found else [family for family in families if family == 4]


def _check_transparent(sock: socket.socket) -> None:
    level = socket.IPPROTO_IP if sock.family == socket.AF_INET else socket.IPPROTO_IPV6
    name = _IP_TRANSPARENT if sock.family == socket.AF_INET else _IPV6_TRANSPARENT
    if not sock.getsockopt(level, name):
        raise StartError("capturing connections needs CAP_NET_ADMIN in the namespace (IP_TRANSPARENT)")


def _reason(error: OSError) -> str:
    return (error.strerror or os.strerror(error.errno or errno.EIO)).lower()
