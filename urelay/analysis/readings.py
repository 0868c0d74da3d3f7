"""How IPv4 addresses are read out of IPv6 ones at the final check, and what is refused of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from urelay.analysis.boxes import Box, partition
from urelay.analysis.cubes import (
    LOW_32,
    MAPPED,
    SIX_TO_FOUR,
    TEREDO_CLIENT,
    TEREDO_SERVER,
    BitMap,
    Cube,
    cube_of,
    cubes_between,
    extraction,
)
from urelay.net import nat64
from urelay.policy.model import (
    Route,
    Wall,
)
from urelay.table.leaf import Candidate, Leaf
from urelay.table.world import World


class Reading(NamedTuple):
    """Addresses of a domain, and the IPv4 address somebody might read out of each."""

    domain: Cube
    step: BitMap | None
    """None: the address as it is"""
    spared: tuple[Cube, ...] = ()
    """IPv4 addresses that this reading does not find"""


_COMPATIBLE, _TRANSLATED, _WELL_KNOWN, _LOCAL_USE, _SIX_TO_FOUR, _TEREDO = map(cube_of, nat64.EMBEDDINGS)
AS_IT_IS = Reading(MAPPED, None)
_NOWHERE = Cube(4, 0, 0)
REGISTERED = (
    Reading(_COMPATIBLE, LOW_32, (_NOWHERE, Cube(4, 1, 0))),
    Reading(_TRANSLATED, LOW_32),
    Reading(_WELL_KNOWN, LOW_32),
    Reading(_LOCAL_USE, extraction(48), (_NOWHERE,)),
    Reading(_LOCAL_USE, LOW_32, (_NOWHERE,)),
    Reading(_SIX_TO_FOUR, SIX_TO_FOUR),
    Reading(_TEREDO, TEREDO_SERVER),
    Reading(_TEREDO, TEREDO_CLIENT),
)


def distinct_leaves(world: World, family: int) -> dict[int, tuple[int, int, Leaf]]:
    """The leaves of a family, each once with the first interval that has it."""
    found: dict[int, tuple[int, int, Leaf]] = {}
    for interval in (world.v4 if family == 4 else world.v6).intervals():
        found.setdefault(id(interval[2]), interval)
    return found


def refused_cubes(world: World, family: int, box: Box) -> Iterator[Cube]:
    """What walls and the guard refuse of a family, in order, each cube by one rule.

    `box` is so small that at each address one candidate wins all of it.
    """
    rules: dict[int, Route | Wall | None] = {}
    begun = 0
    by: Route | Wall | None = None
    for first, _, leaf in (world.v4 if family == 4 else world.v6).intervals():
        if id(leaf) not in rules:
            (_, candidate), *_ = partition(leaf.candidates, box)
            rules[id(leaf)] = candidate.rule if candidate is not None and refuses(candidate) else None
        rule = rules[id(leaf)]
        if rule is not by:
            if by is not None:
                yield from cubes_between(family, begun, first - 1)
            begun, by = first, rule
    if by is not None:
        yield from cubes_between(family, begun, (1 << (32 if family == 4 else 128)) - 1)


def refuses(candidate: Candidate) -> bool:
    """Whether a candidate has a say at the final check: a wall, or a route of the guard."""
    return isinstance(candidate.rule, Wall) or candidate.guarding
