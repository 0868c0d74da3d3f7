"""S16: logins come from files and the environment, and whatever goes wrong, none is ever seen again."""

from __future__ import annotations

import base64
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.places import HERE
from tests.services.rig import Relay
from urelay.engine.logins import read_logins
from urelay.policy.check import check_file
from urelay.services.users import read_users

Start = Callable[..., Relay]

CANARIES = ("canary-of-the-client", "canary-of-the-proxy", "canary-in-a-file", "canary-that-is-wrong")
USER = CANARIES[0].encode()

POLICY = """
upstream env  = socks5 127.0.0.1:{port} {{ login env URT_LOGIN }}
upstream file = http 127.0.0.1:{port} {{ login file "login" }}
listen in = mixed fd env URT_LISTENER {{ users "users" }}
match any -> via env with log full
match any port 81 -> via file with log full
"""


def refuse(listening: socket.socket) -> None:
    """A proxy that reads a greeting or a request, and has something against each login."""
    while True:
        try:
            client, _ = listening.accept()
        except OSError:
            return
        with client:
            client.settimeout(20)
            if client.recv(4096)[:1] == b"\5":
                client.sendall(b"\5\2")
                client.recv(4096)
                client.sendall(b"\1\1")
            else:
                # What it was told, it tells: a proxy may be as foolish as that.
                basic = base64.b64encode(b"ann:" + CANARIES[2].encode())
                client.sendall(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\nX-Seen: " + basic + b"\r\n\r\n")


@pytest.fixture
def proxy() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=refuse, args=(listening,), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(20)


def ask(address: tuple[str, int], password: bytes, port: int) -> bytes:
    """What a client is told in SOCKS."""
    with socket.create_connection(address, 20) as client:
        client.sendall(b"\5\1\2\1\3ann" + bytes((len(password),)) + password)
        client.sendall(b"\5\1\0\1" + bytes((192, 0, 2, 1)) + port.to_bytes(2))
        answer = b""
        try:
            while data := client.recv(100):
                answer += data
        except ConnectionResetError:
            return answer
        return answer


def test_nothing_says_a_login(start: Start, proxy: int, tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ann:{CANARIES[0]}\n")
    (tmp_path / "login").write_text(f"ann:{CANARIES[2]}\n")
    for name in ("users", "login"):
        (tmp_path / name).chmod(0o600)
    text = POLICY.format(port=proxy)
    with socket.create_server((HERE, 0)) as listening:
        env = {"URT_LISTENER": str(listening.fileno()), "URT_LOGIN": f"ann:{CANARIES[1]}"}
        relay = start(text, "--access-log", "log", env=env, pass_fds=(listening.fileno(),))
        address = listening.getsockname()
        assert ask(address, USER, 80)[:3] == b"\5\2\1"
        assert ask(address, USER, 81)[:3] == b"\5\2\1"
        assert ask(address, CANARIES[3].encode(), 80)[-1:] != b"\0"
        with socket.create_connection(address, 20) as client:
            coded = base64.b64encode(b"ann:" + USER)
            client.sendall(b"CONNECT 192.0.2.1:81 HTTP/1.1\r\nHost: 192.0.2.1:81\r\n")
            client.sendall(b"Proxy-Authorization: Basic " + coded + b"\r\n\r\n")
            told = client.recv(65536)
        # Files that are bad now: what is wrong is said, and not what it is wrong about.
        (tmp_path / "users").write_text(f"ann {CANARIES[0]}\n")
        (tmp_path / "login").write_text(f"{CANARIES[2]}\n")
        relay.reload(text, "was not reloaded")
        relay.process.send_signal(signal.SIGUSR2)
        relay.hear("status:")
        argv = Path(f"/proc/{relay.process.pid}/cmdline").read_bytes()
        relay.process.terminate()
        relay.end()
    seen = [told, argv, (tmp_path / "log").read_bytes(), "\n".join(relay.said).encode()]
    assert len(seen[2].splitlines()) == 4
    for canary in CANARIES:
        for shape in (canary.encode(), base64.b64encode(b"ann:" + canary.encode())):
            assert not [text for text in seen if shape in text]


def test_no_object_shows_a_login(tmp_path: Path) -> None:
    """In a traceback, a log or a debugger's line."""
    (tmp_path / "p.urr").write_text(POLICY.format(port=1))
    (tmp_path / "users").write_text(f"ann:{CANARIES[0]}\n")
    (tmp_path / "login").write_text(f"ann:{CANARIES[2]}\n")
    for name in ("users", "login"):
        (tmp_path / name).chmod(0o600)
    policy = check_file(str(tmp_path / "p.urr")).policy
    assert policy is not None
    logins = read_logins(policy, {**os.environ, "URT_LOGIN": f"ann:{CANARIES[1]}"})
    users = read_users(str(tmp_path / "users"))
    assert users.check(b"ann", USER)
    shown = f"{logins!r} {logins} {users!r} {users} {policy.listeners!r} {policy.upstreams!r}"
    assert not [canary for canary in CANARIES if canary in shown]
