"""A real HAProxy in front of `rules/behind-haproxy.urr`: it announces its clients, or hands them over.

    inside ---- lb (HAProxy) ---- box (the relay, and the servers)

The load balancer takes every address of two networks for its own, so that the header says where the
client wanted to go; the servers have these very addresses in the box.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network

pytestmark = [pytest.mark.netns, pytest.mark.peer("haproxy")]

INSIDE, LB, FRONT, BOX = "192.0.2.2", "192.0.2.1", "10.9.0.1", "10.9.0.2"
INSIDE6, LB6, FRONT6, BOX6 = "2001:db8:2::2", "2001:db8:2::1", "2001:db8:9::1", "2001:db8:9::2"
NETS = ("198.51.100.0/24", "2001:db8:51::/48")
SERVERS = ("198.51.100.80", "2001:db8:51::80")


class Lab:
    """The three namespaces, with a web server in the box at both addresses."""

    def __init__(self, net: Network, stack: ExitStack) -> None:
        self.inside, self.lb, self.box = (net.namespace(name) for name in ("inside", "lb", "box"))
        net.wire(self.inside, self.lb, (f"{INSIDE}/24", f"{INSIDE6}/64"), (f"{LB}/24", f"{LB6}/64"))
        net.wire(self.lb, self.box, (f"{FRONT}/24", f"{FRONT6}/64"), (f"{BOX}/24", f"{BOX6}/64"))
        self.inside.default_route(LB, LB6)
        for prefix in NETS:
            self.lb.ip("-6" if ":" in prefix else "-4", "route", "add", "local", prefix, "dev", "lo")
        for address in SERVERS:
            self.box.address("lo", f"{address}/{128 if ':' in address else 32}")
            stack.enter_context(peers.Server(self.box.listen(address, 8080), peers.web(address)))


@pytest.fixture
def lab(net: Network, stack: ExitStack) -> Lab:
    return Lab(net, stack)


def policy(folder: Path) -> str:
    """The policy that ships, with this lab's addresses."""
    text = (ROOT / "rules" / "behind-haproxy.urr").read_text(encoding="utf-8")
    for old, new in (
        ("192.0.2.0/28, 2001:db8:1::/64", f"{FRONT}, {FRONT6}"),
        ("10.7.0.0/16, 2001:db8:7::/48", f"{INSIDE}, {INSIDE6}"),
        ("from 10.7.3.4", f"from {INSIDE}"),
        ("192.0.2.10:", f"{BOX}:"),
        ("/run/urelay/", f"{folder}/"),
    ):
        assert old in text
        text = text.replace(old, new)
    return text


def get(netns: Namespace, host: str, port: int = 8080) -> str:
    """What the web server at an address says, `""` for a reset."""
    try:
        with netns.connect(host, port) as sock:
            sock.sendall(b"GET /name HTTP/1.0\r\n\r\n")
            return peers.drain(sock).partition(b"\r\n\r\n")[2].decode()
    except (ConnectionResetError, BrokenPipeError):
        return ""


@pytest.mark.parametrize("version", ["send-proxy", "send-proxy-v2"])
def test_clients_behind_haproxy_are_known_and_go_where_they_wanted(
    lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path, version: str
) -> None:
    relay = serve(policy(tmp_path), lab.box)
    balancer = programs.haproxy(
        tmp_path,
        lab.lb,
        f"""\
        listen web
            bind :::8080 v4v6
            server relay {BOX}:1081 {version}
        """,
        8080,
    )
    stack.callback(balancer.stop)
    for host in SERVERS:
        assert get(lab.inside, host) == host
    records = relay.records(2)
    assert [record["source"].rpartition(":")[0].strip("[]") for record in records] == [INSIDE, INSIDE6]
    assert [record["destination"] for record in records] == list(SERVERS)
    assert [record["end"] for record in records] == ["eof", "eof"]
    # Who is not the load balancer is not believed, and not even read.
    assert get(lab.box, BOX, 1081) == ""
    assert "not believed" in relay.records(3)[2]["error"]


def test_a_socks_server_behind_haproxy(lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path) -> None:
    relay = serve(policy(tmp_path), lab.box)
    balancer = programs.haproxy(
        tmp_path,
        lab.lb,
        f"""\
        listen socks
            bind {LB}:1080
            server relay {BOX}:1080 send-proxy-v2
        """,
        1080,
    )
    stack.callback(balancer.stop)
    with lab.inside.connect(LB, 1080) as sock:
        assert peers.socks5(sock, peers.literal(SERVERS[0]), 8080) == 0
        sock.sendall(b"GET /name HTTP/1.0\r\n\r\n")
        assert peers.drain(sock).endswith(SERVERS[0].encode())
    (record,) = relay.records(1)
    assert record["source"].startswith(f"{INSIDE}:")


def test_haproxy_comes_by_a_unix_socket(lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path) -> None:
    """Its file's mode says who may come, so `from` is not needed."""
    relay = serve(policy(tmp_path), lab.box)
    balancer = programs.haproxy(
        tmp_path,
        lab.lb,
        f"""\
        listen web
            bind :8080
            server relay unix@{tmp_path}/edge.sock send-proxy-v2
        """,
        8080,
    )
    stack.callback(balancer.stop)
    assert get(lab.inside, SERVERS[0]) == SERVERS[0]
    (record,) = relay.records(1)
    assert record["source"].startswith(f"{INSIDE}:")


def test_haproxy_hands_its_connections_over(lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path) -> None:
    """`sockpair@` sends one end of a socketpair; the header that comes through it says the rest."""
    relay = serve(policy(tmp_path), lab.box)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(tmp_path / "box"))
        balancer = programs.haproxy(
            tmp_path,
            lab.lb,
            f"""\
            listen web
                bind :8080
                server relay sockpair@{sender.fileno()} send-proxy-v2
            """,
            8080,
            pass_fds=(sender.fileno(),),
        )
        stack.callback(balancer.stop)
        for _ in range(3):
            assert get(lab.inside, SERVERS[0]) == SERVERS[0]
    records = relay.records(3)
    assert {record["listener"] for record in records} == {"box"}
    assert all(record["source"].startswith(f"{INSIDE}:") for record in records)


def test_haproxy_takes_what_we_hand_over(lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path) -> None:
    """The other way round: `bind sockpair@` on a datagram socket gets the very connections of our clients."""
    box = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    box.bind(str(tmp_path / "box"))
    # HAProxy accepts from it without waiting first.
    box.setblocking(False)
    balancer = programs.haproxy(
        tmp_path,
        lab.box,
        f"""\
        listen web
            bind sockpair@{box.fileno()}
            server web {SERVERS[0]}:8080
        listen ready
            bind 127.0.0.1:1
            server web {SERVERS[0]}:8080
        """,
        1,
        pass_fds=(box.fileno(),),
    )
    stack.callback(balancer.stop)
    relay = serve(
        f'listen web = forward {BOX}:8081 to 192.0.2.80:80\nmatch 192.0.2.80 -> to socketbox "box"\n', lab.box
    )
    for _ in range(5):
        assert get(lab.lb, BOX, 8081) == SERVERS[0]
    assert {record["outcome"] for record in relay.records(5)} == {"socketbox"}
