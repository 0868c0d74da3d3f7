"""NAT64 both ways over veth, with `rules/clat.urr` and `rules/plat.urr`.

client (IPv4 only) - clat - IPv6 only - plat - server (IPv4 only), and each half by itself with an end
that speaks only IPv6.
"""

from __future__ import annotations

import re
import socket
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network
from urelay.net.address import address_text

pytestmark = pytest.mark.netns

PORT = 1081
SERVER = "203.0.113.10"
# The prefixes of RFC 6052, section 2.4, but for the /96, which is the one that ships.
EMBEDDED = {
    "2001:db8::/32": "2001:db8:cb00:710a::",
    "2001:db8:100::/40": "2001:db8:1cb:71:a::",
    "2001:db8:122::/48": "2001:db8:122:cb00:71:a00::",
    "2001:db8:122:300::/56": "2001:db8:122:3cb:0:710a::",
    "2001:db8:122:344::/64": "2001:db8:122:344:cb:71:a00:0",
    "2001:db8:64::/96": "2001:db8:64::cb00:710a",
}
SHORTEST, SHIPPED = "2001:db8::/32", "2001:db8:64::/96"
# Universal Relay's: bits 64 to 71 are set.
WINDOW = "2001:db8:64:0:5ff:6464::/96"
EMBEDDED[WINDOW] = "2001:db8:64:0:5ff:6464:cb00:710a"


@dataclass
class Path464:
    """The namespaces in a row; between clat and plat there is nothing but IPv6."""

    client: Namespace
    clat: Namespace
    plat: Namespace
    server: Namespace


@pytest.fixture
def path(net: Network) -> Path464:
    """The wires and routes, but for the NAT64 prefix."""
    client, clat, plat, server = (net.namespace(label) for label in ("client", "clat", "plat", "server"))
    net.wire(client, clat, ["10.1.0.2/24"], ["10.1.0.1/24"])
    net.wire(clat, plat, ["fd00:64::1/64"], ["fd00:64::2/64"])
    net.wire(plat, server, ["203.0.113.1/24"], [f"{SERVER}/24"])
    client.default_route("10.1.0.1")
    # What the client sends anywhere else arrives at the relay: these addresses are clat's own.
    clat.ip("route", "add", "local", "203.0.113.0/24", "dev", "lo")
    return Path464(client, clat, plat, server)


def policy(name: str, prefix: str) -> str:
    """rules/NAME with another NAT64 prefix, and without the expectations that follow from its own."""
    text = (ROOT / "rules" / name).read_text(encoding="utf-8")
    if prefix == SHIPPED:
        return text
    text, count = re.subn(r"(?m)^(set nat64 *=).*$", rf"\1 {prefix}", text)
    assert count == 1
    return re.sub(r"(?m)^expect .*\n", "", text)


@pytest.mark.parametrize("prefix", EMBEDDED)
def test_an_ipv4_client_reaches_an_ipv4_server_across_ipv6(
    path: Path464, stack: ExitStack, serve: Serve, prefix: str
) -> None:
    path.clat.ip("-6", "route", "add", prefix, "via", "fd00:64::2")
    path.plat.ip("-6", "route", "add", "local", prefix, "dev", "lo")
    server = stack.enter_context(peers.Server(path.server.listen("0.0.0.0", PORT), peers.echo))
    clat = serve(policy("clat.urr", prefix), path.clat, name="clat.urr")
    plat = serve(policy("plat.urr", prefix), path.plat, name="plat.urr")
    with path.client.connect(SERVER, PORT) as sock:
        sock.sendall(b"across")
        sock.shutdown(socket.SHUT_WR)
        assert peers.drain(sock) == b"across"
    assert server.hosts() == ["203.0.113.1"]
    (out,), (back,) = clat.records(1), plat.records(1)
    assert out["destination"] == SERVER
    assert out["dialed"] == f"[{EMBEDDED[prefix]}]:{PORT}"
    assert back["destination"] == EMBEDDED[prefix]
    assert back["dialed"] == f"{SERVER}:{PORT}"
    assert out["end"] == back["end"] == "eof"


@pytest.mark.parametrize("prefix", [SHORTEST, SHIPPED])
def test_an_ipv4_only_client_reaches_an_ipv6_only_server(
    path: Path464, stack: ExitStack, serve: Serve, prefix: str
) -> None:
    # The server is known to IPv4 by the address that its own IPv6 address embeds.
    path.clat.ip("-6", "route", "add", prefix, "via", "fd00:64::2")
    path.plat.address("lo", f"{EMBEDDED[prefix]}/128")
    path.plat.ip("addr", "flush", "dev", "server")
    stack.enter_context(peers.Server(path.plat.listen(EMBEDDED[prefix], PORT), peers.says("ipv6 only")))
    serve(policy("clat.urr", prefix), path.clat)
    with path.client.connect(SERVER, PORT) as sock:
        assert peers.drain(sock) == b"ipv6 only"


@pytest.mark.parametrize("prefix", [SHORTEST, SHIPPED, WINDOW])
def test_an_ipv6_only_client_reaches_an_ipv4_only_server(
    path: Path464, stack: ExitStack, serve: Serve, prefix: str
) -> None:
    path.clat.ip("-6", "route", "add", prefix, "via", "fd00:64::2")
    path.plat.ip("-6", "route", "add", "local", prefix, "dev", "lo")
    stack.enter_context(peers.Server(path.server.listen("0.0.0.0", PORT), peers.says("ipv4 only")))
    plat = serve(policy("plat.urr", prefix), path.plat)
    with path.clat.connect(EMBEDDED[prefix], PORT) as sock:
        assert peers.drain(sock) == b"ipv4 only"
    # An address under the prefix that embeds loopback, or what the IPv4 table denies, reaches nobody.
    network = prefix.partition("/")[0]
    for ipv4 in ("127.0.0.1", "10.0.0.1"):
        assert peers.fate(path.clat, embed(network, int(prefix.rpartition("/")[2]), ipv4), PORT) == "reset", (
            ipv4
        )
    assert [record["outcome"] for record in plat.records(3)] == ["direct", "deny", "deny"]


def embed(network: str, length: int, ipv4: str) -> str:
    """RFC 6052, section 2.2, written for /32 and /96 alone."""
    packed, address = socket.inet_pton(socket.AF_INET6, network), socket.inet_aton(ipv4)
    return address_text(packed[:4] + address + bytes(8) if length == 32 else packed[:12] + address)
