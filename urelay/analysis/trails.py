"""Sets of connections on their way: what was asked for, and how it leads to where they go now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from urelay.analysis.boxes import Box
from urelay.analysis.cubes import (
    BitMap,
    Cube,
    cube_of,
    image_through,
    origin_through,
    remainder,
)
from urelay.net.address import Endpoint, Host, host_prefix
from urelay.policy.model import (
    NamePattern,
    PortRange,
    Route,
)
from urelay.table.leaf import Candidate

NameClass: TypeAlias = NamePattern | None
"""Names decided alike: the name itself, all below it that no longer pattern covers; None: the rest."""


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
