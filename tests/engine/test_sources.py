"""A client's address has its share of the relay, of a listener and of a route, and no more."""

# ruff: noqa: F811

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from tests import strategies as by_hand
from tests.engine.rig import read_all, reset
from tests.engine.test_relay import LOOPBACK, OPEN, World, endpoint, exactly, socks5, table, world  # noqa: F401
from urelay.engine.record import End
from urelay.engine.sources import Sources
from urelay.net.address import Endpoint
from urelay.policy.model import Direct, ListenerKind, RouteSettings
from urelay.table.compile import compile_policy

Make = Callable[..., World]


def from_address(address: str, to: tuple[str, int]) -> socket.socket:
    return socket.create_connection(to, 20, source_address=(address, 0))


def test_counts_are_by_address_and_end_with_the_connection() -> None:
    sources = Sources()
    assert [sources.enter(("10.0.0.1", port), 2) for port in (1, 2, 3)] == [True, True, False]
    assert sources.enter(("10.0.0.2", 1), 2)
    sources.leave(("10.0.0.1", 3))
    sources.leave(("10.0.0.1", 1))
    assert sources.enter(("10.0.0.1", 4), 2)
    for address in (("10.0.0.1", 2), ("10.0.0.1", 4), ("10.0.0.2", 1)):
        sources.leave(address)
    assert sources.enter(("10.0.0.1", 5), 1)
    assert all(sources.enter("", 1) for _ in range(5)), "clients of a unix socket have no address"


def test_one_address_leaves_room_for_another(world: Make) -> None:
    here = world(*OPEN, per_source=3)
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    hogs = [here.connect(address) for _ in range(3)]
    for _ in hogs:
        here.accepted(server)
    assert here.is_reset(address)
    assert (here.record().end, here.record().error) == (
        End.DENIED,
        "more than 3 connections from one address",
    )
    with from_address("127.0.0.2", address) as other:
        far = here.accepted(server)
        other.sendall(b"x")
        assert exactly(far, 1) == b"x"
        far.close()
    reset(hogs[0])
    here.record(3)
    with here.connect(address) as again:
        far = here.accepted(server)
        again.sendall(b"y")
        assert exactly(far, 1) == b"y"


def test_shares_are_counted_only_in_a_crowd_and_then_of_everybody(world: Make) -> None:
    """Counting begins in the middle, is forgotten, and begins again: nobody has more or less than a share."""
    here = world(*OPEN, per_source=4)
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server))
    ended = 0

    def enter(source: str) -> socket.socket:
        client = from_address(source, address)
        here.accepted(server)
        return client

    def counts() -> bool:
        return here.thread.call(lambda: here.relay._sources is not None)

    hogs = [enter("127.0.0.1") for _ in range(4)]
    for _ in range(2):
        assert not counts()
        others = [enter("127.0.0.2") for _ in range(2)]
        assert counts()
        assert here.is_reset(address), "of those that were there before anybody counted"
        reset(hogs.pop())
        here.record(ended := ended + 2)
        hogs.append(enter("127.0.0.1"))
        for client in (*others, *hogs[1:]):
            reset(client)
        here.record(ended := ended + 5)
        hogs[1:] = [enter("127.0.0.1") for _ in range(3)]
    for client in hogs:
        client.close()


def test_a_listeners_limit_stands_above_the_relays(world: Make) -> None:
    here = world(*OPEN, per_source=1)
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server), limit=2)
    for _ in range(2):
        here.connect(address)
        here.accepted(server)
    assert here.is_reset(address)


def test_the_clients_of_a_captured_namespace_share_an_address_and_no_share(world: Make) -> None:
    here = world(*OPEN, per_source=1)
    server = here.server()
    address = here.listen(ListenerKind.FORWARD, to=endpoint(server), capture="tcp")
    for _ in range(3):
        here.connect(address)
        here.accepted(server)


def test_a_routes_limit_is_told_in_the_clients_terms_and_other_routes_go_on(world: Make) -> None:
    here = world()
    server, other = here.server(), here.server()
    mail = by_hand.route(by_hand.region("127.0.0.1/32"), Direct(), 1)
    mail = replace(
        mail,
        region=replace(mail.region, ports=(by_hand.PortRange(endpoint(server).port, endpoint(server).port),)),
        settings=RouteSettings(limit_per_source=1),
    )
    rest = by_hand.route(by_hand.region("127.0.0.0/8"), Direct(), 2)
    routes = compile_policy(by_hand.policy([mail, rest]))
    here.thread.call(lambda: here.relay.replace(routes, here.relay.rules.dialer))
    address = here.listen(ListenerKind.SOCKS)

    def ask(to: Endpoint) -> socket.socket:
        client = here.connect(address)
        client.sendall(b"\5\1\0" + socks5(LOOPBACK, to.port))
        return client

    first = ask(endpoint(server))
    here.accepted(server)
    assert exactly(first, 4) == b"\5\0\5\0"
    assert read_all(ask(endpoint(server)))[2:4] == b"\5\2"
    assert here.record().error == "more than 1 connections of this route from one address"
    free = ask(endpoint(other))
    here.accepted(other)
    assert exactly(free, 4) == b"\5\0\5\0"
    reset(first)
    here.record(2)
    again = ask(endpoint(server))
    here.accepted(server)
    assert exactly(again, 4) == b"\5\0\5\0"
