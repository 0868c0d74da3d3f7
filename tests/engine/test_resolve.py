"""Names become addresses once, within bounds, whatever a name server answers."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.mutations import COUNT, mutations
from tests.places import HERE, PACKED, own_port
from urelay.engine.resolve import LOOPBACK, Resolver, _parse_resolv_conf, parse_hosts
from urelay.errors import DialError, Failure
from urelay.net.address import Endpoint, address_text, parse_address, parse_endpoint, parse_name

Zone = Callable[[str, str], list[str] | dns.rcode.Rcode | bytes | None]


class NameServer(asyncio.DatagramProtocol):
    """Answers UDP questions from a function of name and type; counts them and knows how many wait."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self.asked: Counter[tuple[str, str]] = Counter()
        self.hold: asyncio.Event | None = None
        self.waiting: set[tuple[str, str]] = set()
        self.most_waiting = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task = asyncio.get_running_loop().create_task(self.answer(data, addr))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def answer(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += 1
        if self.hold is not None:
            # A set: a question that is repeated, because the machine is slow, is the same question.
            self.waiting.add((name, kind))
            self.most_waiting = max(self.most_waiting, len(self.waiting))
            await self.hold.wait()
            self.waiting.discard((name, kind))
        answer = self.zone(name, kind)
        if answer is None:
            return
        if isinstance(answer, bytes):
            self.transport.sendto(answer, addr)
            return
        response = dns.message.make_response(query)
        if isinstance(answer, dns.rcode.Rcode):
            response.set_rcode(answer)
        elif answer and answer[0].startswith("CNAME "):
            target = answer[0].split()[1] + "."
            response.answer.append(dns.rrset.from_text(question.name, 0, "IN", "CNAME", target))
            if answer[1:]:
                response.answer.append(dns.rrset.from_text(target, 0, "IN", kind, *answer[1:]))
        elif answer:
            response.answer.append(dns.rrset.from_text(question.name, 0, "IN", kind, *answer))
        self.transport.sendto(response.to_wire(max_size=65535), addr)


@asynccontextmanager
async def name_server(zone: Zone) -> AsyncIterator[tuple[NameServer, Endpoint]]:
    """A name server on loopback, and where it is."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(
        lambda: NameServer(zone), local_addr=("127.0.0.1", 0)
    )
    host, port = transport.get_extra_info("sockname")
    try:
        yield server, Endpoint(parse_address(host), port)
    finally:
        transport.close()
        for task in list(server.tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def resolver(at: Endpoint, **options: object) -> Resolver:
    """A resolver that asks one server and knows no hosts file."""
    return Resolver([at], hosts="/nonexistent", **options)  # type: ignore[arg-type]


def run(zone: Zone, test: Callable[[NameServer, Endpoint], Awaitable[None]]) -> None:
    """Run a test beside a name server; every descriptor is back afterwards."""

    async def main() -> None:
        async with name_server(zone) as (server, at):
            await test(server, at)

    before = len(os.listdir("/proc/self/fd"))
    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


def ask(zone: Zone, name: str, **options: object) -> list[str]:
    """The addresses of a name, as text."""
    found: list[str] = []

    async def test(server: NameServer, at: Endpoint) -> None:
        found.extend(address_text(a) for a in await resolver(at, **options).resolve(name))

    run(zone, test)
    return found


@pytest.mark.parametrize(
    ("answers", "addresses"),
    [
        pytest.param({"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]}, ["2001:db8::1", "192.0.2.1"], id="both"),
        pytest.param({"A": ["192.0.2.1", "192.0.2.2"]}, ["192.0.2.1", "192.0.2.2"], id="ipv4-only"),
        pytest.param({"AAAA": ["2001:db8::1"]}, ["2001:db8::1"], id="ipv6-only"),
        pytest.param({"AAAA": ["::ffff:127.0.0.1"]}, ["127.0.0.1"], id="mapped"),
        pytest.param({"A": ["127.0.0.1"], "AAAA": ["::ffff:127.0.0.1"]}, ["127.0.0.1"], id="mapped-twin"),
        pytest.param({"A": ["CNAME b.example", "192.0.2.1"]}, ["192.0.2.1"], id="cname"),
    ],
)
def test_both_families_are_asked_for(answers: dict[str, list[str]], addresses: list[str]) -> None:
    found = ask(lambda name, kind: answers.get(kind, []), "www.example")
    # The order within a family is the server's, and dnspython shuffles what it sends.
    assert sorted(found, key=lambda text: (":" not in text, text)) == addresses
    assert [":" in text for text in found] == [":" in text for text in addresses]


@pytest.mark.parametrize(
    ("zone", "failure", "message"),
    [
        pytest.param(
            lambda name, kind: dns.rcode.NXDOMAIN,
            Failure.NAME_NOT_FOUND,
            "there is no host called `www.example`",
            id="nxdomain",
        ),
        pytest.param(
            lambda name, kind: [], Failure.NAME_NOT_FOUND, "`www.example` has no address", id="no-address"
        ),
        pytest.param(
            lambda name, kind: ["CNAME b.example"],
            Failure.NAME_NOT_FOUND,
            "`www.example` has no address",
            id="cname-to-nothing",
        ),
        pytest.param(
            lambda name, kind: dns.rcode.SERVFAIL,
            Failure.HOST_UNREACHABLE,
            "no name server could tell the address of `www.example`",
            id="servfail",
        ),
        pytest.param(
            lambda name, kind: None,
            Failure.TIMEOUT,
            "no name server answered for `www.example` in time",
            id="silence",
        ),
        pytest.param(
            lambda name, kind: b"\xff" * 40,
            Failure.TIMEOUT,
            "no name server answered for `www.example` in time",
            id="rubbish",
        ),
    ],
)
def test_what_a_server_does_not_tell_is_a_dial_error(zone: Zone, failure: Failure, message: str) -> None:
    with pytest.raises(DialError) as caught:
        ask(zone, "www.example", lifetime_s=0.3 if failure is Failure.TIMEOUT else 20)
    assert (caught.value.failure, str(caught.value)) == (failure, message)


def test_a_name_is_asked_for_once_and_as_it_is() -> None:
    async def test(server: NameServer, at: Endpoint) -> None:
        await resolver(at).resolve("intranet")
        assert server.asked == {("intranet", "A"): 1, ("intranet", "AAAA"): 1}

    run(lambda name, kind: ["192.0.2.1"] if kind == "A" else [], test)


def test_a_flood_of_answers_is_cut() -> None:
    flood = {
        "A": [f"192.0.2.{n}" for n in range(1, 60)],
        "AAAA": [f"2001:db8::{n:x}" for n in range(1, 60)],
    }
    found = ask(lambda name, kind: flood[kind], "www.example")
    assert len(found) == 16
    assert sum(":" in text for text in found) == 8


def test_a_family_that_is_never_answered_costs_half_a_second_and_not_five() -> None:
    async def test(server: NameServer, at: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        found = await resolver(at).resolve("www.example")
        assert found == (parse_address("192.0.2.1"),)
        assert 0.3 < loop.time() - start < 4

    run(lambda name, kind: ["192.0.2.1"] if kind == "A" else None, test)


def test_localhost_is_loopback_and_nobody_is_asked() -> None:
    async def test(server: NameServer, at: Endpoint) -> None:
        for name in ("localhost", "db.localhost"):
            assert await resolver(at).resolve(name) == LOOPBACK
        assert not server.asked

    run(lambda name, kind: ["192.0.2.1"], test)


def test_a_hosts_file_comes_first_and_is_read_again_when_it_changes(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("192.0.2.9 db.example db # the database\n")

    async def test(server: NameServer, at: Endpoint) -> None:
        asker = Resolver([at], hosts=str(hosts))
        assert await asker.resolve("db") == (parse_address("192.0.2.9"),)
        hosts.write_text("192.0.2.10 db.example db # moved\n")
        assert await asker.resolve("db") == (parse_address("192.0.2.10"),)
        assert not server.asked
        hosts.unlink()
        assert await asker.resolve("db") == (parse_address("192.0.2.1"),)
        assert server.asked

    run(lambda name, kind: ["192.0.2.1"] if kind == "A" else [], test)


def test_a_hosts_file_is_read_strictly() -> None:
    text = """
    127.0.0.1   localhost Loop.Example.
    ::1         loop.example     # IPv6 too
    ::ffff:192.0.2.1 mapped
    0177.1      octal
    fe80::1%lo  zone
    192.0.2.2   0x7f.1 bad..name good
    192.0.2.3
    """
    assert parse_hosts(text) == {
        "localhost": (parse_address("127.0.0.1"),),
        "loop.example": (parse_address("127.0.0.1"), parse_address("::1")),
        "mapped": (parse_address("192.0.2.1"),),
        "good": (parse_address("192.0.2.2"),),
    }


def test_mutated_files_give_nothing_but_addresses_and_canonical_names() -> None:
    """S11: 100,000 seeded mutations of either file; neither is ever refused as a whole."""
    seeds = [b"127.0.0.1 localhost\n::1 a.example b\n", b"192.0.2.1 c # d\n", b"nameserver ::1\nsearch x\n"]
    known = servers = 0
    for number, data in mutations(seeds, b"\n", b" ", b"#", b"\x1c", b"nameserver ", b"0x7f.1"):
        text = data.decode("utf-8", "replace")
        hosts = parse_hosts(text)
        known += len(hosts)
        servers += len(_parse_resolv_conf(text))
        if number % 16 == 0:
            assert all(parse_name(name) == name for name in hosts)
            assert all(len(address) in (4, 16) for found in hosts.values() for address in found)
    assert known > COUNT / 10
    assert servers > COUNT / 20


def test_the_name_servers_of_a_resolv_conf_are_asked(tmp_path: Path) -> None:
    conf = tmp_path / "resolv.conf"
    conf.write_text("search example\n# nameserver 192.0.2.1\nnameserver ::1%lo\nnameserver 127.0.0.53\n")
    asker = Resolver(resolv_conf=str(conf))
    assert asker._servers.value() == (parse_endpoint("127.0.0.53:53"),)


def test_without_a_name_server_a_name_is_not_found_out(tmp_path: Path) -> None:
    asker = Resolver(hosts="/nonexistent", resolv_conf=str(tmp_path / "none"))
    with pytest.raises(DialError) as caught:
        asyncio.run(asker.resolve("www.example"))
    assert caught.value.failure is Failure.HOST_UNREACHABLE


def test_one_source_cannot_take_every_turn() -> None:
    """A source with 40 names that are never answered holds 8 turns; another's name is not delayed."""

    async def test(server: NameServer, at: Endpoint) -> None:
        asker = resolver(at, lifetime_s=30)
        server.hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            hogs = [group.create_task(asker.resolve(f"h{n}.example", b"hog")) for n in range(40)]
            while len(server.waiting) < 16:
                await asyncio.sleep(0)
            other = group.create_task(asker.resolve("www.example", b"other"))
            while server.asked["www.example", "A"] == 0:
                await asyncio.sleep(0)
            assert len(server.asked) <= 2 * (8 + 1)
            server.hold.set()
            await other
            await asyncio.gather(*hogs)
        assert server.most_waiting <= 2 * (8 + 1)
        assert not asker._turns._shares

    run(lambda name, kind: ["192.0.2.1"] if kind == "A" else [], test)


def test_no_more_names_than_allowed_are_asked_for_at_a_time() -> None:
    async def test(server: NameServer, at: Endpoint) -> None:
        asker = resolver(at, in_flight=12, lifetime_s=30)
        server.hold = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for n in range(40):
                group.create_task(asker.resolve(f"h{n}.example", n))
            while len(server.waiting) < 24:
                await asyncio.sleep(0)
            server.hold.set()
        assert server.most_waiting == 24

    run(lambda name, kind: ["192.0.2.1"] if kind == "A" else [], test)


def test_a_cancelled_question_leaves_nothing_behind() -> None:
    async def test(server: NameServer, at: Endpoint) -> None:
        asker = resolver(at)
        loop = asyncio.get_running_loop()
        before = asyncio.all_tasks()
        for n in range(20):
            task = loop.create_task(asker.resolve(f"h{n}.example", b"one"))
            while not server.asked[f"h{n}.example", "A"]:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not asker._turns._shares
        assert asyncio.all_tasks() - before <= server.tasks

    run(lambda name, kind: None, test)


def test_a_truncated_answer_is_asked_for_again_over_tcp() -> None:
    """The server's TCP answer counts, not what the truncated one held."""

    async def main() -> None:
        async def serve_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            length = int.from_bytes(await reader.readexactly(2))
            query = dns.message.from_wire(await reader.readexactly(length))
            response = dns.message.make_response(query)
            if query.question[0].rdtype == dns.rdatatype.A:
                response.answer.append(dns.rrset.from_text(query.question[0].name, 0, "IN", "A", "192.0.2.7"))
            wire = response.to_wire()
            writer.write(len(wire).to_bytes(2) + wire)
            await writer.drain()
            writer.close()

        port = own_port()
        tcp = await asyncio.start_server(serve_tcp, HERE, port)

        class Truncating(asyncio.DatagramProtocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = cast("asyncio.DatagramTransport", transport)

            def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
                response = dns.message.make_response(dns.message.from_wire(data))
                response.flags |= dns.flags.TC
                self.transport.sendto(response.to_wire(), addr)

        loop = asyncio.get_running_loop()
        udp, _ = await loop.create_datagram_endpoint(Truncating, local_addr=(HERE, port))
        async with tcp:
            found = await resolver(Endpoint(PACKED, port)).resolve("www.example")
        udp.close()
        assert found == (parse_address("192.0.2.7"),)

    asyncio.run(main())
