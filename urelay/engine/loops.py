"""Our own listeners as destinations: a connection to one of them would only come back.

Known before dialling, because a connection that is made and then refused is accepted again by the
same listener, asks for the same destination, and so on for ever.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Container
from dataclasses import replace
from socket import SocketType
from typing import NamedTuple

from urelay.net.address import Address, Endpoint, Host, Prefix, address_text, unmap
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


class OwnListeners:
    """Which destinations are our own listeners in the namespace we dial from."""

    def __init__(self) -> None:
        self._by_port: dict[int, list[_Own]] = {}

    @property
    def ports(self) -> Container[int]:
        """The ports of our listeners: a connection to another one needs no closer look."""
        return self._by_port

    def add(self, name: str, sock: SocketType) -> None:
        """Remember a listener. One in another namespace cannot be reached from here: it is left out."""
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not _is_here(sock):
            return
        text, port = sock.getsockname()[:2]
        address = unmap(socket.inet_pton(sock.family, text.partition("%")[0]))
        families: tuple[int, ...] = (len(address),)
        if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            families = (4, 16) if address == bytes(16) else families
        own = _Own(name, None if address in _UNSPECIFIED else address, families)
        self._by_port.setdefault(port, []).append(own)

    def discard(self, name: str) -> None:
        """Forget a listener, if it was remembered."""
        for port, owns in list(self._by_port.items()):
            self._by_port[port] = [own for own in owns if own.listener != name]
            if not self._by_port[port]:
                del self._by_port[port]

    def leads_back(self, host: Address, port: int) -> str | None:
        """The name of the listener that a connection to this address would reach, or None."""
        for own in self._by_port.get(port, ()):
            if len(host) not in own.families:
                continue
            if host == own.address or host in _UNSPECIFIED or (own.address is None and _is_local(host)):
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


def _is_here(sock: SocketType) -> bool:
    """Whether a socket lives in the namespace that new sockets are made in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        try:
            return _cookie(sock) == _cookie(ours)
        except OSError:
            # An old kernel cannot tell; refusing too much is the safe side.
            return True


def _cookie(sock: SocketType) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)


def _is_local(host: Address) -> bool:
    """Whether the kernel would deliver to itself: then it picks the destination as the source."""
    if any(prefix.holds(host) for prefix in _LOOPBACK):
        return True
    family = socket.AF_INET if len(host) == 4 else socket.AF_INET6
    try:
        # Connecting a datagram socket sends nothing; it asks the routing table.
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address_text(host), 9))
            return socket.inet_pton(family, probe.getsockname()[0].partition("%")[0]) == host
    except OSError:
        return False
