"""`urelay serve` as a process of its own, an echo server, and clients of the relay's SOCKS listener."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVING = re.compile(r"urelay: serving (?P<path>\S+) \(policy (?P<digest>[0-9a-f]{8}), \d+ routes?\): .*")


class Echo:
    """A server that sends back what it gets, on many connections."""

    def __init__(self) -> None:
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                while data := client.recv(65536):
                    client.sendall(data)
            except OSError:
                return

    def close(self) -> None:
        """Accept nobody any more."""
        # close() alone leaves a thread in accept(2) for ever.
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Relay:
    """A running `urelay serve` and all that it said."""

    def __init__(self, policy: Path, *arguments: str, env: dict[str, str] | None = None, **options: object):
        self.policy = policy
        self.said: list[str] = []
        self._heard = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "urelay", "serve", policy.name, *arguments],
            cwd=policy.parent, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **options,
        )  # fmt: skip
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.said.append(line.rstrip("\n"))
                self._heard.notify_all()
        with self._heard:
            self.said.append("(the end)")
            self._heard.notify_all()

    def hear(self, pattern: str, after: int = 0) -> int:
        """Waits for a line that matches, from the line `after` on; the number of the next line."""
        deadline = time.monotonic() + 20
        with self._heard:
            while True:
                for number, line in enumerate(self.said[after:], after):
                    if re.search(pattern, line):
                        return number + 1
                assert "(the end)" not in self.said[after:], f"it ended without {pattern!r}: {self.said}"
                assert self._heard.wait(deadline - time.monotonic()), f"no {pattern!r} in {self.said}"

    def reload(self, text: str, expect: str) -> None:
        """Writes the policy anew, says so, and waits for what is said to it."""
        self.policy.write_text(text)
        so_far = len(self.said)
        self.process.send_signal(signal.SIGHUP)
        self.hear(expect, so_far)

    def end(self) -> int:
        """Waits for it to end; its exit status."""
        status = self.process.wait(20)
        self._listener.join(20)
        assert not [line for line in self.said if "Traceback" in line], self.said
        return status


def through(port: int, target: int) -> socket.socket:
    """A connection to 127.0.0.1:target by the SOCKS server at `port`; raises ConnectionError if refused."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    client.sendall(b"\x04\x01" + target.to_bytes(2) + bytes((127, 0, 0, 1)) + b"\0")
    reply = client.recv(8, socket.MSG_WAITALL)
    if reply[:2] != b"\x00\x5a":
        client.close()
        raise ConnectionRefusedError(reply)
    return client


def echoes(client: socket.socket, data: bytes = b"hello") -> bool:
    """Whether the other end sends it back."""
    client.sendall(data)
    return client.recv(len(data), socket.MSG_WAITALL) == data


def socks(port: int, name: str = "socks") -> str:
    """The statement of a SOCKS listener."""
    return f"listen {name} = socks 127.0.0.1:{port}\n"


def direct(port: int) -> str:
    """The statement that lets clients reach a port of loopback."""
    return f"match 127.0.0.1 port {port} -> direct\n"
