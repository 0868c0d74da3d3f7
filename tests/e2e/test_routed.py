"""A routed network: two subnets, a router, and a namespace whose relay lives somewhere else.

one (10.1.0.2) and two (10.2.0.2) - router - gate, which takes every port by nftables TPROXY and has the
listening socket; the relay itself lives in `host`, where addresses of both subnets and of the servers
exist a second time, with other servers behind them. What a client reaches is decided by its subnet and
the destination alone; nothing of `host` shines through.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network

pytestmark = [pytest.mark.netns, pytest.mark.peer("nft"), pytest.mark.peer("curl")]

TPROXY = """
table inet relay {
    chain in {
        type filter hook prerouting priority mangle; policy accept;
        iifname "router" meta nfproto ipv4 meta l4proto tcp tproxy ip to :1080 meta mark set 1 accept
        iifname "router" meta nfproto ipv6 meta l4proto tcp tproxy ip6 to :1080 meta mark set 1 accept
    }
}
"""


@pytest.fixture
def routed(net: Network) -> dict[str, Namespace]:
    """The namespaces, wired and routed; `gate` captures what the router sends it."""
    labels = ("one", "two", "router", "gate", "host", "server")
    spaces = {label: net.namespace(label) for label in labels}
    one, two, router, gate, host, server = (spaces[label] for label in labels)
    net.wire(one, router, ["10.1.0.2/24", "fd00:1::2/64"], ["10.1.0.1/24", "fd00:1::1/64"])
    net.wire(two, router, ["10.2.0.2/24", "fd00:2::2/64"], ["10.2.0.1/24", "fd00:2::1/64"])
    net.wire(router, gate, ["10.9.0.1/24", "fd00:9::1/64"], ["10.9.0.2/24", "fd00:9::2/64"])
    for client, last in ((one, 1), (two, 2)):
        client.default_route(f"10.{last}.0.1", f"fd00:{last}::1")
    router.forward()
    router.default_route("10.9.0.2", "fd00:9::2")
    gate.default_route("10.9.0.1", "fd00:9::1")
    gate.nft(TPROXY)
    for family in ("-4", "-6"):
        gate.ip(family, "rule", "add", "fwmark", "1", "lookup", "100")
        gate.ip(family, "route", "add", "local", "default", "dev", "lo", "table", "100")
    # The clash: host has the clients' own addresses and the router's, and one of the destinations.
    net.wire(host, server, ["198.51.100.1/24", "2001:db8:5::1/64"], ["198.51.100.20/24", "2001:db8:5::20/64"])
    host.address(
        "lo",
        "10.1.0.2/32",
        "10.2.0.2/32",
        "10.9.0.1/32",
        "172.16.5.1/32",
        "fd00:1::2/128",
        "fd00:cafe::1/128",
    )
    return spaces


def test_each_subnet_is_decided_by_its_source_and_the_destination(
    routed: dict[str, Namespace], stack: ExitStack, serve: Serve
) -> None:
    host, gate, server = routed["host"], routed["gate"], routed["server"]
    stack.enter_context(peers.Server(host.listen("::", 8080), peers.web("host")))
    stack.enter_context(peers.Server(server.listen("::", 8080), peers.web("server")))
    stack.enter_context(peers.Server(server.listen("::", 80), peers.web("server on 80")))
    relay = serve(
        f"""\
        listen gate = transparent [::]:1080 {{ netns {gate.name} }}

        set servers = {{ 198.51.100.0/24, 2001:db8:5::/64 }}
        match @servers                           -> direct
        match 172.16.5.1    from 10.1.0.0/24     -> direct
        match 172.16.5.1    from 10.2.0.0/24     -> rewrite to 198.51.100.20 then direct
        match fd00:cafe::1  from fd00:1::/64     -> direct
        match fd00:cafe::1  from fd00:2::/64     -> rewrite to 2001:db8:5::20 then direct
        match 172.16.6.0/24 port 443 from 10.2.0.0/24 -> rewrite to 198.51.100.20, port 80 then direct
        match 10.1.0.2      from 10.2.0.0/24     -> deny
        """,
        host,
    )
    expected = {
        ("one", "198.51.100.20:8080"): b"server",
        ("two", "198.51.100.20:8080"): b"server",
        ("one", "[2001:db8:5::20]:8080"): b"server",
        ("two", "[2001:db8:5::20]:8080"): b"server",
        ("one", "172.16.5.1:8080"): b"host",
        ("two", "172.16.5.1:8080"): b"server",
        ("one", "[fd00:cafe::1]:8080"): b"host",
        ("two", "[fd00:cafe::1]:8080"): b"server",
        ("two", "172.16.6.77:443"): b"server on 80",
        ("one", "172.16.6.77:443"): None,
        ("one", "10.77.0.1:8080"): None,
    }
    for (client, destination), said in expected.items():
        got = routed[client].run("curl", "-q", "-sS", "--max-time", "30", f"http://{destination}/")
        assert (got.stdout or None) == said, (client, destination, got.stderr)
        # Reset: while connecting (7) or just after (56), never left to wait (28).
        assert said is not None or got.returncode in (7, 56), got.stderr
    records = {
        (record["source"].rpartition(":")[0], record["destination"]): record for record in relay.records(11)
    }
    assert records["10.2.0.2", "172.16.5.1"]["dialed"] == "198.51.100.20:8080"
    assert records["[fd00:1::2]", "fd00:cafe::1"]["dialed"] == "[fd00:cafe::1]:8080"
    assert records["10.1.0.2", "172.16.6.77"]["outcome"] == "deny"
    assert relay.namespaces() == {host.inode()}


def test_ten_megabytes_both_ways_through_the_router(
    routed: dict[str, Namespace], stack: ExitStack, serve: Serve
) -> None:
    stack.enter_context(peers.Server(routed["server"].listen("::", 7), peers.web("server")))
    serve(
        f"""\
        listen gate = transparent [::]:1080 {{ netns {routed["gate"].name} }}
        match {{ 198.51.100.0/24, 2001:db8:5::/64 }} -> direct
        """,
        routed["host"],
    )
    for client in ("one", "two"):
        for host in ("198.51.100.20", "[2001:db8:5::20]"):
            got = routed[client].run("curl", "-q", "-sS", "--max-time", "30", f"http://{host}:7/10000000")
            assert got.stdout == peers.position_coded(10_000_000), got.stderr
