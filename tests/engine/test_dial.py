"""What is dialled is what was decided, for that very address; everything else ends without a socket."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import subprocess
import traceback
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.socks_peers import Echo, Peer, Scripted, Working
from tests.engine.test_connect import (
    FAST,
    IMPATIENT,
    descriptors,
    listening,
    refusing,
    run,
    silent,
    unix_listener,
)
from tests.engine.test_proxies import received
from tests.places import HERE, PACKED, own_port
from tests.strategies import policy, region, route, upstream, wall
from urelay.engine.connect import Timeouts
from urelay.engine.dial import Asked, Denied, Dialed, Dialer
from urelay.engine.ends import far_end
from urelay.engine.logins import Credentials
from urelay.engine.resolve import Resolver
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint, Host, parse_address, parse_endpoint, parse_host
from urelay.policy.model import (
    Action,
    Deny,
    DenyHow,
    Direct,
    Outcome,
    PortRange,
    Rewrite,
    Route,
    Silent,
    ToName,
    Unix,
    Upstream,
    UpstreamKind,
    Via,
    Wall,
)
from urelay.protocols.users import SaltedHash, Users
from urelay.table.compile import compile_policy
from urelay.table.decision import Decision

SOURCE = parse_address("192.168.7.9")
KINDS = [UpstreamKind.SOCKS5, UpstreamKind.HTTP]


class World:
    """A policy, a hosts file for names, and a dialer: everything one dial needs."""

    def __init__(
        self,
        routes: Iterable[Route],
        *,
        walls: Iterable[Wall] = (),
        upstreams: Iterable[Upstream] = (),
        hosts: Path | None = None,
        logins: dict[str, Credentials] | None = None,
        timeouts: Timeouts = FAST,
    ) -> None:
        self.table = compile_policy(policy(routes, walls=walls, upstreams=upstreams))
        resolver = Resolver(hosts=str(hosts) if hosts else "/nonexistent", resolv_conf="/nonexistent")
        self.dialer = Dialer(resolver, logins or {}, timeouts)

    async def dial(self, host: str | Host, port: int) -> Dialed:
        """Decide and dial, as the relay does."""
        destination = Endpoint(parse_host(host) if isinstance(host, str) else host, port)
        decision = self.table.decide(destination.host, port, SOURCE, "lan")
        return await self.dialer.dial(self.table, decision, Asked(destination, SOURCE, "lan"))

    async def fail(self, host: str | Host, port: int) -> DialError:
        """Dial what cannot be dialled."""
        with pytest.raises(DialError) as caught:
            await self.dial(host, port)
        return caught.value


def proxy(name: str, at: Endpoint, kind: UpstreamKind = UpstreamKind.SOCKS5, **options: object) -> Upstream:
    """An upstream that is somewhere."""
    return replace(upstream(name, kind, **options), endpoint=at)


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    """A hosts file with names for loopback addresses."""
    path = tmp_path / "hosts"
    path.write_text(
        "127.0.0.2 both.example\n::1 both.example\n127.0.0.3 two.example\n127.0.0.2 two.example\n"
        "127.0.0.2 four.example\n::1 six.example\n127.0.0.1 proxy.example here.example\n"
    )
    return path


ANY_DIRECT = route(region(), Direct(), 1)


# --- direct


def test_an_address_is_dialled() -> None:
    async def main() -> None:
        with listening() as there:
            dialed = await World([ANY_DIRECT]).dial(there.host, there.port)
            with dialed.sock:
                assert far_end(dialed.sock) == there
                assert (dialed.dialed, dialed.tries) == (str(there), (str(there),))
                assert dialed.decision.outcome is Outcome.DIRECT

    run(main)


def test_a_name_is_dialled_at_one_of_its_addresses(hosts: Path) -> None:
    async def main() -> None:
        with listening(parse_address("127.0.0.2")) as there:
            dialed = await World([ANY_DIRECT], hosts=hosts).dial("both.example", there.port)
            with dialed.sock:
                assert far_end(dialed.sock) == there
                assert dialed.decision.destination == there
                assert dialed.decision.needs_address is False
                assert dialed.tries == (str(there), f"[::1]:{there.port}")[: len(dialed.tries)]

    run(main)


def test_denied_answers_are_dropped_and_the_rest_dialled(hosts: Path) -> None:
    """S2: a name with a denied and an allowed address leads to the allowed one only."""

    async def main() -> None:
        with (
            listening(parse_address("127.0.0.2")) as allowed,
            # Somebody listens at the denied one as well.
            socket.create_server(("127.0.0.3", allowed.port)),
        ):
            world = World([ANY_DIRECT, route(region("127.0.0.3"), Deny(), 2)], hosts=hosts)
            dialed = await world.dial("two.example", allowed.port)
            with dialed.sock:
                assert far_end(dialed.sock) == allowed
                assert dialed.tries == (str(allowed),)

    run(main)


@pytest.mark.parametrize(
    ("deny", "failure"),
    [
        (Deny(), Failure.DENIED),
        (Deny(DenyHow.REFUSED), Failure.REFUSED),
        (Deny(DenyHow.HOST_UNREACHABLE), Failure.HOST_UNREACHABLE),
        (Deny(DenyHow.NET_UNREACHABLE), Failure.NET_UNREACHABLE),
        (Deny(DenyHow.TTL_EXPIRED), Failure.TTL_EXPIRED),
        (Silent(), Failure.DENIED),
    ],
)
def test_a_name_whose_every_address_is_denied_is_denied(
    hosts: Path, deny: Deny | Silent, failure: Failure
) -> None:
    async def main() -> None:
        error = await World([ANY_DIRECT, route(region("127.0.0.0/8"), deny, 7)], hosts=hosts).fail(
            "two.example", 80
        )
        assert isinstance(error, Denied)
        assert error.failure is failure
        assert error.decision.denied
        assert str(error.decision.route) == "test.urr:7"
        assert str(error) == "denied by test.urr:7"
        assert error.decision.destination == parse_endpoint("127.0.0.3:80")

    run(main)


def test_a_wall_holds_for_what_a_named_route_resolves_to(hosts: Path) -> None:
    async def main() -> None:
        world = World(
            [route(region("two.example", name=True), Direct())],
            walls=[wall(region("127.0.0.0/8"), 3)],
            hosts=hosts,
        )
        error = await world.fail("two.example", 80)
        assert isinstance(error, Denied)
        assert str(error.decision.wall) == "test.urr:3"

    run(main)


def test_a_denied_decision_is_never_dialled() -> None:
    async def main() -> None:
        with listening() as there:
            error = await World([]).fail(there.host, there.port)
            assert isinstance(error, Denied)
            assert error.failure is Failure.DENIED

    run(main)


def test_an_address_rewritten_to_a_name_is_resolved(hosts: Path) -> None:
    async def main() -> None:
        with listening() as there:
            action = Action(Direct(), Rewrite(ToName("here.example"), PortRange(there.port, there.port)))
            world = World([route(region("198.51.100.7"), action)], hosts=hosts)
            dialed = await world.dial("198.51.100.7", 80)
            with dialed.sock:
                assert far_end(dialed.sock) == there
                assert dialed.decision.destination == there

    run(main)


def test_a_second_name_is_not_resolved(hosts: Path) -> None:
    """An answer that a route rewrites to another name is denied, and the error says why."""

    async def main() -> None:
        action = Action(Direct(), Rewrite(ToName("here.example")))
        world = World([ANY_DIRECT, route(region("127.0.0.2"), action, 2)], hosts=hosts)
        error = await world.fail("four.example", 80)
        assert isinstance(error, Denied)
        assert str(error) == "the address of a host name leads to another host name"

    run(main)


def test_a_name_nobody_knows_is_told() -> None:
    async def main() -> None:
        error = await World([ANY_DIRECT]).fail("www.example", 80)
        assert error.failure is Failure.HOST_UNREACHABLE
        assert not isinstance(error, Denied)

    run(main)


@pytest.mark.parametrize(
    ("place", "timeouts", "failure"),
    [(refusing, FAST, Failure.REFUSED), (silent, IMPATIENT, Failure.TIMEOUT)],
    ids=["refused", "silent"],
)
def test_an_address_that_does_not_answer_is_told(
    place: Callable[[], object], timeouts: Timeouts, failure: Failure
) -> None:
    async def main() -> None:
        with place() as there:  # type: ignore[attr-defined]
            error = await World([ANY_DIRECT], timeouts=timeouts).fail(there.host, there.port)
            assert error.failure is failure
            assert str(there) in str(error)

    run(main)


# --- unix sockets


def test_a_path_is_filled_and_connected(tmp_path: Path) -> None:
    async def main() -> None:
        with unix_listener(tmp_path / "lan-192.0.2.7-80.sock"):
            template = str(tmp_path / "{listener}-{address}-{port}.sock")
            dialed = await World([route(region(), Unix(template))]).dial("192.0.2.7", 80)
            with dialed.sock:
                assert dialed.dialed == str(tmp_path / "lan-192.0.2.7-80.sock")
                assert dialed.sock.getpeername() == dialed.dialed
                assert dialed.decision.outcome is Outcome.UNIX

    run(main)


def test_a_name_fills_a_path_without_being_resolved(tmp_path: Path) -> None:
    async def main() -> None:
        with unix_listener(tmp_path / "www.example"):
            dialed = await World([route(region(), Unix(str(tmp_path / "{name}")))]).dial("www.example", 80)
            dialed.sock.close()

    run(main)


def test_a_path_that_cannot_be_filled_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        error = await World([route(region(), Unix(str(tmp_path / "{name}")))]).fail("192.0.2.7", 80)
        assert error.failure is Failure.HOST_UNREACHABLE
        assert "no {name}" in str(error)

    run(main)


# --- proxies


async def says(dialed: Dialed, banner: bytes) -> None:
    """See who is at the other end, and that the way is open in both directions; closes it."""
    loop = asyncio.get_running_loop()
    early = dialed.early_down
    with dialed.sock as sock:
        assert early + await received(sock, len(banner) - len(early)) == banner
        await loop.sock_sendall(sock, b"there and back")
        assert await received(sock, 14) == b"there and back"


def with_peers(*peers: Peer, test: Callable[[], Awaitable[None]]) -> None:
    """Run a test while the peers serve."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            for peer in peers:
                await stack.enter_async_context(peer.serving())
            await test()

    run(main)


@pytest.mark.parametrize("kind", [UpstreamKind.SOCKS4, UpstreamKind.SOCKS5, UpstreamKind.HTTP])
def test_an_address_goes_through_a_proxy(kind: UpstreamKind) -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        world = World([route(region(), Via("corp"))], upstreams=[proxy("corp", way.at, kind)])
        dialed = await world.dial(goal.at.host, goal.at.port)
        assert dialed.dialed == str(way.at)
        assert dialed.tries == (str(way.at), f"corp to {goal.at}")
        await says(dialed, b"goal")
        assert [(r.host, r.port) for r in way.requests] == [goal.at]

    with_peers(goal, way, test=main)


@pytest.mark.parametrize("kind", [UpstreamKind.SOCKS4, UpstreamKind.SOCKS5])
def test_a_name_is_sent_to_a_proxy_that_takes_names(kind: UpstreamKind) -> None:
    goal = Echo(b"goal")
    names: dict[str, Endpoint] = {}
    way = Working(names)

    async def main() -> None:
        names["www.example"] = goal.at
        corp = proxy("corp", way.at, kind, dns="remote")
        dialed = await World([route(region(), Via("corp"))], upstreams=[corp]).dial("www.example", 80)
        await says(dialed, b"goal")
        assert way.requests[0].host == "www.example"

    with_peers(goal, way, test=main)


def test_a_name_is_resolved_and_settled_for_a_proxy_that_does_not(hosts: Path) -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        corp = proxy("corp", way.at, dns="local")
        routes = [route(region(), Via("corp")), route(region("127.0.0.3"), Deny(), 2)]
        world = World(routes, upstreams=[corp], hosts=hosts)
        way.refuse[parse_address("127.0.0.2")] = Failure.REFUSED
        error = await world.fail("two.example", goal.at.port)
        assert error.failure is Failure.REFUSED
        assert [r.host for r in way.requests] == [parse_address("127.0.0.2")]
        dialed = await world.dial("here.example", goal.at.port)
        await says(dialed, b"goal")

    with_peers(goal, way, test=main)


def test_another_address_is_tried_when_the_proxy_cannot_reach_the_first(hosts: Path) -> None:
    goal, way = Echo(b"goal"), Working()
    hosts.write_text("::1 www.example\n127.0.0.1 www.example\n")
    way.refuse[parse_address("::1")] = Failure.NET_UNREACHABLE

    async def main() -> None:
        world = World(
            [route(region(), Via("corp"))], upstreams=[proxy("corp", way.at, dns="local")], hosts=hosts
        )
        await says(await world.dial("www.example", goal.at.port), b"goal")
        assert [r.host for r in way.requests] == [parse_address("::1"), parse_address("127.0.0.1")]

    with_peers(goal, way, test=main)


def test_a_socks4_proxy_is_asked_for_ipv4_answers_only(hosts: Path) -> None:
    goal, way = Echo(b"goal"), Working()
    hosts.write_text("::1 www.example six.example\n127.0.0.1 www.example\n")

    async def main() -> None:
        old = proxy("old", way.at, UpstreamKind.SOCKS4)
        world = World([route(region(), Via("old"))], upstreams=[old], hosts=hosts)
        dialed = await world.dial("www.example", goal.at.port)
        assert dialed.tries == (str(way.at), f"old to {goal.at}")
        await says(dialed, b"goal")
        error = await world.fail("six.example", goal.at.port)
        assert str(error) == "upstream `old` is a SOCKS4 proxy, which knows no IPv6"

    with_peers(goal, way, test=main)


def test_answers_that_go_another_way_are_not_mixed_in(hosts: Path) -> None:
    """The first allowed answer says which way; the proxy is not asked for an answer that is direct."""
    way = Working()

    async def main() -> None:
        routes = [route(region(), Direct()), route(region("127.0.0.2"), Via("corp"), 2)]
        world = World(routes, upstreams=[proxy("corp", way.at, dns="local")], hosts=hosts)
        with (
            refusing(parse_address("127.0.0.3")) as there,
            # Somebody listens at the address that is to be reached through the proxy only.
            socket.create_server(("127.0.0.2", there.port)),
        ):
            error = await world.fail("two.example", there.port)
        assert error.failure is Failure.REFUSED
        assert not way.requests

    with_peers(way, test=main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_login_is_used(kind: UpstreamKind) -> None:
    users = Users({"zoë".encode(): SaltedHash.of(b"canary")})
    goal, way = Echo(b"goal"), Working(users=users)

    async def main() -> None:
        corp = proxy("corp", way.at, kind)
        routes = [route(region(), Via("corp"))]
        world = World(routes, upstreams=[corp], logins={"corp": Credentials("zoë".encode(), b"canary")})
        await says(await world.dial(goal.at.host, goal.at.port), b"goal")
        wrong = World(routes, upstreams=[corp], logins={"corp": Credentials(b"zoe", b"canary")})
        error = await wrong.fail(goal.at.host, goal.at.port)
        assert error.failure is Failure.ERROR
        assert "canary" not in "".join(traceback.format_exception(error))
        without = World(routes, upstreams=[corp])
        assert (await without.fail(goal.at.host, goal.at.port)).failure is Failure.ERROR

    with_peers(goal, way, test=main)


def test_a_chain_asks_each_proxy_for_the_next(hosts: Path) -> None:
    goal = Echo(b"goal")
    names: dict[str, Endpoint] = {}
    near, middle, far = Working(names), Working(), Working(names)

    async def main() -> None:
        names["proxy.example"] = middle.at
        names["www.example"] = goal.at
        upstreams = [
            proxy("near", near.at),
            proxy("middle", Endpoint("proxy.example", middle.at.port), UpstreamKind.SOCKS4, via="near"),
            proxy("far", Endpoint("proxy.example", far.at.port), via="middle"),
        ]
        world = World([route(region(), Via("far"))], upstreams=upstreams, hosts=hosts)
        dialed = await world.dial("www.example", 80)
        assert dialed.dialed == str(near.at)
        await says(dialed, b"goal")
        # `near` takes names; `middle`, a SOCKS4 proxy, does not, so the next one's was resolved here.
        assert near.requests[0].host == "proxy.example"
        assert (middle.requests[0].host, middle.requests[0].port) == far.at
        assert far.requests[0].host == "www.example"

    with_peers(goal, near, middle, far, test=main)


@pytest.mark.parametrize("kind", KINDS)
def test_a_proxy_on_a_unix_socket_is_asked(tmp_path: Path, kind: UpstreamKind) -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        async with goal.serving(), way.serving(tmp_path / "proxy.sock"):
            corp = replace(upstream("corp", kind, unix=str(tmp_path / "proxy.sock")), endpoint=None)
            dialed = await World([route(region(), Via("corp"))], upstreams=[corp]).dial(
                goal.at.host, goal.at.port
            )
            assert dialed.dialed == str(tmp_path / "proxy.sock")
            await says(dialed, b"goal")

    run(main)


def test_a_proxys_own_address_is_not_judged(hosts: Path) -> None:
    """A wall round loopback stops clients, not the way to a configured proxy there."""
    way = Working()
    goal = Echo(b"goal")
    names: dict[str, Endpoint] = {}
    way.names = names

    async def main() -> None:
        names["www.example"] = goal.at
        corp = proxy("corp", Endpoint("proxy.example", way.at.port))
        world = World(
            [route(region(), Via("corp"))], walls=[wall(region("127.0.0.0/8"))], upstreams=[corp], hosts=hosts
        )
        await says(await world.dial("www.example", 80), b"goal")
        assert isinstance(await world.fail(goal.at.host, goal.at.port), Denied)

    with_peers(goal, way, test=main)


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("last", KINDS)
def test_chains_of_socks_and_http_lead_through(hosts: Path, first: UpstreamKind, last: UpstreamKind) -> None:
    goal, names = Echo(b"goal"), {}
    near, far = Working(names), Working(names)

    async def main() -> None:
        names.update({"proxy.example": far.at, "www.example": goal.at})
        upstreams = [
            proxy("near", near.at, first),
            proxy("far", Endpoint("proxy.example", far.at.port), last, via="near"),
        ]
        dialed = await World([route(region(), Via("far"))], upstreams=upstreams).dial("www.example", 80)
        assert dialed.dialed == str(near.at)
        assert [way.requests[0].host for way in (near, far)] == ["proxy.example", "www.example"]
        await says(dialed, b"goal")

    with_peers(goal, near, far, test=main)


def test_an_http_proxy_that_cannot_reach_one_address_is_asked_for_the_next(hosts: Path) -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        corp = proxy("corp", way.at, UpstreamKind.HTTP, dns="local")
        world = World([route(region(), Via("corp"))], upstreams=[corp], hosts=hosts)
        way.refuse = {parse_address("127.0.0.3"): Failure.REFUSED, parse_address("127.0.0.2"): Failure.DENIED}
        error = await world.fail("two.example", goal.at.port)
        assert error.failure is Failure.DENIED
        assert str(error) == "upstream `corp`: its rules deny the destination (HTTP 403)"
        assert {request.host for request in way.requests} == {bytes((127, 0, 0, 2)), bytes((127, 0, 0, 3))}

    with_peers(goal, way, test=main)


def test_what_comes_with_a_proxys_answer_is_handed_on() -> None:
    """The answer and the server's first words in one segment: the socket alone would have lost them."""
    head = b"CONNECT 192.0.2.7:80 HTTP/1.1\r\nHost: 192.0.2.7:80\r\n\r\n"
    way = Scripted([(len(head), [b"HTTP/1.1 200 OK\r\n\r\n220 ready\r\n"])], hold=True)

    async def main() -> None:
        corp = proxy("corp", way.at, UpstreamKind.HTTP)
        dialed = await World([route(region(), Via("corp"))], upstreams=[corp]).dial("192.0.2.7", 80)
        with dialed.sock:
            assert dialed.early_down == b"220 ready\r\n"
            assert dialed.tries == (str(way.at), "corp to 192.0.2.7:80")

    with_peers(way, test=main)


def test_a_direct_upstream_dials_the_destination_itself() -> None:
    async def main() -> None:
        with listening() as there:
            wg = upstream("wg", UpstreamKind.DIRECT)
            dialed = await World([route(region(), Via("wg"))], upstreams=[wg]).dial(there.host, there.port)
            with dialed.sock:
                assert far_end(dialed.sock) == there
                assert dialed.decision.upstream == "wg"

    run(main)


def test_an_upstreams_connect_timeout_is_its_own() -> None:
    async def main() -> None:
        with silent() as there:
            loop = asyncio.get_running_loop()
            start = loop.time()
            corp = proxy("corp", there, connect=0.1)
            world = World([route(region(), Via("corp"))], upstreams=[corp], timeouts=Timeouts())
            error = await world.fail("192.0.2.7", 80)
            assert error.failure is Failure.TIMEOUT
            assert str(error) == f"upstream `corp`: {there}: no answer in time"
            assert loop.time() - start < 5

    run(main)


def test_a_proxy_that_never_answers_ends_with_the_whole_time() -> None:
    mute = Scripted([(3, [b"\x05\x00"]), (10, [b"\x05"])], hold=True)

    async def main() -> None:
        world = World(
            [route(region(), Via("corp"))],
            upstreams=[proxy("corp", mute.at)],
            timeouts=replace(FAST, total_s=0.3),
        )
        error = await world.fail("192.0.2.7", 80)
        assert error.failure is Failure.TIMEOUT
        assert str(error) == "192.0.2.7:80: not connected in 0.3 s"

    with_peers(mute, test=main)


def test_a_proxy_that_refuses_is_named() -> None:
    async def main() -> None:
        with refusing() as there:
            world = World([route(region(), Via("corp"))], upstreams=[proxy("corp", there)])
            error = await world.fail("192.0.2.7", 80)
            assert error.failure is Failure.REFUSED
            assert str(error) == f"upstream `corp`: {there}: connection refused"

    run(main)


def test_a_proxy_without_an_address_inside_a_chain_is_told() -> None:
    way = Working()

    async def main() -> None:
        far = replace(upstream("far", unix="/nonexistent", via="near"), endpoint=None)
        world = World([route(region(), Via("far"))], upstreams=[far, proxy("near", way.at)])
        assert str(await world.fail("192.0.2.7", 80)) == "upstream `far`: it has no address to connect to"

    with_peers(way, test=main)


# --- cancelling


def test_no_cancel_at_any_moment_leaks_anything(tmp_path: Path, hosts: Path) -> None:
    """R16: direct, through proxies and to unix sockets, cancelled after a random number of steps."""
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        rng = random.Random(16)
        loop = asyncio.get_running_loop()
        routes = [
            route(region(), Direct(), 1),
            route(region("127.0.0.2"), Via("corp"), 2),
            route(region("192.0.2.0/24"), Unix(str(tmp_path / "{port}")), 3),
        ]
        world = World(
            routes, upstreams=[proxy("corp", way.at, via="near"), proxy("near", way.at)], hosts=hosts
        )
        with unix_listener(tmp_path / "80", backlog=4096) as server:
            before = descriptors() - len(way.tasks) - len(goal.tasks)
            for _ in range(600):
                where = rng.choice(["127.0.0.1", "127.0.0.2", "both.example", "here.example", "192.0.2.7"])
                port = 80 if where.startswith("192") else goal.at.port
                task = loop.create_task(world.dial(where, port))
                for _ in range(rng.randrange(25)):
                    await asyncio.sleep(0)
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(result, Dialed | DialError | asyncio.CancelledError), result
                if isinstance(result, Dialed):
                    result.sock.close()
            server.close()
            # The peers see their ends closed; then nothing of ours is left.
            async with asyncio.timeout(20):
                while way.tasks or goal.tasks:
                    await asyncio.sleep(0.001)
            assert descriptors() <= before

    with_peers(goal, way, test=main)


def test_a_cancellation_that_was_swallowed_underneath_is_still_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library may finish its race while it is cancelled: the socket is closed, the cancel stands."""

    async def main() -> None:
        ours, theirs = socket.socketpair()

        async def run_on(self: object, decision: Decision) -> Dialed:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return Dialed(ours, decision, "x", ())

        monkeypatch.setattr("urelay.engine.dial._Dial.run", run_on)
        task = asyncio.get_running_loop().create_task(World([ANY_DIRECT]).dial("192.0.2.7", 80))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ours.fileno() == -1
        theirs.close()

    run(main)


# --- a real proxy


@pytest.mark.peer("danted")
def test_dante_is_asked_and_refuses(tmp_path: Path) -> None:
    """Through a real Dante: SOCKS4 and 5, an address and a name, and its refusal of a closed port."""
    goal = Echo(b"goal")

    async def main() -> None:
        # An address of its own, where nobody else takes a port.
        at = Endpoint(PACKED, own_port())
        config = tmp_path / "danted.conf"
        config.write_text(
            f"logoutput: {tmp_path}/danted.log\ninternal: {HERE} port = {at.port}\nexternal: lo\n"
            "socksmethod: none\nclientmethod: none\n"
            "client pass { from: 0.0.0.0/0 to: 0.0.0.0/0 log: connect disconnect error }\n"
            "socks pass { from: 0.0.0.0/0 to: 0.0.0.0/0 log: connect disconnect error }\n"
        )
        danted = shutil.which("danted")
        assert danted is not None
        process = subprocess.Popen([danted, "-f", str(config), "-N", "1"], start_new_session=True)
        try:
            for kind in (UpstreamKind.SOCKS4, UpstreamKind.SOCKS5):
                world = World(
                    [route(region(), Via("corp"))], upstreams=[proxy("corp", at, kind, dns="remote")]
                )
                async with asyncio.timeout(30):
                    while isinstance(dialed := await attempt(world, goal.at), DialError):
                        assert process.poll() is None, (tmp_path / "danted.log").read_text()
                        await asyncio.sleep(0.05)
                await says(dialed, b"goal")
                if kind is UpstreamKind.SOCKS5:  # Dante 1.4 knows no SOCKS4a: it would dial 0.0.0.1
                    await says(await world.dial("localhost", goal.at.port), b"goal")
                with refusing() as bad:
                    error = await world.fail(bad.host, bad.port)
                assert error.failure is (Failure.REFUSED if kind is UpstreamKind.SOCKS5 else Failure.ERROR)
        finally:
            process.terminate()
            process.wait(20)

    with_peers(goal, test=main)


async def attempt(world: World, goal: Endpoint) -> Dialed | DialError:
    """Dial, or say why not: for waiting until a peer is up."""
    try:
        return await world.dial(goal.host, goal.port)
    except DialError as error:
        return error
