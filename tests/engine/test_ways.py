"""A direct upstream that goes `via` another one: what it says itself is said to the destination, beyond."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.socks_peers import Echo, Scripted, Working
from tests.engine.test_connect import FAST, run
from tests.engine.test_dial import hosts, proxy, says
from tests.engine.test_tls import TlsDoor, World, secured
from tests.engine.tls_peers import Authority
from tests.strategies import upstream
from urelay.errors import Blame, Failure
from urelay.net.address import Endpoint, parse_address
from urelay.policy.model import UpstreamKind

pytestmark = pytest.mark.peer("openssl")
__all__ = ["hosts"]  # the fixture of the dialer's tests

DIRECT, SOCKS4, SOCKS5, HTTP = (
    UpstreamKind.DIRECT, UpstreamKind.SOCKS4, UpstreamKind.SOCKS5, UpstreamKind.HTTP,
)  # fmt: skip
NOBODY = Endpoint(parse_address("127.0.0.9"), 9)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.mark.parametrize(
    ("kind", "options", "sent_as_it_is"),
    [
        (SOCKS5, {}, True),
        (HTTP, {}, True),
        (SOCKS5, {"dns": "local"}, False),
        (SOCKS4, {}, False),
        (SOCKS4, {"dns": "remote"}, True),
    ],
)
def test_the_certificate_holds_the_name_that_was_asked_for_whoever_resolves_it(
    authority: Authority, hosts: Path, kind: UpstreamKind, options: dict[str, object], sent_as_it_is: bool
) -> None:
    goal, names = Echo(b"goal"), {}
    door, way = TlsDoor(authority.server("DNS:here.example"), goal), Working(names)

    async def main() -> None:
        async with goal.serving(), door.serving(), way.serving():
            names["here.example"] = door.at
            secure = secured("secure", DIRECT, None, authority, via="corp")
            world = World(secure, proxy("corp", way.at, kind, **options), hosts=hosts)
            dialed = await world.dial("here.example", door.at.port)
            assert way.requests[0].host == ("here.example" if sent_as_it_is else door.at.host)
            assert door.names == ["here.example"]
            assert (dialed.dialed, dialed.decision.upstream) == (str(way.at), "secure")
            await says(dialed, b"goal")

    run(main)


def test_an_address_is_verified_as_an_address(authority: Authority) -> None:
    goal, way = Echo(b"goal"), Working()
    door = TlsDoor(authority.server("IP:127.0.0.1"), goal)

    async def main() -> None:
        async with goal.serving(), door.serving(), way.serving():
            secure = secured("secure", DIRECT, None, authority, via="corp")
            await says(await World(secure, proxy("corp", way.at)).dial("127.0.0.1", door.at.port), b"goal")
            assert door.names == [None]

    run(main)


def test_who_shows_a_wrong_certificate_gets_nothing_and_somebody_else_may_try(authority: Authority) -> None:
    """A proxy that puts itself in the place of the destination is told from the destination by nobody."""
    goal, way = Echo(b"goal"), Working()
    door = TlsDoor(authority.server("DNS:other.example"), goal)

    async def main() -> None:
        async with goal.serving(), door.serving(), way.serving():
            secure, corp = secured("secure", DIRECT, None, authority, via="corp"), proxy("corp", way.at)
            error = await World(secure, corp).fail("127.0.0.1", door.at.port)
            assert str(error).startswith(
                f"upstream `secure`: {door.at}: TLS: its certificate: IP address mismatch"
            )
            assert (error.failure, error.blame) == (Failure.ERROR, Blame.UNCLEAR)
            assert not goal.tasks
            other = secured("other", DIRECT, None, authority, via="corp", **{"server-name": "other.example"})
            group = upstream("out", UpstreamKind.FIRST, members=("secure", "other"))
            dialed = await World(group, secure, other, corp).dial("127.0.0.1", door.at.port)
            assert dialed.decision.upstream == "out/other"
            await says(dialed, b"goal")

    run(main)


@pytest.mark.parametrize("failure", [Failure.DENIED, Failure.REFUSED, Failure.HOST_UNREACHABLE])
def test_what_a_proxy_says_of_the_destination_is_handed_on(authority: Authority, failure: Failure) -> None:
    way = Working({"gone.example": NOBODY})
    way.refuse["gone.example"] = failure

    async def main() -> None:
        async with way.serving():
            secure = secured("secure", DIRECT, None, authority, via="corp")
            error = await World(secure, proxy("corp", way.at)).fail("gone.example", 443)
            plain = await World(proxy("corp", way.at)).fail("gone.example", 443)
            assert (error.failure, error.blame) == (failure, plain.blame)
            assert str(error) == f"upstream `secure`: {plain}"
            assert str(plain).startswith("upstream `corp`: ")

    run(main)


def test_the_members_of_a_group_on_the_way_replace_each_other(authority: Authority) -> None:
    goal, way = Echo(b"goal"), Working()
    door = TlsDoor(authority.server("IP:127.0.0.1"), goal)

    async def main() -> None:
        async with goal.serving(), door.serving(), way.serving():
            secure = secured("secure", DIRECT, None, authority, via="out")
            group = upstream("out", UpstreamKind.FIRST, members=("dead", "corp"))
            world = World(secure, group, proxy("dead", NOBODY), proxy("corp", way.at))
            dialed = await world.dial("127.0.0.1", door.at.port)
            assert dialed.tries == (
                *("out by dead", str(NOBODY)),
                *("out by corp", str(way.at), f"corp to {door.at}"),
            )
            assert dialed.decision.upstream == "secure"
            await says(dialed, b"goal")
            again = await world.dial("127.0.0.1", door.at.port)
            assert again.tries[0] == "out by corp"
            again.sock.close()

    run(main)


def test_the_header_goes_through_the_proxy_and_ahead_of_tls(authority: Authority) -> None:
    way, goal = Working(), Scripted([(len(b"PROXY UNKNOWN\r\n") + 3, [b"no TLS"])])

    async def main() -> None:
        async with way.serving(), goal.serving():
            told = secured("told", DIRECT, None, authority, via="corp", **{"send-proxy": "v1"})
            error = await World(told, proxy("corp", way.at)).fail("127.0.0.1", goal.at.port)
            assert "TLS: " in str(error)
            # Nothing is known of a client that has no address; then a handshake record.
            assert goal.received == b"PROXY UNKNOWN\r\n\x16\x03\x01"

    run(main)


def test_what_came_with_the_proxys_answer_is_not_lost() -> None:
    banner = b"220 ready\r\n"
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + banner
    way = Scripted([(len(b"CONNECT 192.0.2.7:25 HTTP/1.1\r\n"), [answer])], hold=True)

    async def main() -> None:
        async with way.serving():
            told = upstream("told", DIRECT, via="corp", **{"send-proxy": "v1"})
            dialed = await World(told, proxy("corp", way.at, HTTP)).dial("192.0.2.7", 25)
            dialed.sock.close()
            assert dialed.early_down == banner

    run(main)


def test_a_proxy_beyond_may_go_through_it_too(authority: Authority) -> None:
    """far, in TLS, by what speaks it: the same as `tls` on far."""
    goal, near, far = Echo(b"goal"), Working(), Working()
    door = TlsDoor(authority.server("DNS:far.example"), far)

    async def main() -> None:
        async with goal.serving(), near.serving(), far.serving(), door.serving():
            near.names = {"far.example": door.at}
            secure = secured("secure", DIRECT, None, authority, via="near")
            beyond = proxy("far", Endpoint("far.example", 443), via="secure")
            world = World(beyond, secure, proxy("near", near.at), timeouts=FAST)
            await says(await world.dial("127.0.0.1", goal.at.port), b"goal")
            assert door.names == ["far.example"]

    run(main)
