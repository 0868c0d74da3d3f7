"""Asking a table in the words a policy's author would use."""

from __future__ import annotations

from tests.strategies import ports
from urelay.net.address import parse_address, parse_endpoint
from urelay.policy.model import (
    Action,
    Deliver,
    Move,
    Rewrite,
)
from urelay.table.decision import Decision
from urelay.table.evaluate import Table


def rewriting(then: Deliver, move: Move | None = None, port: str = "") -> Action:
    """`rewrite to MOVE, port PORT then …`."""
    return Action(then, Rewrite(move, ports(port) if port else None))


def decide(
    table: Table, to: str, source: str | None = None, on: str | None = None, within: str | None = None
) -> Decision:
    """The decision about `HOST:PORT`; `on` is a listener, `within` a table."""
    host, port = parse_endpoint(to)
    return table.decide(host, port, parse_address(source) if source else None, on, within)


def settle(table: Table, to: str, address: str, on: str | None = None) -> Decision:
    """The decision about `to` once the name it leads to has been resolved to `address`."""
    host, port = parse_endpoint(to)
    decision = table.decide(host, port, None, on)
    assert decision.needs_address
    settled = table.settle(decision, host, parse_address(address), port, None, on)
    assert not settled.needs_address
    return settled


def line(decision: Decision) -> str:
    """`direct 3`: the outcome and the line that decided; `guard 2` for the guard's."""
    by = decision.wall or decision.route
    if by is None:
        return f"{decision.outcome} -"
    return f"{decision.outcome} {'guard ' if by.file == 'guard.urr' else ''}{by.line}"
