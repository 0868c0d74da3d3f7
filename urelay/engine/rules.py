"""What connections live by that are accepted now: one reference, captured at accept.

A table never changes, so neither do its answers; and clients ask the same few questions again and again.
So an answer is remembered with everything that follows from it alone: for the most common one, a
connection to one address, that is the very call to make.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from urelay.engine.ends import packed, sockaddr
from urelay.net.address import Address, Endpoint, Host
from urelay.policy.model import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urelay.engine.dial import Dialer
    from urelay.table.decision import Decision
    from urelay.table.evaluate import Table

_REMEMBERED: Final = 4096


class Plan(NamedTuple):
    """A decision, and what to call if one socket to one address is all it takes."""

    decision: Decision
    target: Endpoint | None
    """The address; None: it takes more"""
    family: int
    address: Sequence[object]
    """What connect(2) wants"""
    port: int


Question: TypeAlias = "tuple[Host, int, Address | str | None, str]"
"""Destination host and port, the source, which may be as the kernel writes it, and the listener"""


class Rules:
    """A table, and the dialer that holds what its upstreams need."""

    __slots__ = ("dialer", "plans", "table")

    def __init__(self, table: Table, dialer: Dialer) -> None:
        self.table = table
        self.dialer = dialer
        self.plans: dict[Question, Plan] = {}
        """The answers so far; `plan` makes one that is not there"""

    def plan(self, question: Question) -> Plan:
        """What to do with a client, to be remembered."""
        if len(self.plans) >= _REMEMBERED:
            self.plans.clear()
        plan = self.plans[question] = self._plan(*question)
        return plan

    def _plan(self, host: Host, port: int, source: Address | str | None, listener: str) -> Plan:
        if isinstance(source, str):
            source = packed(source)
        decision = self.table.decide(host, port, source, listener)
        if decision.outcome is not Outcome.DIRECT or decision.needs_address:
            return Plan(decision, None, 0, (), 0)
        if decision.settings.limit_per_source is not None:
            return Plan(decision, None, 0, (), 0)
        target = decision.destination or Endpoint(host, port)
        return Plan(decision, target, *sockaddr(target), target.port)
