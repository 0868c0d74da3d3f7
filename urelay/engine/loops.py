"""Our own listeners as destinations: a connection to one of them would only come back.

Known before dialling, because a connection that is made and then refused is accepted again by the
same listener, asks for the same destination, and so on for ever. Each network namespace has its own:
`direct { netns lan }` dials among the listeners of lan.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Container
from dataclasses import replace
from socket import SocketType
from typing import NamedTuple, TypeAlias

from urelay.engine.routes import is_local
from urelay.net.address import Address, Endpoint, Host, Prefix, unmap
from urelay.policy.model import DenyHow, Outcome, Policy
from urelay.table.decision import Decision
from urelay.table.evaluate import Table

_SO_NETNS_COOKIE = 71
"""asm-generic/socket.h, Linux 5.14; not in Python's module"""

_CREDENTIALS = struct.Struct("iII")
"""struct ucred, unix(7): process, user, group"""

_LOOPBACK = (Prefix(4, 127 << 24, 8), Prefix(6, 1, 128))
_UNSPECIFIED = (bytes(4), bytes(16))


def first_ephemeral_port() -> int:
    """The lowest port the kernel picks by itself (ip(7), ip_local_port_range)."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            return int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        return 1


class _Own(NamedTuple):
    """A listener of ours, as somebody who dials sees it. `address` None: every local one."""

    listener: str
    address: Address | None
    families: tuple[int, ...]
    """Address lengths it takes: 4, 16"""


Probe: TypeAlias = Callable[[int, int], socket.socket]
"""Makes a socket of a family and a kind in the namespace that is dialled from. May raise."""


class OwnListeners:
    """Which destinations are our own listeners, in the namespace we dial from."""

    def __init__(self) -> None:
        # By the namespace, None being our own: the same address elsewhere is somebody else's.
        self._places: dict[bytes | None, dict[int, list[_Own]]] = {}
        self.ports: Container[int] = ()
        """The ports of our listeners here: a connection to another one needs no closer look"""

    def add(self, name: str, sock: SocketType) -> None:
        """Remember a listener; one on a unix socket is no destination.

        Of a captured namespace only its own addresses can be dialled, and they are not captured
        (urelay.policy.captures), so a listener that captures is one like any other.
        """
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return
        text, port = sock.getsockname()[:2]
        address = unmap(socket.inet_pton(sock.family, text.partition("%")[0]))
        families: tuple[int, ...] = (len(address),)
        if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            families = (4, 16) if address == bytes(16) else families
        own = _Own(name, None if address in _UNSPECIFIED else address, families)
        place = self._places.setdefault(_place(sock), {})
        place.setdefault(port, []).append(own)
        self._note_ports()

    def discard(self, name: str) -> None:
        """Forget a listener, if it was remembered."""
        for place, ports in list(self._places.items()):
            for port, owns in list(ports.items()):
                ports[port] = [own for own in owns if own.listener != name]
                if not ports[port]:
                    del ports[port]
            if not ports:
                del self._places[place]
        self._note_ports()

    def _note_ports(self) -> None:
        self.ports = frozenset(self._places.get(None, ()))

    def leads_back(self, host: Address, port: int, probe: Probe | None = None) -> str | None:
        """The name of the listener that a connection to this address would reach, or None.

        `probe` says from which namespace; None: our own. Raises what `probe` raises.
        """
        place = None
        if probe is not None:
            if not self._places:
                return None
            with probe(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                place = _place(sock)
        ports = self._places.get(place)
        if ports is None:
            return None
        for own in ports.get(port, ()):
            if len(host) not in own.families:
                continue
            if host == own.address or host in _UNSPECIFIED:
                return own.listener
            if own.address is None and _is_local(host, probe):
                return own.listener
        return None


def is_our_own(client: SocketType) -> bool:
    """Whether this very process is at the other end of a unix socket that was accepted.

    A path has many spellings, and a proxy may be one of our listeners: only who has come in tells
    that a way out led back. Asked before anything is dialled for the client, which ends the circle.
    """
    pid, _, _ = _CREDENTIALS.unpack(
        client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return bool(pid == os.getpid())


class CarefulJudge:
    """A table for a dialer that resolves names: an answer that leads back to us is denied."""

    def __init__(self, table: Table, own: OwnListeners) -> None:
        self._table = table
        self._own = own

    @property
    def policy(self) -> Policy:
        """The table's policy."""
        return self._table.policy

    @property
    def name_takers(self) -> frozenset[str]:
        """The upstreams that take host names."""
        return self._table.name_takers

    def settle(
        self,
        decision: Decision,
        host: Host,
        address: Address,
        port: int,
        source: Address | None = None,
        listener: str | None = None,
    ) -> Decision:
        """What the table says of `address`, unless dialling it would reach a listener of ours."""
        settled = self._table.settle(decision, host, address, port, source, listener)
        target = settled.destination or Endpoint(address, port)
        if settled.outcome is not Outcome.DIRECT or isinstance(target.host, str):
            return settled
        own = self._own.leads_back(target.host, target.port)
        if own is None:
            return settled
        why = f"{target} is our own listener `{own}`"
        return replace(settled, outcome=Outcome.DENY, deny_how=DenyHow.REFUSED, why=why)


def _place(sock: SocketType) -> bytes | None:
    """The cookie of the namespace a socket lives in; None for the one that new sockets are made in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        try:
            cookie = _cookie(sock)
            return None if cookie == _cookie(ours) else cookie
        except OSError:
            # An old kernel cannot tell; refusing too much is the safe side.
            return None


def _cookie(sock: SocketType) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)


def _is_local(host: Address, probe: Probe | None) -> bool:
    """Whether the kernel would deliver to itself."""
    if any(prefix.holds(host) for prefix in _LOOPBACK):
        return True
    try:
        with (socket.socket if probe is None else probe)(socket.AF_NETLINK, socket.SOCK_RAW) as sock:
            return is_local(host, sock)
    except OSError:
        return False
