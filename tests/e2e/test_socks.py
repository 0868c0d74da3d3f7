"""The SOCKS listener with a real curl: every version, names and addresses, logins, and failures."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network

pytestmark = [pytest.mark.netns, pytest.mark.peer("curl")]

POLICY = """\
    listen socks = socks 127.0.0.1:1080
    match any           -> direct
    match 10.66.0.0/16  -> deny
    match .denied.test  -> deny host-unreachable
    """
NAMES = {
    "web.test": ("198.51.100.10", "2001:db8::10"),
    "four.test": ("198.51.100.10",),
    "mixed.test": ("10.66.0.1", "198.51.100.10"),
    "inside.test": ("10.66.0.1", "127.0.0.1", "::1"),
    "www.denied.test": ("198.51.100.10",),
}


@pytest.fixture
def box(net: Network) -> Namespace:
    """One namespace with a web server's addresses, IPv4 and IPv6, and a denied one."""
    box = net.namespace("box")
    box.address("lo", "198.51.100.10/32", "2001:db8::10/128", "10.66.0.1/32")
    return box


@pytest.fixture
def web(box: Namespace, stack: ExitStack) -> peers.Server:
    """A web server on every address of the box."""
    return stack.enter_context(peers.Server(box.listen("::"), peers.web("web")))


@pytest.fixture
def names(box: Namespace, stack: ExitStack) -> peers.NameServer:
    """A name server in the box."""
    return stack.enter_context(peers.NameServer(box.call(lambda: peers.datagram("127.0.0.1")), NAMES))


def curl(box: Namespace, *words: str) -> subprocess.CompletedProcess[bytes]:
    """curl inside, silent but for errors, without the user's own settings."""
    return box.run("curl", "-q", "-sS", "--max-time", "20", *words)


@pytest.mark.parametrize(
    ("option", "host"),
    [
        ("--socks4", "198.51.100.10"),
        ("--socks4a", "198.51.100.10"),
        ("--socks4a", "four.test"),
        ("--socks5", "198.51.100.10"),
        ("--socks5", "[2001:db8::10]"),
        ("--socks5-hostname", "198.51.100.10"),
        ("--socks5-hostname", "[2001:db8::10]"),
        ("--socks5-hostname", "web.test"),
        ("--socks5-hostname", "WEB.test."),
    ],
)
def test_curl_fetches_through_every_version(
    box: Namespace, web: peers.Server, names: peers.NameServer, serve: Serve, option: str, host: str
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    got = curl(box, option, "127.0.0.1:1080", f"http://{host}:{web.port}/1000000")
    assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr
    (record,) = relay.records(1)
    assert (record["outcome"], record["end"], record["port"]) == ("direct", "eof", web.port)
    assert record["name"] == (host.lower().rstrip(".") if host.endswith(("test", "test.")) else None)


def test_a_bracketed_ipv6_address_in_the_domain_field_is_an_address(
    box: Namespace, web: peers.Server, names: peers.NameServer, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    for spelling in (b"[2001:db8::10]", b"2001:db8::10", b"::ffff:198.51.100.10"):
        with box.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, spelling, web.port) == 0, spelling
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert peers.drain(sock).endswith(b"\r\n\r\nweb")
    assert names.asked == []
    assert [record["name"] for record in relay.records(3)] == [None] * 3


def test_a_name_is_resolved_once_and_only_an_allowed_answer_is_dialled(
    box: Namespace, web: peers.Server, names: peers.NameServer, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, b"mixed.test", web.port) == 0
    assert sorted(names.asked) == ["mixed.test", "mixed.test"]
    (record,) = relay.records(1)
    assert record["dialed"] == f"198.51.100.10:{web.port}"
    for name in (b"inside.test", b"localhost"):
        with box.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, name, web.port) == 0x02, name
    assert len(web.hosts()) <= 1
    assert {record["end"] for record in relay.records(3)[1:]} == {"denied"}


def test_a_name_route_decides_without_resolving(
    box: Namespace, web: peers.Server, names: peers.NameServer, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, b"www.denied.test", web.port) == 0x04
    assert names.asked == []
    assert relay.records(1)[0]["route"] == "site.urr:4"


def test_a_refused_port_and_an_unknown_name_have_their_own_reply_and_one_line_each(
    box: Namespace, names: peers.NameServer, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal("198.51.100.10"), 9) == 0x05
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, b"nowhere.test", 9) == 0x04
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks4(sock, peers.literal("198.51.100.10"), 9) == 0x5B
    refused, unknown, refused4 = relay.records(3)
    assert (refused["end"], refused["outcome"], refused["dialed"]) == ("refused", "direct", None)
    assert (unknown["end"], unknown["name"], unknown["dialed"]) == ("refused", "nowhere.test", None)
    assert refused4["end"] == "refused"
    assert refused["error"]


def test_bytes_sent_behind_the_request_are_kept(box: Namespace, stack: ExitStack, serve: Serve) -> None:
    server = stack.enter_context(peers.Server(box.listen("::"), peers.echo))
    serve(POLICY, box)
    with box.connect("127.0.0.1", 1080) as sock:
        request = b"\x05\x01\x00\x01" + socket.inet_aton("198.51.100.10") + server.port.to_bytes(2)
        sock.sendall(b"\x05\x01\x00" + request + b"early data")
        sock.shutdown(socket.SHUT_WR)
        reply = peers.drain(sock)
    assert reply[:2] == b"\x05\x00"
    assert reply[2:4] == b"\x05\x00"
    assert reply.endswith(b"early data")
    assert len(reply) == 2 + 10 + len(b"early data")


def test_a_login_is_asked_for_and_only_the_right_one_passes(
    box: Namespace, web: peers.Server, serve: Serve, tmp_path: Path
) -> None:
    users = tmp_path / "users.txt"
    users.write_text("ada:lovelace-1815\n")
    users.chmod(0o600)
    relay = serve(
        """\
        listen socks = socks 127.0.0.1:1080 { users "users.txt" }
        match any -> direct
        """,
        box,
    )
    url = f"http://198.51.100.10:{web.port}/"
    right = curl(box, "-x", "socks5://ada:lovelace-1815@127.0.0.1:1080", url)
    assert (right.returncode, right.stdout) == (0, b"web"), right.stderr
    for login in ("ada:wrong@", "bob:lovelace-1815@", ""):
        refused = curl(box, "-x", f"socks5://{login}127.0.0.1:1080", url)
        assert refused.returncode == 97, refused.stderr
    assert curl(box, "--socks4", "127.0.0.1:1080", url).returncode != 0
    assert web.accepted == 1
    assert "lovelace" not in relay.output + relay.log.read_text()


@pytest.mark.parametrize("command", [2, 3])
def test_bind_and_udp_are_refused_as_unsupported(box: Namespace, serve: Serve, command: int) -> None:
    serve(POLICY, box)
    with box.connect("127.0.0.1", 1080) as sock:
        sock.sendall(b"\x05\x01\x00")
        assert peers.read_exactly(sock, 2) == b"\x05\x00"
        sock.sendall(bytes([5, command, 0, 1]) + socket.inet_aton("198.51.100.10") + b"\x00\x50")
        assert peers.read_exactly(sock, 2) == b"\x05\x07"
