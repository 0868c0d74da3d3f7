"""Routes that decide nothing (UR210), and tables that refuse what they do not name (UR223).

A route can win when it is the winner in some box of some leaf, for somebody who can ask its table.
One pass over the distinct leaves finds all that can; only for the others is it worth finding out who
wins in their place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from urelay.analysis.boxes import Box, audience
from urelay.analysis.cells import Cells, address_stretches
from urelay.analysis.readings import distinct_leaves
from urelay.analysis.walk import leaves
from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.policy.model import MAIN, Route, Wall
from urelay.table.leaf import Leaf
from urelay.table.world import World

MOST_LEAVES = 10_000
"""How many places of one large set are looked at to name the winners there."""
MOST_WINNERS = 4


def find_unreachable(cells: Cells, spoken: Collection[int]) -> Iterator[Diagnostic]:
    """UR210 for every route that never wins, but for those (by id) that another finding explains."""
    policy = cells.table.policy
    for name, routes in policy.tables.items():
        world = cells.table.world(name)
        boxes = audience(policy, name)
        winning = _winning(cells, world, boxes)
        for route in routes:
            where = route.region.destinations
            empty = where is not None and not where.prefixes and not where.names
            if id(route) not in winning and id(route) not in spoken and not empty:
                yield _unreachable(cells, world, boxes, route)


def find_closed(cells: Cells) -> Iterator[Diagnostic]:
    """UR223: table main has routes, and none of them says `match any`."""
    routes = cells.table.policy.tables[MAIN]
    if routes and all(route.region.destinations is not None for route in routes):
        yield diagnostic(
            "UR223",
            "no `match any` in table main: everything else is denied",
            Label(routes[-1].node.span, "what no route of the table matches is denied"),
        )


def _all_leaves(world: World) -> Iterator[Leaf]:
    for family in (4, 6):
        for _, _, leaf in distinct_leaves(world, family).values():
            yield leaf
    yield from {id(leaf): leaf for _, leaf in world.names.entries()}.values()
    yield world.any_leaf


def _winning(cells: Cells, world: World, boxes: list[Box]) -> set[int]:
    won = set()
    for leaf in _all_leaves(world):
        if leaf.sole is not None:
            won.add(id(leaf.sole.rule))
            continue
        for box in boxes:
            won.update(id(candidate.rule) for _, candidate in cells.walker.partition(leaf, box) if candidate)
    return won


def _unreachable(cells: Cells, world: World, boxes: list[Box], route: Route) -> Diagnostic:
    region = route.region
    mine = [part for box in boxes for part in box.within(region.ports, region.sources, region.listeners)]
    if not mine:
        return diagnostic(
            "UR210",
            "this route can never win",
            Label(route.node.span, "no client with this source or listener uses this table"),
            remarks=(Remark("help", "remove it, or name who comes in by this table"),),
        )
    winners: dict[int, Route | Wall] = {}
    for leaf in _leaves_of(cells, world, route):
        for box in mine:
            for _, candidate in cells.walker.partition(leaf, box):
                if candidate is not None:
                    winners[id(candidate.rule)] = candidate.rule
    rules = sorted(winners.values(), key=lambda rule: (rule.origin.file, rule.origin.line))
    local = [rule for rule in rules if not (isinstance(rule, Route) and rule.guard)]
    labels = [
        Label(rule.node.span, "this wall covers it" if isinstance(rule, Wall) else "wins instead")
        for rule in local[:MOST_WINNERS]
    ]
    remarks = [Remark("help", "remove it: nothing changes")]
    if len(rules) > len(labels):
        left = ", ".join(str(rule.origin) for rule in [r for r in rules if r not in local[:MOST_WINNERS]][:8])
        remarks.insert(0, Remark("note", f"others win there too: {left}"))
    return diagnostic(
        "UR210", "this route can never win", Label(route.node.span), *labels, remarks=tuple(remarks)
    )


def _leaves_of(cells: Cells, world: World, route: Route) -> Iterator[Leaf]:
    """The leaves at a route's destinations, each once, as far as MOST_LEAVES intervals."""
    seen: set[int] = set()
    count = 0
    for stretch in address_stretches(route.region.destinations):
        for _, _, leaf in leaves(world, *stretch):
            count += 1
            if id(leaf) not in seen:
                seen.add(id(leaf))
                yield leaf
            if count >= MOST_LEAVES:
                return
    for _, _, leaf in cells.name_classes(world, route.region.destinations):
        if id(leaf) not in seen:
            seen.add(id(leaf))
            yield leaf
