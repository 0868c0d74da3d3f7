"""A question about a policy: the argument of `urelay explain`, in the language's own words.

`10.1.2.3:22 from 192.168.7.9 on lan` is one connection; `@private port 22` is a region of many. Both
are the left side of an `expect`, and hosts in them are read as strictly as a client's.
"""

from __future__ import annotations

from dataclasses import dataclass

from urelay.lang.parser import parse_region
from urelay.net.address import Address, Endpoint, Host, Prefix, address_of
from urelay.policy.flaws import Findings
from urelay.policy.library import Library
from urelay.policy.model import Destinations, NameKind, Policy, Region
from urelay.policy.regions import Reading, resolve_region
from urelay.policy.scope import collect


@dataclass(frozen=True, slots=True)
class Connection:
    """One connection, as Table.decide wants it."""

    destination: Endpoint
    source: Address | None
    listener: str | None
    table: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """What was asked. `connection` is None when the region is about more than one."""

    region: Region
    table: str | None
    connection: Connection | None


def resolve_question(text: str, policy: Policy) -> Question:
    """The meaning of `text` beside `policy`, whose sets, listeners and tables it may name.

    Raises PolicyError, whose diagnostics point into the question.
    """
    node = parse_region(text)
    # A model keeps no sets. The definitions are still in the trees, and only those the question
    # names are resolved again.
    findings = Findings()
    scope = collect(policy.documents, Library(findings), findings)
    resolved = resolve_region(node, scope, Reading.QUESTION)
    return Question(resolved.region, resolved.table, _connection(resolved.region, resolved.table))


def _connection(region: Region, table: str | None) -> Connection | None:
    host = _one_host(region.destinations)
    port = _one_port(region)
    if host is None or port is None:
        return None
    source = listener = None
    if region.sources is not None:
        source = _one_address(region.sources)
        if source is None:
            return None
    if region.listeners is not None:
        if len(region.listeners) != 1:
            return None
        (listener,) = region.listeners
    return Connection(Endpoint(host, port), source, listener, table)


def _one_port(region: Region) -> int | None:
    if region.ports is None or len(region.ports) != 1 or region.ports[0].width != 1:
        return None
    return region.ports[0].first


def _one_host(destinations: Destinations | None) -> Host | None:
    if destinations is None:
        return None
    match list(destinations.names):
        case []:
            return _one_address(tuple(destinations.prefixes))
        case [pattern] if pattern.kind is NameKind.EXACT and not destinations.prefixes:
            return pattern.name
    return None


def _one_address(prefixes: tuple[Prefix, ...]) -> Address | None:
    if len(prefixes) == 1 and prefixes[0].length == prefixes[0].bits:
        return address_of(prefixes[0].family, prefixes[0].first)
    return None
