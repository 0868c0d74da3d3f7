"""Why a connection is decided as it is: the winner, who lost to it and why, and whom else it concerns.

The decision is the forwarder's own, from the same table. What stands beside it is read from the
policy: every route that matches the connection and lost names the first of the four comparisons
(destination, ports, source, listener) in which it was the weaker one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeAlias

from urelay.analysis.boxes import IPV4_SOURCES, IPV6_SOURCES, NO_SOURCE, Box, Sources, audience
from urelay.analysis.cells import Cells
from urelay.analysis.cubes import cube_of
from urelay.analysis.phrases import prefix_text
from urelay.analysis.precedence import Element, element_of, inside, reason_lost
from urelay.analysis.summary import Summary
from urelay.analysis.trails import Bearing, Trail
from urelay.analysis.verdicts import outcome_text
from urelay.analysis.walk import Walker
from urelay.errors import AddressError
from urelay.lang.source import Origin
from urelay.net.address import Endpoint, address_text, host_prefix
from urelay.net.paths import fill
from urelay.policy.check import Connection, Question
from urelay.policy.model import (
    ALL_PORTS,
    MAIN,
    TO_PATHS,
    NameKind,
    NamePattern,
    Outcome,
    PortRange,
    Route,
    Wall,
    packed_source,
)
from urelay.table.decision import Decision
from urelay.table.evaluate import Table

Json: TypeAlias = dict[str, object]


def decide(table: Table, connection: Connection) -> Decision:
    """The forwarder's decision, with `destination` always filled in."""
    to = connection.destination
    decision = table.decide(to.host, to.port, connection.source, connection.listener, connection.table)
    return decision if decision.destination is not None else replace(decision, destination=to)


def connection_text(connection: Connection) -> str:
    """`10.1.2.3:22 from 192.168.7.9 on lan`."""
    text = str(connection.destination)
    if connection.source is not None:
        text += f" from {address_text(connection.source)}"
    if connection.listener is not None:
        text += f" on {connection.listener}"
    if connection.table is not None:
        text += f" table {connection.table}"
    return text


def answer(table: Table, connection: Connection, asked: str | None = None) -> Json:
    """What `explain --json` prints about one connection; quick enough for thousands a second.

    `asked` is the question as it was put; without it the canonical text stands in its place.
    """
    decision = decide(table, connection)
    why = decision.why
    destination: str | None = str(decision.destination)
    if decision.outcome in TO_PATHS:
        try:
            destination = unix_path(decision, connection)
        except AddressError as error:
            destination, why = None, str(error)
    return {
        "connection": asked if asked is not None else connection_text(connection),
        "outcome": decision.outcome.value,
        "upstream": decision.upstream,
        "destination": destination,
        "table": decision.table,
        "route": _origin_json(decision.route),
        "wall": _origin_json(decision.wall),
        "rewrites": [str(endpoint) for endpoint in decision.rewrites],
        "policy": decision.policy,
        "needs_address": decision.needs_address,
        "deny": decision.deny_how.value if decision.outcome is Outcome.DENY else None,
        "why": why,
    }


def unix_path(decision: Decision, connection: Connection) -> str:
    """The path a `to unix` decision leads to. Raises AddressError where a field has no safe value."""
    to = decision.destination or connection.destination
    named = isinstance(to.host, str)
    return fill(
        decision.template or "",
        address=None if isinstance(to.host, str) else to.host,
        port=to.port,
        name=str(to.host) if named else None,
        listener=connection.listener,
        source=connection.source,
    )


def _origin_json(origin: Origin | None) -> Json | None:
    if origin is None:
        return None
    return {"file": origin.file, "line": origin.line, "text": origin.text}


def explain(table: Table, connection: Connection) -> Explanation:
    """The decision about one connection with everything `urelay explain` says about it."""
    return Explanation(table, connection, decide(table, connection))


class Loser(NamedTuple):
    """A route that matches and did not win."""

    origin: Origin
    reason: str


@dataclass(frozen=True)
class Explanation:
    """A decision and its reasons."""

    table: Table
    connection: Connection
    decision: Decision

    def json(self) -> Json:
        """`answer`, and the losers."""
        beaten = [{**(_origin_json(origin) or {}), "reason": reason} for origin, reason in self.beaten]
        return {**answer(self.table, self.connection), "beaten": beaten}

    def text(self) -> str:
        """Lines for people, without a final newline."""
        decision = self.decision
        lines = [_headline(self.table, decision)]
        if decision.wall is not None:
            lines.append(_line("because", str(decision.wall), decision.wall.text))
        elif decision.route is not None:
            lines.append(_line("because", str(decision.route), decision.route.text))
        if decision.why is not None:
            lines.append(_line("note" if decision.route or decision.wall else "because", decision.why))
        lines += [_line("rewritten" if at == 0 else "", str(to)) for at, to in enumerate(decision.rewrites)]
        if decision.needs_address:
            lines.append(_line("resolve", "the name is resolved, and each answer is decided as an address"))
        lines.append(_line("table", self._first_table, self._why_table))
        lines.append(_line("walls", self._walls))
        for at, loser in enumerate(self.beaten):
            said = f"{loser.origin.text}   {loser.reason}"
            lines.append(_line("beaten" if at == 0 else "", str(loser.origin), said))
        lines += [_line("same for" if at == 0 else "", text) for at, text in enumerate(self._same)]
        return "\n".join(lines)

    @cached_property
    def beaten(self) -> list[Loser]:
        """The routes that match where the decision fell and lost, the closest first."""
        name, to, winner = self._stage
        asked = self.connection
        policy = self.table.policy
        best = None if winner is None else element_of(winner, to, asked)
        found: list[tuple[Element, Route]] = []
        for route in (*policy.tables.get(name, ()), *policy.guard):
            element = element_of(route, to, asked)
            if route is not winner and element is not None:
                found.append((element, route))
        found.sort(key=lambda item: item[0].rank, reverse=True)
        losers = []
        refused_by = self.decision.wall or self.decision.route
        if winner is not None and refused_by is not None and winner.origin != refused_by:
            losers.append(Loser(winner.origin, "refused by the final check"))
        for weaker, route in found:
            if route.origin != self.decision.route:
                losers.append(Loser(route.origin, reason_lost(winner, best, weaker)))
        return losers

    @cached_property
    def _stage(self) -> tuple[str, Endpoint, Route | Wall | None]:
        """Where the decision fell: the table, the destination on arrival there, the winner."""
        world = self.table.world(self._first_table)
        host, port = self.connection.destination
        family, number = packed_source(self.connection.source)
        listener = self.connection.listener
        box = Box(PortRange(port, port), Sources(family, number, number), frozenset((listener,)))
        trail = (
            Trail(NamePattern(NameKind.EXACT, host), box, Bearing(fixed=host))
            if isinstance(host, str)
            else Trail(cube_of(host_prefix(host)), box, Bearing())
        )
        end = next(iter(Walker(self.table).follow(world, trail)))
        rule = None if end.final is None else end.final.rule
        if end.steps and end.steps[-1][1] is rule:
            name, _, bearing = end.steps[-1]
            return name, bearing.of(end.origin, port), rule
        return self.decision.table, end.now, rule

    @property
    def _first_table(self) -> str:
        if self.connection.table is not None:
            return self.connection.table
        return self.table.world_for(self.connection.listener, self.connection.source).name

    @property
    def _why_table(self) -> str:
        name, source = self.connection.listener, self.connection.source
        if self.connection.table is not None:
            return "as asked"
        listener = self.table.policy.listeners.get(name) if name is not None else None
        if listener is None:
            return "no listener named"
        fits = [
            one.source for one in listener.tables if one.source is not None and inside(source, one.source)
        ]
        if fits:
            return f"listener {name}, from {prefix_text(max(fits, key=lambda prefix: prefix.length))}"
        if listener.tables and self._first_table != MAIN:
            return f"listener {name}"
        return f"listener {name} names no other"

    @property
    def _walls(self) -> str:
        table = self.decision.table
        walls = [wall for wall in self.table.policy.walls if wall.table in (None, table)]
        if self.decision.wall is not None:
            return f"{self.decision.wall} covers it"
        return f"none of {len(walls)} covers it" if walls else "there are none"

    @property
    def _same(self) -> list[str]:
        """The cell around the connection, as regions."""
        name = self._first_table
        (host, port), source, listener = (
            self.connection.destination,
            self.connection.source,
            self.connection.listener,
        )
        family, number = packed_source(source)
        alone = Box(PortRange(port, port), Sources(family, number, number), frozenset((listener,)))
        known = everyone = audience(self.table.policy, name)
        if not any(box.meets(alone) for box in everyone):
            # The question leaves out what every client has. It is about all who are like what it says.
            likes = {4: IPV4_SOURCES, 6: IPV6_SOURCES}.get(family, NO_SOURCE)
            known = everyone = [Box(ALL_PORTS, likes, frozenset((listener,)))]
            if listener is not None:
                # Other listeners exist, so the one that was named is part of the answer.
                others = frozenset(self.table.policy.listeners) - {listener}
                known = [*everyone, Box(ALL_PORTS, likes, others)]
        summary = Summary(known)
        mine = _verdict(self.decision)
        for cell in Cells(self.table).around(name, host, everyone):
            if _verdict(cell.decision) == mine and cell.holds_host(host):
                summary.add(cell)
        return summary.lines()


def _verdict(decision: Decision) -> tuple[object, ...]:
    """What makes two decisions the same for people: the outcome and who said so."""
    return decision.outcome, decision.upstream, decision.table, decision.route, decision.wall


def explain_region(table: Table, question: Question) -> str:
    """The partition of a region: what happens to which part of it, one line each."""
    name = question.table or MAIN
    everyone = [
        part
        for box in audience(table.policy, name)
        for part in box.within(question.region.ports, question.region.sources, question.region.listeners)
    ]
    groups: dict[tuple[str, str], Summary] = {}
    for cell in Cells(table).of(name, question.region.destinations, everyone):
        decision = cell.decision
        origin = decision.wall or decision.route
        key = outcome_text(decision), str(origin) if origin is not None else decision.why or ""
        groups.setdefault(key, Summary(everyone)).add(cell)
    lines = []
    for (outcome, said_by), summary in groups.items():
        lines.append(f"{outcome:<20}  {said_by}")
        lines += [f"  {text}" for text in summary.lines()]
    return "\n".join(lines)


# --- lines


def _headline(table: Table, decision: Decision) -> str:
    text = outcome_text(decision)
    upstream = table.policy.upstreams.get(decision.upstream or "")
    if upstream is not None and upstream.origin.text.startswith("upstream"):
        return f"{text:<36}  {upstream.origin.text.partition('= ')[2]}"
    return text


def _line(heading: str, first: str, rest: str = "") -> str:
    return f"  {heading:<9} {first:<18} {rest}".rstrip()
