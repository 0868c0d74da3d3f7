"""SOCKS and HTTP CONNECT on one port: the first byte tells them apart, and nothing else does.

A SOCKS request begins with its version, 4 or 5; the name of an HTTP method is in upper case, and no
SOCKS version will ever be one. The byte belongs to the protocol it chose; what the client sends after
it can change nothing about that choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from urelay.errors import ProtocolError
from urelay.protocols import connect, socks
from urelay.protocols.users import Users

_SERVERS: Final[dict[int, Callable[[Users | None], socks.SocksServer | connect.HttpServer]]] = {
    **dict.fromkeys((4, 5), socks.SocksServer),
    **dict.fromkeys(range(ord("A"), ord("Z") + 1), connect.HttpServer),
}


class MixedServer:
    """One client's conversation up to its request: used as SocksServer and HttpServer are."""

    __slots__ = ("_refused", "_server", "_users")

    def __init__(self, users: Users | None = None) -> None:
        self._users = users
        self._refused = False
        self._server: socks.SocksServer | connect.HttpServer | None = None

    @property
    def request(self) -> socks.Request | connect.Request | None:
        """What the client asked for, once it has."""
        return None if self._server is None else self._server.request

    @property
    def leftover(self) -> bytes:
        """What the client sent behind its request."""
        return b"" if self._server is None else self._server.leftover

    def receive(self, data: bytes) -> bytes:
        """Take bytes from the client; returns what to send to it now, perhaps nothing.

        Raises ProtocolError when the conversation is over without a request: send its `reply`, then
        close. A client of neither protocol is owed none.
        """
        if self._server is None:
            if self._refused:
                raise ProtocolError("bytes behind a refused request")
            if not data:
                return b""
            make = _SERVERS.get(data[0])
            if make is None:
                self._refused = True
                raise ProtocolError(f"expected SOCKS or HTTP, got byte 0x{data[0]:02x}")
            self._server = make(self._users)
        return self._server.receive(data)
