"""`to unix` with a templated path, with a real HTTP server listening on the sockets."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.rig import Network, until

pytestmark = [pytest.mark.netns, pytest.mark.peer("nginx"), pytest.mark.peer("curl")]


def test_each_destination_reaches_the_server_on_its_own_socket(
    net: Network, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    box, lan = net.namespace("box"), net.namespace("lan")
    lan.everything_is_local()
    sockets = [
        tmp_path / "lan-198.51.100.7-80.sock",
        tmp_path / "lan-198.51.100.8-80.sock",
        tmp_path / "lan-2001:db8::7-80.sock",
    ]
    server = programs.nginx(tmp_path, *map(str, sockets))
    stack.callback(server.stop)
    for path in sockets:
        until(path.is_socket, f"{path} is there")
    template = f"{tmp_path}/{{listener}}-{{address}}-{{port}}.sock"
    relay = serve(
        f"""\
        listen lan = transparent [::]:80 {{ netns {lan.name} }}
        match {{ 198.51.100.0/24, 2001:db8::/32 }} -> to unix "{template}"
        """,
        box,
    )
    for host, path in zip(("198.51.100.7", "198.51.100.8", "[2001:db8::7]"), sockets, strict=True):
        got = lan.run("curl", "-q", "-sS", "--max-time", "30", f"http://{host}/hello")
        assert (got.returncode, got.stdout.decode()) == (0, f"{path} /hello"), got.stderr
    # Nobody listens for .9: the client is told, in the only way a transparent client can be.
    assert peers.fate(lan, "198.51.100.9", 80) == "reset"
    records = relay.records(4)
    assert [record["outcome"] for record in records] == ["unix"] * 4
    assert [record["dialed"] for record in records] == [*map(str, sockets), None]
    assert [record["end"] for record in records[:3]] == ["eof"] * 3
    assert records[3]["error"]


def test_a_socks_client_is_told_that_nobody_listens_on_the_socket(
    net: Network, serve: Serve, tmp_path: Path
) -> None:
    box = net.namespace("box")
    relay = serve(
        f"""\
        listen socks = socks 127.0.0.1:1080
        match any -> to unix "{tmp_path}/{{port}}.sock"
        """,
        box,
    )
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal("198.51.100.7"), 81) == 0x04
    (record,) = relay.records(1)
    assert record["outcome"] == "unix"
    assert record["bytes_down"] == 0
