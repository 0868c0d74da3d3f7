"""`rules/tunnel.urr`: a namespace with nothing but `lo`, whose every connection leaves by `ssh -D`.

`files` is an address that only the ssh server can reach; `lan` has no interface but `lo` and two local
routes; the relay and `ssh -D` live in `host`. So ten megabytes that arrive in `lan` went the whole way.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve, Ssh
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network

pytestmark = [pytest.mark.netns, pytest.mark.peer("sshd"), pytest.mark.peer("curl")]

PORT = 1081
TEN_MEGABYTES = 10_000_000
FILES = ("203.0.113.10", "2001:db8:77::10")


@dataclass
class Tunnel:
    """Where things are, and the port of `ssh -D` in `host`."""

    host: Namespace
    lan: Namespace
    web: peers.Server
    socks_port: int

    def fetch(self, address: str) -> bytes:
        """Ten megabytes by curl in `lan`, from a literal address."""
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{PORT}/{TEN_MEGABYTES}"
        got = self.lan.run("curl", "-q", "-sS", "--max-time", "60", url)
        assert got.returncode == 0, got.stderr
        return got.stdout


@pytest.fixture
def tunnel(net: Network, stack: ExitStack, ssh: Ssh) -> Tunnel:
    """The namespaces, a web server at the far end, a real sshd and a real `ssh -D`."""
    host, lan, far, files = (net.namespace(label) for label in ("host", "lan", "far", "files"))
    lan.everything_is_local()
    net.wire(host, far, ["10.0.0.1/24"], ["10.0.0.2/24"])
    net.wire(far, files, ["203.0.113.1/24", "2001:db8:77::1/64"], [f"{FILES[0]}/24", f"{FILES[1]}/64"])
    web = stack.enter_context(peers.Server(files.listen("::", PORT), peers.web("files")))
    return Tunnel(host, lan, web, ssh(far, "10.0.0.2").socks(host))


def tunnel_policy(place: str, socks_port: int) -> str:
    """rules/tunnel.urr with this test's listener and proxy in it."""
    text = (ROOT / "rules/tunnel.urr").read_text(encoding="utf-8")
    text, listeners = re.subn(r"(?m)^listen lan\b.*?(\}|$)", f"listen lan = transparent {place}", text)
    text, proxies = re.subn(r"127\.0\.0\.1:\d+", f"127.0.0.1:{socks_port}", text)
    assert listeners == 1
    assert proxies >= 1
    return text


@pytest.mark.parametrize("named_by", ["name", "path"])
def test_curl_fetches_ten_megabytes_by_literal_address(tunnel: Tunnel, serve: Serve, named_by: str) -> None:
    netns = tunnel.lan.name if named_by == "name" else f'"{tunnel.lan.path}"'
    relay = serve(tunnel_policy(f"[::]:{PORT} {{ netns {netns} }}", tunnel.socks_port), tunnel.host)
    assert relay.namespaces() == {tunnel.host.inode()}
    expected = peers.position_coded(TEN_MEGABYTES)
    for address in FILES:
        assert tunnel.fetch(address) == expected, address
    assert set(tunnel.web.hosts()) == {"203.0.113.1", "2001:db8:77::1"}
    records = relay.records(2)
    assert [(record["destination"], record["port"]) for record in records] == [(a, PORT) for a in FILES]
    assert {(record["listener"], record["outcome"], record["end"]) for record in records} == {
        ("lan", "via", "eof")
    }
    assert all(record["bytes_down"] > TEN_MEGABYTES for record in records)


@pytest.mark.parametrize("place", ["fd env CTRTOOL_NS_OPEN_FILE_FD_1", "fd {number}"])
def test_the_socket_may_be_opened_in_the_namespace_by_another_program(
    tunnel: Tunnel, stack: ExitStack, serve: Serve, place: str
) -> None:
    # As `ctrtool ns_open_file` does: a listening socket, inherited, its number in the environment.
    listener = stack.enter_context(tunnel.lan.listen("::", PORT))
    number = listener.fileno()
    serve(
        tunnel_policy(place.format(number=number), tunnel.socks_port),
        tunnel.host,
        env={"CTRTOOL_NS_OPEN_FILE_FD_1": str(number)},
        pass_fds=[number],
    )
    for address in FILES:
        assert tunnel.fetch(address) == peers.position_coded(TEN_MEGABYTES), address


def test_what_the_tunnel_cannot_reach_is_reset_not_left_hanging(tunnel: Tunnel, serve: Serve) -> None:
    relay = serve(tunnel_policy(f"[::]:{PORT} {{ netns {tunnel.lan.name} }}", tunnel.socks_port), tunnel.host)
    assert peers.fate(tunnel.lan, "203.0.113.1", PORT) == "reset"
    (record,) = relay.records(1)
    assert record["outcome"] == "via"
    assert record["error"]
