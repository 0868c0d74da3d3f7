"""The connections of a region, cut into cells that are decided alike.

Destinations come as the intervals and name classes of the table itself; at each of them the
candidates of its leaf cut the ports, sources and listeners (urelay.analysis.boxes). Where the table
holds a constant decision that is the cell, and the work is done once a leaf: a million prefixes that
share a leaf cost a million steps and one decision. Where a route rewrites or an IPv6 address may
carry an IPv4 one, urelay.analysis.walk follows what happens.

A host name stands for the decision about the name: one that needs an address is `direct` (or `via`)
here, and what the forwarder does with each answer is what it does with that address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from urelay.analysis.boxes import Box
from urelay.analysis.cubes import MAPPED, Cube, cube_of, cubes_between, remainder
from urelay.analysis.phrases import merged
from urelay.analysis.trails import Bearing, NameClass, Trail
from urelay.analysis.walk import Walker, leaves
from urelay.net.address import Host, address_of, host_prefix
from urelay.policy.model import Destinations, NameKind, NamePattern, Route
from urelay.table.decision import Decision
from urelay.table.evaluate import Table
from urelay.table.leaf import Leaf
from urelay.table.world import World


class Stretch(NamedTuple):
    """The addresses `first` to `last`."""

    family: int
    first: int
    last: int


Where: TypeAlias = Stretch | Cube | NameClass
Wanted: TypeAlias = Callable[[Decision], bool]


@dataclass(frozen=True, slots=True)
class Cell:
    """Connections that are all decided alike."""

    where: Where
    """The destinations, but for those in `less`"""
    box: Box
    decision: Decision
    """Of `example` at the box's first port; a rewritten `destination` is the example's"""
    example: Host
    bearing: Bearing
    """From what was asked for to the final destination"""
    less: tuple[Cube, ...] = ()
    """Addresses of `where` that are in other cells: they carry IPv4 addresses that are refused"""
    steps: tuple[tuple[str, Route, Bearing], ...] = ()
    """The routes that rewrote or looked up on the way"""

    def holds_host(self, host: Host) -> bool:
        """Whether a destination is this cell's. A name is compared with the name itself only."""
        if isinstance(host, str):
            return self.where == NamePattern(NameKind.EXACT, host)
        single = cube_of(host_prefix(host))
        mine = any(cube.meet(single) for cube in cubes_of(self.where))
        return mine and not any(cube.meet(single) for cube in self.less)


class Cells:
    """Cuts regions of one table; remembers leaves, so use one for many questions."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.walker = Walker(table)
        self._entries: dict[str, dict[NamePattern, Leaf]] = {}
        self._known: dict[str, set[str]] = {}
        self._families: dict[str, dict[str, list[NamePattern]]] = {}

    def of(
        self,
        table: str,
        destinations: Destinations | None,
        boxes: Iterable[Box],
        wanted: Wanted = lambda decision: True,
    ) -> Iterator[Cell]:
        """The cells of these connections in one table: disjoint, and together all of them.

        `wanted` is asked about each constant decision of a leaf; cells of others are left out, which
        is what makes a proof about a million prefixes cheap. Cells that are followed always come.
        """
        names = self.name_classes(self.table.world(table), destinations)
        return self._of(table, list(address_stretches(destinations)), names, boxes, wanted)

    def around(self, table: str, host: Host, boxes: Iterable[Box]) -> Iterator[Cell]:
        """The cells at a host name, or at the interval of the table that holds an address."""
        world = self.table.world(table)
        if isinstance(host, str):
            where = Destinations(names=(NamePattern(NameKind.EXACT, host),))
            return self._of(table, [], self.name_classes(world, where), boxes)
        first, last = (world.v4 if len(host) == 4 else world.v6).around(host)
        return self._of(table, [Stretch(4 if len(host) == 4 else 6, first, last)], [], boxes)

    def _of(
        self,
        table: str,
        stretches: Sequence[Stretch],
        classes: Iterable[tuple[NameClass, str, Leaf]],
        boxes: Iterable[Box],
        wanted: Wanted = lambda decision: True,
    ) -> Iterator[Cell]:
        world = self.table.world(table)
        whole = list(boxes)
        parts: dict[int, list[tuple[Box, Decision | None]]] = {}
        for stretch in stretches:
            for first, last, leaf in leaves(world, *stretch):
                if id(leaf) not in parts:
                    parts[id(leaf)] = self._parts(world, leaf, whole, wanted)
                for part, decision in parts[id(leaf)]:
                    yield from self._at(world, Stretch(stretch.family, first, last), part, decision)
        for where, example, leaf in classes:
            for part, decision in self._parts(world, leaf, whole, wanted):
                if decision is not None:
                    yield Cell(where, part, decision, example, Bearing())
                else:
                    yield from self._followed(world, Trail(where, part, Bearing(fixed=example)))

    def _parts(
        self, world: World, leaf: Leaf, boxes: Sequence[Box], wanted: Wanted
    ) -> list[tuple[Box, Decision | None]]:
        """The boxes of a leaf with their constant decisions, as far as they are wanted."""
        found = []
        for box in boxes:
            for part, candidate in self.walker.partition(leaf, box):
                decision = world.default if candidate is None else candidate.decision
                if decision is None or wanted(decision):
                    found.append((part, decision))
        return found

    def name_classes(
        self, world: World, destinations: Destinations | None
    ) -> Iterator[tuple[NameClass, str, Leaf]]:
        """The classes of names in a region: each with a name of it, and its leaf."""
        if world.name not in self._entries:
            self._entries[world.name] = dict(world.names.entries())
            self._known[world.name] = {pattern.name for pattern in self._entries[world.name]}
        entries, known = self._entries[world.name], self._known[world.name]
        if destinations is None:
            for pattern, leaf in entries.items():
                yield pattern, _example(pattern, known), leaf
            elsewhere = next(name for name in _labels("example", known) if name not in known)
            yield None, _fresh(elsewhere, known), world.any_leaf
            return
        done: set[NamePattern] = set()
        for wanted in destinations.names:
            found = [NamePattern(NameKind.EXACT, wanted.name)] if wanted.kind is not NameKind.BELOW else []
            if wanted.kind is not NameKind.EXACT:
                found.append(NamePattern(NameKind.BELOW, wanted.name))
                found += self._below(world, entries).get(wanted.name, [])
            for pattern in found:
                if pattern not in done:
                    done.add(pattern)
                    example = _example(pattern, known)
                    yield pattern, example, world.names.lookup(example)

    def _below(self, world: World, entries: Iterable[NamePattern]) -> dict[str, list[NamePattern]]:
        """For each domain the entries of a world below it."""
        known = self._families.get(world.name)
        if known is None:
            known = self._families[world.name] = {}
            for pattern in entries:
                _, dot, parent = pattern.name.partition(".")
                while dot:
                    known.setdefault(parent, []).append(pattern)
                    _, dot, parent = parent.partition(".")
        return known

    # --- addresses

    def _at(self, world: World, here: Stretch, box: Box, decision: Decision | None) -> Iterator[Cell]:
        if decision is None:
            for cube in cubes_between(*here):
                yield from self._followed(world, Trail(cube, box, Bearing()))
        else:
            yield Cell(here, box, decision, address_of(here.family, here.first), Bearing())

    def _followed(self, world: World, trail: Trail) -> Iterator[Cell]:
        for end in self.walker.follow(world, trail):
            yield from self._end(world, end, trail.bearing.fixed)

    def _end(self, world: World, end: Trail, name: Host | None) -> Iterator[Cell]:
        """The cell of a trail's end; none when all of it is in other cells."""
        where: Where = end.origin
        if isinstance(end.origin, Cube):
            rest = remainder(end.origin, end.less)
            if rest is None:
                return
            name = rest.example
            where = where_of(end.origin)
        assert name is not None
        decision = self.decide(world, name, end.box)
        yield Cell(where, end.box, decision, name, end.bearing, end.less, end.steps)

    def decide(self, world: World, host: Host, box: Box) -> Decision:
        """What the forwarder does with one connection of a box."""
        return self.table.decide(host, box.ports.first, box.sources.example, box.listener, world.name)


def cubes_of(where: Where) -> list[Cube]:
    """The destinations of a cell as cubes; none for names."""
    if isinstance(where, Stretch):
        return cubes_between(*where)
    return [where] if isinstance(where, Cube) else []


def where_of(cube: Cube) -> Where:
    """A cube as the destinations of a cell: a stretch when it is one."""
    return cube if cube.prefix is None else Stretch(cube.family, cube.value, cube.last)


def address_stretches(destinations: Destinations | None) -> Iterator[Stretch]:
    """The addresses of a region as disjoint stretches; IPv4-mapped IPv6 never occurs."""
    spans: dict[int, list[tuple[int, int]]] = {4: [], 6: []}
    if destinations is None:
        spans = {4: [(0, (1 << 32) - 1)], 6: [(0, (1 << 128) - 1)]}
    else:
        for prefix in destinations.prefixes:
            spans[prefix.family].append((prefix.first, prefix.last))
    for family, found in spans.items():
        for first, last in merged(found):
            if family == 6 and first <= MAPPED.last and last >= MAPPED.value:
                if first < MAPPED.value:
                    yield Stretch(6, first, MAPPED.value - 1)
                if last > MAPPED.last:
                    yield Stretch(6, MAPPED.last + 1, last)
            else:
                yield Stretch(family, first, last)


def _example(pattern: NamePattern, known: set[str]) -> str:
    return pattern.name if pattern.kind is NameKind.EXACT else _fresh(pattern.name, known)


def _fresh(name: str, known: set[str]) -> str:
    """A name directly below `name` that the table does not know."""
    return next(found for label in _labels("www", known) if (found := f"{label}.{name}") not in known)


def _labels(word: str, known: set[str]) -> Iterator[str]:
    """`word`, then `word1` and so on: one more than there are known names."""
    yield word
    for number in range(1, len(known) + 2):
        yield f"{word}{number}"
