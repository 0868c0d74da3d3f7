"""Denies that do not hold (UR220): the one trap of comparing destinations first.

`match any port 25 -> deny` says nothing about port 25 of 10.0.0.0/8 when `match 10.0.0.0/8 -> direct`
is there: the longer prefix wins. Such a *crossing* needs a deny that says more than a destination
(ports, sources or listeners) and a route with a longer destination that lets part of it through
without saying all that the deny says. A route that is at least as narrow in every other respect is
an exception somebody wrote on purpose, and a wall or another deny that wins there is no crossing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from urelay.analysis.boxes import Box, audience
from urelay.analysis.cells import Cells, address_stretches
from urelay.analysis.phrases import clauses_text, destinations_text, stretch_text
from urelay.analysis.readings import distinct_leaves
from urelay.analysis.walk import leaves
from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.net.address import Host, address_of
from urelay.policy.model import Deny, PortRange, Region, Route, Silent
from urelay.table.leaf import Candidate, Leaf
from urelay.table.world import World

MOST_ROUTES = 3
"""Piercing routes that are underlined; the others are named."""


class _Place(NamedTuple):
    """A destination in words, one of its hosts, and the leaf there."""

    where: str
    example: Host
    leaf: Leaf


class _Piercing(NamedTuple):
    route: Route
    where: str


def find_crossings(cells: Cells) -> Iterator[Diagnostic]:
    """UR220, at most one finding a deny."""
    policy = cells.table.policy
    for name, routes in policy.tables.items():
        world = cells.table.world(name)
        everybody = audience(policy, name)
        denies = [route for route in routes if _may_be_crossed(route)]
        if not denies:
            continue
        everywhere = list(_samples(world))
        for deny in denies:
            anywhere = deny.region.destinations is None
            places = everywhere if anywhere else list(_places(cells, world, deny))
            found = _piercing(cells, world, deny, everybody, places)
            if found:
                yield _crossing(deny, list(found.values()))


def _may_be_crossed(route: Route) -> bool:
    region = route.region
    narrowed = region.ports is not None or region.sources is not None or region.listeners is not None
    return isinstance(route.action.deliver, Deny | Silent) and narrowed


def _samples(world: World) -> Iterator[_Place]:
    """Every distinct leaf at a destination that has it."""
    for family in (4, 6):
        for first, last, leaf in distinct_leaves(world, family).values():
            yield _Place(stretch_text(family, first, last), address_of(family, first), leaf)
    seen = set()
    for pattern, leaf in world.names.entries():
        if id(leaf) not in seen:
            seen.add(id(leaf))
            yield _Place(str(pattern), pattern.name, leaf)


def _places(cells: Cells, world: World, deny: Route) -> Iterator[_Place]:
    """Every distinct leaf at the destinations of a deny."""
    seen: set[int] = set()
    for stretch in address_stretches(deny.region.destinations):
        for first, last, leaf in leaves(world, *stretch):
            if id(leaf) not in seen:
                seen.add(id(leaf))
                yield _Place(
                    stretch_text(stretch.family, first, last), address_of(stretch.family, first), leaf
                )
    for where, example, leaf in cells.name_classes(world, deny.region.destinations):
        yield _Place(str(where), example, leaf)


def _piercing(
    cells: Cells, world: World, deny: Route, everybody: list[Box], places: list[_Place]
) -> dict[int, _Piercing]:
    region = deny.region
    boxes = [part for box in everybody for part in box.within(region.ports, region.sources, region.listeners)]
    found: dict[int, _Piercing] = {}
    for where, example, leaf in places:
        if leaf.sole is not None and not _lets_through(leaf.sole, deny):
            continue
        for box in boxes:
            for part, candidate in cells.walker.partition(leaf, box):
                if candidate is None or id(candidate.rule) in found or not _lets_through(candidate, deny):
                    continue
                if not _longer(leaf, candidate, deny):
                    continue
                assert isinstance(candidate.rule, Route)
                if candidate.decision is None and cells.decide(world, example, part).denied:
                    continue
                found[id(candidate.rule)] = _Piercing(
                    candidate.rule, _let_through(deny, candidate.rule, where, part)
                )
    return found


def _let_through(deny: Route, route: Route, where: str, box: Box) -> str:
    """What gets past the deny, `where` being one place of it."""
    region = deny.region
    if region.destinations is None:
        where = destinations_text(route.region.destinations)
    ports = None if region.ports is None and route.region.ports is None else (box.ports,)
    return where + clauses_text(Region(ports=ports, sources=region.sources, listeners=region.listeners))


def _lets_through(winner: Candidate, deny: Route) -> bool:
    """Whether the winner is a route of the policy that does not deny, and no intended exception."""
    route = winner.rule
    if not isinstance(route, Route) or route.guard or isinstance(route.action.deliver, Deny | Silent):
        return False
    return not _says_as_much(route.region, deny.region)


def _says_as_much(route: Region, deny: Region) -> bool:
    """Whether a route is at least as narrow as a deny in ports, sources and listeners."""
    if deny.ports is not None and not all(
        _within(ports, deny.ports) for ports in route.ports or (PortRange(1, 65535),)
    ):
        return False
    if deny.sources is not None:
        if route.sources is None:
            return False
        if not all(any(wide.covers(source) for wide in deny.sources) for source in route.sources):
            return False
    return deny.listeners is None or (route.listeners is not None and route.listeners <= deny.listeners)


def _within(ports: PortRange, wide: tuple[PortRange, ...]) -> bool:
    return any(one.first <= ports.first and ports.last <= one.last for one in wide)


def _longer(leaf: Leaf, winner: Candidate, deny: Route) -> bool:
    """Whether the winner's destination is longer than that of the deny: another layer, further in."""
    for layer in leaf.layers:
        rules = {id(candidate.rule) for candidate in layer.candidates}
        if id(winner.rule) in rules:
            return id(deny) not in rules
        if id(deny) in rules:
            return False
    return False


def _crossing(deny: Route, piercing: list[_Piercing]) -> Diagnostic:
    piercing.sort(key=lambda one: (one.route.origin.file, one.route.origin.line))
    said = clauses_text(deny.region)
    labels = [
        Label(one.route.node.region.span, f"longer, so it wins for {one.where}")
        for one in piercing[:MOST_ROUTES]
    ]
    remarks = [Remark("note", f"destination is compared before{_compared(deny.region)}")]
    if len(piercing) > MOST_ROUTES:
        others = ", ".join(str(one.route.origin) for one in piercing[MOST_ROUTES : MOST_ROUTES + 8])
        remarks.append(Remark("note", f"so do {len(piercing) - MOST_ROUTES} more: {others}"))
    nothing = f"nothing may{' use' if deny.region.ports else ' pass'}{said}?"
    wall = f"forbid {destinations_text(deny.region.destinations)}{said}"
    remarks.append(Remark("help", f"{nothing}   {wall}"))
    remarks.append(Remark("help", f"it is meant?   put  # allow UR220: <why>  above line {deny.origin.line}"))
    where = "any destination" if deny.region.destinations is None else "a shorter destination"
    return diagnostic(
        "UR220",
        "this deny does not hold: a longer prefix lets some of it through",
        Label(deny.node.region.span, where),
        *labels,
        remarks=tuple(remarks),
    )


def _compared(region: Region) -> str:
    words = [
        word
        for word, said in (("port", region.ports), ("source", region.sources), ("listener", region.listeners))
        if said is not None
    ]
    return " " + " and ".join(words)
