"""From start to stop: what a start that fails says, what systemd is told, draining, and EMFILE."""

from __future__ import annotations

import socket
import subprocess
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT, serve_command
from tests.e2e.rig import Namespace, Network, listening_ports, until

pytestmark = pytest.mark.netns

SERVER = "198.51.100.10"
POLICY = f"""\
    listen socks = socks 127.0.0.1:1080
    match {SERVER} -> direct
    """


@pytest.fixture
def box(net: Network) -> Namespace:
    """A namespace with a server's address."""
    box = net.namespace("box")
    box.address("lo", f"{SERVER}/32")
    return box


@pytest.fixture
def echo(box: Namespace, stack: ExitStack) -> peers.Server:
    """An echo server in it."""
    return stack.enter_context(peers.Server(box.listen(SERVER), peers.echo))


def dial(box: Namespace, port: int) -> socket.socket:
    """A connection to the echo server through the relay, seen to work."""
    sock = box.connect("127.0.0.1", 1080)
    assert peers.socks5(sock, peers.literal(SERVER), port) == 0
    ping(sock)
    return sock


def ping(sock: socket.socket) -> float:
    """Seconds for sixteen bytes there and back."""
    began = time.monotonic()
    sock.sendall(b"0123456789abcdef")
    assert peers.read_exactly(sock, 16) == b"0123456789abcdef"
    return time.monotonic() - began


def attempt(box: Namespace, folder: Path, policy: str) -> subprocess.CompletedProcess[bytes]:
    """A start that should fail."""
    path = folder / "site.urr"
    path.write_text(textwrap.dedent(policy))
    return box.run("env", f"PYTHONPATH={ROOT}", *serve_command(path), timeout_s=30)


# --- starting


def test_everything_that_stops_a_start_is_said_and_nothing_stays_bound(
    box: Namespace, tmp_path: Path
) -> None:
    with box.listen("127.0.0.1", 1081):
        failed = attempt(
            box,
            tmp_path,
            "listen good    = socks 127.0.0.1:1080\n"
            "listen taken   = socks 127.0.0.1:1081\n"
            "listen nowhere = transparent [::]:1082 { netns no-such-namespace }\n"
            "listen unset   = transparent fd env URT_NO_SUCH_VARIABLE\n"
            "match any -> direct\n",
        )
    said = failed.stderr.decode()
    assert failed.returncode == 2, said
    assert "Traceback" not in said
    for word in ("taken", "127.0.0.1:1081", "no-such-namespace", "URT_NO_SUCH_VARIABLE"):
        assert word in said
    assert "serving" not in said
    box.listen("127.0.0.1", 1080).close()


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        ('listen a = socks 127.0.0.1:1080 { users "gone.txt" }\nmatch any -> direct\n', ["gone.txt"]),
        (
            """\
            listen a = socks 127.0.0.1:1080
            upstream u = socks5 192.0.2.1:1 { login env URT_NO_LOGIN }
            match any -> via u
            """,
            ["URT_NO_LOGIN", "`u`"],
        ),
        ("listen a = transparent fd 57\nmatch any -> direct\n", ["57"]),
        ("dns a = 127.0.0.1:53 { forward 9.9.9.9:53 }\nmatch any -> direct\n", ["dns", "site.urr:1"]),
    ],
    ids=["users file", "login", "descriptor", "statement"],
)
def test_a_start_that_cannot_be_says_what_and_where(
    box: Namespace, tmp_path: Path, policy: str, words: list[str]
) -> None:
    failed = attempt(box, tmp_path, policy)
    said = failed.stderr.decode()
    assert failed.returncode in (1, 2), said
    assert "Traceback" not in said
    assert [word for word in words if word not in said] == [], said


def test_a_policy_with_errors_or_no_policy_does_not_start(box: Namespace, tmp_path: Path) -> None:
    broken = attempt(box, tmp_path, "match @one -> direct\nmatch @two -> direct\n")
    assert broken.returncode in (1, 2)
    assert broken.stderr.count(b"UR101") == 2, broken.stderr
    missing = box.run("env", f"PYTHONPATH={ROOT}", *serve_command(tmp_path / "none.urr"))
    assert missing.returncode == 2
    assert b"none.urr" in missing.stderr
    assert b"Traceback" not in missing.stderr


# --- systemd


@pytest.mark.parametrize("place", ["path", "abstract"])
def test_systemd_is_told_of_readiness_reloads_and_the_end(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path, place: str
) -> None:
    name = str(tmp_path / "notify") if place == "path" else "\0urt-notify"
    inbox = stack.enter_context(box.call(lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)))
    inbox.bind(name)
    inbox.settimeout(20)

    def message(key: str) -> dict[str, str]:
        while True:
            fields = dict(line.split("=", 1) for line in inbox.recv(4096).decode().splitlines())
            if key in fields:
                return fields

    before = time.monotonic_ns() // 1000
    relay = serve(POLICY, box, env={"NOTIFY_SOCKET": name.replace("\0", "@")})
    assert message("READY")["READY"] == "1"
    relay.reload()
    reloading = message("RELOADING")
    assert reloading["RELOADING"] == "1"
    assert before < int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert message("READY")["READY"] == "1"
    relay.finish()
    assert message("STOPPING")["STOPPING"] == "1"


# --- stopping


def test_sigterm_stops_accepting_and_lets_connections_finish(
    box: Namespace, echo: peers.Server, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--drain", "20")
    with dial(box, echo.port) as sock:
        relay.process.terminate()
        until(lambda: 1080 not in listening(box), "the listener is closed")
        ping(sock)
        assert relay.process.poll() is None
    assert relay.wait(5) == 0
    (record,) = relay.records(1)
    assert record["end"] == "eof"


def test_what_does_not_finish_in_time_is_cut(box: Namespace, echo: peers.Server, serve: Serve) -> None:
    relay = serve(POLICY, box, "--drain", "0.5")
    with dial(box, echo.port) as sock:
        began = time.monotonic()
        relay.process.terminate()
        assert peers.ending(sock) in ("reset", "eof")
        assert relay.wait(5) == 0
        assert time.monotonic() - began < 4
    assert len(relay.records(1)) == 1


def test_a_second_signal_ends_it_at_once(box: Namespace, echo: peers.Server, serve: Serve) -> None:
    relay = serve(POLICY, box, "--drain", "60")
    with dial(box, echo.port):
        relay.process.terminate()
        until(lambda: 1080 not in listening(box), "the listener is closed")
        relay.process.terminate()
        assert relay.wait(5) == 0


def listening(box: Namespace) -> set[int]:
    """The ports somebody listens on in the box."""
    return box.call(listening_ports)


# --- out of descriptors


def test_running_out_of_descriptors_hurts_nobody_who_is_connected(
    box: Namespace, echo: peers.Server, stack: ExitStack, serve: Serve
) -> None:
    relay = serve(POLICY, box, prefix=["prlimit", "--nofile=96:96", "--"])
    live = [stack.enter_context(dial(box, echo.port)) for _ in range(10)]
    flood = [stack.enter_context(box.connect("127.0.0.1", 1080)) for _ in range(300)]
    began, worst = time.monotonic(), 0.0
    while time.monotonic() - began < 2.0:
        worst = max(worst, *(ping(sock) for sock in live))
    assert worst < 0.5, "a connected client had to wait"
    assert len(relay.lines) < 30, relay.output
    used = relay_cpu_s(relay.pid)
    for sock in flood:
        sock.close()
    stack.enter_context(dial(box, echo.port))
    for sock in live:
        ping(sock)
        sock.close()
    assert used < 4.0


def relay_cpu_s(pid: int) -> float:
    """Seconds of processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
