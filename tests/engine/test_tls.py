"""TLS to proxies and to destinations: who does not show the right name is not spoken to."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engine.socks_peers import LOCALHOST, Echo, Peer, Scripted, Working, copy
from tests.engine.test_connect import FAST, descriptors, run
from tests.engine.test_dial import SOURCE, hosts, proxy, says
from tests.engine.tls_peers import Authority
from tests.strategies import policy, region, route, upstream
from urelay.engine.connect import Timeouts
from urelay.engine.dial import Asked, Dialed, Dialer
from urelay.engine.resolve import Resolver
from urelay.engine.tls import read_trust
from urelay.errors import Blame, DialError, Failure, StartError
from urelay.net.address import Endpoint, host_text, parse_host
from urelay.policy.model import Action, Rewrite, ToName, Upstream, UpstreamKind, Via
from urelay.table.compile import compile_policy

pytestmark = pytest.mark.peer("openssl")
__all__ = ["hosts"]  # the fixture of the dialer's tests


ENDLESS = b"\x16\x03\x03\x40\x00" + bytes(16384)
"""A handshake record of the largest size, with nothing in it"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


class TlsDoor(Peer):
    """Takes TLS off and goes on to another peer."""

    def __init__(self, context: ssl.SSLContext, behind: Peer) -> None:
        super().__init__()
        self.context = context
        self.behind = behind
        self.names: list[str | None] = []
        context.sni_callback = lambda _socket, name, _context: self.names.append(name)

    @asynccontextmanager
    async def serving(self, path: Path | None = None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0, ssl=self.context)
        self.at = Endpoint(LOCALHOST, server.sockets[0].getsockname()[1])
        try:
            async with server:
                yield
        finally:
            while self.tasks:
                for task in self.tasks:
                    task.cancel()
                await asyncio.wait(self.tasks)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at = self.behind.at
        far_reader, far_writer = await asyncio.open_connection(host_text(at.host), at.port)
        there = asyncio.ensure_future(copy(reader, far_writer))
        back = asyncio.ensure_future(copy(far_reader, writer))
        try:
            await asyncio.wait((there, back), return_when=asyncio.FIRST_COMPLETED)
        finally:
            # First of all: whoever ends this peer may cancel it again while it waits.
            far_writer.close()
            for task in (there, back):
                task.cancel()
            await asyncio.gather(there, back, return_exceptions=True)


def secured(
    name: str, kind: UpstreamKind, at: Endpoint | None, authority: Authority, **options: object
) -> Upstream:
    """An upstream that trusts the test's authority."""
    trust = {} if "insecure" in options else {"ca": str(authority.certificate)}
    return replace(upstream(name, kind, tls=True, **trust, **options), endpoint=at)


class World:
    """Everything goes through the first of some upstreams."""

    def __init__(
        self,
        *upstreams: Upstream,
        hosts: Path | None = None,
        timeouts: Timeouts = FAST,
        action: Action | None = None,
    ) -> None:
        routes = [route(region(), action or Via(upstreams[0].name))]
        self.table = compile_policy(policy(routes, upstreams=upstreams))
        resolver = Resolver(hosts=str(hosts) if hosts else "/nonexistent", resolv_conf="/nonexistent")
        self.dialer = Dialer(resolver, {}, timeouts, tls=read_trust(self.table.policy))

    async def dial(self, host: str, port: int) -> Dialed:
        destination = Endpoint(parse_host(host), port)
        decision = self.table.decide(destination.host, port, SOURCE, "lan")
        return await self.dialer.dial(self.table, decision, Asked(destination, SOURCE, "lan"))

    async def fail(self, host: str, port: int) -> DialError:
        with pytest.raises(DialError) as caught:
            await self.dial(host, port)
        return caught.value


# --- to the destination


@pytest.mark.parametrize(
    ("names", "asked", "options", "sent"),
    [
        (("DNS:here.example",), "here.example", {}, "here.example"),
        (("IP:127.0.0.1",), "127.0.0.1", {}, None),
        (("DNS:web.example",), "127.0.0.1", {"server-name": "web.example"}, "web.example"),
        (("DNS:web.example",), "here.example", {"server-name": "web.example"}, "web.example"),
        (("DNS:other.example",), "here.example", {"insecure": True}, "here.example"),
    ],
)
def test_a_plain_client_gets_tls_to_the_name_it_asked_for(
    authority: Authority,
    hosts: Path,
    names: tuple[str, ...],
    asked: str,
    options: dict[str, object],
    sent: str | None,
) -> None:
    goal = Echo(b"goal")
    door = TlsDoor(authority.server(*names), goal)

    async def main() -> None:
        async with goal.serving(), door.serving():
            out = secured("out", UpstreamKind.DIRECT, None, authority, **options)
            dialed = await World(out, hosts=hosts).dial(asked, door.at.port)
            assert dialed.dialed == str(door.at)
            await says(dialed, b"goal")
            assert door.names == [sent]

    run(main)


def test_after_a_rewrite_it_is_the_new_name(authority: Authority, hosts: Path) -> None:
    goal = Echo(b"goal")
    door = TlsDoor(authority.server("DNS:here.example"), goal)

    async def main() -> None:
        async with goal.serving(), door.serving():
            out = secured("out", UpstreamKind.DIRECT, None, authority)
            action = Action(Via("out"), Rewrite(ToName("here.example")))
            await says(await World(out, hosts=hosts, action=action).dial("192.0.2.7", door.at.port), b"goal")
            assert door.names == ["here.example"]

    run(main)


@pytest.mark.parametrize(
    ("names", "asked", "what"),
    [
        (("DNS:other.example",), "here.example", "hostname mismatch"),
        (("DNS:here.example",), "127.0.0.1", "IP address mismatch"),
        (("DNS:127.0.0.1",), "127.0.0.1", "IP address mismatch"),
    ],
)
def test_a_certificate_of_somebody_else_is_refused(
    authority: Authority, hosts: Path, names: tuple[str, ...], asked: str, what: str
) -> None:
    goal = Echo(b"goal")
    door = TlsDoor(authority.server(*names), goal)

    async def main() -> None:
        async with goal.serving(), door.serving():
            out = secured("out", UpstreamKind.DIRECT, None, authority)
            error = await World(out, hosts=hosts).fail(asked, door.at.port)
            assert what.lower() in str(error).lower()
            assert str(error).startswith(f"upstream `out`: {door.at}: TLS: its certificate: ")
            assert (error.failure, error.blame) == (Failure.ERROR, Blame.DESTINATION)
            assert not goal.tasks

    run(main)


def test_an_authority_that_is_not_trusted_is_refused(
    authority: Authority, hosts: Path, tmp_path: Path
) -> None:
    goal = Echo(b"goal")
    other = tmp_path / "other"
    other.mkdir()
    door = TlsDoor(Authority(other).server("DNS:here.example"), goal)

    async def main() -> None:
        async with goal.serving(), door.serving():
            error = await World(secured("out", UpstreamKind.DIRECT, None, authority), hosts=hosts).fail(
                "here.example", door.at.port
            )
            assert "certificate" in str(error)
            system = replace(upstream("out", UpstreamKind.DIRECT, tls=True))
            assert "certificate" in str(await World(system, hosts=hosts).fail("here.example", door.at.port))

    run(main)


@pytest.mark.parametrize(
    ("script", "hold", "failure", "blame", "what"),
    [
        ([(1, [b"HTTP/1.1 400 Bad Request\r\n\r\n"])], False, Failure.ERROR, Blame.DESTINATION, "TLS: "),
        ([(1, [])], False, Failure.ERROR, Blame.DESTINATION, "closed during the handshake"),
        ([(1, [])], True, Failure.TIMEOUT, Blame.UNCLEAR, "no answer in 0.3 s"),
        (
            [(1, [b"\x16\x03\x03\x40\x00" + bytes(16384)] * 64)],
            False,
            Failure.ERROR,
            Blame.DESTINATION,
            "TLS: ",
        ),
    ],
    ids=["http", "closes", "silent", "endless"],
)
def test_what_does_not_speak_tls_is_told(
    authority: Authority,
    script: list[tuple[int, list[bytes]]],
    hold: bool,
    failure: Failure,
    blame: Blame,
    what: str,
) -> None:
    """S24: no more than a time-out is spent on it, and no more is kept than OpenSSL allows."""
    peer = Scripted(script, hold=hold)

    async def main() -> None:
        async with peer.serving():
            out = secured("out", UpstreamKind.DIRECT, None, authority)
            # Short for who says nothing, and for nobody else: a busy machine is slow to answer, too.
            world = World(out, timeouts=replace(FAST, address_s=0.3) if failure is Failure.TIMEOUT else FAST)
            error = await world.fail("127.0.0.1", peer.at.port)
            assert what in str(error)
            assert (error.failure, error.blame) == (failure, blame)

    run(main)


# --- to a proxy


def test_tls_to_a_proxy_and_through_it_to_another(authority: Authority, hosts: Path) -> None:
    """TLS in TLS: near is known by its address, far by a name that near resolves."""
    goal, names = Echo(b"goal"), {}
    near, far = Working(names), Working()
    near_door = TlsDoor(authority.server("IP:127.0.0.1"), near)
    far_door = TlsDoor(authority.server("DNS:far.example"), far)

    async def main() -> None:
        async with goal.serving(), near.serving(), far.serving(), near_door.serving(), far_door.serving():
            names["far.example"] = far_door.at
            one = secured("near", UpstreamKind.SOCKS5, near_door.at, authority)
            dialed = await World(one).dial("127.0.0.1", goal.at.port)
            assert dialed.tries == (str(near_door.at), f"near to {goal.at}")
            await says(dialed, b"goal")
            two = secured("far", UpstreamKind.SOCKS5, Endpoint("far.example", 443), authority, via="near")
            dialed = await World(two, one).dial("127.0.0.1", goal.at.port)
            await says(dialed, b"goal")
            assert far_door.names == ["far.example"]

    run(main)


def test_a_proxy_that_is_somebody_else_is_at_fault_and_never_gets_the_login(authority: Authority) -> None:
    goal, way = Echo(b"goal"), Working()
    door = TlsDoor(authority.server("DNS:other.example"), way)

    async def main() -> None:
        async with goal.serving(), way.serving(), door.serving():
            corp = secured("corp", UpstreamKind.SOCKS5, door.at, authority)
            error = await World(corp).fail("127.0.0.1", goal.at.port)
            assert str(error).startswith("upstream `corp`: TLS: its certificate: IP address mismatch")
            assert error.blame is Blame.WAY
            assert not way.requests
            group = upstream("out", UpstreamKind.FIRST, members=("corp", "plain"))
            dialed = await World(group, corp, proxy("plain", way.at)).dial("127.0.0.1", goal.at.port)
            assert dialed.decision.upstream == "out/plain"
            await says(dialed, b"goal")

    run(main)


def test_a_proxy_on_a_unix_socket_is_known_by_the_name_it_is_given(
    authority: Authority, tmp_path: Path
) -> None:
    goal, way = Echo(b"goal"), Working()

    async def main() -> None:
        async with goal.serving(), way.serving():
            door = TlsDoor(authority.server("DNS:proxy.example"), way)
            server = await asyncio.start_unix_server(door._connected, str(tmp_path / "s"), ssl=door.context)
            async with server:
                options = {"unix": str(tmp_path / "s")}
                for more in ({"server-name": "proxy.example"}, {"insecure": True}):
                    corp = secured("corp", UpstreamKind.SOCKS5, None, authority, **options, **more)
                    await says(await World(corp).dial("127.0.0.1", goal.at.port), b"goal")
            while door.tasks:
                await asyncio.sleep(0.001)

    run(main)


@pytest.mark.parametrize("side", ["near", "far"])
def test_no_cancel_at_any_moment_leaks_anything(authority: Authority, side: str) -> None:
    """R16, for TLS to a proxy and through one: in the handshake, in the request, with a bridge half made."""
    goal, way = Echo(b"goal"), Working()
    door = TlsDoor(authority.server("IP:127.0.0.1"), way if side == "near" else goal)

    async def main() -> None:
        rng = random.Random(16)
        loop = asyncio.get_running_loop()
        async with goal.serving(), way.serving(), door.serving():
            if side == "near":
                world, at = World(secured("corp", UpstreamKind.SOCKS5, door.at, authority)), goal.at
            else:
                secure = secured("secure", UpstreamKind.DIRECT, None, authority, via="corp")
                world, at = World(secure, proxy("corp", way.at)), door.at
            before = descriptors()
            for _ in range(100):
                task = loop.create_task(world.dial("127.0.0.1", at.port))
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                task.cancel()
                (result,) = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(result, Dialed | DialError | asyncio.CancelledError), result
                if isinstance(result, Dialed):
                    result.sock.close()
            async with asyncio.timeout(20):
                while descriptors() > before or door.tasks or way.tasks or goal.tasks:
                    await asyncio.sleep(0.001)

    run(main)


# --- what is known at start


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "cannot read the certificates in {}: no such file or directory"),
        ("no PEM", "{} holds no certificates (PEM)"),
    ],
)
def test_certificates_that_are_missing_are_told_at_start(
    tmp_path: Path, content: str | None, text: str
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    table = policy([], upstreams=[upstream("corp", tls=True, ca=str(path)), upstream("plain")])
    with pytest.raises(StartError) as caught:
        read_trust(table)
    assert caught.value.problems == (f"test.urr:1: upstream `corp`: {text.format(path)}",)
