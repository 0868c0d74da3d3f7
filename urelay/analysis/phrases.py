"""How findings and answers spell connections: the language's own words, shortest first.

A stretch of addresses becomes the fewest prefixes (or `first-last` where that is shorter to read), a
list of ports what one may write after `port`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from urelay.net.address import Prefix, address_of, address_text
from urelay.policy.model import ALL_PORTS, Destinations, PortRange, Region

MOST = 6
"""Elements of a list worth printing; what is left is counted."""


def prefixes_between(family: int, first: int, last: int) -> list[Prefix]:
    """The fewest prefixes that hold exactly the addresses `first` to `last`."""
    bits = 32 if family == 4 else 128
    found = []
    while first <= last:
        # The longest run that starts at `first` is limited by its trailing zeros and by `last`.
        aligned = (first & -first).bit_length() - 1 if first else bits
        size = min(aligned, (last - first + 1).bit_length() - 1)
        found.append(Prefix(family, first, bits - size))
        first += 1 << size
    return found


def prefix_text(prefix: Prefix) -> str:
    """`10.0.0.0/8`; a single address without its length."""
    if prefix.length == prefix.bits:
        return address_text(address_of(prefix.family, prefix.first))
    return str(prefix)


def stretch_text(family: int, first: int, last: int) -> str:
    """A prefix where it is one, else `first-last`."""
    prefixes = prefixes_between(family, first, last)
    if len(prefixes) == 1:
        return prefix_text(prefixes[0])
    return f"{address_text(address_of(family, first))}-{address_text(address_of(family, last))}"


def merged(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted intervals with neighbours and overlaps joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(intervals):
        if joined and first <= joined[-1][1] + 1:
            if last > joined[-1][1]:
                joined[-1] = (joined[-1][0], last)
        else:
            joined.append((first, last))
    return joined


def port_range_text(ports: PortRange) -> str:
    """`443` or `8000-8099`."""
    return str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}"


def ports_text(ports: Iterable[PortRange]) -> str:
    """` port 443`, ` port { 80, 8000-8099 }`; nothing when every port is meant."""
    ranges = [PortRange(first, last) for first, last in merged(ports)]
    if ranges == [ALL_PORTS]:
        return ""
    return " port " + braces([port_range_text(ports) for ports in ranges])


def braces(words: Sequence[str]) -> str:
    """One word as it is, several as `{ a, b }`."""
    return words[0] if len(words) == 1 else "{ " + ", ".join(words) + " }"


def listing(words: Sequence[str], most: int = MOST) -> str:
    """`a, b and 3 more`."""
    if len(words) <= most:
        return ", ".join(words)
    return f"{', '.join(words[:most])} and {len(words) - most:,} more"


def destinations_text(destinations: Destinations | None) -> str:
    """The destination part of a region, long sets cut."""
    if destinations is None:
        return "any"
    words = [prefix_text(prefix) for prefix in destinations.prefixes[: MOST + 1]]
    words += [str(name) for name in destinations.names[: MOST + 1]]
    left = len(destinations.prefixes) + len(destinations.names)
    if left > MOST:
        return f"{{ {', '.join(words[:MOST])} and {left - MOST:,} more }}"
    return braces(words) if words else "{ }"


def clauses_text(region: Region) -> str:
    """What a region says beside its destination: ` port 22 from 10.0.0.0/8 on lan`, or nothing."""
    text = "" if region.ports is None else ports_text(region.ports)
    if region.sources is not None:
        sources = [prefix_text(source) for source in region.sources]
        text += " from " + (braces(sources) if len(sources) <= MOST else f"{{ {listing(sources)} }}")
    if region.listeners is not None:
        text += " on " + braces(sorted(region.listeners))
    return text
