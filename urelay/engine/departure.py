"""Where the connections of an upstream leave from: `source`, `dev`, `mark` and `netns`.

Each of them is a promise. A socket that cannot be made as the upstream says is an error of that
dial, with the option and the reason in it, and never a socket that leaves by another way: a mark
that is silently missing is how a relay ends up connecting to itself.

The socket is made in the namespace first, since everything else is looked up there: the interface,
the address, and (by the kernel) whether a mark may be set.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from urelay.engine.connect import failure_of, tcp_socket, words
from urelay.errors import DialError, Failure, StartError
from urelay.net.address import Address, Endpoint, address_text
from urelay.policy.model import Upstream

# linux/in.h; Python's socket module has it from 3.12 on.
_IP_BIND_ADDRESS_NO_PORT = 24

_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_REASONS = {
    (errno.EPERM, "mark"): "marks need CAP_NET_ADMIN",
    (errno.EPERM, "dev"): "choosing an interface needs CAP_NET_RAW",
    (errno.ENODEV, "dev"): "there is no such interface",
    (errno.EADDRNOTAVAIL, "source"): "no interface has this address",
}
"""Why a socket cannot be made so, where the system's words would puzzle."""


class Abroad(Protocol):
    """Who makes sockets in other namespaces: urelay.namespaces.visit.Visitor is one."""

    def socket(self, netns: str, family: int, kind: int) -> socket.socket:
        """A socket made in `netns`. Raises StartError or OSError."""


@dataclass(frozen=True, slots=True)
class Departure:
    """How sockets of one upstream are made."""

    source: Address | None = None
    device: str | None = None
    mark: int | None = None
    netns: str | None = None

    @classmethod
    def of(cls, upstream: Upstream) -> Departure | None:
        """What the options of an upstream ask for; None when it leaves like everything else."""
        found = cls(upstream.source, upstream.device, upstream.mark, upstream.netns)
        return None if found == cls() else found

    def fitting(self, targets: Sequence[Endpoint]) -> Sequence[Endpoint]:
        """Those of `targets` (addresses) that can be reached from `source`.

        Raises DialError when there is none.
        """
        if self.source is None:
            return targets
        fitting = [target for target in targets if len(target.host) == len(self.source)]
        if not fitting:
            ours, theirs = ("IPv4", "IPv6") if len(self.source) == 4 else ("IPv6", "IPv4")
            raise DialError(
                Failure.NET_UNREACHABLE,
                f"its source {address_text(self.source)} is {ours},"
                f" and the destination has {theirs} addresses only",
            )
        return fitting

    def make(self, family: int, abroad: Abroad | None) -> socket.socket:
        """A non-blocking TCP socket that leaves as it should. Raises DialError."""
        try:
            sock = tcp_socket(family) if self.netns is None else self._made_there(family, abroad)
        except StartError as error:
            raise DialError(Failure.ERROR, str(error)) from None
        except OSError as error:
            raise DialError(failure_of(error), words(error)) from None
        try:
            self._set_up(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def probe(self, abroad: Abroad | None) -> Callable[[int, int], socket.socket] | None:
        """Makes sockets (of a family and a kind) where the connections are made; None: in our namespace."""
        netns = self.netns
        if netns is None or abroad is None:
            return None
        return lambda family, kind: abroad.socket(netns, family, kind)

    def _made_there(self, family: int, abroad: Abroad | None) -> socket.socket:
        assert self.netns is not None
        if abroad is None:
            raise StartError(f"netns {self.netns}: this relay was not given the means to go there")
        sock = abroad.socket(self.netns, family, _STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _set_up(self, sock: socket.socket) -> None:
        # The interface comes before the address: a link-local one is of that interface.
        if self.mark is not None:
            with self._naming("mark", f"{self.mark:#x}"):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", self.mark))
        if self.device is not None:
            with self._naming("dev", self.device):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, os.fsencode(self.device) + b"\0")
        if self.source is not None:
            with self._naming("source", address_text(self.source)):
                # The port is chosen when connecting, so one address carries as many connections as
                # there are ports for each destination, not for all of them together.
                sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
                sock.bind((address_text(self.source), 0))

    @contextmanager
    def _naming(self, option: str, value: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = _REASONS.get((error.errno or 0, option)) or words(error)
            raise DialError(Failure.ERROR, f"{option} {value}: {reason}") from None
