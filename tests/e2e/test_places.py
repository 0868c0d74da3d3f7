"""Sockets that others make: handed over by systemd, at a path of the file system, leaked into us."""

from __future__ import annotations

import os
import signal
import socket
import stat
import textwrap
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT, Urelay
from tests.e2e.rig import Namespace, Network

pytestmark = pytest.mark.netns

SERVER = "198.51.100.10"


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


def ping(sock: socket.socket) -> None:
    """Sixteen bytes there and back."""
    sock.settimeout(20)
    sock.sendall(b"0123456789abcdef")
    assert peers.read_exactly(sock, 16) == b"0123456789abcdef"


def at(path: Path) -> socket.socket:
    """A connection to a unix socket."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


@pytest.mark.peer("systemd-socket-activate")
def test_systemd_hands_over_its_sockets_by_name(
    box: Namespace, echo: peers.Server, stack: ExitStack, tmp_path: Path
) -> None:
    policy = tmp_path / "site.urr"
    policy.write_text(f'listen lan = socks systemd "relay"\nmatch {SERVER} -> direct\n')
    # Two ListenStream= lines of one unit, and so one name; the second is a unix socket.
    relay = Urelay(
        policy,
        box,
        prefix=(
            *("systemd-socket-activate", "-l", "127.0.0.1:1080", "-l", str(tmp_path / "relay.sock")),
            *("--fdname", "relay:relay", "-E", f"PYTHONPATH={ROOT}"),
        ),
    )
    stack.callback(relay.stop)
    relay.wait_listening(1080)
    # It starts the relay when the first client is there.
    with box.connect("127.0.0.1", 1080, timeout_s=30) as first, at(tmp_path / "relay.sock") as second:
        relay.ready()
        for client in (first, second):
            assert peers.socks5(client, peers.literal(SERVER), echo.port) == 0
            ping(client)
        # A reload keeps both.
        relay.reload()
        with at(tmp_path / "relay.sock") as third:
            assert peers.socks5(third, peers.literal(SERVER), echo.port) == 0
            ping(third)
    relay.records(3)
    relay.finish()


def test_a_unix_socket_from_start_to_end(
    box: Namespace, echo: peers.Server, serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "relay.sock"
    policy = f"""\
        listen lan  = socks unix "relay.sock" {{ mode 0660 }}
        listen mail = forward unix "mail.sock" to {SERVER}:{echo.port}
        match {SERVER} -> direct
        """
    relay = serve(policy, box)
    assert "lan socks relay.sock, mail forward mail.sock" in relay.output
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert stat.S_IMODE((tmp_path / "mail.sock").stat().st_mode) == 0o600
    with at(path) as client, at(tmp_path / "mail.sock") as other:
        assert peers.socks5(client, peers.literal(SERVER), echo.port) == 0
        ping(client)
        ping(other)
        before = path.stat().st_ino
        relay.policy.write_text(textwrap.dedent(policy).replace("0660", "0600"))
        relay.reload()
        assert path.stat().st_ino == before
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        ping(client)
    records = relay.records(2)
    assert [record["source"] for record in records] == [None, None]
    relay.finish()
    assert not path.exists()
    assert not (tmp_path / "mail.sock").exists()


def test_a_killed_relay_leaves_a_file_that_the_next_one_replaces(
    box: Namespace, echo: peers.Server, serve: Serve, stack: ExitStack, tmp_path: Path
) -> None:
    policy = tmp_path / "one.urr"
    policy.write_text(
        f'listen lan = forward unix "r.sock" to {SERVER}:{echo.port}\nmatch {SERVER} -> direct\n'
    )
    first = Urelay(policy, box).ready()
    stack.callback(first.stop)
    second = Urelay(policy, box)
    stack.callback(second.stop)
    assert second.wait() == 2
    assert "somebody listens there already" in second.output
    first.send(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "r.sock").exists()
    serve(policy.read_text(), box)
    with at(tmp_path / "r.sock") as client:
        ping(client)


def test_a_unix_socket_that_leads_back_to_itself_is_refused(
    box: Namespace, serve: Serve, tmp_path: Path
) -> None:
    relay = serve(
        """\
        listen lan = forward unix "r.sock" to 192.0.2.1:25
        match any -> to unix "./{listener}/../r.sock"
        """,
        box,
    )
    (tmp_path / "lan").mkdir()
    with at(tmp_path / "r.sock") as client:
        assert client.recv(1) == b""
    # The client, and what was dialled for it; nothing was dialled for that.
    first, second = relay.records(2)
    assert {first["dialed"], second["dialed"]} == {None, "./lan/../r.sock"}
    assert "a connection of our own came back to us" in (first["error"], second["error"])


def test_fifty_leaked_descriptors_are_closed(
    box: Namespace, echo: peers.Server, serve: Serve, stack: ExitStack
) -> None:
    leaked = [os.open("/", os.O_RDONLY) for _ in range(50)]
    for number in leaked:
        stack.callback(os.close, number)
    with box.listen("127.0.0.1") as given:
        relay = serve(
            f"listen lan = socks fd {given.fileno()}\nmatch {SERVER} -> direct\n",
            box,
            pass_fds=[*leaked, given.fileno()],
        )
        open_now = {
            os.readlink(f"/proc/{relay.pid}/fd/{name}") for name in os.listdir(f"/proc/{relay.pid}/fd")
        }
        assert "/" not in open_now
        with box.connect("127.0.0.1", given.getsockname()[1]) as client:
            assert peers.socks5(client, peers.literal(SERVER), echo.port) == 0
            ping(client)
