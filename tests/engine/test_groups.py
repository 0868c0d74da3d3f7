"""A group leads through a member that works; what a member says of the destination is the answer."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import random
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import pytest

from tests.engine.socks_peers import Echo, Scripted, Working
from tests.engine.test_connect import FAST, descriptors, listening, refusing, run, silent
from tests.engine.test_dial import SOURCE, World, proxy, says, with_peers
from tests.places import HERE, PACKED, own_port
from tests.strategies import policy, region, route, upstream
from urelay.engine.connect import far_end
from urelay.engine.dial import Asked, Dialed, Dialer
from urelay.engine.groups import Bearer, candidates
from urelay.engine.health import Condition, Health
from urelay.engine.resolve import Resolver
from urelay.errors import Blame, DialError, Failure
from urelay.net.address import Endpoint, parse_address
from urelay.policy.model import HealthCheck, Upstream, UpstreamKind, Via
from urelay.table.compile import compile_policy


def group(kind: UpstreamKind, *members: str, name: str = "out", **options: object) -> Upstream:
    return upstream(name, kind, members=members, **options)


def first(*members: str, **options: object) -> Upstream:
    return group(UpstreamKind.FIRST, *members, **options)


def through(*upstreams: Upstream, timeouts: object = FAST) -> World:
    """Everything goes through the first of them."""
    routes = [route(region(), Via(upstreams[0].name))]
    return World(routes, upstreams=upstreams, timeouts=timeouts)  # type: ignore[arg-type]


def conditions(world: World) -> dict[str, Condition]:
    return dict(world.dialer._gear.conditions)


# --- first


def test_the_first_that_works_is_used_and_named() -> None:
    goal, a, b = Echo(b"goal"), Working(), Working()

    async def main() -> None:
        world = through(first("a", "b"), proxy("a", a.at), proxy("b", b.at))
        for _ in range(3):
            dialed = await world.dial(goal.at.host, goal.at.port)
            assert (dialed.decision.upstream, dialed.dialed) == ("out/a", str(a.at))
            assert dialed.tries == ("out by a", str(a.at), f"a to {goal.at}")
            await says(dialed, b"goal")
        assert not b.requests

    with_peers(goal, a, b, test=main)


@pytest.mark.parametrize("place", [refusing, silent], ids=["refused", "silent"])
def test_a_member_that_cannot_be_reached_is_skipped_at_once_and_for_a_while(
    place: Callable[[], contextlib.AbstractContextManager[Endpoint]],
) -> None:
    goal, b = Echo(b"goal"), Working()

    async def main() -> None:
        with place() as dead:
            world = through(first("a", "b"), proxy("a", dead, connect=0.2), proxy("b", b.at))
            dialed = await world.dial(goal.at.host, goal.at.port)
            assert dialed.decision.upstream == "out/b"
            assert dialed.tries == ("out by a", str(dead), "out by b", str(b.at), f"b to {goal.at}")
            await says(dialed, b"goal")
            condition = conditions(world)["a"]
            assert condition.suspect
            # The while is over for nobody, however long the machine takes.
            condition._until += 100
            again = await world.dial(goal.at.host, goal.at.port)
            assert again.tries[0] == "out by b"
            await says(again, b"goal")

    with_peers(goal, b, test=main)


@pytest.mark.parametrize(
    ("code", "failure", "goes_on"),
    [
        (1, Failure.ERROR, True),
        (2, Failure.DENIED, False),
        (3, Failure.NET_UNREACHABLE, True),
        (4, Failure.HOST_UNREACHABLE, True),
        (5, Failure.REFUSED, False),
        (6, Failure.TTL_EXPIRED, True),
        (7, Failure.ERROR, True),
        (8, Failure.ERROR, True),
    ],
)
def test_what_a_proxy_says_of_the_destination_is_no_failure_of_it(
    code: int, failure: Failure, goes_on: bool
) -> None:
    """A refusal and a denial are the last word; where it cannot get to, another may. Neither is set aside."""
    goal, b = Echo(b"goal"), Working()
    a = Scripted([(3, [b"\x05\x00"]), (10, [bytes((5, code, 0, 1)) + bytes(6)])])

    async def main() -> None:
        world = through(first("a", "b"), proxy("a", a.at), proxy("b", b.at))
        if goes_on:
            dialed = await world.dial(goal.at.host, goal.at.port)
            assert dialed.decision.upstream == "out/b"
            await says(dialed, b"goal")
        else:
            error = await world.fail(goal.at.host, goal.at.port)
            assert (error.failure, error.blame) == (failure, Blame.DESTINATION)
            assert not b.requests
        assert not conditions(world)["a"].suspect

    with_peers(goal, a, b, test=main)


@pytest.mark.parametrize(
    ("answer", "goes_on", "suspect"),
    [
        (b"403 Forbidden", False, False),
        (b"502 Bad Gateway\r\nProxy-Status: p; error=connection_refused", False, False),
        (b"502 Bad Gateway", True, False),
        (b"504 Gateway Timeout", True, False),
        (b"407 Proxy Authentication Required", True, True),
    ],
    ids=["403", "502 refused", "502", "504", "407"],
)
def test_what_an_http_proxy_says_of_the_destination_is_no_failure_of_it(
    answer: bytes, goes_on: bool, suspect: bool
) -> None:
    goal, b = Echo(b"goal"), Working()

    async def main() -> None:
        request = f"CONNECT {goal.at} HTTP/1.1\r\nHost: {goal.at}\r\n\r\n".encode()
        a = Scripted([(len(request), [b"HTTP/1.1 " + answer + b"\r\n\r\n"])])
        async with a.serving():
            http = proxy("a", a.at, UpstreamKind.HTTP)
            world = through(first("a", "b"), http, proxy("b", b.at))
            if goes_on:
                await says(await world.dial(goal.at.host, goal.at.port), b"goal")
            else:
                assert (await world.fail(goal.at.host, goal.at.port)).blame is Blame.DESTINATION
            assert a.received == request
            assert conditions(world)["a"].suspect is suspect
            assert bool(b.requests) is goes_on

    with_peers(goal, b, test=main)


def test_a_denial_is_never_got_round_by_going_direct() -> None:
    """What the first proxy's rules deny stays denied, though another way stands open."""
    goal = Echo(b"goal")
    a = Scripted([(3, [b"\x05\x00"]), (10, [b"\x05\x02\x00\x01" + bytes(6)])])

    async def main() -> None:
        world = through(first("a", "wg"), proxy("a", a.at), upstream("wg", UpstreamKind.DIRECT))
        assert (await world.fail(goal.at.host, goal.at.port)).failure is Failure.DENIED

    with_peers(goal, a, test=main)


@pytest.mark.parametrize(
    "script",
    [[(3, [b"\x05\xff"])], [(3, [b"HTTP/1.1 400 Bad"])], [(3, [])]],
    ids=["no login", "not SOCKS", "closes"],
)
def test_a_proxy_that_makes_no_sense_is_at_fault_once_another_gets_through(
    script: list[tuple[int, list[bytes]]],
) -> None:
    goal, a, b = Echo(b"goal"), Scripted(script), Working()

    async def main() -> None:
        world = through(first("a", "b"), proxy("a", a.at), proxy("b", b.at))
        await says(await world.dial(goal.at.host, goal.at.port), b"goal")
        assert conditions(world)["a"].suspect
        alone = through(first("a"), proxy("a", a.at))
        await alone.fail(goal.at.host, goal.at.port)
        assert not conditions(alone)["a"].suspect

    with_peers(goal, a, b, test=main)


def test_a_proxy_that_never_answers_leaves_time_for_the_next() -> None:
    goal, b = Echo(b"goal"), Working()
    mute = Scripted([(3, [b"\x05\x00"])], hold=True)

    async def main() -> None:
        timeouts = replace(FAST, total_s=2)
        world = through(first("a", "b"), proxy("a", mute.at), proxy("b", b.at), timeouts=timeouts)
        dialed = await world.dial(goal.at.host, goal.at.port)
        assert dialed.decision.upstream == "out/b"
        await says(dialed, b"goal")
        assert conditions(world)["a"].suspect

    with_peers(goal, mute, b, test=main)


def test_a_dead_destination_does_not_spoil_the_members() -> None:
    async def main() -> None:
        with silent() as nowhere:
            wg = upstream("wg", UpstreamKind.DIRECT)
            world = through(
                first("wg", "wg2"),
                wg,
                upstream("wg2", UpstreamKind.DIRECT),
                timeouts=replace(FAST, address_s=0.2),
            )
            error = await world.fail(nowhere.host, nowhere.port)
            assert error.failure is Failure.TIMEOUT
            assert not any(one.suspect for one in conditions(world).values())

    run(main)


def test_a_way_that_cannot_take_this_destination_is_passed_over() -> None:
    async def main() -> None:
        with listening(parse_address("::1")) as there:
            four = upstream("four", UpstreamKind.DIRECT, source=parse_address("127.0.0.1"))
            world = through(first("four", "any"), four, upstream("any", UpstreamKind.DIRECT))
            dialed = await world.dial(there.host, there.port)
            with dialed.sock:
                assert dialed.decision.upstream == "out/any"
            assert not conditions(world)["four"].suspect

    run(main)


def test_a_member_that_cannot_leave_as_it_should_is_set_aside() -> None:
    async def main() -> None:
        with listening() as there:
            wg = upstream("wg", UpstreamKind.DIRECT, dev="nothere0")
            world = through(first("wg", "any"), wg, upstream("any", UpstreamKind.DIRECT))
            dialed = await world.dial(there.host, there.port)
            with dialed.sock:
                assert far_end(dialed.sock) == there
            assert conditions(world)["wg"].suspect

    run(main)


def test_nobody_got_through_tells_of_everybody() -> None:
    async def main() -> None:
        with refusing() as one, refusing() as two:
            world = through(first("a", "b"), proxy("a", one), proxy("b", two))
            error = await world.fail("192.0.2.7", 80)
            assert str(error) == (
                f"upstream `out`: nobody got through: upstream `a`: {one}: connection refused;"
                f" upstream `b`: {two}: connection refused"
            )
            assert (error.failure, error.blame) == (Failure.REFUSED, Blame.WAY)
            assert error.tries == ("out by a", str(one), "out by b", str(two))
            # Both are set aside, and both are tried again: who else?
            assert len((await world.fail("192.0.2.7", 80)).tries) == 4

    run(main)


def test_groups_of_groups_and_a_proxy_behind_a_group() -> None:
    goal, a, b, far = Echo(b"goal"), Working(), Working(), Working()

    async def main() -> None:
        with refusing() as dead:
            inner = first("dead", "a", name="inner")
            outer = first("inner", "b")
            members = [proxy("dead", dead), proxy("a", a.at), proxy("b", b.at)]
            dialed = await through(outer, inner, *members).dial(goal.at.host, goal.at.port)
            assert dialed.decision.upstream == "out/inner/a"
            await says(dialed, b"goal")
            tunnel = proxy("tunnel", far.at, via="out")
            dialed = await through(tunnel, outer, inner, *members).dial(goal.at.host, goal.at.port)
            assert dialed.decision.upstream == "tunnel"
            assert (a.requests[-1].host, a.requests[-1].port) == far.at
            await says(dialed, b"goal")
            hopeless = through(first("inner", "b"), first("dead", name="inner"), *members)
            dialed = await hopeless.dial(goal.at.host, goal.at.port)
            assert dialed.decision.upstream == "out/b"
            assert conditions(hopeless)["inner"].suspect
            await says(dialed, b"goal")

    with_peers(goal, a, b, far, test=main)


def test_a_member_comes_back_by_one_connection_that_tries_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's; nothing sleeps."""
    goal, a, b = Echo(b"goal"), Working(), Working()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        world = through(first("a", "b"), proxy("a", a.at), proxy("b", b.at))
        conditions(world)
        condition = world.dialer._gear.conditions["a"]
        condition.failed(loop.time(), loop.time(), "why")
        assert (await dialed_by(world, goal.at)) == "out/b"
        condition._until = loop.time()
        assert (await dialed_by(world, goal.at)) == "out/a"
        assert not condition.suspect

    with_peers(goal, a, b, test=main)


async def dialed_by(world: World, there: Endpoint) -> str | None:
    dialed = await world.dial(there.host, there.port)
    dialed.sock.close()
    return dialed.decision.upstream


# --- spread


def bearers(count: int) -> Iterator[Bearer]:
    rng = random.Random(7)
    for _ in range(count):
        yield Bearer(rng.randbytes(4), f"host{rng.randrange(10**6)}.example")


def conditions_for(spread: Upstream) -> dict[str, Condition]:
    return {name: Condition(name) for name in spread.members}


@pytest.mark.parametrize("by", ["source", "destination"])
def test_spreading_is_even_and_steady(by: str) -> None:
    spread = group(UpstreamKind.SPREAD, "a", "b", "c", by=by)
    known = conditions_for(spread)
    shares = collections.Counter(candidates(spread, one, known, 0)[0] for one in bearers(3000))
    assert all(900 < shares[name] < 1100 for name in "abc"), shares
    for one in bearers(50):
        other = one._replace(destination="x.example") if by == "source" else one._replace(source=b"\1\2\3\4")
        assert candidates(spread, one, known, 0) == candidates(spread, other, known, 0)
    # The same in every process: a hash that is seeded would not be.
    assert candidates(spread, Bearer(bytes(4), "a.example"), known, 0) == (
        ["a", "c", "b"] if by == "source" else candidates(spread, Bearer(None, "a.example"), known, 0)
    )


def test_a_dead_member_moves_only_its_own() -> None:
    spread = group(UpstreamKind.SPREAD, "a", "b", "c", by="source")
    known = conditions_for(spread)
    before = {one: candidates(spread, one, known, 0)[0] for one in bearers(1000)}
    known["b"].failed(0, 0, "why")
    after = {one: candidates(spread, one, known, 0.5)[0] for one in before}
    moved = [one for one in before if before[one] != after[one]]
    assert {before[one] for one in moved} == {"b"}
    assert len(moved) == sum(1 for one in before if before[one] == "b")
    shares = collections.Counter(after[one] for one in moved)
    assert min(shares["a"], shares["c"]) > len(moved) / 3


def test_spread_without_a_word_is_by_source_and_random_is_neither() -> None:
    known = {name: Condition(name) for name in "abc"}
    one, other = Bearer(b"\x0a\0\0\1", "x.example"), Bearer(b"\x0a\0\0\1", "y.example")
    plain = group(UpstreamKind.SPREAD, "a", "b", "c")
    assert candidates(plain, one, known, 0) == candidates(plain, other, known, 0)
    for options in ({"random": True}, {"by": "random"}):
        anyhow = group(UpstreamKind.SPREAD, "a", "b", "c", **options)
        assert {candidates(anyhow, one, known, 0)[0] for _ in range(200)} == {"a", "b", "c"}


def test_a_client_stays_with_its_member_and_is_moved_when_that_fails() -> None:
    goal, a, b = Echo(b"goal"), Working(), Working()

    async def main() -> None:
        spread = group(UpstreamKind.SPREAD, "a", "b")
        with refusing() as dead:
            world = through(spread, proxy("a", a.at), proxy("b", b.at))
            used = {await dialed_by(world, goal.at) for _ in range(10)}
            (own,) = used
            places = {name: dead if own == f"out/{name}" else peer.at for name, peer in (("a", a), ("b", b))}
            broken = through(spread, *(proxy(name, at) for name, at in places.items()))
            assert {await dialed_by(broken, goal.at) for _ in range(5)} == {"out/a", "out/b"} - used

    with_peers(goal, a, b, test=main)


# --- checks


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.002)


def checked(test: Callable[[World], Awaitable[None]], *upstreams: Upstream) -> Callable[[], Awaitable[None]]:
    """Run a test while the checks of its world run."""

    async def main() -> None:
        world = through(*upstreams)
        checks = world.dialer.checks(world.table)
        assert checks
        task = asyncio.get_running_loop().create_task(checks.run())
        try:
            await test(world)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    return main


def test_only_a_group_that_asks_for_it_is_checked() -> None:
    async def main() -> None:
        world = through(first("a"), upstream("a", UpstreamKind.DIRECT))
        assert not world.dialer.checks(world.table)

    run(main)


def test_a_check_finds_out_who_is_gone_and_who_is_back() -> None:
    goal, b = Echo(b"goal"), Working()

    async def test(world: World) -> None:
        condition = world.dialer._gear.conditions["a"]
        assert not condition.suspect  # nobody is asked at the start
        await eventually(lambda: condition.suspect)
        assert (await dialed_by(world, goal.at)) == "out/b"
        with socket.create_server((HERE, nobody.port)) as server:
            server.setblocking(False)
            serving = asyncio.get_running_loop().create_task(answer(server))
            await eventually(lambda: not condition.suspect)
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

    async def answer(server: socket.socket) -> None:
        """A SOCKS proxy that says yes to everything."""
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(server)
            with sock:
                await loop.sock_recv(sock, 3)
                await loop.sock_sendall(sock, b"\x05\x00")
                await loop.sock_recv(sock, 10)
                await loop.sock_sendall(sock, b"\x05\x00\x00\x01" + bytes(6))
                await loop.sock_recv(sock, 1)

    # Where nobody else takes the port, before the proxy is there or while it is.
    nobody = Endpoint(PACKED, own_port())

    async def main() -> None:
        check = HealthCheck(goal.at, 0.02)
        await checked(test, first("a", "b", check=check), proxy("a", nobody), proxy("b", b.at))()
        assert all((one.host, one.port) == goal.at for one in b.requests)

    with_peers(goal, b, test=main)


def test_a_member_that_carries_clients_is_not_asked() -> None:
    goal, a, b = Echo(b"goal"), Working(), Working()

    async def test(world: World) -> None:
        world.dialer._gear.conditions["a"].worked(asyncio.get_running_loop().time() + 1000)
        await eventually(lambda: len(b.requests) >= 3)
        assert not a.requests

    async def main() -> None:
        check = HealthCheck(goal.at, 0.01)
        await checked(test, first("a", "b", check=check), proxy("a", a.at), proxy("b", b.at))()

    with_peers(goal, a, b, test=main)


def test_checks_end_without_leaving_anything() -> None:
    """R16: cancelled at any moment, in the middle of a dial too."""
    goal, a = Echo(b"goal"), Working()

    async def main() -> None:
        before = descriptors()
        rng = random.Random(16)
        check = HealthCheck(goal.at, 0.001)
        for _ in range(40):
            steps = rng.randrange(30)

            async def test(world: World, steps: int = steps) -> None:
                await asyncio.sleep(0.002)
                for _ in range(steps):
                    await asyncio.sleep(0)

            await checked(test, first("a", "b", check=check), proxy("a", a.at), proxy("b", a.at))()
        # The peers see their ends closed; then nothing of ours is left.
        await eventually(lambda: not (a.tasks or goal.tasks) and descriptors() <= before)

    with_peers(goal, a, test=main)


# --- what survives a reload


def test_a_new_dialer_with_the_same_upstreams_knows_who_is_set_aside() -> None:
    goal, b = Echo(b"goal"), Working()

    async def main() -> None:
        health = Health()
        with refusing() as dead:
            members = [first("a", "b"), proxy("a", dead), proxy("b", b.at)]
            tries = []
            for _ in range(2):
                table = compile_policy(policy([route(region(), Via("out"))], upstreams=members))
                dialer = Dialer(
                    Resolver(hosts="/nonexistent"), {}, FAST, conditions=health.adopt(table.policy.upstreams)
                )
                decision = table.decide(goal.at.host, goal.at.port)
                dialed = await dialer.dial(table, decision, Asked(goal.at, SOURCE, "lan"))
                tries.append(dialed.tries[0])
                await says(dialed, b"goal")
            assert tries == ["out by a", "out by b"]

    with_peers(goal, b, test=main)


def test_no_cancel_at_any_moment_leaks_anything() -> None:
    """R16, for groups: a dead member first, then one that works."""
    goal, b = Echo(b"goal"), Working()

    async def main() -> None:
        rng = random.Random(17)
        loop = asyncio.get_running_loop()
        with refusing() as dead:
            world = through(
                first("inner", "a"),
                group(UpstreamKind.SPREAD, "dead", "b", name="inner", random=True),
                proxy("dead", dead),
                proxy("b", b.at),
                proxy("a", b.at),
            )
            before = descriptors() - len(b.tasks) - len(goal.tasks)
            for _ in range(300):
                task = loop.create_task(world.dial(goal.at.host, goal.at.port))
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0)
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(result, Dialed | DialError | asyncio.CancelledError), result
                if isinstance(result, Dialed):
                    result.sock.close()
        await eventually(lambda: not (b.tasks or goal.tasks) and descriptors() <= before)

    with_peers(goal, b, test=main)
