"""`redirect`: nftables brings every port to one listener, and NAT remembers where clients wanted to go."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Network

pytestmark = [pytest.mark.netns, pytest.mark.peer("nft")]

RULES = """
table inet nat {
    chain routed { type nat hook prerouting priority -100;
        iifname "client" meta l4proto tcp fib daddr type != local redirect to :1081
    }
    chain born { type nat hook output priority -100;
        meta l4proto tcp fib daddr type != local redirect to :1081
    }
}
"""
SERVER = ("198.51.100.10", "2001:db8:5::10")


def test_routed_and_local_clients_reach_what_they_asked_for(
    net: Network, stack: ExitStack, serve: Serve
) -> None:
    client, gate, host = (net.namespace(label) for label in ("client", "gate", "host"))
    net.wire(client, gate, ["10.1.0.2/24", "fd00:1::2/64"], ["10.1.0.1/24", "fd00:1::1/64"])
    client.default_route("10.1.0.1", "fd00:1::1")
    gate.ip("route", "add", "198.51.100.0/24", "dev", "lo")
    gate.ip("-6", "route", "add", "2001:db8:5::/64", "dev", "lo")
    gate.nft(RULES)
    host.address("lo", f"{SERVER[0]}/32", f"{SERVER[1]}/128")
    servers = [
        stack.enter_context(peers.Server(host.listen("::", port), peers.says(f"{port}"))) for port in (80, 7)
    ]
    relay = serve(
        f"""\
        listen lan = redirect [::]:1081 {{ netns {gate.name} }}
        match {{ 198.51.100.0/24, 2001:db8:5::/64 }} -> direct
        """,
        host,
    )
    for origin in (client, gate):
        for address in SERVER:
            for server in servers:
                with origin.connect(address, server.port) as sock:
                    sock.shutdown(1)
                    assert peers.drain(sock) == f"{server.port}".encode(), (origin.label, address)
    records = relay.records(8)
    assert {(record["destination"], record["port"]) for record in records} == {
        (address, server.port) for address in SERVER for server in servers
    }
    # Who connects to the listener itself has no other destination: it is let go, and nothing is dialled.
    for address in ("10.1.0.1", "fd00:1::1"):
        assert peers.fate(client, address, 1081) == "reset"
    for record in relay.records(10)[8:]:
        assert (record["destination"], record["dialed"], record["end"]) == (None, None, "error")
        assert record["error"] == "its socket does not tell where it wants to go"
