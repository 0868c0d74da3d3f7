"""Proxies for tests: one that follows a script byte for byte, and one that works, SOCKS and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from urelay.errors import Failure, ProtocolError
from urelay.net.address import Endpoint, Host, host_text, parse_address
from urelay.protocols import connect, socks
from urelay.protocols.mixed import MixedServer
from urelay.protocols.users import Users

LOCALHOST = parse_address("127.0.0.1")


class Peer:
    """A server on loopback, or on a unix socket, and what it saw."""

    def __init__(self) -> None:
        self.at = Endpoint(LOCALHOST, 0)
        self.received = b""
        self.requests: list[socks.Request | connect.Request] = []
        self.tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serving(self, path: Path | None = None) -> AsyncIterator[None]:
        """Serve while inside; every connection is over afterwards."""
        if path is not None:
            server = await asyncio.start_unix_server(self._connected, str(path))
        else:
            server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
            self.at = Endpoint(LOCALHOST, server.sockets[0].getsockname()[1])
        try:
            async with server:
                yield
        finally:
            while self.tasks:
                for task in self.tasks:
                    task.cancel()
                await asyncio.wait(self.tasks)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self.converse(reader, writer)
        finally:
            writer.close()
            self.tasks.discard(task)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection; each peer has its own way with it."""
        raise AssertionError("a peer says how it converses")


class Scripted(Peer):
    """Reads as many bytes as each step says, then sends the step's pieces, one write each; then EOF."""

    def __init__(self, steps: Sequence[tuple[int, Sequence[bytes]]], *, hold: bool = False) -> None:
        super().__init__()
        self.steps = steps
        self.hold = hold

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for length, pieces in self.steps:
            self.received += await reader.readexactly(length)
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
        if self.hold:
            await reader.read()


class Echo(Peer):
    """Says which one it is, then gives back what it gets."""

    def __init__(self, banner: bytes) -> None:
        super().__init__()
        self.banner = banner

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self.banner)
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


class Working(Peer):
    """A SOCKS and HTTP proxy made of the project's own server; names are what `names` says."""

    def __init__(self, names: Mapping[str, Endpoint] | None = None, users: Users | None = None) -> None:
        super().__init__()
        self.names = {} if names is None else names
        self.users = users
        self.refuse: dict[Host, Failure] = {}

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = MixedServer(self.users)
        while server.request is None:
            data = await reader.read(2048)
            if not data:
                return
            try:
                writer.write(server.receive(data))
            except ProtocolError as error:
                writer.write(error.reply)
                return
        request = server.request
        self.requests.append(request)
        goal = Endpoint(request.host, request.port)
        if isinstance(request.host, str):
            goal = self.names[request.host]
        if request.host in self.refuse:
            writer.write(request.failure(self.refuse[request.host]))
            return
        far_reader, far_writer = await asyncio.open_connection(host_text(goal.host), goal.port)
        writer.write(request.success(Endpoint(LOCALHOST, 4660)))
        far_writer.write(server.leftover)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(copy(reader, far_writer))
                group.create_task(copy(far_reader, writer))
        finally:
            far_writer.close()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything, then the end of file."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        with contextlib.suppress(OSError):  # the other end is gone already
            writer.write_eof()
