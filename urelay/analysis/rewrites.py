"""What a rewrite does to a trail: another destination, other ports, and what it refuses.

This follows urelay.table.evaluate and urelay.net.nat64 case by case; what they refuse comes back as a
trail that does not go on.
"""

from __future__ import annotations

from collections.abc import Iterator

from urelay.analysis.cubes import (
    U_OCTET_ZERO,
    Cube,
    cube_of,
    embedding,
    extraction,
    onto,
    without_all,
)
from urelay.analysis.trails import Trail
from urelay.net import nat64
from urelay.net.address import Prefix, address_of
from urelay.policy.model import (
    ALL_PORTS,
    FromNat64,
    Rewrite,
    ToName,
    ToNat64,
    ToPrefix,
)
from urelay.table.leaf import Candidate

# Inside 192.0.0.0/24, and yet globally reachable (RFC 7723, RFC 8155).
_GLOBAL = tuple(Cube(4, 0xC000_0000 + last, 0) for last in (9, 10))
_SPECIAL = tuple(part for block, _ in nat64.SPECIAL_IPV4 for part in without_all(cube_of(block), _GLOBAL))


def rewritten(rewrite: Rewrite, candidate: Candidate, trail: Trail) -> Iterator[tuple[Trail, bool]]:
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
    domains = [cube_of(move.prefix)]
    if nat64.has_u_octet(move.prefix):
        domains.append(U_OCTET_ZERO)
    for domain in domains:
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
