"""The servers behind every relay: an echo, a sink, and a SOCKS 5 server that leads to both.

They sit on TCP ports and, echo and sink, on unix sockets. The SOCKS server moves nothing itself: whoever came
through it talks to the echo or to the sink at once, so a relay that goes out through a proxy is not measured
together with one. The sink takes bytes off the socket without copying them (MSG_TRUNC).

Bare descriptors in one epoll, one system call a step: what serves must not be what is measured.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

ECHO, SINK, SOCKS = 7001, 7002, 7003
"""The ports of the servers"""

STALLED_S = 5.0
"""Nothing moved for so long: the relay under test is broken"""

BULK = memoryview(bytearray(1 << 20))
"""What is sent in bulk. All zeros: what little the sink does copy goes here too"""


class Broken(Exception):
    """The relay under test did not do its part."""


class Servers:
    """The echo, the sink and the SOCKS server; `handlers` says what to do when a descriptor is readable."""

    def __init__(self, folder: Path, address: str) -> None:
        self.epoll = select.epoll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.echoing: set[int] = set()
        self.sinking: set[int] = set()
        self.sunk = 0
        self._permanent: set[int] = set()
        self._listeners: list[socket.socket] = []
        self.tcp(address)
        for port, serve in ((ECHO, self._start_echo), (SINK, self._start_sink)):
            unix = socket.socket(socket.AF_UNIX)
            unix.bind(str(folder / f"{port}.sock"))
            self._listen(unix, serve)

    def tcp(self, address: str) -> None:
        """Opens the servers in the namespace this is called in."""
        for port, serve in ((ECHO, self._start_echo), (SINK, self._start_sink), (SOCKS, self._start_socks)):
            tcp = socket.socket()
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tcp.bind((address, port))
            self._listen(tcp, serve)

    def _listen(self, listener: socket.socket, serve: Callable[[int], None]) -> None:
        accept = listener._accept  # type: ignore[attr-defined]  # bare descriptors: no object a connection
        register, handlers = self.epoll.register, self.handlers

        def on_connection(_: int) -> None:
            try:
                fd, _ = accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            serve(fd)
            register(fd, select.EPOLLIN)

        listener.listen(4096)
        listener.setblocking(False)
        self._listeners.append(listener)
        handlers[listener.fileno()] = on_connection
        self._permanent.add(listener.fileno())
        register(listener.fileno(), select.EPOLLIN)

    def _start_echo(self, fd: int) -> None:
        self.handlers[fd] = self._echo
        self.echoing.add(fd)

    def _start_sink(self, fd: int) -> None:
        self.handlers[fd] = self._first
        self.sinking.add(fd)

    def _start_socks(self, fd: int) -> None:
        wait_at_most(STALLED_S, fd)  # its few bytes are read as if they were all there
        self.handlers[fd] = self._greet

    def _echo(self, fd: int) -> None:
        try:
            data = os.read(fd, 4096)
            if data:
                os.write(fd, data)
                return
        except OSError:
            pass  # a reset ends it as well
        self.end(fd)

    def _first(self, fd: int) -> None:
        # The first byte is echoed, so that a client knows that it is through.
        self.handlers[fd] = self._sink
        data = os.read(fd, 1)
        if data:
            os.write(fd, data)
        else:
            self.end(fd)

    def _sink(self, fd: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
        try:
            count = sock.recv_into(BULK, 0, socket.MSG_TRUNC | socket.MSG_DONTWAIT)
        except OSError:
            count = 0
        sock.detach()
        self.sunk += count
        if not count:
            self.end(fd)

    def _greet(self, fd: int) -> None:
        head = os.read(fd, 2)
        if len(head) < 2:
            self.end(fd)
            return
        os.read(fd, head[1])
        os.write(fd, b"\5\0")
        self.handlers[fd] = self._request

    def _request(self, fd: int) -> None:
        head = os.read(fd, 4)
        if len(head) < 4:
            self.end(fd)
            return
        length = {1: 4, 4: 16}.get(head[3]) or os.read(fd, 1)[0]
        (port,) = struct.unpack("!H", os.read(fd, length + 2)[-2:])
        os.write(fd, b"\5\0\0\1\0\0\0\0\0\0")
        (self._start_sink if port == SINK else self._start_echo)(fd)

    def end(self, fd: int) -> None:
        """Closes a connection."""
        del self.handlers[fd]
        self.echoing.discard(fd)
        self.sinking.discard(fd)
        os.close(fd)

    def drop(self) -> None:
        """Closes every connection, those of clients too."""
        for fd in [fd for fd in self.handlers if fd not in self._permanent]:
            self.end(fd)

    def turn(self) -> bool:
        """Whatever is ready now, or nothing for a second; whether there was anything."""
        events = self.epoll.poll(1.0, 512)
        handlers = self.handlers
        for fd, _ in events:
            handler = handlers.get(fd)  # one of these events may have closed it
            if handler is not None:
                handler(fd)
        return bool(events)

    def until(self, done: Callable[[], bool]) -> None:
        """Turns until `done`. Raises Broken when everything stands still."""
        moved = time.monotonic()
        while not done():
            if self.turn():
                moved = time.monotonic()
            elif time.monotonic() - moved > STALLED_S:
                raise Broken(f"stood still for {STALLED_S:g} s")


def wait_at_most(seconds: float, fd: int) -> None:
    """Makes a blocking read of a socket fail after so many seconds."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fd)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(seconds), 0))
    sock.detach()
