"""S9: once a client was told that it is through, nothing we wrote is in its stream, however that ends."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.places import HERE
from tests.services.rig import Relay

Start = Callable[..., Relay]

LOOPBACK = bytes((127, 0, 0, 1))
BANNER = b"220 hello\r\n"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(20)
        yield sock


def socks5(port: int) -> tuple[bytes, bytes]:
    """What a client sends, and the whole answer that means success."""
    return b"\5\1\0\5\1\0\1" + LOOPBACK + port.to_bytes(2), b"\5\0\5\0\0\1.{6}"


def socks4(port: int) -> tuple[bytes, bytes]:
    return b"\4\1" + port.to_bytes(2) + LOOPBACK + b"\0", b"\0\x5a.{6}"


def http(port: int) -> tuple[bytes, bytes]:
    where = f"127.0.0.1:{port}"
    return (
        f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode(),
        rb"HTTP/1.1 200 [^\r]*\r\n([^\r]+\r\n)*\r\n",
    )


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def rest(sock: socket.socket) -> bytes:
    """Everything that still comes, to its end or a reset."""
    found = b""
    try:
        while data := sock.recv(65536):
            found += data
    except ConnectionResetError:
        return found
    return found


ENDS = ["idle", "reset by the server", "reset by the client", "reload", "stop", "killed"]


@pytest.mark.parametrize("end", ENDS)
def test_nothing_of_ours_is_in_either_stream(start: Start, server: socket.socket, end: str) -> None:
    port = server.getsockname()[1]
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server((HERE, 0)))
        text = "listen in = mixed fd env URT_LISTENER { idle %s }\n" % ("1s" if end == "idle" else "1h")
        text += f"match 127.0.0.1 port {port} -> direct\n"
        env = {"URT_LISTENER": str(listening.fileno())}
        relay = start(text, "--drain", "0", env=env, pass_fds=(listening.fileno(),))
        pairs = []
        for request, success in (spell(port) for spell in (socks5, socks4, http)):
            client = stack.enter_context(socket.create_connection(listening.getsockname(), 20))
            client.sendall(request)
            inside, _ = server.accept()
            stack.enter_context(inside)
            inside.settimeout(20)
            answer = b""
            inside.sendall(BANNER)
            while not answer.endswith(BANNER):
                answer += client.recv(1) or pytest.fail(f"only {answer!r}")
            assert re.fullmatch(success + re.escape(BANNER), answer, re.DOTALL)
            client.sendall(b"half a li")
            assert inside.recv(9, socket.MSG_WAITALL) == b"half a li"
            pairs.append((client, inside))
        if end == "reload":
            relay.reload(text + "forbid any\n", "reloaded")
            for client, inside in pairs:
                client.sendall(b"ne")
                inside.shutdown(socket.SHUT_WR)
        elif end == "stop":
            relay.process.send_signal(signal.SIGTERM)
        elif end == "killed":
            relay.process.kill()
        for client, inside in pairs:
            if end == "reset by the server":
                reset(inside)
                assert rest(client) == b""
            elif end == "reset by the client":
                reset(client)
                assert rest(inside) == b""
            else:
                assert rest(client) == b""
                client.close()
                assert rest(inside) == (b"ne" if end == "reload" else b"")
