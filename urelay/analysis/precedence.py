"""The four comparisons of the language, told one by one: what matches a connection, and why it lost.

The table has them built into its order; this is for the sentence that explains them.
"""

from __future__ import annotations

from typing import NamedTuple

from urelay.analysis.phrases import port_range_text
from urelay.net.address import Endpoint, Host, Prefix
from urelay.policy.check import Connection
from urelay.policy.model import ALL_PORTS, NameKind, NamePattern, PortRange, Route, Wall


class Element(NamedTuple):
    """The most specific element of a rule that matches a connection."""

    destination: Prefix | NamePattern | None
    ports: PortRange
    source: Prefix | None
    named: bool
    guard: bool

    @property
    def rank(self) -> tuple[object, ...]:
        """Compares as precedence does: greater wins."""
        length = -1 if self.source is None else self.source.length
        return _specific(self.destination), not self.guard, -self.ports.width, length, self.named


def _specific(destination: Prefix | NamePattern | None) -> tuple[int, int, int]:
    """Greater is more specific, among destinations that match the same host."""
    if destination is None:
        return 0, 0, 0
    if isinstance(destination, Prefix):
        return 1, destination.length, 0
    exact = destination.kind is NameKind.EXACT
    return 2 + exact, destination.name.count("."), destination.kind


def element_of(rule: Route | Wall, to: Endpoint, asked: Connection) -> Element | None:
    """The element of `rule` by which it takes part; None when it does not match. `to` is where the
    connection goes by then, `asked` who asks."""
    region = rule.region
    if region.listeners is not None and asked.listener not in region.listeners:
        return None
    ports = [one for one in region.ports or (ALL_PORTS,) if one.first <= to.port <= one.last]
    sources = [one for one in region.sources or () if inside(asked.source, one)]
    if not ports or (region.sources is not None and not sources):
        return None
    destination: Prefix | NamePattern | None = None
    if region.destinations is not None:
        matching: list[Prefix | NamePattern]
        host: Host = to.host
        if isinstance(host, str):
            matching = [name for name in region.destinations.names if covers(name, host)]
        else:
            matching = [prefix for prefix in region.destinations.prefixes if inside(host, prefix)]
        if not matching:
            return None
        destination = max(matching, key=_specific)
    return Element(
        destination,
        min(ports, key=lambda one: one.width),
        max(sources, key=lambda one: one.length, default=None),
        region.listeners is not None,
        isinstance(rule, Route) and rule.guard,
    )


def inside(address: object, prefix: Prefix) -> bool:
    """Whether an address, where there is one, lies in a prefix."""
    return address in prefix


def covers(pattern: NamePattern, name: str) -> bool:
    """Whether a name pattern matches a host name."""
    if name == pattern.name:
        return pattern.kind is not NameKind.BELOW
    return pattern.kind is not NameKind.EXACT and name.endswith("." + pattern.name)


def reason_lost(winner: Route | Wall | None, best: Element | None, loser: Element) -> str:
    """The first comparison that `loser` lost."""
    if isinstance(winner, Wall):
        return "a wall comes first"
    if best is None:
        return "a more specific route decided"
    if loser.destination != best.destination:
        if loser.destination is None:
            return "any destination"
        if isinstance(loser.destination, Prefix):
            return f"shorter prefix {loser.destination}"
        return f"less specific name {loser.destination}"
    if loser.guard and not best.guard:
        return "the guard yields to a route that names the same prefix"
    if loser.ports != best.ports:
        return "all ports" if loser.ports == ALL_PORTS else f"more ports {port_range_text(loser.ports)}"
    if loser.source != best.source:
        return "says nothing about the source" if loser.source is None else f"shorter source {loser.source}"
    return "names no listener"
