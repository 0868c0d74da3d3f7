"""S1 on the wire: no spelling of a denied address gets through SOCKS (a name, an address) or CONNECT."""

from __future__ import annotations

import random

import pytest

from tests.protocols.test_connect import connect, spell_as_target
from tests.protocols.test_socks import HELLO, corpus, name5, request4, request5, spell_in_name_field
from tests.strategies import GUARD, policy, region, route
from urelay.errors import AddressError, ProtocolError
from urelay.net.address import MAPPED_PREFIX, Address, address_text, host_prefix, parse_host
from urelay.policy.model import Deny, Direct, Route
from urelay.protocols.mixed import MixedServer
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

ROWS = corpus()
TARGETS = sorted({target for target, _, _ in ROWS})
ANY_DIRECT = route(region(), Direct(), 1)


def table(*routes: Route, guard: tuple[Route, ...] = ()) -> Table:
    """Everything direct but for these routes."""
    return compile_policy(policy([ANY_DIRECT, *routes], guard=guard))


DENYING = {
    target: table(route(region(str(host_prefix(target))), Deny(), 2), guard=GUARD) for target in TARGETS
}


def streams(spelling: str) -> list[bytes]:
    """Every way a client can send a spelling."""
    found = spell_in_name_field(spelling) + spell_as_target(spelling)
    try:
        host = parse_host(spelling)
    except AddressError:
        return found
    if isinstance(host, bytes):
        found.append(HELLO + request5(4, host if len(host) == 16 else MAPPED_PREFIX + host))
    return found


def reached(stream: bytes, target: Address, judge: Table) -> bool:
    """Whether a client that sends `stream` is let through to `target`, or to anything that embeds it."""
    server = MixedServer()
    try:
        server.receive(stream)
    except ProtocolError:
        return False
    request = server.request
    assert request is not None
    decision = judge.decide(request.host, request.port)
    if decision.needs_address:
        assert isinstance(request.host, str)
        decision = judge.settle(decision, request.host, target, request.port)
    return not decision.denied


@pytest.mark.parametrize("kind", ["literal", "embed", "malformed", "name"])
def test_no_spelling_of_a_denied_address_is_let_through(kind: str) -> None:
    rows = [(target, spelling) for target, of, spelling in ROWS if of == kind]
    assert rows
    tried = 0
    for target, spelling in rows:
        for stream in streams(spelling):
            tried += 1
            assert not reached(stream, target, DENYING[target]), (address_text(target), spelling)
    assert tried > len(rows)


def test_literals_are_let_through_where_nothing_denies_them() -> None:
    """The other half: it is the policy that refuses, not a parser that refuses everything."""
    open_to_all = table()
    for target, kind, spelling in ROWS:
        if kind == "literal":
            _, in_brackets = spell_as_target(spelling)
            for stream in streams(spelling):
                # Brackets are round IPv6 alone, and once.
                if stream != in_brackets:
                    assert reached(stream, target, open_to_all), spelling


def test_public_addresses_are_not_denied_by_mistake() -> None:
    """200 public addresses, in every field and under the guard: 0 false denies."""
    rng = random.Random(1)
    judge = table(guard=GUARD)
    for number in range(200):
        if number % 2:
            address = bytes((0x2A, *rng.randbytes(15)))
        else:
            address = bytes((rng.choice((1, 8, 93, 151, 203)), *rng.randbytes(3)))
        text = address_text(address).encode()
        for stream in (HELLO + name5(text), request4(b"\0\0\0\1", b"", text), connect(text + b":443")):
            assert reached(stream, address, judge), text
