"""What the kind of a listener makes of a policy: sources one may choose, pools nobody receives.

UR221   an upstream that is sent names keeps address denies from being asked
UR222   `from` on a listener whose clients choose their own source address
UR227   fake DNS addresses that no listener receives
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from urelay.analysis.boxes import audience
from urelay.analysis.phrases import listing, prefix_text
from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.net.address import Prefix
from urelay.policy.model import (
    Deny,
    Listener,
    ListenerKind,
    Policy,
    Route,
    Silent,
    ToName,
    Upstream,
    UpstreamKind,
    Via,
    Wall,
)
from urelay.table.evaluate import Table

MOST_LABELS = 3

_CAPTURING = (ListenerKind.TRANSPARENT, ListenerKind.REDIRECT)
_NAMING = (ListenerKind.SOCKS, ListenerKind.HTTP, ListenerKind.MIXED)


_WHERE = {
    UpstreamKind.DIRECT: "  on the proxy it goes through",
    UpstreamKind.FIRST: "  on a member",
    UpstreamKind.SPREAD: "  on a member",
}
"""Where to say how names are resolved, if not on the upstream itself"""

# --- names that are never resolved here


def find_unresolved(table: Table) -> Iterator[Diagnostic]:
    """UR221, at most one finding an upstream."""
    policy = table.policy
    if policy.listeners and not any(_brings_names(policy, one) for one in policy.listeners.values()):
        return
    for name in sorted(table.name_takers):
        upstream = policy.upstreams[name]
        sending: list[Route] = []
        denies: list[Route | Wall] = []
        for routes in policy.tables.values():
            for route in routes:
                evaded = _evaded(policy, route, upstream)
                if evaded:
                    sending.append(route)
                    denies += [rule for rule in evaded if rule not in denies]
        if sending:
            yield _unresolved(upstream, sending, denies)


def _brings_names(policy: Policy, listener: Listener) -> bool:
    if listener.kind in _NAMING or "sniff" in listener.options:
        return True
    if listener.kind is ListenerKind.FORWARD:
        return listener.to is not None and isinstance(listener.to.host, str)
    return any("fake" in service.options for service in policy.dns.values())


def _evaded(policy: Policy, route: Route, upstream: Upstream) -> list[Route | Wall]:
    """The walls and denies about addresses that would be asked, were the name resolved here."""
    deliver = route.action.deliver
    if not isinstance(deliver, Via) or deliver.upstream != upstream.name:
        return []
    where, rewrite = route.region.destinations, route.action.rewrite
    to_name = rewrite is not None and isinstance(rewrite.move, ToName)
    if (where is not None and not where.names and not to_name) or (rewrite and rewrite.move and not to_name):
        return []
    found: list[Route | Wall] = [
        wall
        for wall in policy.walls
        if wall.table in (None, route.table) and _about_addresses(wall) and _meet(wall, route)
    ]
    if where is None:
        # A route that names the name stands whatever the address; `any` does not.
        found += [
            deny
            for deny in policy.tables[route.table]
            if isinstance(deny.action.deliver, Deny | Silent)
            and _about_addresses(deny)
            and _meet(deny, route)
        ]
    return found


def _about_addresses(rule: Route | Wall) -> bool:
    return rule.region.destinations is not None and bool(rule.region.destinations.prefixes)


def _meet(one: Route | Wall, other: Route) -> bool:
    """Whether ports, sources and listeners of two rules have something in common."""
    a, b = one.region, other.region
    ports = (
        not a.ports
        or not b.ports
        or any(x.first <= y.last and y.first <= x.last for x in a.ports for y in b.ports)
    )
    sources = (
        not a.sources
        or not b.sources
        or any(x.covers(y) or y.covers(x) for x in a.sources for y in b.sources)
    )
    listeners = a.listeners is None or b.listeners is None or not a.listeners.isdisjoint(b.listeners)
    return ports and sources and listeners


def _unresolved(upstream: Upstream, sending: Sequence[Route], denies: Sequence[Route | Wall]) -> Diagnostic:
    labels = [Label(route.node.region.span, "sends names there") for route in sending[:MOST_LABELS]]
    return diagnostic(
        "UR221",
        f'names sent to "{upstream.name}" are not resolved, so address denies do not apply to them',
        Label(upstream.node.span, "is sent names as they are"),
        *labels,
        remarks=(
            Remark("note", f"not asked: {listing([str(rule.origin) for rule in denies])}"),
            Remark("help", f"resolve names here?   dns local{_WHERE.get(upstream.kind, '')}"),
            Remark("help", f"it is meant?   put  # allow UR221: <why>  above line {upstream.origin.line}"),
        ),
    )


# --- sources that prove nothing


def find_free_sources(policy: Policy) -> Iterator[Diagnostic]:
    """UR222, at most one finding a route or a listener."""
    free = {name for name, listener in policy.listeners.items() if _chooses_source(listener)}
    if not free:
        return
    for name, routes in policy.tables.items():
        users = {one for box in audience(policy, name) for one in box.listeners} & free
        for route in routes:
            if route.region.sources is None:
                continue
            named = users if route.region.listeners is None else users & route.region.listeners
            listeners = sorted(one for one in named if one is not None)
            if listeners:
                yield _free_source(policy, route, listeners)
    for name in sorted(free):
        listener = policy.listeners[name]
        sources = [choice.source for choice in listener.tables if choice.source is not None]
        if sources:
            yield _free_table(listener, sources)


def _chooses_source(listener: Listener) -> bool:
    """Whether clients stand where every address is local, so that they may bind any."""
    in_there = listener.netns is not None or "capture" in listener.options
    return listener.kind in _CAPTURING and in_there


def _free_source(policy: Policy, route: Route, listeners: Sequence[str]) -> Diagnostic:
    clauses = [clause.span for clause in route.node.region.clauses if clause.keyword.text == "from"]
    labels = [
        Label(policy.listeners[name].node.span, "here every address is local")
        for name in listeners[:MOST_LABELS]
    ]
    word = "listener" if len(listeners) == 1 else "listeners"
    return diagnostic(
        "UR222",
        f"`from` proves nothing on {word} {listing(listeners)}: clients there choose their source address",
        Label(clauses[0] if clauses else route.node.region.span, "any client there can say this"),
        *labels,
        remarks=(Remark("help", "tell clients apart by listener: one namespace and one `listen` for each"),),
    )


def _free_table(listener: Listener, sources: Sequence[Prefix]) -> Diagnostic:
    chosen = listing([prefix_text(source) for source in sources])
    return diagnostic(
        "UR222",
        f"`table … from {chosen}` proves nothing: clients of {listener.name} choose their source address",
        Label(listener.node.span, "here every address is local"),
        remarks=(Remark("help", "tell clients apart by listener: one namespace and one `listen` for each"),),
    )


# --- fake addresses


def find_lost_pools(policy: Policy) -> Iterator[Diagnostic]:
    """UR227."""
    for service in policy.dns.values():
        pool = service.options.get("fake")
        if pool is None:
            continue
        netns = service.options.get("netns")
        where = netns.value if netns is not None else None
        if any(one.kind in _CAPTURING and one.netns == where for one in policy.listeners.values()):
            continue
        place = f"in netns {where}" if where is not None else "outside a netns"
        values = (
            pool.value
            if isinstance(pool.value, tuple) and not isinstance(pool.value, Prefix)
            else (pool.value,)
        )
        said = listing([str(value) for value in values])
        yield diagnostic(
            "UR227",
            f"fake DNS hands out {said} but no listener {place} receives it",
            Label(service.node.span, "clients will connect to these addresses"),
            remarks=(Remark("help", "listen NAME = transparent [::]:PORT { netns …, capture tcp }"),),
        )
