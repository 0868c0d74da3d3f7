"""Cells put together again: the fewest regions that are exactly them, in the policy's own syntax.

Cells are as small as the table's seams make them. For people, neighbouring stretches with the same
ports, sources and listeners become prefixes, ports become ranges, and a clause that would say
nothing (every port; every source and every listener that can ask) is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from urelay.analysis.boxes import Box, Listeners, Sources
from urelay.analysis.cells import Cell, Stretch
from urelay.analysis.cubes import Cube
from urelay.analysis.phrases import (
    MOST,
    braces,
    listing,
    merged,
    ports_text,
    prefix_text,
    prefixes_between,
    stretch_text,
)
from urelay.net.address import address_text
from urelay.policy.model import NamePattern, PortRange

Part = tuple[tuple[PortRange, ...], tuple[Sources, ...], tuple[str | None, ...]]
"""Ports, sources and listeners of a region: every combination of them."""


class Summary:
    """A growing union of cells of one table."""

    def __init__(self, audience: Iterable[Box]) -> None:
        """`audience` is everybody who can ask the table: what they all are need not be said."""
        self._audience: dict[str | None, set[Sources]] = defaultdict(set)
        for box in audience:
            for listener in box.listeners:
                self._audience[listener].add(box.sources)
        self._stretches: dict[Stretch, list[Box]] = defaultdict(list)
        self._scattered: dict[Cube, list[Box]] = defaultdict(list)
        self._names: dict[NamePattern | None, list[Box]] = defaultdict(list)
        self._holes = False

    def add(self, cell: Cell) -> None:
        """Count a cell in."""
        if isinstance(cell.where, Stretch):
            self._stretches[cell.where].append(cell.box)
        elif isinstance(cell.where, Cube):
            self._scattered[cell.where].append(cell.box)
        else:
            self._names[cell.where].append(cell.box)
        self._holes = self._holes or bool(cell.less)

    def addresses(self, family: int) -> int:
        """How many destination addresses of a family, scattered ones aside."""
        spans = [(first, last) for kind, first, last in self._stretches if kind == family]
        return sum(last - first + 1 for first, last in merged(spans))

    def lines(self, most: int = MOST) -> list[str]:
        """The regions as text, at most `most` and then how many more there are."""
        found = [where + self._clauses(part) for where, part in self._regions(most)]
        if len(found) > most:
            found = [*found[:most], f"and {len(found) - most:,} more regions"]
        if self._holes:
            found.append("but for IPv6 addresses that carry an IPv4 address which is refused")
        return found

    def _regions(self, most: int) -> Iterable[tuple[str, Part]]:
        by_parts: dict[tuple[Part, ...], list[Stretch]] = defaultdict(list)
        parts_of: dict[tuple[Box, ...], tuple[Part, ...]] = {}
        for stretch, boxes in sorted(self._stretches.items()):
            key = tuple(boxes)
            parts = parts_of.get(key)
            if parts is None:
                parts = parts_of[key] = simplified(boxes)
            run = by_parts[parts]
            if run and run[-1].family == stretch.family and run[-1].last + 1 == stretch.first:
                run[-1] = Stretch(stretch.family, run[-1].first, stretch.last)
            else:
                run.append(stretch)
        for parts, run in sorted(by_parts.items(), key=lambda item: item[1][0]):
            yield from ((_stretches_text(run, most), part) for part in parts)
        by_carriers: dict[tuple[Part, ...], Cube] = {}
        for cube, boxes in sorted(self._scattered.items()):
            by_carriers.setdefault(simplified(boxes), cube)
        for parts, cube in by_carriers.items():
            text = f"IPv6 addresses with an IPv4 address inside, like {address_text(cube.example)}"
            # The comma keeps what follows apart from the example.
            yield from ((f"{text}," if self._clauses(part) else text, part) for part in parts)
        by_names: dict[tuple[Part, ...], list[str]] = defaultdict(list)
        for name, boxes in self._names.items():
            by_names[simplified(boxes)].append("every other name" if name is None else str(name))
        for parts, names in by_names.items():
            text = names[0] if len(names) == 1 else f"{{ {listing(names)} }}"
            yield from ((text, part) for part in parts)

    def _clauses(self, part: Part) -> str:
        ports, sources, listeners = part
        text = ports_text(ports)
        known = {one for listener in listeners for one in self._audience[listener]}
        if _united(sources) != _united(known):
            text += " from " + braces([_source_text(one) for one in _united(sources)])
        if set(listeners) != set(self._audience):
            text += " on " + braces([listener or "no listener" for listener in listeners])
        return text


def simplified(boxes: Iterable[Box]) -> tuple[Part, ...]:
    """The union of disjoint boxes with fewer of them: ports joined first, then listeners, then sources."""
    by_client: dict[tuple[Sources, Listeners], list[PortRange]] = defaultdict(list)
    for ports, sources, listeners in boxes:
        by_client[sources, listeners].append(ports)
    by_source: dict[tuple[tuple[PortRange, ...], Sources], set[str | None]] = defaultdict(set)
    for (sources, listeners), ranges in by_client.items():
        joined = tuple(PortRange(first, last) for first, last in merged(ranges))
        by_source[joined, sources] |= listeners
    by_rest: dict[tuple[tuple[PortRange, ...], tuple[str | None, ...]], set[Sources]] = defaultdict(set)
    for (ports_, source), names in by_source.items():
        by_rest[ports_, tuple(sorted(names, key=lambda name: name or ""))].add(source)
    return tuple((ports_, _united(found), names_) for (ports_, names_), found in by_rest.items())


def _united(sources: Iterable[Sources]) -> tuple[Sources, ...]:
    families: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for family, first, last in sources:
        families[family].append((first, last))
    return tuple(
        Sources(family, first, last)
        for family in sorted(families)
        for first, last in merged(families[family])
    )


def _source_text(sources: Sources) -> str:
    return stretch_text(*sources) if sources.family else "no address"


def _stretches_text(run: Sequence[Stretch], most: int) -> str:
    words = []
    for stretch in run:
        prefixes = prefixes_between(*stretch)
        words += [prefix_text(one) for one in prefixes] if len(prefixes) <= most else [stretch_text(*stretch)]
        if len(words) > most:
            left = len(run) - run.index(stretch) - 1
            words = [*words[:most], *(["and more"] if left else [])]
            break
    return braces(words)
