"""`rules/bgp.urr`: traffic follows a BGP announcement into the relay, and leaves with its withdrawal.

    client ---- mid ---- gate        each with a BIRD and an AS of its own
                 |         :         `gate` announces 203.0.113.0/24, and its connections are captured
               origin    host ---- far
                           the relay  `ssh -D`, and the way the announced prefix is to take

`origin` has the prefix too, and `mid` knows the way there by a worse route: without the announcement,
that is where the client's connections go.
"""

from __future__ import annotations

import re
import subprocess
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve, Ssh
from tests.e2e.programs import find
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network, Program, until

pytestmark = [pytest.mark.netns, pytest.mark.peer("bird"), pytest.mark.peer("sshd")]

SERVER = "203.0.113.10"
PORTS = (80, 5432)


class Bird:
    """A real BIRD in a namespace."""

    def __init__(self, folder: Path, netns: Namespace, number: int, config: str) -> None:
        self._socket = folder / f"{netns.label}.ctl"
        path = folder / f"{netns.label}.conf"
        path.write_text(
            f"router id 192.0.2.{number};\nprotocol device {{ scan time 1; }}\n"
            'protocol kernel { ipv4 { import none; export where source = RTS_BGP || proto = "worse"; }; }\n'
            + textwrap.dedent(config)
        )
        bird = find("bird")
        assert bird is not None
        self.program = Program(
            [bird, "-f", "-c", str(path), "-s", str(self._socket), "-P", str(folder / f"{netns.label}.pid")],
            netns,
        )

    def ask(self, *words: str) -> str:
        """What birdc says to a command."""
        birdc = find("birdc")
        assert birdc is not None
        done = subprocess.run(
            [birdc, "-r" if words[0] == "show" else "-v", "-s", str(self._socket), *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        return done.stdout


def session(ours: tuple[str, int], theirs: tuple[str, int], export: str) -> str:
    """A BGP session that is quick to come up, by both ends."""
    return (
        f"protocol bgp to_{theirs[1]} {{\n"
        f"  local {ours[0]} as {ours[1]};\n  neighbor {theirs[0]} as {theirs[1]};\n"
        "  connect delay time 1;\n  connect retry time 1;\n  error wait time 1, 2;\n"
        f"  ipv4 {{ import all; export where {export}; next hop self; }};\n}}\n"
    )


def rules(gate: Namespace, proxy: str) -> str:
    """rules/bgp.urr, for this network."""
    text = (ROOT / "rules/bgp.urr").read_text(encoding="utf-8")
    text, namespaces = re.subn(r"netns gate\b", f"netns {gate.name}", text)
    text, proxies = re.subn(r"socks5 127\.0\.0\.1:1080", f"socks5 {proxy}", text)
    assert (namespaces, proxies) == (1, 1)
    return text


def hears(client: Namespace, port: int) -> str:
    """What answers to a connection to the server's address."""
    with client.connect(SERVER, port, timeout_s=20) as sock:
        sock.shutdown(1)
        return peers.drain(sock).decode()


def next_hop(netns: Namespace) -> str:
    """Where packets to the server go."""
    shown = netns.run("ip", "route", "get", SERVER).stdout.decode()
    found = re.search(r"via (\S+)", shown)
    return found[1] if found else ""


def test_traffic_follows_the_announcement_in_and_out(
    net: Network, stack: ExitStack, serve: Serve, ssh: Ssh, tmp_path: Path
) -> None:
    client, mid, gate, origin, host, far = (
        net.namespace(label) for label in ("client", "mid", "gate", "origin", "host", "far")
    )
    net.wire(client, mid, ["10.1.0.2/24"], ["10.1.0.1/24"])
    net.wire(mid, gate, ["10.2.0.1/24"], ["10.2.0.2/24"])
    net.wire(mid, origin, ["10.8.0.1/24"], ["10.8.0.2/24"])
    net.wire(host, far, ["10.9.0.1/24"], ["10.9.0.2/24"])
    mid.forward()
    origin.default_route("10.8.0.1")
    for netns in (origin, far):
        netns.address("lo", f"{SERVER}/32")
        for port in PORTS:
            stack.enter_context(peers.Server(netns.listen(SERVER, port), peers.says(f"{netns.label} {port}")))
    proxy = ssh(far, "10.9.0.2").socks(host)

    # The relay first: BGP must come up in a namespace whose connections are captured.
    relay = serve(rules(gate, f"127.0.0.1:{proxy}"), host)
    everything = 'source = RTS_BGP || source = RTS_DEVICE || proto = "worse"'
    birds = [
        Bird(tmp_path, client, 1, session(("10.1.0.2", 65001), ("10.1.0.1", 65002), "false")),
        Bird(
            tmp_path,
            mid,
            2,
            'protocol direct { ipv4; interface "client", "gate"; }\n'
            "protocol static worse { ipv4 { preference 50; }; route 203.0.113.0/24 via 10.8.0.2; }\n"
            + session(("10.1.0.1", 65002), ("10.1.0.2", 65001), everything)
            + session(("10.2.0.1", 65002), ("10.2.0.2", 65003), everything),
        ),
        Bird(
            tmp_path,
            gate,
            3,
            "protocol static announced { disabled; ipv4; route 203.0.113.0/24 blackhole; }\n"
            + session(("10.2.0.2", 65003), ("10.2.0.1", 65002), 'proto = "announced"'),
        ),
    ]
    for bird in birds:
        stack.callback(bird.program.stop)
    # Both ends may try at once, give way to each other and wait before they try again.
    until(lambda: next_hop(client) == "10.1.0.1", "the client knows a way", timeout_s=60)
    until(lambda: "10.1.0.0/24" in gate.run("ip", "route").stdout.decode(), "the gate knows the client", 60)
    assert next_hop(mid) == "10.8.0.2"
    assert hears(client, 80) == "origin 80"

    birds[2].ask("enable", "announced")
    until(lambda: next_hop(mid) == "10.2.0.2", "the announcement has reached its neighbour")
    for port in PORTS:
        assert hears(client, port) == f"far {port}"
    records = relay.records(2)
    assert {(record["destination"], record["port"]) for record in records} == {
        (SERVER, port) for port in PORTS
    }
    assert {record["source"].rpartition(":")[0] for record in records} == {"10.1.0.2"}
    assert {record["upstream"] for record in records} == {"gateway"}
    # What is captured and not announced is denied by the policy, not routed on.
    assert peers.fate(client, SERVER, 25) == "reset"

    birds[2].ask("disable", "announced")
    until(lambda: next_hop(mid) == "10.8.0.2", "the withdrawal has reached its neighbour")
    assert hears(client, 80) == "origin 80"
    relay.records(3)
    assert "Established" in birds[1].ask("show", "protocols")
    assert birds[1].ask("show", "protocols").count("Established") == 2
