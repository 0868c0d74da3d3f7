"""The one evaluator: a connection in, a Decision out (language.md, 4 to 6).

The forwarder, `explain`, `expect` and every analysis ask here. Most questions end at the first
leaf with a Decision made at compile time. The others *walk*: a route that rewrites gives the
connection a new destination, `lookup` asks another table about it, and an action that dials an
address ends at the final check, where the address is held against walls and guard once more. The
state of a walk is where the connection goes now and which destinations it was given on the way.

A host name is never resolved to decide. Where acting needs its address, `decide` says so, the
caller resolves it once, and `settle` walks the same way again, knowing the answer: a winner that
said `match any` is then looked up by the address instead, a route that named the name stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from urelay.errors import AddressError, UrelayError
from urelay.net.address import Address, Endpoint, Host, Prefix, address_of, address_text, unmap
from urelay.net.nat64 import embed, embedded_ipv4, extract
from urelay.policy.model import (
    ALL_PORTS,
    MAIN,
    TO_PATHS,
    Action,
    Deny,
    DenyHow,
    Direct,
    FromNat64,
    Listener,
    Lookup,
    Outcome,
    Policy,
    Rewrite,
    Route,
    Silent,
    ToName,
    ToNat64,
    ToPrefix,
    Unix,
    Via,
    Wall,
)
from urelay.table.decision import Decision
from urelay.table.leaf import Candidate, dials
from urelay.table.world import World

MAX_LOOKUPS = 16
"""How many tables one connection may be asked of. Loops are found when a policy is checked (UR225);
this bounds what a table does that was never checked."""

# The world of a listener's clients, and the ones of some of them, the longest prefix first: how many
# bytes their addresses have, the shift and the value to compare, and their world.
_Choices = tuple[World, tuple[tuple[int, int, int, World], ...]]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What stays the same during a walk."""

    source: Address | None
    listener: str | None
    name: str | None = None
    """A host name that has been resolved, and `answer`, one of its addresses"""
    answer: Address | None = None

    def address_of(self, host: Host) -> Host:
        """The address to use for `host`; the name itself while it is not resolved."""
        return self.answer if self.answer is not None and host == self.name else host

    def arrive(self, decision: Decision, to: Endpoint, way: tuple[Endpoint, ...]) -> Decision:
        """The end of a walk: `decision`, with where the connection had got to."""
        if not way and self.answer is None:
            return decision
        return replace(decision, destination=Endpoint(self.address_of(to.host), to.port), rewrites=way)


class Table:
    """A compiled policy. Immutable: a reload makes another one."""

    __slots__ = ("_choices", "_main", "_worlds", "digest", "name_takers", "nat64", "policy")

    def __init__(
        self,
        policy: Policy,
        worlds: Mapping[str, World],
        nat64: tuple[Prefix, ...],
        name_takers: frozenset[str],
    ) -> None:
        """Made by urelay.table.compile.compile_policy."""
        self.policy = policy
        self.digest = policy.digest
        self.nat64 = nat64
        """The NAT64 prefixes the policy itself translates with"""
        self.name_takers = name_takers
        """The upstreams that are sent host names instead of addresses"""
        self._worlds = worlds
        self._main = worlds[MAIN]
        self._choices = {
            name: _choices(listener, worlds) for name, listener in policy.listeners.items() if listener.tables
        }

    def world(self, name: str) -> World:
        """The world of one table. Raises UrelayError when there is none of this name."""
        try:
            return self._worlds[name]
        except KeyError:
            raise UrelayError(f"there is no table called `{name}`") from None

    def world_for(self, listener: str | None, source: Address | None) -> World:
        """The world a client lives in: its listener's, by the longest source prefix, or main."""
        choices = self._choices.get(listener) if listener is not None else None
        if choices is None:
            return self._main
        otherwise, by_source = choices
        if source is not None:
            width, number = len(source), int.from_bytes(source)
            for bytes_wanted, shift, value, world in by_source:
                if width == bytes_wanted and number >> shift == value:
                    return world
        return otherwise

    def decide(
        self,
        destination: Host,
        port: int,
        source: Address | None = None,
        listener: str | None = None,
        table: str | None = None,
    ) -> Decision:
        """What to do with a connection to `destination`, an address or a canonical host name.

        `table` overrides the listener's choice of a table. An unknown listener lives in main and
        matches no `on`; without a source no `from` matches. A Decision with `needs_address` is
        provisional: see `settle`.
        """
        if table is not None:
            world = self.world(table)
        elif listener in self._choices:
            world = self.world_for(listener, source)
        else:
            world = self._main
        # Hot: nearly every decision is made in the next few lines, by a constant of the table.
        if destination.__class__ is bytes and len(destination) == 4:
            leaf = world.v4.lookup(destination)
            if leaf.usual is not None and port not in leaf.special:
                return leaf.usual
            candidate = leaf.find(port, source, listener)
            if candidate is not None and candidate.decision is not None:
                return candidate.decision
        elif isinstance(destination, bytes):
            destination = unmap(destination)
            leaf = world.leaf(destination)
            candidate = leaf.sole or leaf.find(port, source, listener)
            if candidate is not None and candidate.decision is not None:
                if not (leaf.carries_ipv4 and dials(candidate.decision)):
                    return candidate.decision
        else:
            candidate = world.names.lookup(destination).find(port, source, listener)
            if candidate is not None and candidate.decision is not None:
                return candidate.decision
        return self._walk(world, Endpoint(destination, port), _Asked(source, listener))

    def settle(
        self,
        decision: Decision,
        name: Host,
        address: Address,
        port: int,
        source: Address | None = None,
        listener: str | None = None,
        table: str | None = None,
    ) -> Decision:
        """What `decision`, which needs an address, becomes for one `address` of the resolved name.

        `name` (an address, if it was a rewrite that made it a name), `port` and the rest are as they
        were asked of `decide`; the name that was resolved is `decision.destination`'s where a
        rewrite set it, else `name`. The result names the address to dial in `destination` and never
        needs another one.
        """
        resolved = name if isinstance(name, str) else None
        if decision.destination is not None and isinstance(decision.destination.host, str):
            resolved = decision.destination.host
        world = self.world_for(listener, source) if table is None else self.world(table)
        asked = _Asked(source, listener, resolved, unmap(address))
        settled = self._walk(world, Endpoint(name, port), asked)
        if settled.needs_address:
            # The address was rewritten to a name again, and a connection is resolved once.
            why = "the address of a host name leads to another host name"
            return replace(settled, outcome=Outcome.DENY, upstream=None, needs_address=False, why=why)
        return settled

    # --- the walk

    def _walk(self, world: World, to: Endpoint, asked: _Asked) -> Decision:
        """Decide from `world` on, through every rewrite and lookup."""
        way: tuple[Endpoint, ...] = ()
        for _ in range(MAX_LOOKUPS):
            candidate = self._winner(world, to, asked)
            if candidate is not None and to.host == asked.name:
                if _says_any(candidate):
                    # Nothing but `any` spoke for the name, so its address decides.
                    to = Endpoint(asked.address_of(to.host), to.port)
                    candidate = self._winner(world, to, asked)
                else:
                    wall = self._wall(world, asked.address_of(to.host), to.port, asked)
                    candidate = wall or candidate
            if candidate is None:
                return asked.arrive(world.default, to, way)
            rule = candidate.rule
            if not isinstance(rule, Route) or isinstance(rule.action.deliver, Deny | Silent):
                return asked.arrive(self._constant(world, candidate), to, way)
            rewrite = rule.action.rewrite
            if rewrite is not None:
                host = asked.address_of(to.host) if _moves_address(rewrite) else to.host
                if isinstance(host, str) and _moves_address(rewrite):
                    return self._provisional(world, rule, to, way)
                try:
                    to = _rewritten(rewrite, Endpoint(host, to.port), candidate)
                except AddressError as error:
                    refusal = Decision(
                        Outcome.DENY, world.name, self.digest, route=rule.origin, why=str(error)
                    )
                    return asked.arrive(refusal, Endpoint(host, to.port), way)
                way = (*way, to)
            if isinstance(rule.action.deliver, Lookup):
                world = self.world(rule.action.deliver.table)
                continue
            return self._deliver(world, candidate, rule, to, way, asked)
        why = f"more than {MAX_LOOKUPS} lookups, one after the other"
        return asked.arrive(Decision(Outcome.DENY, world.name, self.digest, why=why), to, way)

    def _deliver(
        self,
        world: World,
        candidate: Candidate,
        rule: Route,
        to: Endpoint,
        way: tuple[Endpoint, ...],
        asked: _Asked,
    ) -> Decision:
        """The end of a walk: the final check, where an address is about to be dialled."""
        decision = candidate.decision
        if decision is None or decision.needs_address:
            decision = delivery(rule, world.name, self.digest)
        if decision.outcome in TO_PATHS:
            return asked.arrive(decision, to, way)
        if isinstance(to.host, str) and needs_address(rule.action, self.name_takers):
            host = asked.address_of(to.host)
            if isinstance(host, str):
                return self._provisional(world, rule, to, way)
            to = Endpoint(host, to.port)
        if isinstance(to.host, bytes):
            refusal = self._refusal(world, to.host, to.port, _named_by(rule.action), asked)
            if refusal is not None:
                decision = self._constant(world, refusal)
        return asked.arrive(decision, to, way)

    def _winner(self, world: World, to: Endpoint, asked: _Asked) -> Candidate | None:
        return world.leaf(to.host).find(to.port, asked.source, asked.listener)

    def _wall(self, world: World, host: Host, port: int, asked: _Asked) -> Candidate | None:
        found = self._winner(world, Endpoint(host, port), asked)
        return found if found is not None and isinstance(found.rule, Wall) else None

    def _refusal(
        self, world: World, address: Address, port: int, named: Prefix | None, asked: _Asked
    ) -> Candidate | None:
        """The wall or the guard's route that keeps `address` from being dialled.

        The address is looked up as a connection of its own, and so is every IPv4 address in it:
        where the policy has a more specific route, the guard has no say. `named` is the block a
        rewrite names, which opens what the guard says of that block or of one around it.
        """
        for spelling in (address, *embedded_ipv4(address, self.nat64)):
            found = self._winner(world, Endpoint(spelling, port), asked)
            if found is None:
                continue
            if isinstance(found.rule, Wall):
                return found
            if found.guarding and not (named is not None and _covers(found.rule, named)):
                return found
        return None

    def _constant(self, world: World, candidate: Candidate) -> Decision:
        """The decision of a wall, or of a route that refuses whatever it would have rewritten."""
        if candidate.decision is not None:
            return candidate.decision
        assert isinstance(candidate.rule, Route)
        return delivery(candidate.rule, world.name, self.digest)

    def _provisional(self, world: World, rule: Route, to: Endpoint, way: tuple[Endpoint, ...]) -> Decision:
        """What is known before the name in `to` is resolved. After `lookup` nothing is: `direct`."""
        decision = delivery(rule, world.name, self.digest)
        return replace(decision, needs_address=True, destination=to if way else None, rewrites=way)


def delivery(route: Route, table: str, digest: str) -> Decision:
    """What `route` does in the end, whatever it rewrites. After `lookup` that is not known here."""
    deliver = route.action.deliver
    outcome, upstream, template, deny_how = Outcome.DIRECT, None, None, DenyHow.DEFAULT
    match deliver:
        case Via():
            outcome, upstream = Outcome.VIA, deliver.upstream
        case Unix():
            outcome, template = deliver.outcome, deliver.template
        case Deny():
            outcome, deny_how = Outcome.DENY, deliver.how
        case Silent():
            outcome = Outcome.SILENT
        case Direct() | Lookup():
            pass
    return Decision(
        outcome,
        table,
        digest,
        route=route.origin,
        upstream=upstream,
        deny_how=deny_how,
        template=template,
        settings=route.settings,
    )


def needs_address(action: Action, name_takers: frozenset[str]) -> bool:
    """Whether delivering to a host name takes its address (rewrites aside)."""
    deliver = action.deliver
    return isinstance(deliver, Direct) or (isinstance(deliver, Via) and deliver.upstream not in name_takers)


def _choices(listener: Listener, worlds: Mapping[str, World]) -> _Choices:
    prefixes = [(choice.source, worlds[choice.table]) for choice in listener.tables if choice.source]
    prefixes.sort(key=lambda choice: -choice[0].length)
    by_source = []
    for prefix, world in prefixes:
        shift = prefix.bits - prefix.length
        by_source.append((prefix.bits // 8, shift, prefix.first >> shift, world))
    otherwise = [worlds[choice.table] for choice in listener.tables if choice.source is None]
    return (otherwise[0] if otherwise else worlds[MAIN]), tuple(by_source)


def _says_any(candidate: Candidate) -> bool:
    return isinstance(candidate.rule, Route) and candidate.rule.region.destinations is None


def _moves_address(rewrite: Rewrite) -> bool:
    """Whether the rewrite computes a new address from the old one (a fixed one needs no old one)."""
    move = rewrite.move
    return move is not None and not isinstance(move, ToName) and _fixed(rewrite) is None


def _fixed(rewrite: Rewrite) -> Address | None:
    """The one address a rewrite leads to, where it names a single one."""
    move = rewrite.move
    if isinstance(move, ToPrefix) and move.prefix.length == move.prefix.bits:
        return address_of(move.prefix.family, move.prefix.first)
    return None


def _rewritten(rewrite: Rewrite, to: Endpoint, candidate: Candidate) -> Endpoint:
    """The new destination. Raises AddressError, which says why there is none."""
    host, port = to
    move = rewrite.move
    if isinstance(move, ToName):
        host = move.name
    elif move is not None:
        host = _fixed(rewrite) or unmap(_moved(move, host))
    if rewrite.ports is not None:
        first = (candidate.ports or ALL_PORTS).first
        port = rewrite.ports.first + (port - first if rewrite.ports.width > 1 else 0)
    return Endpoint(host, port)


def _moved(move: ToNat64 | FromNat64 | ToPrefix, host: Host) -> Address:
    assert isinstance(host, bytes), "the walk resolves names before it moves their addresses"
    prefix = move.prefix
    if isinstance(move, ToNat64):
        return embed(prefix, host)
    if isinstance(move, FromNat64):
        return extract(prefix, host)
    if len(host) * 8 != prefix.bits:
        raise AddressError(f"{address_text(host)} cannot be rewritten to {prefix}")
    host_bits = int.from_bytes(host) & ((1 << (prefix.bits - prefix.length)) - 1)
    return address_of(prefix.family, prefix.first | host_bits)


def _named_by(action: Action) -> Prefix | None:
    """The block that the rewrite of an action names as its destination."""
    move = action.rewrite.move if action.rewrite is not None else None
    return move.prefix if isinstance(move, ToPrefix | ToNat64) else None


def _covers(rule: Route, named: Prefix) -> bool:
    destinations = rule.region.destinations
    return destinations is not None and any(prefix.covers(named) for prefix in destinations.prefixes)
