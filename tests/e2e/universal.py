"""The real Universal Relay, and a place to ask it and us for the same.

URELAY_ORIGIN_DIR holds the folder `universal-relay`: the program in its form of November 2024 (index.js and
src) with what it needs (`npm install express@4 ip` there); and `node` must be installed.

Both programs run in `box`. What they are asked for is in `out`, where 203.0.113.0/24 and 2001:db8::/64 are
local and each server says by which address and port it was reached: so one word tells whether two relays
took the same request alike.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import origin
from tests.e2e import peers, programs
from tests.e2e.rig import Namespace, Network, Program, until

FOLDER = "universal-relay"
WEB = 80
SILENT = ("2001:db8::5117", "203.0.113.51")
"""Addresses whose packets are dropped"""
NAMES = {
    "www.test": ("203.0.113.80",),
    "six.test": ("2001:db8::80",),
    "late.test": (*SILENT, "203.0.113.9"),
}

PREFIX = "fedb:1200:4500:7800"
"""The /64 of its addresses"""
INDEXES = {"www.test": 1, "six.test": 0x20003, "203.0.113.44": 4, "2001:db8::44": 5}
"""Its relay_map: addresses that stand for names. One index is far up, two stand for addresses"""

# Its services are behind one address, each on its own port: host 0 of a window to IPv4.
SERVICES = f"{PREFIX}:5ff:7007:c633:6400"
_SERVICES = "0x5ff7007c6336400"
_WINDOW = {
    "ipv4_net": "0xc6336400",
    "ipv4_mask": "0xffffff00",
    "ipv4_iid_offset": "0x5ff700100000000",
}
SOCKS, BY_IID, REAL, IMPLICIT = 1080, 8081, 8082, 8083
WILD = 1082
"""Where it takes its addresses themselves"""
IMPORTED = 1081
"""The same of a policy that `urelay import` has written"""
OURS = 1085

# Its resolver's socket has a fixed path: the program gets a /run of its own.
_WITH_RESOLVER = (
    "mount -t tmpfs none /run && mkdir -p /run/systemd/resolve && "
    'ln -s "$1" /run/systemd/resolve/io.systemd.Resolve && shift && exec "$@"'
)


@dataclass(frozen=True, slots=True)
class Lab:
    """The two namespaces, and a folder with a resolver for both programs."""

    box: Namespace
    out: Namespace
    folder: Path
    stack: ExitStack
    resolver: tuple[str, str]
    """The options with which urelay finds it"""

    def path(self, name: str) -> str:
        """A file's path in the folder."""
        return str(self.folder / name)

    def universal_relay(self, groups: Sequence[tuple[str, Mapping[str, object]]] = ()) -> Program:
        """The real one in `box`: its services on loopback, SOCKS at `ur.sock` too, its addresses on WILD."""
        listeners: list[Mapping[str, object]] = [
            {"forced_iid": [_SERVICES, port], "l": {"host": "127.0.0.1", "port": port}}
            for port in (SOCKS, BY_IID, REAL)
        ]
        unix = {"unix_path": self.path("ur.sock")}
        listeners.append({"forced_iid": [_SERVICES, SOCKS], "listener_opts": unix})
        listeners.append({"forced_iid": "wild", "l": {"host": "::", "port": WILD}})
        settings = {
            "static_maps": {"relay_map": list(INDEXES.items()), "groupsub_map": list(groups)},
            "ipv4_handlers": [_WINDOW],
            "listeners": listeners,
        }
        wrapped = ("unshare", "--mount", "--", "sh", "-c", _WITH_RESOLVER, "sh", self.path("resolved"))
        entry = str(origin(FOLDER) / "index.js")
        program = self.node(self.box, entry, "--env", json.dumps(settings), prefix=wrapped)
        for port in (SOCKS, BY_IID, REAL, WILD):
            program.wait_listening(port)
        until((self.folder / "ur.sock").is_socket, "it listens on its socket")
        return program

    def node(
        self,
        netns: Namespace,
        *argv: str,
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Program:
        """node in a namespace, ended with the test."""
        program = Program([*prefix, "node", *argv], netns, env=env, pass_fds=pass_fds)
        self.stack.callback(program.stop)
        return program

    def unix_server(self, name: str, handler: peers.Handler) -> peers.Server:
        """A server on a unix socket in the folder."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path(name))
        listener.listen()
        return self.stack.enter_context(peers.Server(listener, handler))

    def dial(self, port: int) -> socket.socket:
        """A connection to loopback in `box`."""
        return self.box.connect("127.0.0.1", port)

    def ask(self, port: int, data: bytes) -> bytes:
        """What comes back, to the end, from a port of `box` that gets `data` at once."""
        with self.dial(port) as sock:
            sock.sendall(data)
            return everything(sock)


@pytest.fixture
def lab(net: Network, stack: ExitStack, tmp_path: Path) -> Lab:
    """The namespaces, servers on three ports of every address in `out`, and the resolvers."""
    if programs.find("node") is None:
        pytest.skip("Universal Relay needs `node`")
    box, out = net.namespace("box"), net.namespace("out")
    net.wire(box, out, ["192.0.2.1/24", "2001:db8:ffff::1/64"], ["192.0.2.2/24", "2001:db8:ffff::2/64"])
    box.default_route("192.0.2.2", "2001:db8:ffff::2")
    box.ip("-6", "route", "add", "local", f"{PREFIX}::/64", "dev", "lo")
    for family, prefix in (("-4", "203.0.113.0/24"), ("-6", "2001:db8::/64")):
        out.ip(family, "route", "add", "local", prefix, "dev", "lo")
    for address in SILENT:
        out.ip("route", "add", "blackhole", address, "table", "local")
    for port in (WEB, WILD, IMPORTED):
        stack.enter_context(peers.Server(out.listen("::", port), here))
    names = stack.enter_context(peers.NameServer(box.call(lambda: peers.datagram("127.0.0.1")), NAMES))
    made = Lab(box, out, tmp_path, stack, ("--resolver", f"127.0.0.1:{names.port}"))
    made.unix_server("resolved", _resolved)
    return made


def here(sock: socket.socket) -> None:
    """A server that says by which address and port it was reached."""
    peers.says(whereabouts(sock))(sock)


def whereabouts(sock: socket.socket) -> str:
    """A socket's own address and port."""
    address, port = sock.getsockname()[:2]
    return f"{address.removeprefix('::ffff:')} {port}"


def everything(sock: socket.socket) -> bytes:
    """What comes, up to the end or a reset."""
    return peers.read_exactly(sock, 1 << 20)


def reached(netns: Namespace, address: str, port: int) -> bytes:
    """What a client of a transparent listener is told; nothing, if it is shut out."""
    with contextlib.suppress(ConnectionResetError), netns.connect(address, port) as sock:
        return everything(sock)
    return b""


def packed(address: str) -> bytes:
    """The bytes of an address, as they are: an IPv4-mapped one has 16."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _resolved(sock: socket.socket) -> None:
    """systemd-resolved, which it asks unless it is told otherwise: NAMES, by varlink."""
    query = b""
    while not query.endswith(b"\0"):
        data = sock.recv(4096)
        if not data:
            return
        query += data
    name = json.loads(query[:-1])["parameters"]["name"]
    addresses = [
        {"family": 10 if ":" in address else 2, "address": list(packed(address))}
        for address in NAMES.get(name, ())
    ]
    missing = {"error": "io.systemd.Resolve.NoSuchResourceRecord"}
    answer = {"parameters": {"addresses": addresses}} if addresses else missing
    sock.sendall(json.dumps(answer).encode() + b"\0")
    peers.drain(sock)
