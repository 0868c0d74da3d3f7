"""What stands at the end of a lookup: the routes and walls for one destination, strongest first.

A *candidate* is one element of a rule, with its destination already matched: it may still ask for
ports, a source and a listener. A *layer* holds the candidates that say the very same destination,
in the order of precedence (fewer ports, longer source, named listener; the policy's before the
guard's). A *leaf* is the layers around a destination from the most specific outwards, the walls'
first: so "walk up" is the loop over them. Layers are shared between leaves; a leaf is cut after the
first candidate that asks for nothing, since whatever follows it never wins.

Few rows are scanned. Where a layer has many, its ports are cut into cells when it is made, and the
sources of a cell with many are a prefix table: a list of ten thousand clients costs one lookup.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from urelay.net.address import Address, Prefix
from urelay.policy.model import ALL_PORTS, Outcome, PortRange, Route, Wall
from urelay.table.decision import Decision
from urelay.table.prefixes import PrefixTable, build, keys_of


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One element of a rule at a destination."""

    ports: PortRange | None
    source: Prefix | None
    listeners: frozenset[str] | None
    rule: Route | Wall
    decision: Decision | None
    """What it decides; None when that depends on the connection (a rewrite, a `lookup`)."""

    @property
    def unconditional(self) -> bool:
        """Whether it matches every connection to its destination."""
        return (self.ports or ALL_PORTS) == ALL_PORTS and self.source is None and self.listeners is None

    @property
    def guarding(self) -> bool:
        """Whether it is the guard's."""
        return isinstance(self.rule, Route) and self.rule.guard

    @property
    def order(self) -> tuple[bool, int, int, bool]:
        """Sorts candidates of one destination, the strongest first (language: precedence b to d)."""
        ports = self.ports or ALL_PORTS
        length = -1 if self.source is None else self.source.length
        return self.guarding, ports.width, -length, self.listeners is None


# What a candidate asks besides ports: how many bytes its sources have (0: any source), the shift and
# the value to compare; the listeners.
Asks: TypeAlias = tuple[int, int, int, frozenset[str] | None]
# A candidate as the hot path wants it: first and last port; what else it asks, if anything; itself.
Row: TypeAlias = tuple[int, int, Asks | None, Candidate]

_FEW = 8
"""So many rows are scanned one by one faster than their port's share of them is found."""


_MOST_SPECIAL = 64
"""Ports of a leaf that are kept in a set; each distinct leaf may have one of 4 KiB."""


class Layer:
    """The candidates that say the very same destination, strongest first; never empty."""

    __slots__ = ("_cells", "_cuts", "candidates", "rows")

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        """Sorts, and cuts after the first unconditional one; equals stay in the order given."""
        ordered = sorted(candidates, key=lambda candidate: candidate.order)
        self.candidates = tuple(_cut(ordered))
        self.rows = tuple(_row(candidate) for candidate in self.candidates)
        self._cuts: list[int] = []
        self._cells: list[_Cell] = []
        if len(self.rows) > _FEW:
            self._split()

    @property
    def closed(self) -> bool:
        """Whether nothing less specific can win."""
        return self.candidates[-1].unconditional

    def rows_at(self, port: int, source: Address | None) -> Iterable[Row]:
        """The rows that may match: few, however many ports and sources the policy names."""
        if self._cuts:
            return self._cells[bisect_right(self._cuts, port) - 1].rows_from(source)
        return self.rows

    def _split(self) -> None:
        """Cut the ports where a row begins or ends, and note the rows of each piece."""
        self._cuts = sorted({0} | {row[0] for row in self.rows} | {row[1] + 1 for row in self.rows})
        beginning: dict[int, list[int]] = {}
        ending: dict[int, list[int]] = {}
        for at, row in enumerate(self.rows):
            beginning.setdefault(row[0], []).append(at)
            ending.setdefault(row[1] + 1, []).append(at)
        inside: set[int] = set()
        for cut in self._cuts:
            inside.difference_update(ending.get(cut, ()))
            inside.update(beginning.get(cut, ()))
            cell: list[Row] = []
            for at in sorted(inside):
                row = self.rows[at]
                cell.append(row)
                if row[2] is None:
                    break
            self._cells.append(_Cell(cell))


class _Cell:
    """The rows of a layer that may match at some ports, found by source where they are many."""

    __slots__ = ("_by_source", "_rows", "_sourceless")

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._sourceless = tuple(at for at, row in enumerate(rows) if row[3].source is None)
        self._by_source: dict[int, PrefixTable[tuple[int, ...]]] = {}
        if len(rows) - len(self._sourceless) > _FEW:
            self._by_source = {4: self._index(4), 16: self._index(16)}

    def rows_from(self, source: Address | None) -> Iterable[Row]:
        """Those that may match a client at `source`, strongest first."""
        if not self._by_source:
            return self._rows
        places = self._sourceless if source is None else self._by_source[len(source)].lookup(source)
        return (self._rows[at] for at in places)

    def _index(self, width: int) -> PrefixTable[tuple[int, ...]]:
        """For each source address of `width` bytes, the places of the rows that say it or no source."""
        family = 4 if width == 4 else 6
        keys: list[int] = []
        for at, row in enumerate(self._rows):
            source = row[3].source
            if source is not None:
                keys += keys_of(family, (source,), at)
        known: dict[tuple[int, ...], tuple[int, ...]] = {}

        def overlay(places: tuple[int, ...], around: tuple[int, ...]) -> tuple[int, ...]:
            found = tuple(sorted({*places, *around}))
            return known.setdefault(found, found)

        return build(family, keys, self._sourceless, overlay)


class Leaf:
    """The layers of one destination. Compared by identity: the same leaf decides the same."""

    __slots__ = ("_few", "carries_ipv4", "layers", "routes", "sole", "special", "usual", "walls")

    def __init__(self, walls: tuple[Layer, ...], routes: tuple[Layer, ...], carries_ipv4: bool) -> None:
        self.walls = walls
        self.routes = routes
        self.layers = walls + routes
        self.carries_ipv4 = carries_ipv4
        """IPv6 only: addresses here embed IPv4 ones, which the final check must see as well."""
        few = sum(len(layer.rows) for layer in self.layers) <= _FEW
        # What nearly every leaf is, in one tuple: 100 ns less than going from layer to layer.
        self._few = tuple(row for layer in self.layers for row in layer.rows) if few else ()
        first = self.layers[0].candidates[0] if self.layers else None
        self.sole = first if first is not None and first.unconditional else None
        """The winner for every connection, when there is such a one."""
        self.special, self.usual = _usual(self.layers)
        """Some ports, and the decision at all others, if it is the same: a set costs less than rows."""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """In winning order: walls, then routes; cut after the first unconditional one.

        Where addresses carry IPv4 ones, candidates that dial have no decision of their own.
        """
        found = _cut(candidate for layer in self.layers for candidate in layer.candidates)
        if self.carries_ipv4:
            found = [
                replace(candidate, decision=None) if dials(candidate.decision) else candidate
                for candidate in found
            ]
        return tuple(found)

    def find(self, port: int, source: Address | None, listener: str | None) -> Candidate | None:
        """The winner for one connection, or None when nothing here matches it."""
        # Hot: no helper calls, and the most common case (nothing but ports asked for) first.
        for first, last, asks, candidate in self._few or self._rows_at(port, source):
            if first <= port <= last:
                if asks is None:
                    return candidate
                width, shift, value, listeners = asks
                if (listeners is None or listener in listeners) and (
                    not width
                    or (
                        source is not None
                        and len(source) == width
                        and int.from_bytes(source) >> shift == value
                    )
                ):
                    return candidate
        return None

    def _rows_at(self, port: int, source: Address | None) -> Iterator[Row]:
        for layer in self.layers:
            yield from layer.rows_at(port, source)


def _usual(layers: Sequence[Layer]) -> tuple[frozenset[int], Decision | None]:
    """A few ports, and the decision for every connection to another port; None when there is none."""
    ports: set[int] = set()
    for first, last, _, candidate in (row for layer in layers for row in layer.rows):
        if candidate.unconditional:
            return frozenset(ports), candidate.decision
        if last - first >= _MOST_SPECIAL:
            break
        ports.update(range(first, last + 1))
        if len(ports) > _MOST_SPECIAL:
            break
    return frozenset(), None


def dials(decision: Decision | None) -> bool:
    """Whether a decision sends the destination's address somewhere."""
    return decision is not None and (decision.outcome is Outcome.DIRECT or decision.outcome is Outcome.VIA)


def _cut(candidates: Iterable[Candidate]) -> list[Candidate]:
    kept: list[Candidate] = []
    for candidate in candidates:
        kept.append(candidate)
        if candidate.unconditional:
            break
    return kept


def _row(candidate: Candidate) -> Row:
    first, last = candidate.ports or ALL_PORTS
    source, listeners = candidate.source, candidate.listeners
    asks: Asks | None = None
    if source is not None:
        shift = source.bits - source.length
        asks = source.bits // 8, shift, source.first >> shift, listeners
    elif listeners is not None:
        asks = 0, 0, 0, listeners
    return first, last, asks, candidate
