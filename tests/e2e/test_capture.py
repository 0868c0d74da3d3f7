"""`capture tcp`: one word in a policy brings every connection of a namespace, on every port, to the relay."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import textwrap
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import Urelay
from tests.e2e.rig import Namespace, Network, Program, until

pytestmark = [pytest.mark.netns, pytest.mark.peer("nft")]

SERVERS = ("198.51.100.10", "2001:db8:5::10")
PORTS = (22, 443, 65535)


def policy(netns: str, words: str = ", capture tcp", port: int = 1081) -> str:
    """Everything of a namespace goes to the servers."""
    return textwrap.dedent(f"""\
        listen lan = transparent [::]:{port} {{ netns {netns}{words} }}
        match {{ 198.51.100.0/24, 2001:db8:5::/64 }} -> direct
        """)


@pytest.fixture
def host(net: Network, stack: ExitStack) -> Namespace:
    """Where the relay and the servers are."""
    host = net.namespace("host")
    host.address("lo", *(f"{address}/{128 if ':' in address else 32}" for address in SERVERS))
    for port in PORTS:
        stack.enter_context(peers.Server(host.listen("::", port), peers.says(str(port))))
    return host


def hears(origin: Namespace, address: str, port: int) -> bytes:
    """What a server says to a client that says nothing."""
    with origin.connect(address, port) as sock:
        sock.shutdown(1)
        return peers.drain(sock)


def state(netns: Namespace) -> bytes:
    """Everything that capturing could leave behind."""
    commands = ("ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all")
    return b"".join(netns.run(*command.split()).stdout for command in (*commands, "nft list ruleset"))


def test_a_namespace_with_nothing_but_loopback(net: Network, host: Namespace, serve: Serve) -> None:
    lan = net.namespace("lan")
    before = state(lan)
    relay = serve(policy(lan.name), host)
    assert "capturing by sk_lookup" in relay.output
    for address in SERVERS:
        for port in PORTS:
            assert hears(lan, address, port) == str(port).encode()
    records = relay.records(6)
    assert {(record["destination"], record["port"]) for record in records} == {
        (address, port) for address in SERVERS for port in PORTS
    }
    assert {record["source"].rpartition(":")[0] for record in records} == {"127.0.0.1", "[::1]"}
    assert peers.fate(lan, "203.0.113.5", 80) == "reset", "denied, and told so"
    relay.finish()
    assert state(lan) == before


def test_reloads_keep_move_and_end_it(net: Network, host: Namespace, serve: Serve) -> None:
    lan = net.namespace("lan")
    before = state(lan)
    relay = serve(policy(lan.name), host)
    captured = state(lan)
    assert hears(lan, SERVERS[0], 22) == b"22"
    relay.reload()
    assert state(lan) == captured
    assert hears(lan, SERVERS[0], 22) == b"22"
    # Another port: another socket.
    relay.policy.write_text(policy(lan.name, port=1082))
    relay.reload()
    assert state(lan) == captured
    assert hears(lan, SERVERS[1], 443) == b"443"
    # A reload that cannot be served changes nothing.
    relay.policy.write_text(
        policy(lan.name) + "listen gone = transparent [::]:1 { netns urt-no-such, capture tcp }\n"
    )
    relay.reload("was not reloaded")
    assert hears(lan, SERVERS[1], 443) == b"443"
    relay.policy.write_text(policy(lan.name, words=""))
    relay.reload()
    assert state(lan) == before
    relay.policy.write_text(policy(lan.name))
    relay.reload()
    assert hears(lan, SERVERS[0], 22) == b"22"


def test_a_relay_that_was_killed_leaves_what_the_next_one_replaces(
    net: Network, host: Namespace, serve: Serve, stack: ExitStack, tmp_path: Path
) -> None:
    lan = net.namespace("lan")
    before = state(lan)
    path = tmp_path / "killed.urr"
    path.write_text(policy(lan.name))
    killed = Urelay(path, host).ready()
    stack.callback(killed.stop)
    path.with_name("rival.urr").write_text(policy(lan.name, port=1082))
    rival = Urelay(path.with_name("rival.urr"), host)
    assert rival.wait() == 2
    assert "another relay captures the connections of this namespace" in rival.output
    assert hears(lan, SERVERS[0], 22) == b"22"
    killed.send(signal.SIGKILL)
    killed.wait()
    assert state(lan) != before
    with pytest.raises(ConnectionRefusedError):
        lan.connect(SERVERS[1], 22)
    relay = serve(policy(lan.name), host)
    assert hears(lan, SERVERS[0], 22) == b"22"
    relay.finish()
    assert state(lan) == before


def test_workers_share_what_one_process_captures(net: Network, host: Namespace, serve: Serve) -> None:
    lan = net.namespace("lan")
    before = state(lan)
    relay = serve(policy(lan.name), host, "--workers", "2")
    assert "capturing by sk_lookup" in relay.output
    for address in SERVERS * 4:
        assert hears(lan, address, 22) == b"22"
    # An address that comes is not captured any more, though the workers know nothing of it.
    lan.address("lo", "203.0.113.7/32")
    with lan.listen("203.0.113.7", 80) as own:
        own.setblocking(False)

        def noticed() -> bool:
            with contextlib.suppress(ConnectionResetError, BlockingIOError):
                with lan.connect("203.0.113.7", 80):
                    own.accept()[0].close()
                return True
            return False

        until(noticed, "the address is the namespace's own")
    lan.ip("addr", "del", "203.0.113.7/32", "dev", "lo")
    # A reload that ends the capture and one that begins it again: no worker of before holds on to it.
    with lan.connect(SERVERS[0], 443) as lasting:
        relay.policy.write_text(policy(lan.name, words=""))
        relay.reload()
        assert state(lan) == before
        relay.policy.write_text(policy(lan.name))
        relay.reload()
        assert hears(lan, SERVERS[1], 443) == b"443"
        assert peers.read_exactly(lasting, 3) == b"443"
    relay.finish()
    assert state(lan) == before


def test_who_is_connected_may_finish_while_it_drains(
    net: Network, host: Namespace, serve: Serve, stack: ExitStack
) -> None:
    lan = net.namespace("lan")
    stack.enter_context(peers.Server(host.listen("::", 7), peers.echo))
    relay = serve(policy(lan.name), host, "--drain", "30")
    with lan.connect(SERVERS[0], 7) as sock:
        sock.sendall(b"one")
        assert peers.read_exactly(sock, 3) == b"one"
        relay.send(signal.SIGTERM)
        relay.wait_line("may finish")
        sock.sendall(b"two")
        assert peers.read_exactly(sock, 3) == b"two"
        with pytest.raises(ConnectionRefusedError):
            lan.connect(SERVERS[1], 7)
    assert relay.wait() == 0


def test_a_router_in_its_own_namespace_captures_what_is_routed_through(
    net: Network, host: Namespace, stack: ExitStack, serve: Serve
) -> None:
    client = net.namespace("client")
    net.wire(client, host, ["10.1.0.2/24", "fd00:1::2/64"], ["10.1.0.1/24", "fd00:1::1/64"])
    client.default_route("10.1.0.1", "fd00:1::1")
    far = net.namespace("far")
    net.wire(host, far, ["203.0.113.1/24"], ["203.0.113.10/24"])
    server = stack.enter_context(peers.Server(far.listen("203.0.113.10", 80), peers.says("far")))
    relay = serve(
        "listen lan = transparent [::]:1081 { capture tcp }\nmatch 203.0.113.0/24 -> direct\n", host
    )
    assert hears(client, "203.0.113.10", 80) == b"far"
    assert server.hosts() == ["203.0.113.1"], "the relay's own connection, which was not captured"
    assert peers.fate(client, "2001:db8::5", 443) == "reset"
    # Programs beside the relay are not its clients, and its own addresses are not captured.
    assert hears(host, "203.0.113.10", 80) == b"far"
    assert hears(client, "10.1.0.1", 22) == b"22"
    relay.records(2)


def test_a_neighbour_that_says_it_were_loopback_gets_nothing(
    net: Network, host: Namespace, serve: Serve
) -> None:
    """S20: who is let in as 127.0.0.1 is a program of the namespace, whatever comes by a wire."""
    client = net.namespace("client")
    net.wire(client, host, ["10.1.0.2/24"], ["10.1.0.1/24"])
    client.default_route("10.1.0.1")
    client.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/host/route_localnet")
    relay = serve(
        "listen lan = transparent [::]:1081 { capture tcp }\n"
        "match 198.51.100.0/24 from 127.0.0.0/8 -> direct  # allow UR222: what the kernel keeps\n",
        host,
    )

    def from_loopback(target: str, port: int) -> None:
        with socket.create_connection((target, port), 0.4, ("127.0.0.1", 0)):
            raise AssertionError("it was let in")

    for target, port in (("198.51.100.99", 443), ("10.1.0.1", 22)):
        with pytest.raises(TimeoutError):
            client.call(partial(from_loopback, target, port))
    assert peers.fate(client, "198.51.100.99", 443) == "reset", "by its own address it is denied"
    assert [record["source"].rpartition(":")[0] for record in relay.records(1)] == ["10.1.0.2"]


ROOTLESS = ("setpriv", "--bounding-set", "-sys_admin,-bpf,-net_admin,-net_raw,-net_bind_service", "--")


def test_a_rootless_namespace_is_entered_by_a_child(host: Namespace, stack: ExitStack, serve: Serve) -> None:
    # The relay owns the user namespace and has no right over anybody else's.
    owner = Program(
        [
            *("unshare", "--user", "--map-root-user", "--net", "sh", "-c"),
            "ip link set lo up && echo up && exec sleep 1000",
        ]
    )
    stack.callback(owner.stop)
    owner.wait_line("up")
    netns = f'"/proc/{owner.pid}/ns/net"'
    before = _inside(owner, "ip -4 rule; ip -6 rule; nft list ruleset")
    relay = serve(policy(netns, port=81), host, prefix=ROOTLESS)
    assert "capturing by tproxy" in relay.output
    for address in SERVERS:
        for port in PORTS:
            assert _heard_inside(owner, address, port) == str(port)
    relay.records(6)
    relay.reload()
    assert _heard_inside(owner, SERVERS[0], 22) == "22"
    relay.finish()
    assert _inside(owner, "ip -4 rule; ip -6 rule; nft list ruleset") == before


def _inside(owner: Program, script: str) -> str:
    """What a shell in the namespaces of a process writes."""
    command = [
        "nsenter",
        "--user",
        "--preserve-credentials",
        "--net",
        f"--target={owner.pid}",
        "sh",
        "-c",
        script,
    ]
    shell = Program(command)
    assert shell.wait() == 0, shell.output
    return shell.output


def _heard_inside(owner: Program, address: str, port: int) -> str:
    lines = (
        "import socket",
        f"sock = socket.create_connection(({address!r}, {port}), 10)",
        "sock.shutdown(1)",
        "print(sock.recv(99).decode())",
    )
    script = "; ".join(lines)
    return _inside(owner, f'{sys.executable} -c "{script}"')
