"""S1: no spelling of an address gets past a policy that denies the address.

The corpus holds spellings of a few targets. `literal` ones are decided as the target is, `embed`
ones at least as strictly, `malformed` ones are refused before any lookup, and `name` ones are names
or refused, never addresses. A control set of public spellings shows that nothing else is refused.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.strategies import GUARD, policy, region, route, wall
from urelay.errors import AddressError
from urelay.net.address import Address, address_text, host_prefix, parse_address, parse_host, printable
from urelay.net.nat64 import EMBEDDINGS, special_use
from urelay.policy.model import Deny, Direct
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table


class Row(NamedTuple):
    """One line of the corpus."""

    target: Address
    kind: str
    spelling: str


def _rows() -> list[Row]:
    lines = (Path(__file__).parent / "corpus" / "acl.tsv").read_text("utf-8").splitlines()
    cells = [line.split("\t") for line in lines if not line.startswith("#")]
    rows = [Row(parse_address(target), kind, ast.literal_eval(text)) for target, kind, text in cells]
    # Two rows are filed as malformed and spell their target canonically: no parser can refuse them
    # and accept the very same text under `literal` or `embed`. They are held to those instead.
    return [row._replace(kind="literal") if row.kind == "malformed" and _spells(row) else row for row in rows]


def _spells(row: Row) -> bool:
    return row.spelling in ("169.254.169.254", "::ffff:169.254.169.254")


ROWS = _rows()
TARGETS = sorted({row.target for row in ROWS})


def _of(*kinds: str) -> list[Row]:
    return [row for row in ROWS if row.kind in kinds]


def _closed(target: Address) -> dict[str, Table]:
    """The ways a policy closes a target while it opens everything it can."""
    it = region(str(host_prefix(target)))
    everything = route(region("any"), Direct(), 1)
    # Naming the embedding blocks takes the guard's denial off them; what they carry is still judged.
    opened = [route(region(str(block)), Direct(), n) for n, block in enumerate(EMBEDDINGS, 10)]
    return {
        "denied": compile_policy(policy([everything, route(it, Deny(), 2)], guard=GUARD)),
        "forbidden": compile_policy(policy([everything], walls=[wall(it, 3)], guard=GUARD)),
        "forbidden, forms opened": compile_policy(
            policy([everything, *opened], walls=[wall(it, 3)], guard=GUARD)
        ),
    }


TABLES = {target: _closed(target) for target in TARGETS}
OPEN = compile_policy(policy([route(region("any"), Direct(), 1)], guard=GUARD))
EVERYTHING_OPEN = compile_policy(policy([route(region("any"), Direct(), 1)]))


def _id(row: Row) -> str:
    return f"{address_text(row.target)} as {printable(row.spelling)}"


def test_the_corpus_is_whole() -> None:
    counts = {kind: len(_of(kind)) for kind in ("literal", "embed", "malformed", "name")}
    assert counts == {"literal": 22, "embed": 105, "malformed": 245, "name": 14}


@pytest.mark.parametrize("row", _of("literal"), ids=_id)
def test_a_literal_spelling_is_decided_as_its_target(row: Row) -> None:
    spelt = parse_host(row.spelling)
    assert spelt == row.target
    for table in (*TABLES[row.target].values(), OPEN, EVERYTHING_OPEN):
        for port in (22, 80, 65535):
            assert table.decide(spelt, port) is table.decide(row.target, port)
    for table in TABLES[row.target].values():
        assert table.decide(spelt, 80).denied


@pytest.mark.parametrize("row", _of("embed"), ids=_id)
def test_an_embedding_spelling_is_decided_at_least_as_strictly(row: Row) -> None:
    spelt = parse_host(row.spelling)
    assert isinstance(spelt, bytes)
    for way, table in TABLES[row.target].items():
        assert table.decide(spelt, 80).denied, way
    if OPEN.decide(row.target, 80).denied:
        assert OPEN.decide(spelt, 80).denied


@pytest.mark.parametrize("row", _of("malformed"), ids=_id)
def test_a_malformed_spelling_is_refused_before_any_lookup(row: Row) -> None:
    with pytest.raises(AddressError):
        parse_host(row.spelling)


@pytest.mark.parametrize("row", _of("name"), ids=_id)
def test_a_name_is_decided_again_on_the_address_it_resolves_to(row: Row) -> None:
    try:
        name = parse_host(row.spelling)
    except AddressError:
        assert not row.spelling.isascii(), "only a look-alike may be refused as a name"
        return
    assert isinstance(name, str)
    for table in TABLES[row.target].values():
        decision = table.decide(name, 80)
        assert decision.needs_address
        assert table.settle(decision, name, row.target, 80).denied


def _public() -> list[str]:
    """200 spellings of public destinations, near the closed ones and far from them."""
    quads = [f"{first}.{last}.{last}.{first}" for first in range(1, 224, 4) for last in (1, 254)]
    quads = [quad for quad in quads if special_use(parse_address(quad)) is None]
    edges = ["9.255.255.255", "11.0.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0"]
    edges += ["192.0.1.255", "192.0.3.0", "223.255.255.255", "192.0.0.9", "1.0.0.0"]
    groups = [f"2{block:03x}:db7:{host:x}::{host:x}" for block in range(0x400, 0x428) for host in (1, 0x5EFE)]
    edges += [
        "2001:1::1",
        "2003::1",
        "2001:4860:4860::8888",
        "[2606:4700::1111]",
        "2001:DB8:0:0:8:800:200C:417A",
    ]
    return (quads + edges + groups)[:200]


def test_nothing_public_is_refused() -> None:
    spellings = _public()
    assert len(set(spellings)) == 200
    refused = [spelling for spelling in spellings if OPEN.decide(parse_host(spelling), 443).denied]
    assert refused == []
