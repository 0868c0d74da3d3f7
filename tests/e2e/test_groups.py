"""Groups with real proxies: failover between two dantes, and back; clients shared out between them."""

from __future__ import annotations

import re
import signal
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network, Program, until

pytestmark = [pytest.mark.netns, pytest.mark.peer("danted")]

GOAL = "203.0.113.10"


@dataclass
class Fork:
    """near reaches goal by two dantes, and goal sees which: they go out by different addresses."""

    near: Namespace
    goal: peers.Server
    hosts: tuple[Namespace, Namespace]
    folder: Path

    def dante(self, number: int) -> Program:
        """Starts the first or the second proxy, ready."""
        folder = self.folder / str(number)
        folder.mkdir(exist_ok=True)
        return programs.dante(folder, self.hosts[number], f"10.0.{number}.2", 1080, "goal")

    def by(self, relay_port: int = 1080) -> int:
        """Which proxy one connection went by; -1 when it was refused."""
        with self.near.connect("127.0.0.1", relay_port) as sock:
            if peers.socks5(sock, peers.literal(GOAL), 80) != 0:
                return -1
            sock.sendall(b"hello")
            assert peers.read_exactly(sock, 5) == b"hello"
        return int(self.goal.hosts()[-1].rpartition(".")[2]) - 1


@pytest.fixture
def fork(net: Network, stack: ExitStack, tmp_path: Path) -> Fork:
    near, goal = net.namespace("near"), net.namespace("goal")
    hosts = (net.namespace("one"), net.namespace("two"))
    # A bridge in `goal`, so that both proxies are on its network with an address of their own.
    goal.ip("link", "add", "net", "type", "bridge")
    goal.address("net", f"{GOAL}/24")
    for number, host in enumerate(hosts):
        net.wire(near, host, [f"10.0.{number}.1/24"], [f"10.0.{number}.2/24"])
        net.wire(host, goal, [f"203.0.113.{number + 1}/24"], [])
        goal.ip("link", "set", host.label, "master", "net")
    server = stack.enter_context(peers.Server(goal.listen(GOAL, 80), peers.echo))
    return Fork(near, server, hosts, tmp_path)


POLICY = """\
listen socks = socks 127.0.0.1:1080
upstream a   = socks5 10.0.0.2:1080 { connect 10s }
upstream b   = socks5 10.0.1.2:1080 { connect 10s }
upstream out = first a, b
match any -> via out with log full
"""


def test_a_dead_proxy_costs_nobody_a_connection(fork: Fork, stack: ExitStack, serve: Serve) -> None:
    first = fork.dante(0)
    stack.callback(first.stop)
    stack.callback(fork.dante(1).stop)
    relay = serve(POLICY, fork.near)
    assert [fork.by() for _ in range(3)] == [0, 0, 0]
    first.stop(signal.SIGKILL)
    assert [fork.by() for _ in range(3)] == [1, 1, 1]
    assert "upstream `a` is set aside" in relay.wait_line("set aside")
    stack.callback(fork.dante(0).stop)
    until(lambda: fork.by() == 0, "the first proxy is used again")
    relay.wait_line("upstream `a` works again")
    records = relay.records(len(fork.goal.peers))
    assert records[0]["upstream"] == "out/a"
    assert records[3]["upstream"] == "out/b"
    assert records[3]["tries"][:3] == ["out by a", "10.0.0.2:1080", "out by b"]


def test_a_proxy_that_is_cut_off_is_left_after_its_connect_time(
    fork: Fork, stack: ExitStack, serve: Serve
) -> None:
    """No reset tells: packets vanish, and only the time-out says so."""
    for number in (0, 1):
        stack.callback(fork.dante(number).stop)
    serve(POLICY.replace("connect 10s", "connect 2s"), fork.near)
    assert fork.by() == 0
    # A neighbour that is there for ever, and does not exist.
    mac = "02:00:00:00:00:99"
    fork.near.ip("neigh", "replace", "10.0.0.2", "lladdr", mac, "dev", "one", "nud", "permanent")
    assert [fork.by() for _ in range(3)] == [1, 1, 1]


def test_what_a_proxy_refuses_is_refused(fork: Fork, stack: ExitStack, serve: Serve) -> None:
    for number in (0, 1):
        stack.callback(fork.dante(number).stop)
    relay = serve(POLICY, fork.near)
    with fork.near.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal(GOAL), 81) == 5
    (record,) = relay.records(1)
    assert (record["upstream"], record["end"]) == ("out", "refused")
    assert not any("out by b" in step for step in record["tries"])
    assert "set aside" not in relay.output


def test_nobody_works_and_the_client_is_told(fork: Fork, serve: Serve) -> None:
    relay = serve(POLICY, fork.near)
    assert fork.by() == -1
    (record,) = relay.records(1)
    assert "nobody got through" in record["error"]


def test_what_is_set_aside_stays_so_over_a_reload_and_a_changed_proxy_is_new(
    fork: Fork, stack: ExitStack, serve: Serve
) -> None:
    stack.callback(fork.dante(1).stop)
    # With a check nothing but the check brings a member back, so time plays no part.
    policy = POLICY.replace("first a, b", "first a, b { check 203.0.113.10:80 every 1h }")
    relay = serve(policy, fork.near)
    assert fork.by() == 1
    stack.callback(fork.dante(0).stop)
    relay.policy.write_text(policy + "match 198.51.100.0/24 -> deny\n")
    relay.reload()
    assert fork.by() == 1
    relay.policy.write_text(policy.replace("connect 10s", "connect 20s"))
    relay.reload()
    assert fork.by() == 0
    assert [record["tries"][0] for record in relay.records(3)] == ["out by a", "out by b", "out by a"]


def test_a_check_brings_it_back_without_a_client(fork: Fork, stack: ExitStack, serve: Serve) -> None:
    """rules/failover.urr, as it ships."""
    text = (ROOT / "rules/failover.urr").read_text(encoding="utf-8")
    for old, new in (
        ("127.0.0.1:1081", "10.0.0.2:1080"),
        ("127.0.0.1:1082", "10.0.1.2:1080"),
        ("192.0.2.1:80 every 10s", f"{GOAL}:80 every 200ms"),
    ):
        assert old in text
        text = text.replace(old, new)
    stack.callback(fork.dante(1).stop)
    relay = serve(text, fork.near)
    relay.wait_line("upstream `main` is set aside: check of 203.0.113.10:80")
    assert fork.by() == 1
    stack.callback(fork.dante(0).stop)
    relay.wait_line("upstream `main` works again")
    assert fork.by() == 0


def test_clients_are_shared_out_and_stay_where_they_are(fork: Fork, stack: ExitStack, serve: Serve) -> None:
    for number in (0, 1):
        stack.callback(fork.dante(number).stop)
    relay = serve(POLICY.replace("first a, b", "spread a, b { by source }"), fork.near)
    addresses = [f"127.0.1.{number}" for number in range(1, 25)]

    def by(source: str) -> str:
        def ask() -> None:
            with socket.create_connection(("127.0.0.1", 1080), 10, (source, 0)) as sock:
                assert peers.socks5(sock, peers.literal(GOAL), 80) == 0

        count = len(fork.goal.peers)
        fork.near.call(ask)
        until(lambda: len(fork.goal.peers) > count, "the goal sees it")
        return fork.goal.hosts()[-1]

    once, again = [by(source) for source in addresses], [by(source) for source in addresses]
    assert once == again
    assert set(once) == {"203.0.113.1", "203.0.113.2"}
    used = {re.sub("^out/", "", record["upstream"]) for record in relay.records(2 * len(addresses))}
    assert used == {"a", "b"}
