"""Policy to Table.

For each table of the policy its routes, the guard's and the walls that hold there are numbered, and
every destination they name becomes (prefix, number). The sweeps of urelay.table.prefixes and names
then ask for `overlay(numbers, leaf around)`, which is memoised: a set of a million prefixes used by
one route costs a million dictionary hits and a handful of leaves.

Decisions are made here, once, wherever they do not depend on the connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from urelay.errors import UrelayError
from urelay.lang import ast
from urelay.net.address import Prefix, host_prefix
from urelay.net.nat64 import EMBEDDINGS
from urelay.policy.model import (
    MAIN,
    NO_SETTINGS,
    Action,
    Deny,
    Destinations,
    FromNat64,
    Listener,
    Lookup,
    NamePattern,
    Outcome,
    PlaceKind,
    Policy,
    PortRange,
    Region,
    Route,
    ToNat64,
    Upstream,
    UpstreamKind,
    Wall,
)
from urelay.table.decision import Decision
from urelay.table.evaluate import Table, delivery, needs_address
from urelay.table.leaf import Candidate, Layer, Leaf
from urelay.table.names import NameTable
from urelay.table.prefixes import MAX_RULES, build, keys_of
from urelay.table.world import World


def compile_policy(policy: Policy) -> Table:
    """The table of a checked policy. Raises UrelayError for one with 16 million statements."""
    nat64 = _nat64_prefixes(policy)
    name_takers = _name_takers(policy.upstreams)
    guard = (*policy.guard, *_own_listener_guards(policy.listeners.values()))
    worlds = {}
    for name in dict.fromkeys((MAIN, *policy.tables)):
        walls = [wall for wall in policy.walls if wall.table is None or wall.table == name]
        rules: tuple[Route | Wall, ...] = (*walls, *policy.tables.get(name, ()), *guard)
        worlds[name] = _world(name, policy.digest, rules, nat64, name_takers)
    return Table(policy, worlds, nat64, name_takers)


def _world(
    name: str,
    digest: str,
    rules: Sequence[Route | Wall],
    nat64: tuple[Prefix, ...],
    name_takers: frozenset[str],
) -> World:
    if len(rules) >= MAX_RULES:
        raise UrelayError(f"table {name} has {len(rules)} statements; {MAX_RULES - 1} is the most")
    anywhere: list[int] = []
    keys: dict[int, list[int]] = {4: [], 6: []}
    names: dict[NamePattern, tuple[int, ...]] = {}
    for number, rule in enumerate(rules):
        destinations = rule.region.destinations
        if destinations is None:
            anywhere.append(number)
            continue
        for family in (4, 6):
            keys[family] += keys_of(family, destinations.prefixes, number)
        for pattern in dict.fromkeys(destinations.names):
            names[pattern] = (*names.get(pattern, ()), number)
    # Where IPv6 addresses carry IPv4 ones is told to the sweep as one more rule.
    keys[6] += keys_of(6, (*EMBEDDINGS, *nat64), len(rules))

    addresses = _Overlay(name, digest, rules, None)
    by_name = _Overlay(name, digest, rules, name_takers)
    outside = addresses(tuple(anywhere), _EMPTY)
    any_leaf = by_name(tuple(anywhere), _EMPTY)
    return World(
        name=name,
        v4=build(4, keys[4], outside, addresses),
        v6=build(6, keys[6], outside, addresses),
        names=NameTable(names, any_leaf, by_name),
        any_leaf=any_leaf,
        default=Decision(Outcome.DENY, name, digest, why="no route matches"),
    )


_EMPTY = Leaf((), (), False)


class _Overlay:
    """Puts the rules of one destination on top of the leaf around it. Memoised: see the module."""

    def __init__(
        self, table: str, digest: str, rules: Sequence[Route | Wall], name_takers: frozenset[str] | None
    ) -> None:
        """`name_takers` is None for addresses; for host names, the upstreams that take them."""
        self._table = table
        self._digest = digest
        self._rules = rules
        self._name_takers = name_takers
        self._walls_end = sum(isinstance(rule, Wall) for rule in rules)
        self._candidates: dict[int, tuple[Candidate, ...]] = {}
        self._layers: dict[tuple[int, ...], Layer] = {}
        self._leaves: dict[tuple[tuple[Layer, ...], tuple[Layer, ...], bool], Leaf] = {}
        self._results: dict[tuple[tuple[int, ...], Leaf], Leaf] = {}

    def __call__(self, numbers: tuple[int, ...], around: Leaf) -> Leaf:
        """The leaf where the rules `numbers` name the destination, inside `around`."""
        leaf = self._results.get((numbers, around))
        if leaf is None:
            leaf = self._results[numbers, around] = self._overlay(numbers, around)
        return leaf

    def _overlay(self, numbers: tuple[int, ...], around: Leaf) -> Leaf:
        walls_end, rules_end = self._walls_end, len(self._rules)
        walls = self._on_top(tuple(n for n in numbers if n < walls_end), around.walls)
        routes = self._on_top(tuple(n for n in numbers if walls_end <= n < rules_end), around.routes)
        carries_ipv4 = around.carries_ipv4 or numbers[-1:] == (rules_end,)
        key = (walls, () if walls and walls[-1].closed else routes, carries_ipv4)
        leaf = self._leaves.get(key)
        if leaf is None:
            leaf = self._leaves[key] = Leaf(*key)
        return leaf

    def _on_top(self, numbers: tuple[int, ...], around: tuple[Layer, ...]) -> tuple[Layer, ...]:
        if not numbers:
            return around
        layer = self._layers.get(numbers)
        if layer is None:
            layer = self._layers[numbers] = Layer(c for n in numbers for c in self._elements(n))
        return (layer,) if layer.closed else (layer, *around)

    def _elements(self, number: int) -> tuple[Candidate, ...]:
        found = self._candidates.get(number)
        if found is None:
            rule = self._rules[number]
            region, decision = rule.region, self._decision(rule)
            found = self._candidates[number] = tuple(
                Candidate(ports, source, region.listeners, rule, decision)
                for ports in region.ports or (None,)
                for source in region.sources or (None,)
            )
        return found

    def _decision(self, rule: Route | Wall) -> Decision | None:
        if isinstance(rule, Wall):
            return Decision(Outcome.DENY, self._table, self._digest, wall=rule.origin)
        if rule.action.rewrite is not None or isinstance(rule.action.deliver, Lookup):
            return None
        decision = delivery(rule, self._table, self._digest)
        if self._name_takers is not None and needs_address(rule.action, self._name_takers):
            return replace(decision, needs_address=True)
        return decision


def _nat64_prefixes(policy: Policy) -> tuple[Prefix, ...]:
    """The NAT64 prefixes the policy itself translates with."""
    moves = (
        route.action.rewrite.move
        for routes in policy.tables.values()
        for route in routes
        if route.action.rewrite is not None
    )
    return tuple(dict.fromkeys(m.prefix for m in moves if isinstance(m, ToNat64 | FromNat64)))


def _name_takers(upstreams: Mapping[str, Upstream]) -> frozenset[str]:
    """The upstreams that are sent host names as they are.

    Whoever only hands a destination on does so if all it hands it to are: the members of a group, the
    upstream that a direct one goes through.
    """

    def takes(upstream: Upstream, inside: frozenset[str]) -> bool:
        if upstream.kind not in (UpstreamKind.DIRECT, UpstreamKind.FIRST, UpstreamKind.SPREAD):
            return upstream.takes_names
        # A group inside itself is an error of the policy (UR107); here it only must not recurse.
        inside |= {upstream.name}
        names = upstream.members if upstream.via is None else (upstream.via,)
        takers = [upstreams[name] for name in names if name in upstreams and name not in inside]
        return bool(takers) and all(takes(taker, inside) for taker in takers)

    return frozenset(name for name, upstream in upstreams.items() if takes(upstream, frozenset()))


def _own_listener_guards(listeners: Iterable[Listener]) -> Iterator[Route]:
    """`match ADDRESS port P -> deny` for each of our own listening addresses, as the guard's.

    Not for wildcards, which name no address, and not for listeners in other namespaces, whose
    addresses mean something else here. The statement a refusal names is the `listen` itself.
    """
    for listener in listeners:
        endpoint = listener.place.endpoint
        if listener.place.kind is not PlaceKind.ADDRESS or endpoint is None or listener.netns is not None:
            continue
        if not isinstance(endpoint.host, bytes) or not any(endpoint.host):
            continue
        span = listener.node.span
        anything = ast.Region(ast.Word("any", span), (), span)
        verb = ast.Action((), ast.Deliver("deny", (), span), span)
        yield Route(
            table=MAIN,
            region=Region(
                Destinations((host_prefix(endpoint.host),)), (PortRange(endpoint.port, endpoint.port),)
            ),
            action=Action(Deny()),
            settings=NO_SETTINGS,
            origin=listener.origin,
            node=ast.Match(anything, verb, (), span),
            guard=True,
        )
