"""The rig itself, without urelay: what the other tests stand on works with real programs."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Ssh
from tests.e2e.rig import Network

pytestmark = pytest.mark.netns


def test_namespaces_are_apart_and_gone_afterwards() -> None:
    home = os.stat("/proc/self/ns/net").st_ino
    with Network() as net:
        left, right = net.namespace("left"), net.namespace("right")
        net.wire(left, right, ["10.0.0.1/24", "fd00:1::1/64"], ["10.0.0.2/24", "fd00:1::2/64"])
        with peers.Server(right.listen("::"), peers.echo) as server:
            for address in ("10.0.0.2", "fd00:1::2"):
                with left.connect(address, server.port) as sock:
                    sock.sendall(b"over the wire")
                    assert peers.read_exactly(sock, 13) == b"over the wire"
            with pytest.raises(OSError, match="refused"):
                left.connect("127.0.0.1", server.port)
        paths = [left.path, right.path]
    assert not any(os.path.exists(path) for path in paths)
    assert os.stat("/proc/self/ns/net").st_ino == home


@pytest.mark.peer("sshd")
@pytest.mark.peer("curl")
def test_curl_through_a_real_ssh_dynamic_forward(net: Network, stack: ExitStack, ssh: Ssh) -> None:
    near, far, files = net.namespace("near"), net.namespace("far"), net.namespace("files")
    net.wire(near, far, ["10.0.0.1/24"], ["10.0.0.2/24"])
    net.wire(far, files, ["203.0.113.1/24"], ["203.0.113.10/24"])
    server = stack.enter_context(peers.Server(files.listen("::"), peers.web("files")))
    port = ssh(far, "10.0.0.2").socks(near)
    got = near.run(
        "curl", "-sS", "-x", f"socks5://127.0.0.1:{port}", f"http://203.0.113.10:{server.port}/100000"
    )
    assert (got.returncode, got.stdout) == (0, peers.position_coded(100_000)), got.stderr


@pytest.mark.peer("danted")
@pytest.mark.peer("curl")
def test_curl_through_a_real_dante(net: Network, stack: ExitStack, tmp_path: Path) -> None:
    near, proxy, files = net.namespace("near"), net.namespace("proxy"), net.namespace("files")
    net.wire(near, proxy, ["10.0.0.1/24"], ["10.0.0.2/24"])
    net.wire(proxy, files, ["203.0.113.1/24"], ["203.0.113.10/24"])
    server = stack.enter_context(peers.Server(files.listen("::"), peers.web("files")))
    stack.callback(programs.dante(tmp_path, proxy, "10.0.0.2", 1080, "files").stop)
    got = near.run("curl", "-sS", "-x", "socks5://10.0.0.2:1080", f"http://203.0.113.10:{server.port}/")
    assert (got.returncode, got.stdout) == (0, b"files"), got.stderr
    assert server.hosts() == ["203.0.113.1"]
