"""More clients than there is room for: nobody who is connected notices, everybody else waits or is told."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import signal
import socket
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import Urelay
from tests.e2e.rig import Namespace, Network, until
from tests.integrity.sizes import sizes

pytestmark = pytest.mark.netns

SERVER = "198.51.100.10"
OUT, OTHER, SOCKS = 1080, 1081, 1082
POLICY = f"""\
    listen out   = forward 127.0.0.1:{OUT} to {SERVER}:7 {{ limit 9000 per source }}
    listen other = forward 127.0.0.1:{OTHER} to {SERVER}:8 {{ limit 9000 per source }}
    listen socks = socks 127.0.0.1:{SOCKS}
    match {SERVER} -> direct
    """
LIVE = 50


class Site:
    """A namespace with a server's address, whose connections the test accepts itself."""

    def __init__(self, box: Namespace, stack: ExitStack) -> None:
        self.box = box
        self.stack = stack
        self.server = stack.enter_context(box.listen(SERVER, 7, backlog=4096))
        self.other = stack.enter_context(box.listen(SERVER, 8, backlog=4096))
        self.server.settimeout(20)

    def client(self, port: int = OUT, source: str = "127.0.0.1") -> socket.socket:
        """A client of a listener, from an address of its own."""
        sock = self.box.call(lambda: socket.create_connection(("127.0.0.1", port), 20, (source, 0)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.stack.enter_context(sock)

    def clients(self, count: int, port: int = OUT, source: str = "127.0.0.1") -> list[socket.socket]:
        """So many of them; fewer, if some are turned away before they notice that they connected."""
        opened: list[socket.socket] = []

        def connect() -> None:
            for _ in range(count):
                with contextlib.suppress(ConnectionResetError):
                    opened.append(socket.create_connection(("127.0.0.1", port), 20, (source, 0)))

        self.box.call(connect)
        return [self.stack.enter_context(sock) for sock in opened]

    def flows(self, count: int) -> list[tuple[socket.socket, socket.socket]]:
        """So many connections through the relay, both ends of each."""
        return [(self.client(), self.accepted()) for _ in range(count)]

    def accepted(self) -> socket.socket:
        """The server's end of the next connection."""
        sock, _ = self.server.accept()
        sock.settimeout(20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.stack.enter_context(sock)


@pytest.fixture
def site(net: Network, stack: ExitStack) -> Site:
    """The namespace and its server."""
    need_descriptors(10_000)
    box = net.namespace("box")
    box.address("lo", f"{SERVER}/32")
    return Site(box, stack)


def need_descriptors(count: int) -> None:
    """Lets this process, and what it starts, open so many files if anybody may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))


def a_round(flows: list[tuple[socket.socket, socket.socket]], block: bytes) -> float:
    """Seconds for a block through every flow, all at once."""
    began = time.monotonic()
    for near, _ in flows:
        near.sendall(block)
    for _, far in flows:
        assert peers.read_exactly(far, len(block)) == block
    return time.monotonic() - began


def cpu_s(relay: Urelay) -> float:
    """Seconds of processor time, to the microsecond where the kernel keeps them."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{relay.pid}/schedstat").read_text().split()[0]) / 1e9
    fields = Path(f"/proc/{relay.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quiet_share(relay: Urelay, seconds: float) -> float:
    """The share of a processor that the relay takes while nobody does anything."""
    before = cpu_s(relay)
    began = time.monotonic()
    time.sleep(seconds)
    return (cpu_s(relay) - before) / (time.monotonic() - began)


# --- R11


@sizes("newcomers, window_s", (250, 1.0), (2000, 30.0))
@pytest.mark.parametrize(
    ("lacking", "options"),
    [("too many open files", ["--max-connections", "1000"]), ("as many as allowed", [])],
    ids=["descriptors", "connections"],
)
def test_a_crowd_that_finds_no_room_costs_nobody_anything(
    site: Site, serve: Serve, lacking: str, options: list[str], newcomers: int, window_s: float
) -> None:
    """R11: live transfers go on, waiting costs no time, a reload works; and who waited is served at last."""
    relay = serve(POLICY, site.box, *options, prefix=["prlimit", "--nofile=256:256", "--"])
    site.stack.enter_context(peers.Server(site.other, peers.echo))
    live = site.flows(LIVE)
    block = bytes(16_384)
    before = sorted(a_round(live, block) for _ in range(9))
    crowd = site.clients(newcomers, OTHER)
    relay.wait_line(lacking)
    since, began = len(relay.lines), time.monotonic()
    during = []
    while time.monotonic() - began < window_s:
        during.append(a_round(live, block))
    assert sorted(during)[len(during) // 2] <= 3 * before[4] + 0.1, "the live transfers had to wait"
    # With nothing to relay, all that is left is what the waiting cost.
    assert quiet_share(relay, window_s / 2) <= 0.02
    complaints = sum(lacking in line for line in relay.lines[since:])
    assert complaints <= time.monotonic() - began + 1
    relay.reload()
    a_round(live, block)
    for pair in live:
        for sock in pair:
            sock.close()
    answers = [answer(sock) for sock in crowd]
    assert set(answers) <= {b"me", b"reset"}
    # Who was let in when there was nothing left for the way out, not even of the reserve, was reset.
    assert answers.count(b"reset") <= 8


def answer(sock: socket.socket) -> bytes:
    """What an echo server says, or `reset`."""
    try:
        sock.sendall(b"me")
        sock.shutdown(socket.SHUT_WR)
        return peers.drain(sock)
    except ConnectionError:
        return b"reset"
    except OSError as error:
        # Reset before the half-close: there is no connection any more.
        if error.errno == errno.ENOTCONN:
            return b"reset"
        raise


# --- R12


@sizes("cap, visits", (400, 40), (1000, 1000))
def test_who_opens_all_he_can_shuts_nobody_else_out(site: Site, serve: Serve, cap: int, visits: int) -> None:
    """R12: one source asks and then lies still, many others never ask; another one is always served."""
    relay = serve(POLICY, site.box, "--max-connections", str(cap))
    base = relay.sockets()
    hogs = site.clients(2 * cap, SOCKS, "127.0.0.2")
    mute = [sock for last in range(8) for sock in site.clients(cap // 4, SOCKS, f"127.0.1.{last}")]
    for sock in hogs:
        # Some of them are turned away at once.
        with contextlib.suppress(OSError):
            sock.sendall(b"\5\1\0\5\1\0\1" + socket.inet_aton(SERVER) + b"\0\x07")
    took = []
    for _ in range(visits):
        began = time.monotonic()
        with site.client(SOCKS, "127.0.0.3") as sock:
            assert peers.socks5(sock, peers.literal(SERVER), 8) == 0
            took.append(time.monotonic() - began)
            with site.other.accept()[0] as far:
                far.sendall(b"served")
                assert peers.read_exactly(sock, 6) == b"served"
        assert relay.sockets() <= base + 2 * cap
    assert statistics.median(took) <= 0.1
    for sock in (*hogs, *mute):
        sock.close()


def test_a_host_without_a_port_to_dial_from_says_so_and_recovers(site: Site, serve: Serve) -> None:
    """R12: a hundred ephemeral ports, and more clients than that for one server."""
    site.box.run("sh", "-c", "echo 40000 40099 > /proc/sys/net/ipv4/ip_local_port_range")
    relay = serve(POLICY, site.box)
    replies, served = [], []
    for number in range(120):
        # From below the range, which is for those who dial.
        sock = site.stack.enter_context(site.box.connect("127.0.0.1", SOCKS, source_port=10_000 + number))
        replies.append(peers.socks5(sock, peers.literal(SERVER), 7))
        if replies[-1] == 0:
            served.append((sock, site.accepted()))
    assert replies.count(0) == 100
    assert set(replies[100:]) == {peers.NET_UNREACHABLE}, replies
    assert quiet_share(relay, 0.5) <= 0.02
    for record in relay.records(20):
        assert (record["end"], record["error"]) == (
            "refused",
            f"{SERVER}:7: cannot assign requested address",
        )
    a_round(served, b"still here")
    for near, far in served:
        near.close()
        far.close()

    fresh = itertools.count(20_000)

    def recovered() -> bool:
        with site.box.connect("127.0.0.1", SOCKS, source_port=next(fresh)) as sock:
            reply = peers.socks5(sock, peers.literal(SERVER), 7)
            if reply == 0:
                site.accepted().close()
            return reply == 0

    until(recovered, "a port to dial from")


# --- R14


@sizes("queued", 1000, 4000)
def test_a_storm_of_clients_lets_those_who_are_connected_have_their_turn(
    site: Site, serve: Serve, queued: int
) -> None:
    """R14: all of them are in the backlog when the relay is let go; the connected play ping-pong."""
    relay = serve(POLICY, site.box)
    live = site.flows(LIVE)
    site.other.setblocking(False)
    # A machine that stops for a moment spoils one storm; a relay that lets nobody have a turn spoils each.
    # Were they all accepted in one go, there would be a round before and one after.
    for last in (False, False, True):
        rounds, longest = rounds_in_a_storm(site, relay, live, queued)
        if rounds >= 5 and longest <= 0.5:
            return
        assert not last, f"{rounds} rounds, one of which took {longest:.0%} of the time"


def rounds_in_a_storm(
    site: Site, relay: Urelay, live: list[tuple[socket.socket, socket.socket]], queued: int
) -> tuple[int, float]:
    """How many rounds the connected played until the last of the storm was through.

    And the share of the whole time that the longest of them took.
    """
    relay.send(signal.SIGSTOP)
    try:
        storm = site.clients(queued, OTHER)
    finally:
        relay.send(signal.SIGCONT)
    began = time.monotonic()
    rounds: list[float] = []
    through: list[socket.socket] = []
    while len(through) < queued:
        rounds.append(a_round(live, b"ping"))
        with contextlib.suppress(BlockingIOError):
            while True:
                through.append(site.stack.enter_context(site.other.accept()[0]))
        assert time.monotonic() - began < 60, f"{len(through)} of {queued} came through"
    longest = max(rounds) / (time.monotonic() - began)
    for sock in (*storm, *through):
        sock.close()
    return len(rounds), longest
