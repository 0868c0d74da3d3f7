"""The two ways of bringing every port to one listening socket, behind one face.

Both are told the socket and the addresses to leave out, and can be told others while they are at work:
neither drops a connection by that.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Protocol

from urelay.namespaces import bpf
from urelay.namespaces.enter import chore_inside, namespace_path
from urelay.namespaces.tproxy import ruleset
from urelay.net.address import parse_address, unmap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urelay.net.address import Prefix

_HERE = "/proc/self/ns/net"


class Steering(Protocol):
    """What brings every port to one socket."""

    @property
    def ruleset(self) -> str:
        """The nftables ruleset that must be loaded for it, or nothing."""

    def keep(self, own: frozenset[Prefix]) -> None:
        """Leave out what is addressed to `own`, and nothing else; raises OSError or StartError."""

    def point_at(self, sock: socket.socket) -> None:
        """Bring everything to another socket; raises OSError or StartError."""

    def close(self) -> None:
        """Bring nothing any more. A ruleset is removed by whoever loaded it."""


class LookupSteering:
    """A BPF program asked by the kernel when it looks for a socket. Gone when its link is closed."""

    ruleset = ""
    """It needs none"""

    def __init__(self, netns: str | None, sock: socket.socket, own: frozenset[Prefix]) -> None:
        """Begin; raises OSError: EPERM without CAP_BPF and CAP_NET_ADMIN on the host."""
        self._own: frozenset[Prefix] = frozenset()
        with contextlib.ExitStack() as undo:
            self._addresses = bpf.address_map()
            undo.callback(os.close, self._addresses)
            self._sockets = bpf.socket_map()
            undo.callback(os.close, self._sockets)
            self.keep(own)
            self.point_at(sock)
            program = bpf.load(bpf.steering_program(self._addresses, self._sockets))
            undo.callback(os.close, program)
            namespace = os.open(_HERE if netns is None else namespace_path(netns), os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._link = bpf.attach(program, namespace)
            finally:
                os.close(namespace)
            # The link holds the program, and the program its maps.
            undo.pop_all()
            os.close(program)

    def keep(self, own: frozenset[Prefix]) -> None:
        """Change the map of addresses while the program runs."""
        for prefix in own - self._own:
            bpf.put_address(self._addresses, prefix)
        for prefix in self._own - own:
            bpf.drop_address(self._addresses, prefix)
        self._own = own

    def point_at(self, sock: socket.socket) -> None:
        """Change the map of the socket while the program runs. It does not keep the socket open."""
        bpf.put_socket(self._sockets, sock.fileno())

    def close(self) -> None:
        """End the program."""
        for descriptor in (self._link, self._addresses, self._sockets):
            os.close(descriptor)


class NftSteering:
    """TPROXY by nftables. The first ruleset is loaded with the routes, the next ones at once."""

    def __init__(
        self, netns: str | None, sock: socket.socket, own: frozenset[Prefix], families: Sequence[int]
    ) -> None:
        """Nothing is done yet."""
        self._netns = netns
        self._families = families
        self._target = _target(sock)
        self._own = own

    @property
    def ruleset(self) -> str:
        """The whole table."""
        return ruleset([(family, self._target) for family in self._families], self._own)

    def keep(self, own: frozenset[Prefix]) -> None:
        """Replace the ruleset, in one transaction."""
        self._own = own
        chore_inside(self._netns, "steer", {"nft": self.ruleset})

    def point_at(self, sock: socket.socket) -> None:
        """Replace the ruleset, in one transaction."""
        self._target = _target(sock)
        chore_inside(self._netns, "steer", {"nft": self.ruleset})

    def close(self) -> None:
        """The table goes with the routes."""


def _target(sock: socket.socket) -> str:
    """What TPROXY is told: where the socket listens, or only its port if that is everywhere."""
    host, port = sock.getsockname()[:2]
    if not any(unmap(parse_address(host))):
        return f":{port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
