"""What rewriting does that nobody meant: loops, ways back to ourselves, ways round a deny.

UR224   a route leads back to one of our own listeners
UR225   a destination comes back to itself through `lookup`
UR226   `rewrite … then direct` reaches what the same table denies to those who ask for it

All three follow the routes' own connections symbolically (urelay.analysis.walk), so nothing is
missed between two examples.
"""

from __future__ import annotations

from collections.abc import Iterator

from urelay.analysis.boxes import Box, audience
from urelay.analysis.cells import Cell, Cells, address_stretches
from urelay.analysis.cubes import Cube, cube_of, cubes_between
from urelay.analysis.phrases import listing, merged, ports_text, stretch_text
from urelay.analysis.trails import Bearing, Trail
from urelay.analysis.walk import Walker, leaves
from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.net.address import Address, Endpoint, address_text, host_prefix, parse_address
from urelay.policy.model import (
    Deny,
    Destinations,
    Direct,
    FromNat64,
    Listener,
    Lookup,
    Outcome,
    PlaceKind,
    Policy,
    PortRange,
    Route,
    Silent,
    ToName,
    UpstreamKind,
    Via,
    Wall,
)
from urelay.table.world import World


def find_loops(cells: Cells) -> Iterator[Diagnostic]:
    """UR225, at most one finding a route, and one for all the routes on a loop."""
    policy = cells.table.policy
    spoken: set[int] = set()
    for route in _may_return([route for routes in policy.tables.values() for route in routes]):
        if id(route) in spoken:
            continue
        world = cells.table.world(route.table)
        trail = next((end for end in _ends(cells, world, route) if end.loops), None)
        if trail is not None:
            spoken.update(id(step) for _, step, _ in trail.steps)
            yield _loop(route, trail)


def _may_return(routes: list[Route]) -> list[Route]:
    """The routes that `lookup` could lead back to, as far as tables and families of hosts tell.

    Most policies have none, and need no walk to know it.
    """
    asking = [route for route in routes if isinstance(route.action.deliver, Lookup)]
    behind = {id(one): [other for other in asking if _may_follow(one, other)] for one in asking}
    found = []
    for start in asking:
        reached: dict[int, Route] = {}
        left = list(behind[id(start)])
        while left:
            route = left.pop()
            if id(route) not in reached:
                reached[id(route)] = route
                left += behind[id(route)]
        if id(start) in reached:
            found.append(start)
    return found


def _may_follow(one: Route, other: Route) -> bool:
    """Whether what `one` rewrites may be a destination that `other` matches."""
    deliver, rewrite, where = one.action.deliver, one.action.rewrite, other.region.destinations
    if not isinstance(deliver, Lookup) or deliver.table != other.table:
        return False
    move = rewrite.move if rewrite is not None else None
    if where is None or move is None:
        return True
    if isinstance(move, ToName):
        return bool(where.names)
    family = 4 if isinstance(move, FromNat64) else move.prefix.family
    return any(prefix.family == family for prefix in where.prefixes)


def _ends(cells: Cells, world: World, route: Route) -> Iterator[Trail]:
    """Where the connections that a route wins go."""
    boxes = _boxes(cells.table.policy, world, route)
    walker = Walker(cells.table, final_check=False)
    for stretch in address_stretches(route.region.destinations):
        for first, last, leaf in leaves(world, *stretch):
            if not any(candidate.rule is route for candidate in leaf.candidates):
                continue
            for cube in cubes_between(stretch.family, first, last):
                for box in boxes:
                    yield from walker.follow(world, Trail(cube, box, Bearing()))
    for where, example, _ in cells.name_classes(world, route.region.destinations):
        for box in boxes:
            yield from walker.follow(world, Trail(where, box, Bearing(fixed=example)))


def _boxes(policy: Policy, world: World, route: Route) -> list[Box]:
    region = route.region
    everybody = audience(policy, world.name)
    return [part for box in everybody for part in box.within(region.ports, region.sources, region.listeners)]


def _loop(route: Route, trail: Trail) -> Diagnostic:
    port = trail.box.ports.first
    way = [f"{bearing.of(trail.example, port)} in table {name}" for name, _, bearing in trail.steps]
    back = str(trail.now)
    path = " -> ".join([*way[:6], *(["..."] if len(way) > 6 else []), back])
    others = {id(step): step for _, step, _ in trail.steps if step is not route}
    return diagnostic(
        "UR225",
        "lookup loop: a destination comes back to itself",
        Label(route.node.action.span, "asks again about a destination that leads here again"),
        *(Label(step.node.action.span, "by way of this") for step in list(others.values())[:2]),
        remarks=(
            Remark("for example", path),
            Remark("help", "end one of these routes with `direct`, `via` or `deny` instead of `lookup`"),
        ),
    )


# --- round a deny


def find_detours(cells: Cells) -> Iterator[Diagnostic]:
    """UR226, at most one finding a route."""
    policy = cells.table.policy
    for name, routes in policy.tables.items():
        if not any(_denies(route) for route in routes):
            continue  # nothing to go round; following a whole address space would take its time
        world = cells.table.world(name)
        for route in routes:
            deliver = route.action.deliver
            moves = route.action.rewrite is not None and route.action.rewrite.move is not None
            if moves and isinstance(deliver, Direct) and (finding := _detour(cells, world, route)):
                yield finding


def _detour(cells: Cells, world: World, route: Route) -> Diagnostic | None:
    deny: Route | None = None
    reached: list[Cube] = []
    ports: list[PortRange] = []
    for end in _ends(cells, world, route):
        if end.final is None or end.final.rule is not route or isinstance(end.bearing.fixed, str):
            continue
        for rule, part, image in _denied_images(cells, world, end):
            if deny is None or deny is rule:
                deny = rule
                reached.append(image)
                ports.append(part.box_now.ports)
    return None if deny is None else _round(route, deny, reached, ports, world.name)


def _denied_images(cells: Cells, world: World, end: Trail) -> Iterator[tuple[Route, Trail, Cube]]:
    """The parts of a trail that arrive, after a rewrite, where the table denies."""
    image = end.image
    for first, last, leaf in leaves(world, image.family, image.value, image.last):
        if not any(_denies(candidate.rule) for candidate in leaf.candidates):
            continue
        for target in cubes_between(image.family, first, last):
            met = image.meet(target)
            part = end.within(met) if met is not None else None
            if met is None or part is None:
                continue
            for box, candidate in cells.walker.partition(leaf, part.box_now):
                rule = None if candidate is None else candidate.rule
                if isinstance(rule, Route) and _denies(rule) and not _denied(cells, world, part.boxed(box)):
                    yield rule, part.boxed(box), met


def _denies(rule: Route | Wall) -> bool:
    """Whether a rule is a deny the policy's writer wrote."""
    return isinstance(rule, Route) and not rule.guard and isinstance(rule.action.deliver, Deny | Silent)


def _denied(cells: Cells, world: World, trail: Trail) -> bool:
    """Whether the final check refuses the example of a trail all the same."""
    if not isinstance(trail.origin, Cube):
        return False
    return cells.decide(world, trail.origin.example, trail.box).denied


def _round(route: Route, deny: Route, images: list[Cube], ports: list[PortRange], table: str) -> Diagnostic:
    family = images[0].family
    spans = merged((image.value, image.last) for image in images if image.family == family)
    reached = listing([stretch_text(family, first, last) for first, last in spans], 3) + ports_text(ports)
    same = deny.origin.file == route.origin.file
    place = f"line {deny.origin.line}" if same else str(deny.origin)
    return diagnostic(
        "UR226",
        f"this rewrite reaches {reached}, which {place} denies; use `then lookup {table}`",
        Label(route.node.action.span, "not asked again after the rewrite"),
        Label(deny.node.region.span, "denied to those who ask for it"),
        remarks=(Remark("help", f"`then lookup {table}` asks the policy about the new destination"),),
    )


# --- back to ourselves


def find_returns(cells: Cells) -> Iterator[Diagnostic]:
    """UR224, at most one finding a route."""
    policy = cells.table.policy
    spoken: set[int] = set()
    for listener in policy.listeners.values():
        for own in _own_endpoints(listener):
            for route in _routes_to(cells, own):
                if id(route) not in spoken:
                    spoken.add(id(route))
                    yield _return(route, listener, own)


_LOOPBACKS: tuple[Address, ...] = (parse_address("127.0.0.1"), parse_address("::1"))


def _own_endpoints(listener: Listener) -> list[Endpoint]:
    """Where a dial from our own namespace meets a listener."""
    endpoint = listener.place.endpoint
    if listener.place.kind is not PlaceKind.ADDRESS or endpoint is None or listener.netns is not None:
        return []
    if isinstance(endpoint.host, str):
        return []
    if any(endpoint.host):
        return [endpoint]
    # A wildcard address: the loopback addresses stand for all of ours; [::] takes IPv4 as well.
    hosts = _LOOPBACKS[:1] if len(endpoint.host) == 4 else _LOOPBACKS
    return [Endpoint(host, endpoint.port) for host in hosts]


def _routes_to(cells: Cells, own: Endpoint) -> Iterator[Route]:
    policy = cells.table.policy
    assert isinstance(own.host, bytes)
    proxies = {name for name, upstream in policy.upstreams.items() if upstream.endpoint == own}
    for name, routes in policy.tables.items():
        world = cells.table.world(name)
        for route in routes:
            deliver = route.action.deliver
            if isinstance(deliver, Via) and deliver.upstream in proxies:
                yield route
            elif _dials(policy, route) and _may_reach(route, own.host):
                for end in _ends(cells, world, route):
                    if end.final is not None and end.final.rule is route and _meets(cells, world, end, own):
                        yield route
                        break
        here = Destinations(prefixes=(host_prefix(own.host),))
        boxes = [
            box._replace(ports=box.ports._replace(first=own.port, last=own.port))
            for box in audience(policy, name)
        ]
        for cell in cells.of(name, here, boxes):
            if cell.decision.destination is None and _dialled(policy, cell):
                yield from (route for route in routes if route.origin == cell.decision.route)


def _may_reach(route: Route, host: object) -> bool:
    """Whether a route's rewrite may lead to an address, as far as the block it names tells."""
    rewrite = route.action.rewrite
    if rewrite is None or isinstance(rewrite.move, ToName):
        return False
    if rewrite.move is None:
        where = route.region.destinations
        return where is None or any(host in prefix for prefix in where.prefixes)
    if isinstance(rewrite.move, FromNat64):
        return isinstance(host, bytes) and len(host) == 4
    return host in rewrite.move.prefix


def _dials(policy: Policy, route: Route) -> bool:
    deliver = route.action.deliver
    return isinstance(deliver, Direct) or (isinstance(deliver, Via) and _is_direct(policy, deliver.upstream))


def _is_direct(policy: Policy, name: str) -> bool:
    """Whether an upstream connects to the destination itself, and from our own namespace."""
    passed: set[str] = set()
    upstream = policy.upstreams.get(name)
    while upstream is not None and upstream.kind is UpstreamKind.DIRECT and upstream.via is not None:
        # It is the one it goes through that connects.
        passed.add(upstream.name)
        upstream = policy.upstreams.get(upstream.via) if upstream.via not in passed else None
    return upstream is not None and upstream.kind is UpstreamKind.DIRECT and "netns" not in upstream.options


def _dialled(policy: Policy, cell: Cell) -> bool:
    decision = cell.decision
    if decision.outcome is Outcome.VIA:
        return _is_direct(policy, decision.upstream or "")
    return decision.outcome is Outcome.DIRECT


def _meets(cells: Cells, world: World, end: Trail, own: Endpoint) -> bool:
    """Whether connections of a trail arrive at `own` and are let through."""
    ports = end.box_now.ports
    if isinstance(end.bearing.fixed, str) or not ports.first <= own.port <= ports.last:
        return False
    assert isinstance(own.host, bytes)
    part = end.within(cube_of(host_prefix(own.host)))
    if part is None:
        return False
    port = end.box.ports.first if end.bearing.port is not None else own.port - end.bearing.shift
    return not _denied(cells, world, part._replace(box=end.box._replace(ports=PortRange(port, port))))


def _return(route: Route, listener: Listener, own: Endpoint) -> Diagnostic:
    assert isinstance(own.host, bytes)
    return diagnostic(
        "UR224",
        f"this route leads back to our own listener {listener.name}",
        Label(route.node.action.span, f"reaches {own}"),
        Label(listener.node.span, f"listens there ({address_text(own.host)})"),
        remarks=(Remark("help", f"forbid {address_text(own.host)} port {own.port}"),),
    )
