"""Network namespaces, and the programs that run inside them.

A `Network` owns the namespaces of one test and removes them on leaving, whatever happened. The test
process itself never changes its namespace: `Namespace.call` runs a function on a thread that enters
the namespace and then ends. A socket stays where it was opened, so a test holds sockets of every
namespace at once and talks through them from one place.

Nothing here waits a fixed time: a `Program` is ready when it says so on a line or when the kernel
lists its listening socket, and both waits have a deadline.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

READY_S = 40.0
"""How long a program may take to get ready: the machine may be small and busy."""

_DIES_WITH_US = ("setpriv", "--pdeathsig", "TERM", "--")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def until(condition: Callable[[], T | None], what: str, timeout_s: float = READY_S) -> T:
    """The first true value of `condition`, asked every 5 ms; AssertionError saying `what` never came."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


class Namespace:
    """One network namespace, `lo` up, removed by `close`."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"urt-{os.getpid()}-{next(_numbers)}-{label}"
        self.path = f"/run/netns/{self.name}"
        _tool("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *words: str) -> None:
        """`ip WORDS…` inside."""
        _tool("ip", "-n", self.name, *words)

    def address(self, device: str, *addresses: str) -> None:
        """Gives `device` addresses with their prefix lengths, usable at once, and sets it up."""
        for address in addresses:
            nodad = ("nodad",) if ":" in address else ()
            self.ip("addr", "add", address, "dev", device, *nodad)
        self.ip("link", "set", device, "up")

    def default_route(self, *gateways: str) -> None:
        """Routes everything else to the gateways, one a family."""
        for gateway in gateways:
            self.ip("-6" if ":" in gateway else "-4", "route", "add", "default", "via", gateway)

    def everything_is_local(self) -> None:
        """The two routes that make every address one of this namespace's own."""
        self.ip("route", "add", "local", "0.0.0.0/0", "dev", "lo")
        self.ip("-6", "route", "add", "local", "::/0", "dev", "lo")

    def forward(self) -> None:
        """Makes a router of it."""
        for key in ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"):
            self.run("sh", "-c", f"echo 1 > /proc/sys/{key}")

    def nft(self, ruleset: str) -> None:
        """Loads an nftables ruleset."""
        _tool("ip", "netns", "exec", self.name, "nft", "-f", "-", input_text=ruleset)

    def run(self, *argv: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[bytes]:
        """Runs a program to its end, its output captured; the exit status is the caller's to judge."""
        return subprocess.run(self.command(argv), capture_output=True, check=False, timeout=timeout_s)

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` inside, as the very process that is started."""
        return ["nsenter", f"--net={self.path}", "--", *argv]

    @staticmethod
    def remove_forgotten() -> None:
        """Removes the namespaces of test processes that were killed before they could."""
        for path in Path("/run/netns").glob("urt-*"):
            if not Path("/proc", path.name.split("-")[1]).exists():
                _tool("ip", "netns", "del", path.name)

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns (or raises) on a thread inside."""
        outcome: list[T] = []
        failure: list[BaseException] = []

        def inside() -> None:
            try:
                with open(self.path, "rb") as netns:
                    if _LIBC.setns(netns.fileno(), _CLONE_NEWNET) != 0:
                        code = ctypes.get_errno()
                        raise OSError(code, os.strerror(code), self.path)
                outcome.append(function())
            except BaseException as error:
                failure.append(error)

        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
        return outcome[0]

    def connect(
        self, host: str, port: int, timeout_s: float = READY_S, source_port: int = 0
    ) -> socket.socket:
        """A connection from inside to `host` (a literal address)."""
        any_address = "::" if ":" in host else "0.0.0.0"
        source = (any_address, source_port) if source_port else None
        return self.call(lambda: socket.create_connection((host, port), timeout_s, source))

    def listen(self, host: str, port: int = 0, backlog: int = 256) -> socket.socket:
        """A listening socket inside; `::` takes IPv4 as well."""
        return self.call(lambda: listening(host, port, backlog))

    def inode(self) -> int:
        """What identifies the namespace in /proc/PID/ns/net."""
        return os.stat(self.path).st_ino

    def close(self) -> None:
        """Removes it; the kernel ends it with its last process and socket."""
        _tool("ip", "netns", "del", self.name)


class Network:
    """The namespaces of one test and the wires between them."""

    def __init__(self) -> None:
        self._namespaces: list[Namespace] = []

    def namespace(self, label: str) -> Namespace:
        """A new namespace with nothing but `lo`."""
        made = Namespace(label)
        self._namespaces.append(made)
        return made

    def wire(self, left: Namespace, right: Namespace, ours: Sequence[str], theirs: Sequence[str]) -> None:
        """A veth pair; each end is called after the other side and has the addresses given."""
        _tool(
            *("ip", "link", "add", "name", right.label, "netns", left.name, "type", "veth"),
            *("peer", "name", left.label, "netns", right.name),
        )
        left.address(right.label, *ours)
        right.address(left.label, *theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._namespaces:
            self._namespaces.pop().close()


class Program:
    """A running program whose output is read line by line; `stop` ends that one process."""

    def __init__(
        self,
        argv: Sequence[str],
        netns: Namespace | None = None,
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [*_DIES_WITH_US, *(netns.command(argv) if netns is not None else argv)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            pass_fds=pass_fds,
            cwd=cwd,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process: `nsenter` replaces itself, so it is the program's own."""
        return self.process.pid

    @property
    def output(self) -> str:
        """Everything it has written to stdout and stderr."""
        return "\n".join(self.lines)

    def wait_line(self, text: str, since: int = 0, timeout_s: float = READY_S) -> str:
        """The first line, from number `since` on, that contains `text`."""

        def seen() -> str | None:
            return next((line for line in self.lines[since:] if text in line), None)

        with self._news:
            self._news.wait_for(lambda: seen() is not None or self._ended, timeout_s)
        line = seen()
        assert line is not None, f"{self.process.args!r} never said {text!r}, but:\n{self.output}"
        return line

    def wait_listening(self, port: int) -> None:
        """Returns once a socket in its namespace listens on `port`."""

        def listens() -> bool:
            assert self.process.poll() is None, f"{self.process.args!r} ended:\n{self.output}"
            return port in listening_ports(self.pid)

        until(listens, f"{self.process.args!r} listens on port {port}")

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to it."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = READY_S) -> int:
        """Its exit status, once it has ended by itself and everything it wrote is read."""
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = READY_S) -> int:
        """Ends it (by force after `timeout_s`) and returns its exit status."""
        if self.process.poll() is None:
            self.send(number)
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                with self._news:
                    self.lines.append(line.decode(errors="replace").rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


def listening(host: str, port: int = 0, backlog: int = 256) -> socket.socket:
    """A listening TCP socket in the calling thread's namespace; `::` takes IPv4 as well."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if host == "::":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((host, port))
    sock.listen(backlog)
    return sock


def listening_ports(pid: int | str = "thread-self") -> set[int]:
    """The TCP ports with a listener in the namespace of a process."""
    ports = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


def _tool(*argv: str, input_text: str | None = None) -> None:
    done = subprocess.run(argv, input=input_text, capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr.strip()}"
