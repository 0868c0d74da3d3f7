"""Servers and clients that tests talk through, on threads of the test process.

Each server takes a listening socket, opened in whatever namespace it is to be found in, and counts the
connections it was given. Clients speak just enough SOCKS to see the exact reply bytes.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import dns.flags
import dns.message
import dns.rdatatype
import dns.rrset

from tests.e2e.rig import Namespace

Handler = Callable[[socket.socket], None]


class Server:
    """Runs `handler` on a thread for every connection; `close` ends them all."""

    def __init__(self, listener: socket.socket, handler: Handler) -> None:
        self.listener = listener
        self.port: int = listener.getsockname()[1] if listener.family != socket.AF_UNIX else 0
        self.accepted = 0
        self.peers: list[str] = []
        """Where each client came from, `ADDRESS:PORT` without brackets"""
        self._handler = handler
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def hosts(self) -> list[str]:
        """The addresses its clients came from."""
        return [peer.rpartition(":")[0] for peer in self.peers]

    def _accept(self) -> None:
        while True:
            try:
                sock, peer = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            with self._lock:
                self.accepted += 1
                self.peers.append(f"{peer[0].removeprefix('::ffff:')}:{peer[1]}" if peer else "")
                self._open.add(sock)
                self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        # The other end may go away at any moment: that is its right, and no failure of the server.
        with contextlib.suppress(OSError):
            self._handler(sock)
        with self._lock:
            self._open.discard(sock)
        sock.close()

    def close(self) -> None:
        """Stops listening, breaks what is open and waits for the threads."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def echo(sock: socket.socket) -> None:
    """Sends back what comes, and the end of it."""
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def says(text: str) -> Handler:
    """A handler that says `text` first and then waits for the client to end."""

    def handler(sock: socket.socket) -> None:
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        drain(sock)

    return handler


def web(name: str) -> Handler:
    """A small web server: `/N` is N position-coded bytes, anything else the server's `name`."""

    def handler(sock: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            data = sock.recv(4096)
            if not data:
                return
            request += data
        path = request.split(b" ")[1].lstrip(b"/")
        body = position_coded(int(path)) if path.isdigit() else name.encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        sock.sendall(head.encode() + body)
        sock.shutdown(socket.SHUT_WR)
        drain(sock)

    return handler


def drain(sock: socket.socket) -> bytes:
    """Everything that still comes, to the end of the stream."""
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)


def position_coded(size: int) -> bytes:
    """Bytes of which every eight tell where they belong, so that a mismatch names its place."""
    count = size // 8 + 1
    return struct.pack(f">{count}Q", *range(count))[:size]


class NameServer:
    """Answers A and AAAA over UDP from a table of names, and NXDOMAIN for the rest.

    `answers` maps a name without final dot to its addresses; `fallback` answers every other name.
    """

    def __init__(
        self, sock: socket.socket, answers: Mapping[str, tuple[str, ...]], fallback: tuple[str, ...] = ()
    ) -> None:
        self.port: int = sock.getsockname()[1]
        self.asked: list[str] = []
        self._sock = sock
        self._answers = answers
        self._fallback = fallback
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            query, peer = self._sock.recvfrom(4096)
            if not query:
                return
            self._sock.sendto(self._answer(query), peer)

    def _answer(self, query: bytes) -> bytes:
        message = dns.message.from_wire(query)
        question = message.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.asked.append(name)
        response = dns.message.make_response(message)
        response.flags |= dns.flags.RA
        known = self._answers.get(name, self._fallback)
        fitting = [a for a in known if (":" in a) == (question.rdtype == dns.rdatatype.AAAA)]
        if fitting:
            kind = dns.rdatatype.to_text(question.rdtype)
            response.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *fitting))
        elif not known:
            response.set_rcode(3)
        return response.to_wire()

    def close(self) -> None:
        """Stops answering: an empty datagram tells the thread, which nothing else would wake."""
        self._sock.sendto(b"", self._sock.getsockname())
        self._thread.join()
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def datagram(host: str, port: int = 0) -> socket.socket:
    """A bound UDP socket in the calling thread's namespace."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, port))
    return sock


# --- SOCKS, from the client's side


def socks5(sock: socket.socket, host: bytes, port: int) -> int:
    """Asks a SOCKS5 server to CONNECT; the reply code, 0 for success, -1 when it just closed.

    `host` is an address of 4 or 16 bytes after `b"="`, otherwise the exact bytes of a domain.
    """
    sock.sendall(b"\x05\x01\x00")
    if read_exactly(sock, 2) != b"\x05\x00":
        return -1
    return socks5_request(sock, host, port)


def socks5_request(sock: socket.socket, host: bytes, port: int) -> int:
    """The request alone, after the greeting."""
    sock.sendall(b"\x05\x01\x00" + _socks5_address(host) + port.to_bytes(2))
    head = read_exactly(sock, 4)
    if len(head) < 4:
        return -1
    length = {1: 4, 4: 16}.get(head[3])
    if length is None:
        length = read_exactly(sock, 1)[0]
    read_exactly(sock, length + 2)
    return head[1]


def _socks5_address(host: bytes) -> bytes:
    if host.startswith(b"="):
        packed = host[1:]
        return (b"\x01" if len(packed) == 4 else b"\x04") + packed
    return b"\x03" + bytes([len(host)]) + host


def literal(text: str) -> bytes:
    """The `host` argument of `socks5` that sends an address as an address."""
    return b"=" + socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def socks4(sock: socket.socket, host: bytes, port: int, user: bytes = b"") -> int:
    """Asks a SOCKS4 (`literal` IPv4) or 4a server to CONNECT; the reply code, 0x5a for success."""
    if host.startswith(b"="):
        request = host[1:] + user + b"\0"
    else:
        request = b"\0\0\0\1" + user + b"\0" + host + b"\0"
    sock.sendall(b"\x04\x01" + port.to_bytes(2) + request)
    reply = read_exactly(sock, 8)
    return reply[1] if len(reply) == 8 else -1


def connect(sock: socket.socket, target: bytes, *fields: bytes) -> int:
    """Asks an HTTP proxy to CONNECT to the exact bytes of a target; the status, -1 when it just closed.

    A refusal is read to the end of the stream.
    """
    sock.sendall(b"\r\n".join((b"CONNECT " + target + b" HTTP/1.0", *fields)) + b"\r\n\r\n")
    head = b""
    with contextlib.suppress(ConnectionResetError):
        while not head.endswith(b"\r\n\r\n"):
            byte = sock.recv(1)
            if not byte:
                return -1
            head += byte
        status = int(head.split(b" ")[1])
        if status != 200:
            drain(sock)
        return status
    return -1


def read_exactly(sock: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer when the stream ends (or is reset) before."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while len(data) < count:
            more = sock.recv(count - len(data))
            if not more:
                break
            data += more
    return data


def ending(sock: socket.socket) -> str:
    """How a stream that carries nothing more ends: `eof`, `reset` or `data` when there was more."""
    try:
        return "data" if sock.recv(1) else "eof"
    except ConnectionResetError:
        return "reset"


def fate(netns: Namespace, host: str, port: int) -> str:
    """What becomes of a transparent client that says nothing: how its stream ends.

    A reset may be so quick that connecting itself reports it.
    """
    try:
        with netns.connect(host, port) as sock:
            return ending(sock)
    except ConnectionResetError:
        return "reset"
