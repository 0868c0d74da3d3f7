"""What a route does: rewriting and delivering, and what an `expect` says must come of it.

A rewrite is checked against the region it stands behind, since it must make sense for every
destination there: host bits that stay must be as many as the new prefix has, NAT64 embeds only IPv4,
a range of ports moves onto one as wide. What can only be known from a connection (the address a name
resolves to) is left to the evaluator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from urelay.lang import ast
from urelay.lang.source import Origin
from urelay.net import nat64
from urelay.net.address import Endpoint, Prefix, printable
from urelay.net.paths import LONGEST
from urelay.policy.flaws import flaw, read_word
from urelay.policy.model import (
    Action,
    Deliver,
    Deny,
    DenyHow,
    Direct,
    FromNat64,
    Lookup,
    Move,
    NameKind,
    NamePattern,
    Outcome,
    PortRange,
    Region,
    Rewrite,
    Silent,
    Slot,
    ToName,
    ToNat64,
    ToPrefix,
    Unix,
    Upstream,
    UpstreamKind,
    Via,
)
from urelay.policy.paths import read_socket_path, read_template
from urelay.policy.scope import Scope
from urelay.policy.upstreams import read_proxy
from urelay.policy.words import read_endpoint, read_slot

_REFUSALS = frozenset(how.value for how in DenyHow) - {DenyHow.DEFAULT}
_INLINE_KINDS = (UpstreamKind.SOCKS5, UpstreamKind.SOCKS4, UpstreamKind.HTTP)


def resolve_action(node: ast.Action, region: Region, scope: Scope, origin: Origin) -> Action:
    """The meaning of an action behind `region`. Raises PolicyError: the first thing wrong with it."""
    rewrite = _rewrite(node.rewrites, region, scope) if node.rewrites else None
    return Action(resolve_deliver(node.deliver, scope, origin), rewrite)


def resolve_deliver(node: ast.Deliver, scope: Scope, origin: Origin) -> Deliver:
    """What becomes of the connection. An upstream written inline is added to the scope."""
    match node.verb:
        case "direct":
            return Direct()
        case "deny":
            return _deny(node)
        case "via":
            return Via(_upstream(node, scope, origin))
        case "to unix":
            return Unix(read_template(node.words[0]))
        case "to socketbox" if len(node.words) == 1:
            return Unix(read_template(node.words[0]), Outcome.SOCKETBOX)
        case "to socketbox":
            slot = _slot(node)
            return Unix(slot.box, Outcome.SOCKETBOX, slot)
        case "lookup":
            return Lookup(scope.table(node.words[0]))
        case verb:
            raise flaw("UR001", f"I do not know the action `{printable(verb)}`", node.span)


def _slot(node: ast.Deliver) -> Slot:
    """Of `to socketbox "PATH" slot N`."""
    path, word, number = node.words
    if word.quoted or word.text != "slot":
        raise flaw("UR001", f"`{printable(word.text)}` does not fit behind the path: slot N does", word.span)
    if any(mark in path.text for mark in ("{", "}", "#//")):
        raise flaw("UR110", "the path of a slot has no fields: it is made when the relay starts", path.span)
    slot = Slot(read_socket_path(path), read_word(number, read_slot))
    if len(slot.box.encode()) > LONGEST:
        raise flaw("UR110", f"the path of a slot has at most {LONGEST} bytes, with its number", path.span)
    return slot


@dataclass(frozen=True, slots=True)
class Claim:
    """The right side of an expectation, resolved; the fields are those of model.Expectation."""

    outcome: Outcome
    deny_how: DenyHow | None = None
    upstream: str | None = None
    template: str | None = None
    destination: Endpoint | None = None


def resolve_claim(node: ast.Outcome, scope: Scope, origin: Origin) -> Claim:
    """What an expectation claims. Raises PolicyError."""
    destination = None if node.destination is None else read_word(node.destination, read_endpoint)
    if node.deliver.verb == "lookup":
        message = "`lookup` is not where a connection ends; say what the other table decides"
        raise flaw("UR110", message, node.deliver.span)
    match resolve_deliver(node.deliver, scope, origin):
        case Via(upstream):
            return Claim(Outcome.VIA, upstream=upstream, destination=destination)
        case Unix(template, outcome):
            return Claim(outcome, template=template, destination=destination)
        case Silent():
            claim = Claim(Outcome.SILENT)
        case Deny(how):
            claim = Claim(Outcome.DENY, how if node.deliver.words else None)
        case _:
            return Claim(Outcome.DIRECT, destination=destination)
    if node.destination is not None:
        raise flaw("UR110", "a connection that is denied goes nowhere: no `to`", node.destination.span)
    return claim


def _deny(node: ast.Deliver) -> Deliver:
    if not node.words:
        return Deny()
    how = node.words[0]
    if how.text == "silently":
        return Silent()
    if how.text not in _REFUSALS:
        ways = "refused, host-unreachable, net-unreachable, ttl-expired or silently"
        raise flaw("UR110", f"`{printable(how.text)}` is no way to deny: {ways}", how.span)
    return Deny(DenyHow(how.text))


def _upstream(node: ast.Deliver, scope: Scope, origin: Origin) -> str:
    if len(node.words) == 1:
        return scope.upstream(node.words[0])
    kind, endpoint_word = node.words
    if kind.text not in _INLINE_KINDS:
        message = f"`via {printable(kind.text)} …` needs a proxy: socks5, socks4 or http and its HOST:PORT"
        raise flaw("UR110", message, kind.span)
    endpoint = read_proxy(endpoint_word)
    name = f"{kind.text} {endpoint}"
    scope.inline.setdefault(name, Upstream(name, UpstreamKind(kind.text), endpoint, (), {}, origin, node))
    return name


# --- rewriting


def _rewrite(parts: tuple[ast.RewritePart, ...], region: Region, scope: Scope) -> Rewrite:
    move: Move | None = None
    ports: PortRange | None = None
    for part in parts:
        if part.kind == "port":
            if ports is not None:
                raise flaw("UR102", "the new port is said twice", part.span)
            ports = _port_range(part, region, scope)
        else:
            if move is not None:
                raise flaw("UR102", "the new destination is said twice", part.span)
            move = _MOVES[part.kind](part, region, scope)
    return Rewrite(move, ports)


def _port_range(part: ast.RewritePart, region: Region, scope: Scope) -> PortRange:
    ranges = scope.sets.of_ports(part.value)
    if len(ranges) != 1:
        raise _not_one(part, len(ranges), "ranges")
    new = ranges[0]
    widths = {old.width for old in region.ports} if region.ports is not None else {65535}
    if new.width != 1 and widths - {new.width}:
        width = min(widths - {new.width})
        plural = "" if width == 1 else "s"
        message = f"{width:,} port{plural} onto {new.width:,}: the same width is needed, or one port"
        raise flaw("UR111", message, part.span)
    return new


def _to(part: ast.RewritePart, region: Region, scope: Scope) -> Move:
    target = _one_target(part, scope)
    if isinstance(target, NamePattern):
        if target.kind is not NameKind.EXACT:
            raise flaw("UR111", f"`rewrite to` needs one host; {target} is many", part.value.span)
        return ToName(target.name)
    if target.length == target.bits:
        return ToPrefix(target)
    host_bits = target.bits - target.length
    onto = f"onto /{target.length}: equal host bits are needed"
    if region.destinations is None or region.destinations.names:
        what = "any destination" if region.destinations is None else "a name"
        raise flaw(
            "UR111", f"{what} {onto}", part.span, f"one address takes all: rewrite to {_first(target)}"
        )
    for prefix in region.destinations.prefixes:
        if prefix.family != target.family:
            families = f"IPv{prefix.family} destination {prefix} onto IPv{target.family}"
            message = f"{families}: only nat64, or one address, leads from one to the other"
            help_ = "rewrite to nat64" if target.family == 6 else "rewrite from nat64"
            raise flaw("UR111", message, part.span, help_)
        if prefix.bits - prefix.length != host_bits:
            raise flaw(
                "UR111", f"/{prefix.length} {onto}", part.span, note=f"{prefix} and {target} differ in size"
            )
    return ToPrefix(target)


def _first(prefix: Prefix) -> str:
    return str(prefix).partition("/")[0]


def _to_nat64(part: ast.RewritePart, region: Region, scope: Scope) -> Move:
    prefix = _nat64_prefix(part, scope)
    destinations = region.destinations
    if destinations is None or any(old.family == 6 for old in destinations.prefixes):
        what = "any" if destinations is None else _first_of_family(destinations.prefixes, 6)
        message = f"`rewrite to nat64` needs an IPv4 destination; this one is {what}"
        raise flaw(
            "UR111", message, part.span, "match 0.0.0.0/0 is every IPv4 address" if what == "any" else None
        )
    if prefix == nat64.WELL_KNOWN:
        _warn_of_private(part, destinations.prefixes, lambda old: old, scope)
    return ToNat64(prefix)


def _from_nat64(part: ast.RewritePart, region: Region, scope: Scope) -> Move:
    prefix = _nat64_prefix(part, scope)
    destinations = region.destinations
    outside = (
        "any"
        if destinations is None
        else next((str(old) for old in destinations.prefixes if not prefix.covers(old)), None)
    )
    if outside is not None:
        message = f"`rewrite from nat64 {prefix}` needs destinations in {prefix}; this one is {outside}"
        raise flaw("UR111", message, part.span, f"match {prefix}")
    if destinations is not None and prefix == nat64.WELL_KNOWN:
        _warn_of_private(part, destinations.prefixes, _carried, scope)
    return FromNat64(prefix)


def _carried(old: Prefix) -> Prefix:
    """The IPv4 prefix that a prefix inside 64:ff9b::/96 carries."""
    return Prefix(4, old.first & 0xFFFFFFFF, old.length - 96)


def _warn_of_private(
    part: ast.RewritePart, prefixes: Iterable[Prefix], ipv4: Callable[[Prefix], Prefix], scope: Scope
) -> None:
    """UR113 for a destination that lies whole in a block 64:ff9b::/96 never carries.

    A wider one, 0.0.0.0/0 above all, is meant for the rest of it: the evaluator refuses the block.
    """
    for old in prefixes:
        for block, _ in nat64.SPECIAL_IPV4:
            if block.covers(ipv4(old)):
                message = f"{nat64.WELL_KNOWN} must not carry private IPv4 ({block}); use your own prefix"
                scope.findings.add(
                    "UR113", message, part.span, note="it is refused when it happens (RFC 6052, 3.1)"
                )
                return


def _first_of_family(prefixes: Iterable[Prefix], family: int) -> str:
    return next(str(prefix) for prefix in prefixes if prefix.family == family)


def _nat64_prefix(part: ast.RewritePart, scope: Scope) -> Prefix:
    target = _one_target(part, scope)
    if isinstance(target, NamePattern) or target.family == 4:
        raise flaw("UR112", f"a NAT64 prefix is IPv6 (RFC 6052); this is {target}", part.value.span)
    if target.length not in nat64.LENGTHS:
        message = f"a NAT64 prefix is /32 /40 /48 /56 /64 or /96 (RFC 6052), this is /{target.length}"
        raise flaw("UR112", message, part.value.span)
    if nat64.sets_u_octet(target):
        message = f"bits 64 to 71 of {target} are not zero (RFC 6052, 2.2): other translators may refuse it"
        scope.findings.add("UR228", message, part.value.span, note="here it is used as it stands")
    return target


def _one_target(part: ast.RewritePart, scope: Scope) -> Prefix | NamePattern:
    contents = scope.sets.of_addresses(part.value, f"rewrite {part.kind}")
    count = len(contents.prefixes) + len(contents.names)
    if count != 1:
        raise _not_one(part, count, "prefixes" if not contents.names else "prefixes and names")
    return contents.prefixes[0] if contents.prefixes else contents.names[0]


def _not_one(part: ast.RewritePart, count: int, what: str) -> Exception:
    shown = f"@{part.value.name} holds" if isinstance(part.value, ast.SetName) else "this is"
    message = f"{shown} {count:,} {what}; `rewrite {part.kind}` needs exactly one"
    return flaw("UR108", message, part.value.span)


_MOVES: dict[str, Callable[[ast.RewritePart, Region, Scope], Move]] = {
    "to": _to,
    "to nat64": _to_nat64,
    "from nat64": _from_nat64,
}
