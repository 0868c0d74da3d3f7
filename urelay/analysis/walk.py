"""Where connections go, followed as whole sets: through rewrites and lookups to the final check.

Theory of operation. A *trail* is a set of connections (a cube of addresses, or one class of names,
with a box) that has met the same routes so far, with the bit maps and the shift of ports that lead from
what the client asked for to where it goes now. At each table the trail is cut where the image
crosses into another leaf, and in the leaf where another candidate wins; the cuts are made in the
image and traced back. What a rewrite may refuse (bits 64 to 71 behind a NAT64 prefix, special-use IPv4
under 64:ff9b::/96) and what the final check may refuse (walls and the guard, about the address and
about every IPv4 address read out of it) cut a trail as well. Where a trail ends, all its connections
are decided alike, and the forwarder's own evaluator, asked about one of them, says how.

Cutting too often is harmless; cutting too rarely would be a false proof. So the cuts follow
urelay.table.evaluate step by step, and a test compares every address of small universes with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property

from urelay.analysis.boxes import Box, partition
from urelay.analysis.cubes import (
    LOW_32,
    MAPPED,
    Cube,
    cube_of,
    cubes_between,
    extraction,
    without_all,
)
from urelay.analysis.readings import AS_IT_IS, REGISTERED, Reading, distinct_leaves, refused_cubes, refuses
from urelay.analysis.rewrites import rewritten
from urelay.analysis.trails import Trail
from urelay.net.address import address_of
from urelay.policy.model import (
    Deny,
    Lookup,
    Route,
    Silent,
    Unix,
)
from urelay.table.evaluate import MAX_LOOKUPS, Table
from urelay.table.leaf import Candidate, Leaf
from urelay.table.world import World


class Walker:
    """Follows trails through the worlds of one table."""

    def __init__(self, table: Table, *, final_check: bool = True) -> None:
        """A walker remembers what it learns of the table, so use one for many questions.

        Without the final check trails end where somebody would dial, cut no further.
        """
        self.table = table
        self._final_check = final_check
        self._partitions: dict[tuple[int, Box], list[tuple[Box, Candidate | None]]] = {}
        self._cubes: dict[tuple[int, int, Box], list[Cube]] = {}
        self._cuts: dict[tuple[int, tuple[int, ...], Box], list[Box]] = {}

    def partition(self, leaf: Leaf, box: Box) -> list[tuple[Box, Candidate | None]]:
        """`box` cut by the winners of a leaf."""
        key = id(leaf), box
        known = self._partitions.get(key)
        if known is None:
            known = self._partitions[key] = partition(leaf.candidates, box)
        return known

    def follow(self, world: World, trail: Trail) -> Iterator[Trail]:
        """Every end of `trail` from `world` on; together they are all its connections."""
        if isinstance(trail.bearing.fixed, str):
            yield from self._at(world, world.names.lookup(trail.bearing.fixed), trail)
            return
        image = trail.image
        if image.family == 6 and (mapped := trail.within(MAPPED)) is not None:
            yield from self.follow(world, mapped.mapped(LOW_32))
            for part in trail.outside(MAPPED):
                yield from self.follow(world, part)
            return
        for first, last, leaf in leaves(world, image.family, image.value, image.last):
            for target in cubes_between(image.family, first, last):
                met = trail.within(target)
                if met is not None:
                    yield from self._at(world, leaf, met)

    def _at(self, world: World, leaf: Leaf, trail: Trail) -> Iterator[Trail]:
        for box, candidate in self.partition(leaf, trail.box_now):
            part = trail.boxed(box)._replace(final=candidate)
            route = None if candidate is None else candidate.rule
            if (
                candidate is None
                or not isinstance(route, Route)
                or isinstance(route.action.deliver, Deny | Silent)
            ):
                yield part
            elif part.empty:
                continue
            elif _been(part, world):
                yield part._replace(loops=True)
            else:
                yield from self._act(world, candidate, route, part)

    def _act(self, world: World, candidate: Candidate, route: Route, trail: Trail) -> Iterator[Trail]:
        """What a route that does not refuse does with a trail."""
        deliver, rewrite = route.action.deliver, route.action.rewrite
        ways: Iterable[tuple[Trail, bool]] = [(trail, True)]
        if rewrite is not None or isinstance(deliver, Lookup):
            trail = trail._replace(steps=(*trail.steps, (world.name, route, trail.bearing)))
            ways = [(trail, True)] if rewrite is None else rewritten(rewrite, candidate, trail)
        for part, goes_on in ways:
            if not goes_on:
                yield part
            elif isinstance(deliver, Lookup):
                yield from self.follow(self.table.world(deliver.table), part)
            elif isinstance(deliver, Unix) or isinstance(part.bearing.fixed, str) or not self._final_check:
                yield part
            else:
                yield from self._check(world, part)

    def _check(self, world: World, trail: Trail) -> Iterator[Trail]:
        """The final check: what a wall or the guard may refuse of a trail, apart from the rest."""
        family = trail.image.family
        readings = [AS_IT_IS] if trail.steps else []
        if family == 6:
            readings += [reading for reading in self._readings if trail.within(reading.domain) is not None]
        if not readings:
            yield trail
            return
        families = {4 if reading.step is not None else family for reading in readings}
        for box in self._boxes(world, families, trail.box_now):
            yield from self._carved(world, trail.boxed(box), readings)

    def _carved(self, world: World, trail: Trail, readings: Sequence[Reading]) -> Iterator[Trail]:
        """`trail`, in a box that nothing cuts any more, by what is refused of each reading."""
        less = list(trail.less)
        for domain, step, spared in readings:
            part = trail.within(domain) if step is not None else trail
            if part is None:
                continue
            image = part.image if step is None else step.image(part.image)
            for refused in self._refused(world, image, trail.box_now):
                for cube in without_all(refused, spared):
                    found = part.within(cube, () if step is None else (step,))
                    if found is None:
                        continue
                    if not isinstance(found.origin, Cube) or trail.bearing.fixed is not None:
                        yield trail._replace(refused=True)
                        return
                    overlap = tuple(known for known in less if known.meet(found.origin))
                    yield found._replace(refused=True, less=overlap)
                    less.append(found.origin)
        yield trail._replace(less=tuple(less))

    def _boxes(self, world: World, families: Collection[int], box: Box) -> list[Box]:
        """`box` cut so finely that inside a part, at each address, one candidate wins."""
        key = id(world), tuple(sorted(families)), box
        known = self._cuts.get(key)
        if known is None:
            cutting = {}
            for family in families:
                for _, _, leaf in distinct_leaves(world, family).values():
                    candidates = leaf.candidates
                    if any(refuses(candidate) for candidate in candidates):
                        for one in candidates:
                            cutting[one.ports, one.source, one.listeners] = one
            known = [box]
            for one in cutting.values():
                known = [part for whole in known for part, _ in partition((one,), whole)]
            self._cuts[key] = known
        return known

    def _refused(self, world: World, image: Cube, box: Box) -> list[Cube]:
        """What walls and the guard may refuse in a box of `_boxes`: one rule a cube, near `image`."""
        key = id(world), image.family, box
        known = self._cubes.get(key)
        if known is None:
            known = self._cubes[key] = list(refused_cubes(world, image.family, box))
        low = bisect_left(known, image.value, key=lambda cube: cube.last)
        high = bisect_right(known, image.last, key=lambda cube: cube.value)
        return known[low:high]

    @cached_property
    def _readings(self) -> tuple[Reading, ...]:
        """How IPv4 addresses are read out of IPv6 ones, as urelay.net.nat64.embedded_ipv4 does it."""
        found = []
        own: list[Cube] = []
        for prefix in sorted(self.table.nat64, key=lambda prefix: -prefix.length):
            found += [Reading(part, extraction(prefix.length)) for part in without_all(cube_of(prefix), own)]
            own.append(cube_of(prefix))
        for domain, step, spared in REGISTERED:
            found += [Reading(part, step, spared) for part in without_all(domain, own)]
        return tuple(found)


def leaves(world: World, family: int, first: int, last: int) -> Iterator[tuple[int, int, Leaf]]:
    """The intervals of a world that meet `first` to `last`, cut to it."""
    if first == last:
        yield first, last, world.leaf(address_of(family, first))
    else:
        yield from (world.v4 if family == 4 else world.v6).between(first, last)


def _been(trail: Trail, world: World) -> bool:
    """Whether the example of a trail has met this table with this destination before."""
    if len(trail.steps) >= MAX_LOOKUPS:
        return True
    port = trail.box.ports.first
    now = world.name, trail.now
    return any((name, bearing.of(trail.example, port)) == now for name, _, bearing in trail.steps)
