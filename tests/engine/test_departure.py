"""A connection leaves as its upstream says, or not at all and with the option that failed."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.e2e.rig import Namespace, Network
from tests.engine.socks_peers import Echo, Working
from tests.engine.test_connect import FAST, listening, run
from tests.engine.test_dial import World, proxy, says, with_peers
from tests.strategies import policy, region, route, upstream
from urelay.engine.connect import far_end, own_end
from urelay.engine.departure import Departure
from urelay.engine.dial import Asked, Dialed, Dialer
from urelay.engine.loops import OwnListeners
from urelay.engine.resolve import Resolver
from urelay.errors import Blame, DialError, Failure
from urelay.namespaces.visit import Visitor
from urelay.net.address import Endpoint, address_text, parse_address
from urelay.policy.model import Upstream, UpstreamKind, Via
from urelay.table.compile import compile_policy

LOOPBACK_2 = parse_address("127.0.0.2")


def leaving(**options: object) -> Upstream:
    """A direct upstream with these options."""
    return upstream("wg", UpstreamKind.DIRECT, **options)


def world(*upstreams: Upstream) -> World:
    """Everything goes through the first of them."""
    return World([route(region(), Via(upstreams[0].name))], upstreams=upstreams)


def failing(where: Endpoint, **options: object) -> DialError:
    """What comes of dialling through a direct upstream with these options."""
    found = []

    async def main() -> None:
        found.append(await world(leaving(**options)).fail(where.host, where.port))

    run(main)
    return found[0]


def test_an_upstream_without_these_options_leaves_like_everything_else() -> None:
    assert Departure.of(leaving(connect=5.0)) is None
    assert Departure.of(leaving(mark=1)) == Departure(mark=1)


def test_source_is_where_it_comes_from_and_shares_its_ports() -> None:
    async def main() -> None:
        with listening() as one, listening() as two:
            for there in (one, two):
                dialed = await world(leaving(source=LOOPBACK_2)).dial(there.host, there.port)
                with dialed.sock:
                    assert far_end(dialed.sock) == there
                    assert (own_end(dialed.sock) or there).host == LOOPBACK_2
                    assert dialed.sock.getsockopt(socket.IPPROTO_IP, 24) == 1

    run(main)


def test_a_source_of_ipv6() -> None:
    async def main() -> None:
        with listening(parse_address("::1")) as there:
            dialed = await world(leaving(source=parse_address("::1"))).dial(there.host, there.port)
            with dialed.sock:
                assert far_end(dialed.sock) == there
                assert dialed.sock.getsockopt(socket.IPPROTO_IP, 24) == 1

    run(main)


def test_a_source_of_the_other_family_is_told_and_held_against_nobody() -> None:
    error = failing(Endpoint(parse_address("::1"), 9), source=LOOPBACK_2)
    assert str(error) == (
        "upstream `wg`: its source 127.0.0.2 is IPv4, and the destination has IPv6 addresses only"
    )
    assert (error.failure, error.blame) == (Failure.NET_UNREACHABLE, Blame.UNFIT)


def test_only_the_addresses_of_the_sources_family_are_tried(tmp_path: object) -> None:
    hosts = tmp_path / "hosts"  # type: ignore[operator]
    hosts.write_text("127.0.0.1 both.example\n::1 both.example\n")

    async def main() -> None:
        with listening() as there:
            one = leaving(source=LOOPBACK_2)
            here = World([route(region(), Via("wg"))], upstreams=[one], hosts=hosts)
            dialed = await here.dial("both.example", there.port)
            dialed.sock.close()
            assert dialed.tries == (str(there),)

    run(main)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"source": parse_address("198.51.100.9")}, "source 198.51.100.9: no interface has this address"),
        ({"dev": "nothere0"}, "dev nothere0: there is no such interface"),
        ({"netns": "urt-nowhere"}, "there is no network namespace called `urt-nowhere`"),
        ({"netns": "/dev/null"}, "`/dev/null` is not a network namespace"),
    ],
)
def test_what_cannot_be_done_is_an_error_of_the_dial(options: dict[str, object], text: str) -> None:
    if "netns" in options:
        found = []

        async def main() -> None:
            visitor = Visitor()
            try:
                await dial_from(visitor, leaving(**options), Endpoint(parse_address("127.0.0.1"), 9))
            except DialError as error:
                found.append(error)
            finally:
                visitor.close()

        run(main)
        (error,) = found
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            error = failing(Endpoint(parse_address("127.0.0.1"), server.getsockname()[1]), **options)
    assert str(error).startswith(f"upstream `wg`: {text}")
    assert (error.failure, error.blame) == (Failure.ERROR, Blame.WAY)


def test_a_mark_without_the_privilege_is_fatal_to_the_dial(monkeypatch: pytest.MonkeyPatch) -> None:
    """S12: never a connection that leaves without its mark."""

    class Unprivileged(socket.socket):
        def setsockopt(self, level: int, option: int, value: object, *rest: object) -> None:
            if option == socket.SO_MARK:
                raise PermissionError(1, "Operation not permitted")
            super().setsockopt(level, option, value, *rest)  # type: ignore[call-overload]

    made = []

    def unprivileged(family: int) -> socket.socket:
        made.append(Unprivileged(family))
        return made[-1]

    monkeypatch.setattr("urelay.engine.departure.tcp_socket", unprivileged)
    with socket.create_server(("127.0.0.1", 0)) as server:
        error = failing(Endpoint(parse_address("127.0.0.1"), server.getsockname()[1]), mark=0x51)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert str(error) == "upstream `wg`: mark 0x51: marks need CAP_NET_ADMIN"
    assert [sock.fileno() for sock in made] == [-1]


@pytest.mark.netns
def test_mark_and_device_are_on_the_socket() -> None:
    async def main() -> None:
        with listening() as there:
            one = leaving(mark=0x80000051, dev="lo")
            dialed = await world(one).dial(there.host, there.port)
            with dialed.sock:
                mark = dialed.sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK, 4)
                assert struct.unpack("I", mark) == (0x80000051,)
                device = dialed.sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16)
                assert device.rstrip(b"\0") == b"lo"

    run(main)


def test_a_proxy_may_be_reached_from_a_source_of_its_own() -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        corp = proxy("corp", way.at, source=LOOPBACK_2)
        dialed = await world(corp).dial(goal.at.host, goal.at.port)
        assert (own_end(dialed.sock) or way.at).host == LOOPBACK_2
        await says(dialed, b"goal")
        wrong = replace(proxy("corp", way.at, source=parse_address("198.51.100.9")))
        error = await world(wrong).fail(goal.at.host, goal.at.port)
        assert str(error) == "upstream `corp`: source 198.51.100.9: no interface has this address"
        assert error.blame is Blame.WAY

    with_peers(goal, way, test=main)


def test_a_proxy_may_be_reached_through_a_direct_upstream() -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        dialed = await world(proxy("corp", way.at, via="wg"), leaving(source=LOOPBACK_2)).dial(
            goal.at.host, goal.at.port
        )
        assert (own_end(dialed.sock) or way.at).host == LOOPBACK_2
        assert dialed.dialed == str(way.at)
        await says(dialed, b"goal")

    with_peers(goal, way, test=main)


# --- in another namespace


@pytest.fixture
def net() -> Iterator[Network]:
    with Network() as network:
        yield network


async def dial_from(
    visitor: Visitor, way: Upstream, there: Endpoint, own: OwnListeners | None = None
) -> Dialed:
    """Dial through one upstream, with the means to go elsewhere."""
    table = compile_policy(policy([route(region(), Via("wg"))], upstreams=[way]))
    resolver = Resolver(hosts="/nonexistent", resolv_conf="/nonexistent")
    dialer = Dialer(resolver, {}, FAST, abroad=visitor)
    decision = table.decide(there.host, there.port)
    return await dialer.dial(table, decision, Asked(there, None, "lan"), own or OwnListeners())


@pytest.mark.netns
def test_a_connection_is_made_in_the_namespace(net: Network) -> None:
    """The same address is somebody else there."""
    lan = net.namespace("lan")
    with lan.listen("127.0.0.1") as server, contextlib.closing(Visitor()) as visitor:
        there = Endpoint(parse_address("127.0.0.1"), server.getsockname()[1])

        async def main() -> None:
            dialed = await dial_from(visitor, leaving(netns=lan.name, mark=7, dev="lo"), there)
            with dialed.sock:
                assert dialed.sock.gettimeout() == 0
                assert dialed.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
                peer, _ = server.accept()
                with peer:
                    assert peer.getpeername() == dialed.sock.getsockname()

        visitor.socket(lan.path, socket.AF_INET, socket.SOCK_STREAM).close()
        run(main)


@pytest.mark.netns
@pytest.mark.parametrize(
    ("bound", "dialled", "back"),
    [
        ("::", "203.0.113.9", True),
        ("::", "2001:db8::9", True),
        ("127.0.0.1", "203.0.113.9", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1 other port", False),
        ("127.0.0.1", "203.0.113.9 other port", False),
    ],
)
def test_our_own_listeners_there_are_not_dialled(net: Network, bound: str, dialled: str, back: bool) -> None:
    """R22: every address of such a namespace is its own, and so the listener's."""
    lan = net.namespace("lan")
    lan.everything_is_local()
    text, _, elsewhere = dialled.partition(" ")
    with lan.listen(bound) as ours, lan.listen("::") as theirs, contextlib.closing(Visitor()) as visitor:
        there = Endpoint(parse_address(text), (theirs if elsewhere else ours).getsockname()[1])
        own = OwnListeners()
        own.add("lan", ours)
        visitor.socket(lan.name, socket.AF_INET, socket.SOCK_STREAM).close()

        async def main() -> None:
            if back:
                with pytest.raises(DialError) as caught:
                    await dial_from(visitor, leaving(netns=lan.name), there, own)
                assert str(caught.value) == f"upstream `wg`: {there} is our own listener `lan`"
                assert caught.value.failure is Failure.REFUSED
                assert caught.value.tries == ()
            else:
                with contextlib.suppress(DialError):
                    (await dial_from(visitor, leaving(netns=lan.name), there, own)).sock.close()

        run(main)


def test_our_own_listener_is_not_dialled_through_a_direct_upstream_here() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as ours:
            own = OwnListeners()
            own.add("socks", ours)
            there = Endpoint(parse_address("127.0.0.1"), ours.getsockname()[1])
            with contextlib.closing(Visitor()) as visitor, pytest.raises(DialError, match="our own listener"):
                await dial_from(visitor, leaving(), there, own)

    run(main)


@pytest.mark.netns
def test_dials_in_ten_namespaces_at_once_each_arrive_in_theirs(net: Network) -> None:
    """R23, the whole way: fifty at a time, and one namespace is deleted meanwhile."""
    namespaces = [net.namespace(f"n{number}") for number in range(10)]
    doomed = Namespace("doomed")
    address = parse_address("127.0.0.1")
    with contextlib.ExitStack() as stack:
        servers = {one.name: stack.enter_context(one.listen("127.0.0.1")) for one in (*namespaces, doomed)}
        visitor = stack.enter_context(contextlib.closing(Visitor()))

        async def arrives(one: Namespace) -> bool:
            server = servers[one.name]
            there = Endpoint(address, server.getsockname()[1])
            dialed = await dial_from(visitor, leaving(netns=one.name), there)
            with dialed.sock:
                server.settimeout(20)
                peer, _ = await asyncio.to_thread(server.accept)
                peer.close()
            return True

        async def main() -> None:
            for _ in range(4):
                rounds = [arrives(one) for one in namespaces * 5]
                assert all(await asyncio.gather(*rounds))
            doomed.close()
            results = await asyncio.gather(
                *(arrives(one) for one in (*namespaces, doomed)), return_exceptions=True
            )
            assert results[:-1] == [True] * 10
            assert "there is no network namespace" in str(results[-1])

        visitor.socket(namespaces[0].name, socket.AF_INET, socket.SOCK_STREAM).close()
        asyncio.run(main())
    assert address_text(address) == "127.0.0.1"
