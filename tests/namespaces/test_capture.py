"""Both ways of capturing bring every port of every address to one socket, leave the namespace's own
addresses to its programs, and leave nothing behind."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from tests.e2e.rig import Namespace, Network
from urelay.errors import StartError
from urelay.namespaces.capture import SK_LOOKUP, TPROXY, Capture
from urelay.policy.model import UNCAPTURED

pytestmark = [pytest.mark.netns, pytest.mark.peer("nft")]

IPV6_TRANSPARENT = 75
SO_MARK = 36


class Lab:
    """`one` and `two` are routed by `gate`, whose connections are captured."""

    def __init__(self, net: Network) -> None:
        self.one, self.two, self.gate = (net.namespace(label) for label in ("one", "two", "gate"))
        for netns in (self.one, self.two, self.gate):
            # No link-local addresses: they would come while a test compares what there is.
            netns.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/addr_gen_mode")
        for number, client in ((1, self.one), (2, self.two)):
            net.wire(
                self.gate,
                client,
                [f"10.{number}.0.1/24", f"fd00:{number}::1/64"],
                [f"10.{number}.0.2/24", f"fd00:{number}::2/64"],
            )
            client.default_route(f"10.{number}.0.1", f"fd00:{number}::1")
        self.gate.forward()

    def state(self) -> str:
        """Everything that capturing could leave behind."""
        commands = ("ip -4 rule", "ip -6 rule", "ip -4 route show table all", "ip -6 route show table all")
        shown = [self.gate.run(*command.split()).stdout for command in (*commands, "nft list ruleset")]
        return b"\n".join(shown).decode()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """One for all tests that leave it as they found it."""
    with Network() as net:
        yield Lab(net)


@pytest.fixture
def fresh() -> Iterator[Lab]:
    """One to be changed."""
    with Network() as net:
        yield Lab(net)


@pytest.fixture(params=[SK_LOOKUP, TPROXY])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def listen(netns: Namespace, port: int = 0, host: str = "::") -> socket.socket:
    """A listening socket as a `transparent` listener has it."""
    sock = netns.listen(host, port)
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, 19, 1)
    return sock


@contextlib.contextmanager
def captured(lab: Lab, way: str, sock: socket.socket, *, born: bool = True) -> Iterator[Capture]:
    capture = Capture(lab.gate.path, sock, born=born, ways=(way,))
    try:
        assert capture.way == way
        yield capture
    finally:
        capture.close()


def arrives(origin: Namespace, sock: socket.socket, host: str, port: int) -> None:
    """A connection to an endpoint is accepted from `sock`, with that endpoint as its own end."""
    with origin.connect(host, port, timeout_s=20) as client:
        sock.settimeout(20)
        accepted, peer = sock.accept()
        with accepted:
            assert (accepted.getsockname()[0].removeprefix("::ffff:"), accepted.getsockname()[1]) == (
                host,
                port,
            )
            assert peer[0] == client.getsockname()[0] or peer[0] == f"::ffff:{client.getsockname()[0]}"
            accepted.sendall(b"x")
            assert client.recv(1) == b"x"


def passes_by(origin: Namespace, server: socket.socket, host: str, source: str | None = None) -> None:
    """A connection is accepted by a server, and by nobody else."""
    port = server.getsockname()[1]
    with origin.call(
        lambda: socket.create_connection((host, port), 10, (source, 0) if source is not None else None)
    ) as client:
        server.settimeout(20)
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getpeername()[1] == client.getsockname()[1]


EVERYWHERE = [
    ("203.0.113.5", 1),
    ("203.0.113.5", 65535),
    ("2001:db8::5", 443),
    ("1.1.1.1", 22),
    ("240.0.0.1", 25),
]


def test_every_port_of_every_address_routed_and_born(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, captured(lab, way, sock):
        for origin in (lab.one, lab.two, lab.gate):
            for host, port in EVERYWHERE:
                arrives(origin, sock, host, port)
        # From one client network to the other, and from here to both.
        for origin in (lab.one, lab.gate):
            arrives(origin, sock, "10.2.0.2", 80)
            arrives(origin, sock, "fd00:2::2", 80)
        # The port of the listener itself is a port like any other.
        arrives(lab.one, sock, "203.0.113.5", sock.getsockname()[1])


def test_strict_reverse_path_filtering_is_no_obstacle(fresh: Lab, way: str) -> None:
    fresh.gate.run("sh", "-c", "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 1 > $f; done")
    with listen(fresh.gate) as sock, captured(fresh, way, sock):
        for origin in (fresh.one, fresh.gate):
            arrives(origin, sock, "203.0.113.5", 80)


def test_what_is_addressed_to_the_namespace_itself_stays_with_its_programs(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, lab.gate.listen("::") as own, captured(lab, way, sock):
        for host in ("10.1.0.1", "10.2.0.1", "fd00:1::1", "fd00:2::1"):
            passes_by(lab.one, own, host)
            passes_by(lab.gate, own, host)
        for host in ("127.0.0.1", "127.9.9.9", "::1"):
            passes_by(lab.gate, own, host)


def test_who_binds_an_address_of_the_namespace_reaches_its_neighbours(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, lab.one.listen("::") as neighbour, captured(lab, way, sock):
        passes_by(lab.gate, neighbour, "10.1.0.2", source="10.1.0.1")
        passes_by(lab.gate, neighbour, "fd00:1::2", source="fd00:1::1")
        # Without, it is captured like everything else.
        arrives(lab.gate, sock, "10.1.0.2", neighbour.getsockname()[1])


def test_the_mark_is_left_alone(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, lab.one.listen("::") as neighbour, captured(lab, way, sock):
        for family, host in ((socket.AF_INET, "10.1.0.2"), (socket.AF_INET6, "fd00:1::2")):
            with lab.gate.call(lambda family=family: socket.socket(family)) as client:  # type: ignore[misc]
                client.settimeout(20)
                client.setsockopt(socket.SOL_SOCKET, SO_MARK, UNCAPTURED)
                client.connect((host, neighbour.getsockname()[1]))
                neighbour.accept()[0].close()


def test_only_tcp_is_captured(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, captured(lab, way, sock):
        for origin, host in ((lab.gate, "10.1.0.2"), (lab.two, "10.1.0.2"), (lab.two, "fd00:1::2")):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with (
                lab.one.call(lambda family=family: socket.socket(family, socket.SOCK_DGRAM)) as server,  # type: ignore[misc]
                origin.call(lambda family=family: socket.socket(family, socket.SOCK_DGRAM)) as client,  # type: ignore[misc]
            ):
                server.bind((host, 0))
                server.settimeout(20)
                client.sendto(b"ping", (host, server.getsockname()[1]))
                assert server.recv(10) == b"ping"


def test_in_our_own_namespace_only_what_is_routed_through_is_captured(lab: Lab, way: str) -> None:
    with (
        listen(lab.gate) as sock,
        lab.two.listen("::") as server,
        captured(lab, way, sock, born=False),
    ):
        arrives(lab.one, sock, "10.2.0.2", server.getsockname()[1])
        arrives(lab.one, sock, "2001:db8::5", 443)
        # What the relay dials itself gets out.
        passes_by(lab.gate, server, "10.2.0.2")
        passes_by(lab.gate, server, "fd00:2::2")


def test_an_ipv4_listener_captures_ipv4_and_leaves_ipv6_alone(lab: Lab, way: str) -> None:
    with (
        listen(lab.gate, host="10.1.0.1") as sock,
        lab.two.listen("::") as server,
        captured(lab, way, sock),
    ):
        arrives(lab.one, sock, "203.0.113.5", 80)
        arrives(lab.gate, sock, "203.0.113.5", 80)
        passes_by(lab.one, server, "fd00:2::2")
        passes_by(lab.gate, server, "fd00:2::2")


def test_a_namespace_without_ipv6_is_captured_for_ipv4(fresh: Lab, way: str) -> None:
    fresh.gate.run("sh", "-c", "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do echo 1 > $f; done")
    with listen(fresh.gate) as sock, captured(fresh, way, sock):
        arrives(fresh.gate, sock, "203.0.113.5", 80)


def test_addresses_that_come_and_go_are_noticed(lab: Lab, way: str) -> None:
    def told() -> None:
        assert select.select([capture.monitor], [], [], 20)[0]
        capture.drain()
        assert not select.select([capture.monitor], [], [], 0)[0]
        capture.refresh()

    with listen(lab.gate) as sock, lab.gate.listen("::") as own, captured(lab, way, sock) as capture:
        for address, length in (("203.0.113.7", 32), ("2001:db8::7", 128)):
            arrives(lab.one, sock, address, 80)
            lab.gate.address("one", f"{address}/{length}")
            told()
            passes_by(lab.one, own, address)
            lab.gate.ip("addr", "del", f"{address}/{length}", "dev", "one")
            told()
            arrives(lab.one, sock, address, 80)


def test_another_socket_takes_over(lab: Lab, way: str) -> None:
    with listen(lab.gate) as before, captured(lab, way, before) as capture:
        arrives(lab.one, before, "203.0.113.5", 80)
        with listen(lab.gate) as after:
            capture.point_at(after)
            before.close()
            capture.refresh()
            arrives(lab.one, after, "203.0.113.5", 80)
            arrives(lab.gate, after, "2001:db8::5", 80)


def test_a_listener_that_is_closed_refuses(lab: Lab, way: str) -> None:
    sock = listen(lab.gate)
    with captured(lab, way, sock):
        sock.close()
        for origin in (lab.one, lab.gate):
            with pytest.raises(ConnectionRefusedError):
                origin.connect("2001:db8::5", 80)
            # In IPv4 nobody may answer in another's name any more.
            with pytest.raises(TimeoutError):
                origin.connect("203.0.113.5", 80, timeout_s=0.2)


def test_nothing_is_left_behind(lab: Lab, way: str) -> None:
    lab.gate.ip("rule", "add", "pref", "500", "to", "198.51.100.0/24", "lookup", "99")
    before = lab.state()
    with listen(lab.gate) as sock, captured(lab, way, sock):
        assert lab.state() != before
    assert lab.state() == before
    lab.gate.ip("rule", "del", "pref", "500")


@pytest.mark.parametrize("next_way", [SK_LOOKUP, TPROXY])
def test_what_a_crash_left_is_replaced(lab: Lab, way: str, next_way: str) -> None:
    before = lab.state()
    with listen(lab.gate) as sock:
        crashed = Capture(lab.gate.path, sock, ways=(way,))
        # As the kernel does it for a process that is killed: descriptors go, the rest stays.
        crashed.monitor.close()
        crashed._lock.close()
        crashed._steering.close()
    assert lab.state() != before
    with pytest.raises(ConnectionRefusedError):
        lab.one.connect("2001:db8::5", 80)
    with listen(lab.gate) as sock, captured(lab, next_way, sock):
        arrives(lab.one, sock, "203.0.113.5", 80)
        arrives(lab.gate, sock, "2001:db8::5", 80)
    assert lab.state() == before


def test_two_cannot_capture_one_namespace(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, listen(lab.gate) as other, captured(lab, way, sock):
        installed = lab.state()
        with pytest.raises(StartError, match="another relay captures the connections of this namespace"):
            Capture(lab.gate.path, other)
        assert lab.state() == installed
        arrives(lab.one, sock, "203.0.113.5", 80)


def test_a_loopback_that_is_down_is_said(fresh: Lab, way: str) -> None:
    fresh.gate.ip("link", "set", "lo", "down")
    before = fresh.state()
    with listen(fresh.gate) as sock, pytest.raises(StartError, match="the interface `lo` is down there"):
        Capture(fresh.gate.path, sock, ways=(way,))
    assert fresh.state() == before


def test_a_socket_that_may_not_answer_for_others_is_refused(lab: Lab, way: str) -> None:
    with lab.gate.listen("::") as sock, pytest.raises(StartError, match="IP_TRANSPARENT"):
        Capture(lab.gate.path, sock, ways=(way,))


def test_a_reset_that_was_captured_is_a_reset(lab: Lab, way: str) -> None:
    with listen(lab.gate) as sock, captured(lab, way, sock), lab.one.connect("203.0.113.5", 80) as client:
        accepted, _ = sock.accept()
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
        with pytest.raises(ConnectionResetError):
            client.recv(1)
