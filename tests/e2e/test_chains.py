"""Ways out through real proxies: dante, ssh, both in a chain, and one on a unix socket."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve, Ssh
from tests.e2e.rig import Namespace, Network, until

pytestmark = [pytest.mark.netns, pytest.mark.peer("danted"), pytest.mark.peer("curl")]

HIDDEN = "203.0.113.10"


@dataclass
class Line:
    """near - middle - far - files: each knows only its neighbours, so only the whole line reaches files."""

    near: Namespace
    middle: Namespace
    far: Namespace
    files: Namespace
    web: peers.Server

    def curl(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """curl in `near`, through the relay."""
        return self.near.run(
            "curl", "-q", "-sS", "--max-time", "20", "-x", "socks5h://127.0.0.1:1080", *words
        )

    @property
    def url(self) -> str:
        """A megabyte on the far side."""
        return f"http://{HIDDEN}:{self.web.port}/1000000"


@pytest.fixture
def line(net: Network, stack: ExitStack) -> Line:
    """The four namespaces in a row, with a web server at the end."""
    near, middle, far, files = (net.namespace(label) for label in ("near", "middle", "far", "files"))
    net.wire(near, middle, ["10.0.1.1/24"], ["10.0.1.2/24"])
    net.wire(middle, far, ["10.0.2.1/24"], ["10.0.2.2/24"])
    net.wire(far, files, ["203.0.113.1/24"], [f"{HIDDEN}/24"])
    web = stack.enter_context(peers.Server(files.listen("::"), peers.web("files")))
    return Line(near, middle, far, files, web)


@pytest.mark.parametrize("kind", ["socks4", "socks5"])
def test_a_chain_of_two_real_proxies(
    line: Line, stack: ExitStack, serve: Serve, tmp_path: Path, kind: str
) -> None:
    stack.callback(programs.dante(tmp_path, line.middle, "10.0.1.2", 1080, "far").stop)
    stack.callback(programs.dante(tmp_path, line.far, "10.0.2.2", 1080, "files").stop)
    relay = serve(
        f"""\
        listen socks = socks 127.0.0.1:1080
        upstream first  = {kind} 10.0.1.2:1080
        upstream second = {kind} 10.0.2.2:1080 {{ via first }}
        match any -> via second
        """,
        line.near,
    )
    got = line.curl(line.url)
    assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr
    assert line.web.hosts() == ["203.0.113.1"]
    (record,) = relay.records(1)
    assert (record["outcome"], record["upstream"], record["end"]) == ("via", "second", "eof")
    assert record["bytes_down"] > 1_000_000


@pytest.mark.peer("sshd")
def test_a_chain_of_dante_and_ssh(
    line: Line, stack: ExitStack, serve: Serve, ssh: Ssh, tmp_path: Path
) -> None:
    stack.callback(programs.dante(tmp_path, line.middle, "10.0.1.2", 1080, "lo").stop)
    port = ssh(line.far, "10.0.2.2").socks(line.middle)
    serve(
        f"""\
        listen socks = socks 127.0.0.1:1080
        upstream door   = socks5 10.0.1.2:1080
        upstream tunnel = socks5 127.0.0.1:{port} {{ via door }}
        match any -> via tunnel
        """,
        line.near,
    )
    got = line.curl(line.url)
    assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr


@pytest.mark.peer("sshd")
def test_a_proxy_on_a_unix_socket(
    line: Line, stack: ExitStack, serve: Serve, ssh: Ssh, tmp_path: Path
) -> None:
    stack.callback(programs.dante(tmp_path, line.far, "10.0.2.2", 1080, "files").stop)
    path = tmp_path / "proxy.sock"
    ssh(line.middle, "10.0.1.2").client(line.near, "-L", f"{path}:10.0.2.2:1080")
    until(path.is_socket, "ssh listens on its unix socket")
    relay = serve(
        """\
        listen socks = socks 127.0.0.1:1080
        upstream local = socks5 { unix "proxy.sock" }
        match any -> via local
        """,
        line.near,
    )
    got = line.curl(line.url)
    assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr
    assert relay.records(1)[0]["upstream"] == "local"


def test_another_urelay_with_a_login_from_the_environment(line: Line, serve: Serve, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("relay:s3cret-canary\n")
    users.chmod(0o600)
    serve(
        """\
        listen socks = socks 10.0.1.2:1080 { users "users.txt" }
        match 10.0.2.2 -> direct
        """,
        line.middle,
        name="middle.urr",
    )
    with peers.Server(line.far.listen("10.0.2.2"), peers.web("far")) as web:
        relay = serve(
            """\
            listen socks = socks 127.0.0.1:1080
            upstream out = socks5 10.0.1.2:1080 { login env RELAY_LOGIN }
            match any -> via out
            """,
            line.near,
            env={"RELAY_LOGIN": "relay:s3cret-canary"},
        )
        got = line.curl(f"http://10.0.2.2:{web.port}/")
        assert (got.returncode, got.stdout) == (0, b"far"), got.stderr
        denied = line.curl(f"http://198.51.100.1:{web.port}/")
        assert denied.returncode == 97, denied.stderr
    fetched, refused = relay.records(2)
    assert fetched["end"] == "eof"
    # The other relay's "not allowed" (0x02) is handed on as what it is.
    assert (refused["outcome"], refused["end"]) == ("via", "denied")
    assert b"(2)" in denied.stderr
    assert "canary" not in relay.output + relay.log.read_text()


def test_a_dead_proxy_is_a_failure_of_the_way_out_and_one_line(line: Line, serve: Serve) -> None:
    relay = serve(
        """\
        listen socks = socks 127.0.0.1:1080
        upstream gone = socks5 10.0.1.2:9
        match any -> via gone
        """,
        line.near,
    )
    with line.near.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal(HIDDEN), 80) not in (0, -1)
        assert peers.ending(sock) == "eof"
    (record,) = relay.records(1)
    assert (record["outcome"], record["upstream"], record["dialed"]) == ("via", "gone", None)
    assert record["error"]
