"""Connections leave as their upstream says: seen by the server, by `ss` and by nftables, not by us."""

from __future__ import annotations

import re
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT, serve_command
from tests.e2e.rig import Namespace, Network, Program, listening
from urelay.namespaces.enter import call_inside

pytestmark = pytest.mark.netns

HOST = "203.0.113.10"


@dataclass
class Fork:
    """host reaches one address by two wires: the one to `left`, and the one to `right`, if it is chosen."""

    host: Namespace
    left: peers.Server
    right: peers.Server


@pytest.fixture
def fork(net: Network, stack: ExitStack) -> Fork:
    host, left, right = (net.namespace(label) for label in ("host", "left", "right"))
    net.wire(host, left, ["10.0.1.1/24"], ["10.0.1.2/24", f"{HOST}/32"])
    net.wire(host, right, ["10.0.2.1/24", "10.0.2.9/24"], ["10.0.2.2/24", f"{HOST}/32"])
    host.ip("route", "add", f"{HOST}/32", "via", "10.0.1.2")
    host.ip("route", "add", f"{HOST}/32", "via", "10.0.2.2", "metric", "9")
    host.ip("route", "add", f"{HOST}/32", "via", "10.0.2.2", "table", "51")
    host.ip("rule", "add", "fwmark", "0x51", "lookup", "51")
    servers = [
        stack.enter_context(peers.Server(where.listen(HOST, 80), peers.echo)) for where in (left, right)
    ]
    return Fork(host, *servers)


def reached(fork: Fork, relay_port: int = 1080) -> tuple[str, str]:
    """Which server one connection through the relay got to, and from which address."""
    counts = fork.left.accepted, fork.right.accepted
    with fork.host.connect("127.0.0.1", relay_port) as sock:
        assert peers.socks5(sock, peers.literal(HOST), 80) == 0
        sock.sendall(b"hello")
        assert peers.read_exactly(sock, 5) == b"hello"
    which = "left" if fork.left.accepted > counts[0] else "right"
    return which, getattr(fork, which).hosts()[-1]


@pytest.mark.parametrize(
    ("options", "way", "source"),
    [
        ("connect 5s", "left", "10.0.1.1"),
        ("dev right", "right", "10.0.2.1"),
        ("mark 0x51", "right", "10.0.2.1"),
        ("dev right, source 10.0.2.9", "right", "10.0.2.9"),
        ("mark 0x51, source 10.0.2.9", "right", "10.0.2.9"),
    ],
)
def test_dev_mark_and_source_choose_the_way(
    fork: Fork, serve: Serve, options: str, way: str, source: str
) -> None:
    relay = serve(
        f"""\
        listen socks = socks 127.0.0.1:1080
        upstream out = direct {{ {options} }}
        match any -> via out
        """,
        fork.host,
    )
    assert reached(fork) == (way, source)
    (record,) = relay.records(1)
    assert (record["outcome"], record["upstream"], record["dialed"]) == ("via", "out", f"{HOST}:80")


@pytest.mark.peer("nft")
@pytest.mark.peer("ss")
def test_a_mark_is_seen_by_ss_and_counted_by_nftables(fork: Fork, serve: Serve) -> None:
    fork.host.nft(
        """table ip seen {
            counter marked { }
            chain out {
                type filter hook output priority 0;
                tcp dport 80 meta mark 0x51 counter name "marked"
            }
        }
        """
    )
    serve(
        """\
        listen socks = socks 127.0.0.1:1080
        upstream out = direct { mark 0x51 }
        match any -> via out
        """,
        fork.host,
    )
    with fork.host.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal(HOST), 80) == 0
        seen = fork.host.run("ss", "-tne", "dst", HOST).stdout.decode()
        assert "fwmark:0x51" in seen, seen
    counter = fork.host.run("nft", "list", "counter", "ip", "seen", "marked").stdout.decode()
    match = re.search(r"packets (\d+)", counter)
    assert match is not None
    assert int(match[1]) >= 2


def test_what_cannot_be_done_is_told_and_nothing_leaves(fork: Fork, serve: Serve) -> None:
    relay = serve(
        """\
        listen socks = socks 127.0.0.1:1080
        upstream out = direct { dev wg7 }
        upstream off = direct { source 198.51.100.1 }
        match any      -> via out
        match 10.0.1.2 -> via off
        """,
        fork.host,
    )
    for address in (HOST, "10.0.1.2"):
        with fork.host.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, peers.literal(address), 80) == 0x01
    errors = [record["error"] for record in relay.records(2)]
    assert errors == [
        "upstream `out`: dev wg7: there is no such interface",
        "upstream `off`: source 198.51.100.1: no interface has this address",
    ]
    assert fork.left.accepted == fork.right.accepted == 0


def test_a_port_is_forwarded_into_another_namespace(
    net: Network, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """rules/port-forward.urr: one process listens in one namespace and dials in another."""
    host, lab = net.namespace("host"), net.namespace("lab")
    inside = stack.enter_context(peers.Server(lab.listen("127.0.0.1", 80), peers.web("lab")))
    outside = stack.enter_context(peers.Server(host.listen("127.0.0.1", 80), peers.web("host")))
    policy = (ROOT / "rules/port-forward.urr").read_text(encoding="utf-8")
    relay = serve(policy.replace("netns lab", f"netns {lab.name}"), host)
    for _ in range(3):
        with host.connect("127.0.0.1", 8080) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert peers.drain(sock).endswith(b"\r\n\r\nlab")
    assert (inside.accepted, outside.accepted) == (3, 0)
    assert {record["upstream"] for record in relay.records(3)} == {"lab"}
    assert relay.namespaces() == {host.inode()}


def test_a_namespace_that_goes_away_fails_its_own_dials_and_comes_back(
    net: Network, stack: ExitStack, serve: Serve
) -> None:
    """R23."""
    host, stays, goes = net.namespace("host"), net.namespace("stays"), Namespace("goes")
    servers = [
        stack.enter_context(peers.Server(stays.listen("127.0.0.1", 80), peers.says("stays"))),
        stack.enter_context(peers.Server(goes.listen("127.0.0.1", 81), peers.says("goes"))),
    ]
    relay = serve(
        f"""\
        listen socks = socks 127.0.0.1:1080
        upstream one = direct {{ netns {stays.name} }}
        upstream two = direct {{ netns {goes.name} }}
        match 127.0.0.1 port 80 -> via one
        match 127.0.0.1 port 81 -> via two
        """,
        host,
    )

    def says(port: int) -> bytes | int:
        with host.connect("127.0.0.1", 1080) as sock:
            code = peers.socks5(sock, peers.literal("127.0.0.1"), port)
            return code or peers.drain(sock)

    assert (says(80), says(81)) == (b"stays", b"goes")
    goes.close()
    assert (says(81), says(80)) == (1, b"stays")
    assert "there is no network namespace called" in relay.records(4)[2]["error"]
    assert [server.accepted for server in servers] == [2, 1]


@pytest.mark.parametrize("address", ["203.0.113.99", "2001:db8::99"])
def test_a_listener_of_ours_in_the_namespace_that_is_dialled_from_is_no_loop(
    net: Network, serve: Serve, address: str
) -> None:
    """R22: every address of `lan` is the listener's, so whatever is dialled there would come back."""
    host, lan = net.namespace("host"), net.namespace("lan")
    lan.everything_is_local()
    relay = serve(
        f"""\
        listen lan = transparent [::]:1080 {{ netns {lan.name} }}
        upstream back = direct {{ netns {lan.name} }}
        match any -> via back
        """,
        host,
    )
    assert peers.fate(lan, address, 1080) == "reset"
    (record,) = relay.records(1)
    assert record["error"].endswith("is our own listener `lan`")
    assert record["end"] == "refused"


def test_what_is_missing_at_start_is_told_and_nothing_is_served(net: Network, tmp_path: Path) -> None:
    host = net.namespace("host")
    policy = tmp_path / "p.urr"
    policy.write_text(
        "listen socks = socks 127.0.0.1:1080\n"
        "upstream a = direct { netns urt-nowhere }\n"
        "upstream b = direct { mark 0x51 }\n"
        "upstream c = direct { dev wg7, source 198.51.100.1 }\n"
        "match any -> via a\nmatch 10.0.0.0/8 -> via b\nmatch 11.0.0.0/8 -> via c\n"
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *serve_command(policy)]
    done = subprocess.run(
        host.command(command), capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "`a`: there is no network namespace called `urt-nowhere`" in done.stderr
    assert "`b`: mark 0x51 may not be set without CAP_NET_ADMIN" in done.stderr
    # An interface may come later.
    assert "`c`" not in done.stderr


@pytest.mark.peer("haproxy")
def test_the_familys_recipe_with_haproxy_does_the_same(
    net: Network, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """A socket that listens in one namespace, given to HAProxy in another, where it dials; and us alone."""
    host, lab = net.namespace("host"), net.namespace("lab")
    inside = stack.enter_context(peers.Server(lab.listen("127.0.0.1", 80), peers.web("lab")))
    listener = stack.enter_context(host.listen("127.0.0.1"))
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        "listen web\n bind fd@${CTRTOOL_NS_OPEN_FILE_FD_0}\n server lab 127.0.0.1:80\n"
    )
    number = listener.fileno()
    recipe = Program(
        [programs.find("haproxy") or "haproxy", "-db", "-f", str(config)],
        lab,
        env={"CTRTOOL_NS_OPEN_FILE_FD_0": str(number)},
        pass_fds=[number],
    )
    stack.callback(recipe.stop)
    serve(
        f"""\
        upstream lab = direct {{ netns {lab.name} }}
        listen web = forward 127.0.0.1:8080 to 127.0.0.1:80
        match 127.0.0.1 port 80 on web -> via lab
        """,
        host,
    )
    for port in (listener.getsockname()[1], 8080):
        with host.connect("127.0.0.1", port) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert peers.drain(sock).endswith(b"\r\n\r\nlab")
    assert inside.accepted == 2


def test_a_rootless_namespace_is_dialled_in_without_root_s_rights(
    net: Network, stack: ExitStack, serve: Serve
) -> None:
    """A relay without CAP_SYS_ADMIN gets in where its user is at home, and marks its sockets there."""
    host = net.namespace("host")
    script = "ip link set lo up; echo up; exec sleep 600"
    rootless = Program(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script])
    stack.callback(rootless.stop)
    rootless.wait_line("up")
    there = f"/proc/{rootless.pid}/ns/net"
    inside = stack.enter_context(
        peers.Server(call_inside(there, lambda: listening("127.0.0.1", 80)), peers.web("inside"))
    )
    relay = serve(
        f"""\
        upstream lab = direct {{ netns "{there}", mark 7 }}
        listen web = forward 127.0.0.1:8080 to 127.0.0.1:80
        match 127.0.0.1 port 80 -> via lab
        """,
        host,
        prefix=("setpriv", "--bounding-set", "-sys_admin"),
    )
    for _ in range(20):
        with host.connect("127.0.0.1", 8080) as sock:
            sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert peers.drain(sock).endswith(b"\r\n\r\ninside")
    assert inside.accepted == 20
    relay.records(20)
