"""Ties: routes whose connections overlap and none of which is the more specific one.

Precedence compares destination, number of ports, source and listener, in this order. Two elements
tie when all four are equal in rank and some connection matches both: the same destination element,
equally many ports that overlap, the same source element, listeners in common. What is said about it
depends on what the routes do:

UR201   they cover the very same ports and act differently
UR203   their port ranges are shifted against each other (80-89 and 85-94) and they act differently
UR202   they act alike and one of them says nothing the other does not: it is a repetition

Only elements with an equal destination can tie, so elements are gathered by destination. The largest
set is only looked up, never gathered: a list of a million prefixes costs a million probes and no memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from urelay.analysis.phrases import clauses_text, listing, prefix_text
from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.lang.source import Span
from urelay.net.address import Prefix
from urelay.policy.model import ALL_PORTS, NamePattern, Policy, PortRange, Region, Route

Element: TypeAlias = Prefix | NamePattern | None
"""One destination of a route; None is `any`."""


@dataclass(slots=True)
class _Tie:
    """Two routes and what both claim; `one` is the earlier."""

    one: Route
    other: Route
    ports: PortRange
    source: Prefix | None
    same_ports: bool
    destinations: list[Element] = field(default_factory=list)


def find_ties(policy: Policy) -> list[Diagnostic]:
    """Every UR201, UR202 and UR203 of a policy; at most one finding a route."""
    findings: list[Diagnostic] = []
    for routes in policy.tables.values():
        findings += _find_in(routes)
    return findings


def _find_in(routes: Sequence[Route]) -> Iterator[Diagnostic]:
    shared = _shared_destinations(routes)
    ties: dict[tuple[int, int], _Tie] = {}
    for numbers, destinations in shared.items():
        for tie, one, other in _ties_among(routes, numbers):
            ties.setdefault((one, other), tie).destinations.extend(destinations)
    spoken: set[int] = set()
    for (_, other), tie in sorted(ties.items(), key=lambda item: (item[0][1], item[0][0])):
        if other not in spoken and _acts_apart(tie):
            spoken.add(other)
            yield _conflict(tie)
    for (one, other), tie in sorted(ties.items(), key=lambda item: (item[0][1], item[0][0])):
        if _acts_apart(tie) or other in spoken or one in spoken:
            continue
        if _says_all_of(tie.other.region, tie.one.region):
            spoken.add(other)
            yield _repetition(tie.other, tie.one)
        elif _says_all_of(tie.one.region, tie.other.region):
            spoken.add(one)
            yield _repetition(tie.one, tie.other)


def _shared_destinations(routes: Sequence[Route]) -> dict[tuple[int, ...], list[Element]]:
    """The destinations that several routes name, by the numbers of those routes.

    Routes with the same set are gathered as one, whatever its size.
    """
    by_set: dict[int, list[int]] = defaultdict(list)
    for number, route in enumerate(routes):
        by_set[id(route.region.destinations)].append(number)
    groups = sorted(by_set.values(), key=lambda numbers: _size(routes[numbers[0]].region))
    owners: dict[Element, tuple[int, ...]] = {}
    shared: dict[tuple[int, ...], list[Element]] = defaultdict(list)
    for at, group in enumerate(groups):
        largest = at == len(groups) - 1
        for element in _elements(routes[group[0]].region):
            known = owners.get(element)
            if known is not None:
                owners[element] = (*known, *group)
            elif not largest:
                owners[element] = tuple(group)
            elif len(group) > 1:
                shared[tuple(group)].append(element)
    for element, numbers in owners.items():
        # A set may name an element twice; its routes count once.
        if len(distinct := sorted(set(numbers))) > 1:
            shared[tuple(distinct)].append(element)
    return shared


def _size(region: Region) -> int:
    if region.destinations is None:
        return 1
    return len(region.destinations.prefixes) + len(region.destinations.names)


def _elements(region: Region) -> Iterable[Element]:
    if region.destinations is None:
        yield None
    else:
        yield from region.destinations.prefixes
        yield from region.destinations.names


def _ties_among(routes: Sequence[Route], numbers: tuple[int, ...]) -> Iterator[tuple[_Tie, int, int]]:
    """The ties of routes that share a destination: those of equal rank, swept by first port."""
    ranks: dict[tuple[int, Prefix | None, bool], list[tuple[PortRange, int]]] = defaultdict(list)
    for number in numbers:
        region = routes[number].region
        for ports in region.ports or (ALL_PORTS,):
            for source in region.sources or (None,):
                ranks[ports.width, source, region.listeners is None].append((ports, number))
    for (_, source, _), ranked in ranks.items():
        ranked.sort()
        for at, (ports, number) in enumerate(ranked):
            for behind in range(at + 1, len(ranked)):
                more, another = ranked[behind]
                if more.first > ports.last:
                    break
                if number == another or not _meet(routes[number].region, routes[another].region):
                    continue
                one, other = sorted((number, another))
                both = PortRange(more.first, min(ports.last, more.last))
                yield _Tie(routes[one], routes[other], both, source, ports == more), one, other


def _meet(one: Region, other: Region) -> bool:
    return one.listeners is None or other.listeners is None or not one.listeners.isdisjoint(other.listeners)


def _acts_apart(tie: _Tie) -> bool:
    """Whether a connection that both claim fares differently."""
    if (tie.one.action, tie.one.settings) != (tie.other.action, tie.other.settings):
        return True
    rewrite = tie.one.action.rewrite
    # A shift of ports counts from the range that matched, so shifted ranges lead elsewhere.
    return (
        not tie.same_ports and rewrite is not None and rewrite.ports is not None and rewrite.ports.width > 1
    )


def _says_all_of(narrow: Region, wide: Region) -> bool:
    """Whether every element of `narrow` is an element of `wide`."""
    if narrow.listeners is not None and (wide.listeners is None or not narrow.listeners <= wide.listeners):
        return False
    if narrow.listeners is None and wide.listeners is not None:
        return False
    if not set(narrow.ports or (None,)) <= set(wide.ports or (None,)):
        return False
    if not set(narrow.sources or (None,)) <= set(wide.sources or (None,)):
        return False
    if narrow.destinations is wide.destinations:
        return True
    if _size(narrow) > _size(wide):
        return False
    return set(_elements(narrow)) <= set(_elements(wide))


def _conflict(tie: _Tie) -> Diagnostic:
    code, message = (
        ("UR201", "two routes claim the same connections with different outcomes")
        if tie.same_ports
        else ("UR203", "port ranges overlap and neither is narrower")
    )
    region = Region(
        ports=None if tie.ports == ALL_PORTS else (tie.ports,),
        sources=None if tie.source is None else (tie.source,),
        listeners=_common_listeners(tie),
    )
    return diagnostic(
        code,
        message,
        Label(tie.other.node.region.span),
        Label(_said(tie.other), "the other says this"),
        Label(tie.one.node.region.span),
        Label(_said(tie.one), "one says this"),
        remarks=(
            Remark("both", f"{_destinations(tie)}{clauses_text(region)}{_silent_about(region)}"),
            Remark(
                "help", "remove one, or make one more specific: longer prefix, fewer ports, `from` or `on`"
            ),
        ),
    )


def _said(route: Route) -> Span:
    """Everything behind the arrow, options too."""
    node = route.node
    return node.action.span.to(node.options[-1].span) if node.options else node.action.span


def _common_listeners(tie: _Tie) -> frozenset[str] | None:
    one, other = tie.one.region.listeners, tie.other.region.listeners
    if one is None or other is None:
        return one if other is None else other
    return one & other


def _destinations(tie: _Tie) -> str:
    words = [
        "any" if element is None else prefix_text(element) if isinstance(element, Prefix) else str(element)
        for element in dict.fromkeys(tie.destinations)
    ]
    return listing(words, 3)


def _silent_about(region: Region) -> str:
    left = [
        word
        for word, said in (
            ("any port", region.ports),
            ("any source", region.sources),
            ("any listener", region.listeners),
        )
        if said is None
    ]
    return "".join(f", {word}" for word in left)


def _repetition(route: Route, of: Route) -> Diagnostic:
    return diagnostic(
        "UR202",
        f"this route repeats line {of.origin.line}"
        + ("" if of.origin.file == route.origin.file else f" of {of.origin.file}"),
        Label(route.node.span),
        Label(of.node.span, "says the same"),
        remarks=(Remark("help", "remove it: nothing changes"),),
    )
