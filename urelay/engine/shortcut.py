"""Ways out that need no task: one socket to a known place, and perhaps one proxy to ask behind it.

A task, its futures and the readers asyncio sets up for them cost several times what the rest of a
short connection does. But most ways are short: a SOCKS proxy at an address or on a unix socket, or a
unix socket itself. Those are opened by the connection, as it opens a direct way, and the proxy is
asked by the same code as on the long way (urelay.engine.proxies): a coroutine needs no event loop,
only somebody who resumes it when there is something to read, and here that is the poller.

Whatever is not exactly this (names to resolve, chains, groups, options of the socket) takes the long
way, urelay.engine.dial.
"""

from __future__ import annotations

import functools
import os
import socket
import types
from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from urelay.engine import proxies
from urelay.engine.dial import Asked, unix_path
from urelay.engine.ends import sockaddr
from urelay.engine.pump import BEHIND
from urelay.errors import AddressError, DialError
from urelay.net.address import Endpoint
from urelay.net.paths import LONGEST
from urelay.policy.model import Outcome, Upstream, UpstreamKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from urelay.engine.logins import Credentials
    from urelay.engine.setting_out import SettingOut
    from urelay.policy.model import Policy
    from urelay.table.decision import Decision

_KINDS = frozenset((UpstreamKind.SOCKS4, UpstreamKind.SOCKS5))
_OPTIONS = frozenset(("connect", "dns", "login", "unix"))
"""What an upstream may say and still be reached by a plain socket"""
_READ_BYTES = 4096
_UNIX = int(socket.AF_UNIX)


class Shortcut(NamedTuple):
    """A socket's family and where to connect it, and whom to ask there."""

    family: int
    address: object
    dialed: Endpoint | str
    proxy: Upstream | None = None
    login: Credentials | None = None

    def describe(self, error: str) -> str:
        """What went wrong on this way, and where."""
        return (
            f"{self.dialed}: {error}"
            if self.proxy is None
            else f"upstream `{self.proxy.name}`: {self.dialed}: {error}"
        )


class Shortcuts:
    """The short ways of one policy."""

    def __init__(self, logins: Mapping[str, Credentials]) -> None:
        self._logins = logins
        self._known: dict[str, Shortcut | None] = {}

    def find(self, policy: Policy, decision: Decision, target: Endpoint, asked: Asked) -> Shortcut | None:
        """The short way of a decision that is final, to `target`; None: it takes the long one."""
        if decision.outcome is Outcome.VIA and decision.upstream is not None:
            return self.through(policy.upstreams[decision.upstream])
        if decision.outcome is Outcome.UNIX:
            try:
                path = unix_path(decision, target, asked)
            except AddressError:
                # The long way says what is wrong.
                return None
            if path and len(os.fsencode(path)) <= LONGEST:
                return Shortcut(_UNIX, os.fsencode(path), path)
        return None

    def through(self, upstream: Upstream) -> Shortcut | None:
        """The short way through an upstream; None: it takes the long one."""
        try:
            return self._known[upstream.name]
        except KeyError:
            shortcut = self._known[upstream.name] = self._find(upstream)
            return shortcut

    def _find(self, upstream: Upstream) -> Shortcut | None:
        if upstream.kind not in _KINDS or upstream.options.keys() - _OPTIONS:
            return None
        login = self._logins.get(upstream.name)
        if upstream.unix_path is not None:
            return Shortcut(_UNIX, upstream.unix_path, upstream.unix_path, upstream, login)
        if upstream.endpoint is None or isinstance(upstream.endpoint.host, str):
            return None
        return Shortcut(*sockaddr(upstream.endpoint), upstream.endpoint, upstream, login)


@functools.lru_cache(maxsize=4096)
def text_of(place: Endpoint | str) -> str:
    """What is dialled, as text: one of a few, as a rule."""
    return str(place)


class Asking:
    """A proxy that is being asked. It stands for the proxy's socket in the poller meanwhile."""

    __slots__ = ("_connection", "_conversation", "_stream", "_told")

    def __init__(
        self, connection: SettingOut, shortcut: Shortcut, sock: socket.SocketType, target: Endpoint
    ) -> None:
        assert shortcut.proxy is not None
        self._connection = connection
        self._stream = _Stream(sock)
        self._told = 0
        self._conversation = proxies.converse(self._stream, shortcut.proxy, shortcut.login, target)

    def on_event(self, events: int) -> None:
        """The proxy answered, has room again, or is gone: go on."""
        self._told |= events
        try:
            self._conversation.send(None)
        except StopIteration as done:
            # A short read emptied the socket, unless something stood behind what it brought.
            told = self._told & BEHIND if self._stream.emptied else self._told
            self._connection.proxy_connected(told, done.value)
        except DialError as error:
            self._connection.proxy_failed(error)

    def on_crash(self) -> None:
        """A fault of ours: let go of the client."""
        self._connection.on_crash()


class _Stream(proxies.Stream):
    """What a conversation reads and writes. Where it would have to wait it yields instead."""

    def __init__(self, sock: socket.SocketType) -> None:
        self.early = b""
        """Read of the socket, and not yet taken"""
        self.emptied = False
        """Whether the last read took all there was"""
        self._sock = sock

    async def write(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                await _told()

    async def read(self, max_bytes: int = _READ_BYTES) -> bytes:
        while not self.early:
            try:
                self.early = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                await _told()
                continue
            if not self.early:
                raise EOFError
            self.emptied = len(self.early) < _READ_BYTES
        piece, self.early = self.early[:max_bytes], self.early[max_bytes:]
        return piece

    async def read_exactly(self, n: int) -> bytes:
        # A reply comes whole, as a rule, and is taken bit by bit.
        early = self.early
        if len(early) < n:
            return await super().read_exactly(n)
        self.early = early[n:]
        return early[:n]


@types.coroutine
def _told() -> Generator[None, None, None]:
    """Wait until the socket has told something."""
    yield
