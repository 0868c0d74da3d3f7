"""Connections to one destination, cut into boxes that are decided alike.

Apart from its destination a connection is a port, a source and a listener. A *box* is a range of
ports by a stretch of sources by a set of listeners. The candidates of a leaf, taken in winning order,
each claim their part of a box; what is left over is offered to the next one. The parts are boxes
again, disjoint, and together they are the whole: nothing is sampled and nothing is missed.

A connection need not have a source address (a client on a unix socket) nor a listener (a question
asked of the table itself), so both have a value that no `from` and no `on` matches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from urelay.analysis.phrases import merged
from urelay.net.address import Address, Prefix, address_of
from urelay.policy.model import ALL_PORTS, MAIN, Listener, Lookup, PlaceKind, Policy, PortRange, Route
from urelay.table.leaf import Candidate


class Sources(NamedTuple):
    """The source addresses `first` to `last`; family 0 (both ends 0) is a client without one."""

    family: int
    first: int
    last: int

    @property
    def example(self) -> Address | None:
        """The first of them."""
        return None if self.family == 0 else address_of(self.family, self.first)


IPV4_SOURCES = Sources(4, 0, (1 << 32) - 1)
IPV6_SOURCES = Sources(6, 0, (1 << 128) - 1)
NO_SOURCE = Sources(0, 0, 0)

Listeners: TypeAlias = frozenset[str | None]
"""Names of listeners; None among them is a connection that came in by none."""


class Box(NamedTuple):
    """Ports by sources by listeners; none of the three is empty."""

    ports: PortRange
    sources: Sources
    listeners: Listeners

    @property
    def listener(self) -> str | None:
        """One of the listeners, the same every time."""
        return min(self.listeners, key=lambda name: name or "")

    def meets(self, other: Box) -> bool:
        """Whether some connection is in both."""
        return (
            max(self.ports.first, other.ports.first) <= min(self.ports.last, other.ports.last)
            and self.sources.family == other.sources.family
            and max(self.sources.first, other.sources.first) <= min(self.sources.last, other.sources.last)
            and not self.listeners.isdisjoint(other.listeners)
        )

    def within(
        self,
        ports: Sequence[PortRange] | None,
        sources: Sequence[Prefix] | None,
        listeners: frozenset[str] | None,
    ) -> Iterator[Box]:
        """The disjoint parts of this box that a region's clauses leave; None leaves everything."""
        names = self.listeners if listeners is None else self.listeners & listeners
        stretches = [self.sources]
        if sources is not None:
            found = [part for prefix in sources if (part := narrow(self.sources, prefix)) is not None]
            joined = merged((first, last) for _, first, last in found)
            stretches = [Sources(self.sources.family, first, last) for first, last in joined]
        for first, last in [self.ports] if ports is None else merged(ports):
            both = PortRange(max(first, self.ports.first), min(last, self.ports.last))
            if names and both.first <= both.last:
                yield from (Box(both, stretch, names) for stretch in stretches)


def partition(candidates: Sequence[Candidate], box: Box) -> list[tuple[Box, Candidate | None]]:
    """`box` cut into disjoint boxes, each with the candidate that wins there (None: none matches)."""
    won: list[tuple[Box, Candidate | None]] = []
    left = [box]
    for candidate in candidates:
        if not left:
            return won
        still = []
        for part in left:
            taken = claimed(candidate, part)
            if taken is None:
                still.append(part)
            else:
                won.append((taken, candidate))
                still.extend(_without(part, taken))
        left = still
    won.extend((part, None) for part in left)
    return won


def claimed(candidate: Candidate, box: Box) -> Box | None:
    """The part of `box` that a candidate matches."""
    ports, sources, listeners = box
    if candidate.ports is not None:
        ports = PortRange(max(ports.first, candidate.ports.first), min(ports.last, candidate.ports.last))
        if ports.first > ports.last:
            return None
    if candidate.source is not None:
        narrowed = narrow(sources, candidate.source)
        if narrowed is None:
            return None
        sources = narrowed
    if candidate.listeners is not None:
        listeners &= candidate.listeners
        if not listeners:
            return None
    return Box(ports, sources, listeners)


def narrow(sources: Sources, prefix: Prefix) -> Sources | None:
    """The part of `sources` in a prefix."""
    if sources.family != prefix.family:
        return None
    first, last = max(sources.first, prefix.first), min(sources.last, prefix.last)
    return Sources(sources.family, first, last) if first <= last else None


def _without(box: Box, taken: Box) -> Iterator[Box]:
    """What is left of `box`: slabs beside `taken`, by port, then by source, then by listener."""
    ports, sources, listeners = box
    if ports.first < taken.ports.first:
        yield Box(PortRange(ports.first, taken.ports.first - 1), sources, listeners)
    if ports.last > taken.ports.last:
        yield Box(PortRange(taken.ports.last + 1, ports.last), sources, listeners)
    if sources.first < taken.sources.first:
        yield Box(taken.ports, Sources(sources.family, sources.first, taken.sources.first - 1), listeners)
    if sources.last > taken.sources.last:
        yield Box(taken.ports, Sources(sources.family, taken.sources.last + 1, sources.last), listeners)
    if rest := listeners - taken.listeners:
        yield Box(taken.ports, taken.sources, rest)


# --- who asks which table


def clients(policy: Policy) -> dict[str, list[Box]]:
    """For each table that a listener's clients live in: which clients those are, on every port.

    A policy without listeners is asked by nobody, from everywhere.
    """
    by_client: dict[tuple[Sources, str], set[str | None]] = {}
    for listener in policy.listeners.values():
        for sources, table in _choices(listener):
            by_client.setdefault((sources, table), set()).add(listener.name)
    if not policy.listeners:
        for sources in (IPV4_SOURCES, IPV6_SOURCES):
            by_client[sources, MAIN] = {None}
    found: dict[str, list[Box]] = {}
    for (sources, table), names in by_client.items():
        found.setdefault(table, []).append(Box(ALL_PORTS, sources, frozenset(names)))
    return found


def audience(policy: Policy, table: str) -> list[Box]:
    """Who may be decided about by a table: its own clients, and those of tables that `lookup` it.

    A table that nobody's connections reach is taken to be open to everybody, so that what is said
    about it can still be proved.
    """
    by_table = clients(policy)
    reached_from = {table}
    grown = True
    while grown:
        more = {name for name in policy.tables if _looks_up(policy.tables[name], reached_from)} - reached_from
        reached_from |= more
        grown = bool(more)
    if not any(name in by_table for name in reached_from):
        reached_from = set(by_table)
    together: dict[Sources, set[str | None]] = {}
    for name in sorted(reached_from):
        for box in by_table.get(name, ()):
            together.setdefault(box.sources, set()).update(box.listeners)
    return [Box(ALL_PORTS, sources, frozenset(names)) for sources, names in together.items()]


def _looks_up(routes: Iterable[Route], tables: Collection[str]) -> bool:
    return any(
        isinstance(route.action.deliver, Lookup) and route.action.deliver.table in tables for route in routes
    )


def _choices(listener: Listener) -> Iterator[tuple[Sources, str]]:
    """The sources of a listener's clients with the table they use, disjoint and complete."""
    fallback = next((choice.table for choice in listener.tables if choice.source is None), MAIN)
    if listener.place.kind in (PlaceKind.UNIX, PlaceKind.SOCKETBOX):
        yield NO_SOURCE, fallback
    prefixes = sorted(
        ((choice.source, choice.table) for choice in listener.tables if choice.source is not None),
        key=lambda item: -item[0].length,
    )
    for whole in (IPV4_SOURCES, IPV6_SOURCES):
        mine = [(prefix, table) for prefix, table in prefixes if prefix.family == whole.family]
        for first, last in stretches(whole.first, whole.last, (prefix for prefix, _ in mine)):
            tables = (table for prefix, table in mine if prefix.first <= first <= prefix.last)
            yield Sources(whole.family, first, last), next(tables, fallback)


def stretches(first: int, last: int, prefixes: Iterable[Prefix]) -> Iterator[tuple[int, int]]:
    """`first` to `last`, cut wherever one of the prefixes begins or ends."""
    starts = {first}
    for prefix in prefixes:
        starts.update(cut for cut in (prefix.first, prefix.last + 1) if first < cut <= last)
    ordered = sorted(starts)
    for at, start in enumerate(ordered):
        yield start, (ordered[at + 1] - 1 if at + 1 < len(ordered) else last)
