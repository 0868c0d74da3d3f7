"""S1 over the wire: no spelling of a denied address gets through a live SOCKS or HTTP listener.

The namespace makes every address its own and a sinkhole listens on all of them, so any dial that slips
through is a hit. The relay's name server answers every name with loopback, and counts who asks.
"""

from __future__ import annotations

import ast
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network, until

pytestmark = pytest.mark.netns

PORT = 4242
CONTROL = ("198.51.100.77", "2001:db8::77")
POLICY = """\
    listen both = mixed 127.0.0.1:1080
    match any -> direct
    match { 10.0.0.0/8, 192.0.2.0/24, fd00::/8 } -> deny
    """
HTTP = 1
DENIED = {4: 0x5B, 5: 0x02, HTTP: 403}
SUCCESS = {4: 0x5A, 5: 0x00, HTTP: 200}


@dataclass(frozen=True)
class Row:
    """One line of the corpus."""

    target: str
    kind: str
    spelling: str

    @property
    def malformed(self) -> bool:
        """Refused before any lookup; two rows are spelt just as the target and are literals in truth."""
        return self.kind == "malformed" and self.spelling.removeprefix("::ffff:") != self.target


def corpus() -> list[Row]:
    rows = []
    for line in (ROOT / "tests/corpus/acl.tsv").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            target, kind, spelling = line.split("\t")
            rows.append(Row(target, kind, ast.literal_eval(spelling)))
    assert len(rows) > 350
    return rows


@dataclass
class Trap:
    """A namespace where every way leads to the sinkhole."""

    box: Namespace
    sink: peers.Server
    names: peers.NameServer
    probes: int = 0

    def ask(self, version: int, host: bytes) -> int:
        """The reply to one request."""
        with self.box.connect("127.0.0.1", 1080) as sock:
            if version == HTTP:
                return peers.connect(sock, host + b":%d" % PORT)
            return (peers.socks5 if version == 5 else peers.socks4)(sock, host, PORT)

    def hits(self) -> int:
        """How many dials have reached the sinkhole so far.

        One more of our own is sent after them: connections are accepted in the order they came, so
        once it is counted, everything before it is.
        """
        before = self.probes
        self.probes += 1
        # From a port that the kernel picks for nobody else.
        with self.box.connect(CONTROL[0], PORT, source_port=10_000 + before) as probe:
            peer = "{}:{}".format(*probe.getsockname()[:2])
            until(lambda: peer in self.sink.peers, "the sinkhole counts its own probe")
        return self.sink.peers.index(peer) - before


@pytest.fixture
def trap(net: Network, stack: ExitStack, serve: Serve) -> Trap:
    """The trap, proven to work: what the policy allows does reach the sinkhole."""
    box = net.namespace("box")
    box.everything_is_local()
    sink = stack.enter_context(peers.Server(box.listen("::", PORT, 1024), peers.drain))
    names = stack.enter_context(
        peers.NameServer(box.call(lambda: peers.datagram("127.0.0.1")), {}, fallback=("127.0.0.1", "::1"))
    )
    serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    trap = Trap(box, sink, names)
    for address in CONTROL:
        assert trap.ask(5, address.encode()) == SUCCESS[5]
        assert trap.ask(5, peers.literal(address)) == SUCCESS[5]
    assert trap.ask(4, CONTROL[0].encode()) == SUCCESS[4]
    assert trap.ask(HTTP, CONTROL[0].encode()) == SUCCESS[HTTP]
    assert trap.hits() == 6
    return trap


@pytest.mark.parametrize("version", [4, 5, HTTP], ids=["socks4a", "socks5-domain", "connect"])
def test_no_spelling_as_a_name_reaches_a_denied_address(trap: Trap, version: int) -> None:
    wrong = []
    for row in corpus():
        host = row.spelling.encode("utf-8", "surrogateescape")
        if not 0 < len(host) < 256 or (version == 4 and b"\0" in host):
            continue
        asked = len(trap.names.asked)
        reply = trap.ask(version, host)
        if row.malformed:
            fine = reply != SUCCESS[version] and len(trap.names.asked) == asked
        elif row.kind == "name":
            # Resolved and then denied, or no host name at all.
            fine = reply != SUCCESS[version]
        else:
            fine = reply == DENIED[version]
        if not fine:
            wrong.append((row, reply, trap.names.asked[asked:]))
    assert wrong == []
    assert trap.hits() == 6


def test_no_packed_address_reaches_a_denied_one(trap: Trap) -> None:
    wrong, asked = [], 0
    for row in corpus():
        family = socket.AF_INET6 if ":" in row.spelling else socket.AF_INET
        try:
            packed = socket.inet_pton(family, row.spelling.strip("[]"))
        except (OSError, ValueError):
            continue
        asked += 1
        reply = trap.ask(5, b"=" + packed)
        if reply != DENIED[5]:
            wrong.append((row, reply))
    assert asked > 100
    assert wrong == []
    assert trap.hits() == 6
    assert trap.names.asked == []
