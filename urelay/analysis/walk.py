"""Where connections go, followed as whole sets: through rewrites and lookups to the final check.

Theory of operation. A *trail* is a set of connections (a cube of addresses, or one class of names,
with a box) that has met the same routes so far, with the bit maps and the shift of ports that lead from
what the client asked for to where it goes now. At each table the trail is cut where the image
crosses into another leaf, and in the leaf where another candidate wins; the cuts are made in the
image and traced back. What a rewrite may refuse (bits 64 to 71, special-use IPv4 under 64:ff9b::/96)
and what the final check may refuse (walls and the guard, about the address and about every IPv4
address read out of it) cut a trail as well. Where a trail ends, all its connections are decided
alike, and the forwarder's own evaluator, asked about one of them, says how.

Cutting too often is harmless; cutting too rarely would be a false proof. So the cuts follow
urelay.table.evaluate step by step, and a test compares every address of small universes with it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, TypeAlias

from urelay.analysis.boxes import Box, partition
from urelay.analysis.cubes import (
    ISATAP,
    LOW_32,
    SIX_TO_FOUR,
    TEREDO_CLIENT,
    TEREDO_SERVER,
    U_OCTET_ZERO,
    BitMap,
    Cube,
    cube_of,
    cubes_between,
    embedding,
    extraction,
    image_through,
    onto,
    origin_through,
)
from urelay.net import nat64
from urelay.net.address import Endpoint, Host, Prefix, address_of, host_prefix
from urelay.policy.model import (
    ALL_PORTS,
    Deny,
    FromNat64,
    Lookup,
    NamePattern,
    PortRange,
    Rewrite,
    Route,
    Silent,
    ToName,
    ToNat64,
    ToPrefix,
    Unix,
    Wall,
)
from urelay.table.evaluate import MAX_LOOKUPS, Table
from urelay.table.leaf import Candidate, Leaf
from urelay.table.world import World

NameClass: TypeAlias = NamePattern | None
"""Names decided alike: the name itself, all below it that no longer pattern covers; None: the rest."""

MAPPED = Cube(6, 0xFFFF << 32, 0xFFFF_FFFF)
"""::ffff:0:0/96: never a destination, since it becomes its IPv4 address on arrival."""

# Inside 192.0.0.0/24, and yet globally reachable (RFC 7723, RFC 8155).
_GLOBAL = tuple(Cube(4, 0xC000_0000 + last, 0) for last in (9, 10))


class Bearing(NamedTuple):
    """How a trail gets from what was asked for to where it goes now."""

    maps: tuple[BitMap, ...] = ()
    """From the address asked for to the address now, the first one first; unused once `fixed` is set"""
    fixed: Host | None = None
    """The destination now, where it is the same for the whole trail"""
    shift: int = 0
    """From a port asked for to the port now"""
    port: int | None = None
    """The port now, where it is the same for the whole trail"""

    def of(self, origin: Cube | NameClass, port: int) -> Endpoint:
        """Where the lowest address of `origin` goes when `port` was asked for."""
        port = port + self.shift if self.port is None else self.port
        if self.fixed is not None:
            return Endpoint(self.fixed, port)
        assert isinstance(origin, Cube)
        return Endpoint(image_through(self.maps, Cube(origin.family, origin.value, 0)).example, port)


class Trail(NamedTuple):
    """Connections that have fared alike so far."""

    origin: Cube | NameClass
    """The destinations asked for"""
    box: Box
    """Ports, sources and listeners, as asked for"""
    bearing: Bearing
    steps: tuple[tuple[str, Route, Bearing], ...] = ()
    """The routes met that rewrite or look up: their table, and the bearing on arrival there"""
    final: Candidate | None = None
    """At the end: who decided, before the final check"""
    loops: bool = False
    """At the end: it came back to where it was, or went through too many tables"""
    refused: bool = False
    """At the end: a reading of its addresses leads to a wall or the guard"""
    less: tuple[Cube, ...] = ()
    """Addresses of `origin` that are refused on the way, each in a trail of its own"""

    @property
    def now(self) -> Endpoint:
        """Where the example of this trail (its lowest address and port) goes now."""
        return self.bearing.of(self.example, self.box.ports.first)

    @property
    def example(self) -> Cube | NameClass:
        """The origin, or a part of it without those refused on the way."""
        if not self.less or not isinstance(self.origin, Cube):
            return self.origin
        return remainder(self.origin, self.less) or self.origin

    @property
    def empty(self) -> bool:
        """Whether all of the origin was refused on the way."""
        return bool(self.less) and isinstance(self.origin, Cube) and not remainder(self.origin, self.less)

    @property
    def image(self) -> Cube:
        """The addresses now; for a trail whose destination is an address."""
        if self.bearing.fixed is None:
            assert isinstance(self.origin, Cube)
            return image_through(self.bearing.maps, self.origin)
        assert isinstance(self.bearing.fixed, bytes)
        return cube_of(host_prefix(self.bearing.fixed))

    @property
    def box_now(self) -> Box:
        """Ports, sources and listeners as the tables see them now."""
        ports, sources, listeners = self.box
        shift, port = self.bearing.shift, self.bearing.port
        now = PortRange(ports.first + shift, ports.last + shift) if port is None else PortRange(port, port)
        return Box(now, sources, listeners)

    def boxed(self, now: Box) -> Trail:
        """The part in `now`, which is a part of `box_now`."""
        ports, shift = now.ports, self.bearing.shift
        asked = (
            PortRange(ports.first - shift, ports.last - shift)
            if self.bearing.port is None
            else self.box.ports
        )
        return self._replace(box=Box(asked, now.sources, now.listeners))

    def within(self, target: Cube | None, reading: tuple[BitMap, ...] = ()) -> Trail | None:
        """The part whose address now, read through `reading`, lies in `target`."""
        back = origin_through(reading, target) if target is not None else None
        if back is None:
            return None
        if self.bearing.fixed is not None:
            return self if self.image.meet(back) else None
        back = origin_through(self.bearing.maps, back)
        assert isinstance(self.origin, Cube)
        part = self.origin.meet(back) if back is not None else None
        return self.cut(part) if part is not None else None

    def outside(self, target: Cube) -> Iterator[Trail]:
        """The parts whose address now does not lie in `target`."""
        if self.bearing.fixed is not None:
            if not self.image.meet(target):
                yield self
            return
        assert isinstance(self.origin, Cube)
        back = origin_through(self.bearing.maps, target)
        for part in self.origin.without(back) if back is not None else (self.origin,):
            yield self.cut(part)

    def cut(self, origin: Cube) -> Trail:
        """The part with these origins."""
        if origin == self.origin:
            return self
        less = tuple(cube for cube in self.less if cube.meet(origin)) if self.less else ()
        return self._replace(origin=origin, less=less)

    def mapped(self, step: BitMap) -> Trail:
        """The same connections with another address."""
        bearing = self.bearing
        if bearing.fixed is None:
            return self._replace(bearing=bearing._replace(maps=(*bearing.maps, step)))
        return self._replace(bearing=bearing._replace(fixed=step.image(self.image).example))


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

    def checked(self, world: World, cube: Cube, box: Box) -> Iterator[Trail]:
        """The ends of an address that is dialled as it is: only the final check is left."""
        return self._check(world, Trail(cube, box, Bearing()))

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
            ways = [(trail, True)] if rewrite is None else _rewritten(rewrite, candidate, trail)
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
        readings = [_AS_IT_IS] if trail.steps else []
        if family == 6:
            readings += [reading for reading in self._readings if trail.within(reading.domain) is not None]
        if not readings:
            yield trail
            return
        families = {4 if reading.step is not None else family for reading in readings}
        for box in self._boxes(world, families, trail.box_now):
            yield from self._carved(world, trail.boxed(box), readings)

    def _carved(self, world: World, trail: Trail, readings: Sequence[_Reading]) -> Iterator[Trail]:
        """`trail`, in a box that nothing cuts any more, by what is refused of each reading."""
        less = list(trail.less)
        for domain, step, spared in readings:
            part = trail.within(domain) if step is not None else trail
            if part is None:
                continue
            image = part.image if step is None else step.image(part.image)
            for refused in self._refused(world, image, trail.box_now):
                for cube in _without(refused, spared):
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
                    if any(_refuses(candidate) for candidate in candidates):
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
            known = self._cubes[key] = list(_refused(world, image.family, box))
        low = bisect_left(known, image.value, key=lambda cube: cube.last)
        high = bisect_right(known, image.last, key=lambda cube: cube.value)
        return known[low:high]

    @cached_property
    def _readings(self) -> tuple[_Reading, ...]:
        """How IPv4 addresses are read out of IPv6 ones, as urelay.net.nat64.embedded_ipv4 does it."""
        found = []
        own: list[Cube] = []
        for prefix in sorted(self.table.nat64, key=lambda prefix: -prefix.length):
            found += [_Reading(part, extraction(prefix.length)) for part in _without(cube_of(prefix), own)]
            own.append(cube_of(prefix))
        for domain, step, spared in _REGISTERED:
            found += [_Reading(part, step, spared) for part in _without(domain, own)]
        return (*found, _Reading(ISATAP, LOW_32))


class _Reading(NamedTuple):
    """Addresses of a domain, and the IPv4 address somebody might read out of each."""

    domain: Cube
    step: BitMap | None
    """None: the address as it is"""
    spared: tuple[Cube, ...] = ()
    """IPv4 addresses that this reading does not find"""


_COMPATIBLE, _TRANSLATED, _WELL_KNOWN, _LOCAL_USE, _SIX_TO_FOUR, _TEREDO = map(cube_of, nat64.EMBEDDINGS)
_AS_IT_IS = _Reading(MAPPED, None)
_NOWHERE = Cube(4, 0, 0)
_REGISTERED = (
    _Reading(_COMPATIBLE, LOW_32, (_NOWHERE, Cube(4, 1, 0))),
    _Reading(_TRANSLATED, LOW_32),
    _Reading(_WELL_KNOWN, LOW_32),
    _Reading(_LOCAL_USE, extraction(48), (_NOWHERE,)),
    _Reading(_LOCAL_USE, LOW_32, (_NOWHERE,)),
    _Reading(_SIX_TO_FOUR, SIX_TO_FOUR),
    _Reading(_TEREDO, TEREDO_SERVER),
    _Reading(_TEREDO, TEREDO_CLIENT),
)


def _without(cube: Cube, others: Sequence[Cube]) -> Iterator[Cube]:
    """The addresses of `cube` in none of the others."""
    if not others:
        yield cube
        return
    for part in cube.without(others[0]):
        yield from _without(part, others[1:])


_SPECIAL = tuple(part for block, _ in nat64.SPECIAL_IPV4 for part in _without(cube_of(block), _GLOBAL))


def remainder(cube: Cube, less: Sequence[Cube]) -> Cube | None:
    """Some addresses of `cube` in none of `less`; None when there are none."""
    return next(_without(cube, less), None)


def leaves(world: World, family: int, first: int, last: int) -> Iterator[tuple[int, int, Leaf]]:
    """The intervals of a world that meet `first` to `last`, cut to it."""
    if first == last:
        yield first, last, world.leaf(address_of(family, first))
    else:
        yield from (world.v4 if family == 4 else world.v6).between(first, last)


def distinct_leaves(world: World, family: int) -> dict[int, tuple[int, int, Leaf]]:
    """The leaves of a family, each once with the first interval that has it."""
    found: dict[int, tuple[int, int, Leaf]] = {}
    for interval in (world.v4 if family == 4 else world.v6).intervals():
        found.setdefault(id(interval[2]), interval)
    return found


def _refused(world: World, family: int, box: Box) -> Iterator[Cube]:
    rules: dict[int, Route | Wall | None] = {}
    begun = 0
    by: Route | Wall | None = None
    for first, _, leaf in (world.v4 if family == 4 else world.v6).intervals():
        if id(leaf) not in rules:
            (_, candidate), *_ = partition(leaf.candidates, box)
            rules[id(leaf)] = candidate.rule if candidate is not None and _refuses(candidate) else None
        rule = rules[id(leaf)]
        if rule is not by:
            if by is not None:
                yield from cubes_between(family, begun, first - 1)
            begun, by = first, rule
    if by is not None:
        yield from cubes_between(family, begun, (1 << (32 if family == 4 else 128)) - 1)


def _refuses(candidate: Candidate) -> bool:
    return isinstance(candidate.rule, Wall) or candidate.guarding


def _been(trail: Trail, world: World) -> bool:
    """Whether the example of a trail has met this table with this destination before."""
    if len(trail.steps) >= MAX_LOOKUPS:
        return True
    port = trail.box.ports.first
    now = world.name, trail.now
    return any((name, bearing.of(trail.example, port)) == now for name, _, bearing in trail.steps)


def _rewritten(rewrite: Rewrite, candidate: Candidate, trail: Trail) -> Iterator[tuple[Trail, bool]]:
    """A trail after a rewrite, in parts; False with those that the rewrite refuses."""
    for part, goes_on in _moved(rewrite, trail):
        if goes_on and rewrite.ports is not None:
            bearing = part.bearing
            if rewrite.ports.width == 1:
                bearing = bearing._replace(port=rewrite.ports.first)
            else:
                change = rewrite.ports.first - (candidate.ports or ALL_PORTS).first
                bearing = bearing._replace(
                    shift=bearing.shift + change,
                    port=None if bearing.port is None else bearing.port + change,
                )
            yield part._replace(bearing=bearing), True
        else:
            yield part, goes_on


def _moved(rewrite: Rewrite, trail: Trail) -> Iterator[tuple[Trail, bool]]:
    move = rewrite.move
    if move is None:
        yield trail, True
    elif isinstance(move, ToName):
        yield trail._replace(bearing=trail.bearing._replace(fixed=move.name)), True
    elif isinstance(move, ToPrefix) and move.prefix.length == move.prefix.bits:
        fixed = address_of(move.prefix.family, move.prefix.first)
        yield trail._replace(bearing=trail.bearing._replace(fixed=fixed)), True
    elif isinstance(trail.bearing.fixed, str):
        # The name's address is not known yet: the forwarder asks again when it is.
        yield trail, False
    elif isinstance(move, ToPrefix):
        same = trail.image.family == move.prefix.family
        yield (trail.mapped(onto(move.prefix.family, move.prefix)) if same else trail), same
    elif isinstance(move, ToNat64):
        yield from _embedded(move, trail)
    else:
        yield from _extracted(move, trail)


def _embedded(move: ToNat64, trail: Trail) -> Iterator[tuple[Trail, bool]]:
    if trail.image.family == 6:
        yield trail, False
        return
    for part, carried in _carried(move.prefix, trail):
        yield (part.mapped(embedding(move.prefix)) if carried else part), carried


def _extracted(move: FromNat64, trail: Trail) -> Iterator[tuple[Trail, bool]]:
    whole: list[Trail] = [trail]
    for domain in (cube_of(move.prefix), U_OCTET_ZERO):
        left = []
        for part in whole:
            for refused in part.outside(domain):
                yield refused, False
            inside = part.within(domain)
            if inside is not None:
                left.append(inside)
        whole = left
    for part in whole:
        yield from _carried(move.prefix, part.mapped(extraction(move.prefix.length)))


def _carried(prefix: Prefix, trail: Trail) -> Iterator[tuple[Trail, bool]]:
    """An IPv4 trail, and apart from it what `prefix` must not carry of it (RFC 6052, 3.1)."""
    if prefix != nat64.WELL_KNOWN:
        yield trail, True
        return
    less = list(trail.less)
    for block in _SPECIAL:
        refused = trail.within(block)
        if refused is None:
            continue
        yield refused, False
        if refused.bearing.fixed is not None:
            return
        assert isinstance(refused.origin, Cube)
        less.append(refused.origin)
    yield trail._replace(less=tuple(less)), True
