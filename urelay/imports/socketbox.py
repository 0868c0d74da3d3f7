"""A configuration of socketbox as a policy.

socketbox walks a set of rules and takes the first that matches; a rule may jump to another set, or to
a map, which is looked up exactly under a mask. A policy takes the most specific route. The two agree
once every overlap of two rules is a route of its own, with the action of the one that comes first:
whichever rules match a connection, the region they have in common is then the most specific of
all, and says what the first of them says.

    ip:ADDR[/LEN]  rip:ADDR[/LEN]  port:N     `match ADDR/LEN port N from ADDR/LEN`
    jump-unix:PATH                            `to socketbox "PATH"`
    jump-map:N  jump-rule:N                   walked through here
    fail, and whatever no rule matches        `deny`
    rport:N, masks with holes, jump-fd:N      not here: nothing in a policy says that
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import NamedTuple

from urelay.errors import AddressError, StartError
from urelay.imports.text import PolicyText, path_word
from urelay.net.address import MAPPED_PREFIX, Prefix, parse_address, printable

_MOST_ROUTES = 5_000
_DEEPEST = 100
"""Jumps socketbox follows"""
_MAPPED = int.from_bytes(MAPPED_PREFIX) << 32
_LOST = "nothing in a policy says that"


class _Block(NamedTuple):
    """Addresses of socketbox: always IPv6, IPv4 as IPv4-mapped."""

    first: int = 0
    length: int = 0

    def meet(self, other: _Block) -> _Block | None:
        """What both hold; None for nothing."""
        narrow, wide = (self, other) if self.length >= other.length else (other, self)
        return narrow if (narrow.first ^ wide.first) >> (128 - wide.length) == 0 else None

    def words(self) -> tuple[str, ...]:
        """The prefixes of the language that make it up; none for every address."""
        if self.length == 0:
            return ()
        if self.length >= 96 and self.first >> 32 == _MAPPED >> 32:
            return (str(Prefix(4, self.first & 0xFFFF_FFFF, self.length - 96)),)
        ipv6 = str(Prefix(6, self.first, self.length))
        holds_ipv4 = self.meet(_Block(_MAPPED, 96)) is not None
        return ("0.0.0.0/0", ipv6) if holds_ipv4 else (ipv6,)


class _Region(NamedTuple):
    """The connections a rule is about. Port 0 is every port."""

    local: _Block = _Block()
    port: int = 0
    remote: _Block = _Block()

    def meet(self, other: _Region) -> _Region | None:
        """The connections both are about; None for none."""
        local, remote = self.local.meet(other.local), self.remote.meet(other.remote)
        if local is None or remote is None or (self.port and other.port and self.port != other.port):
            return None
        return _Region(local, self.port or other.port, remote)


_EVERYTHING = _Region()


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line: what it is about, and where it leads. `line` is its number in the file."""

    line: int
    region: _Region = _EVERYTHING
    action: str = "fail"
    target: str = ""
    lost: str | None = None
    """Why it cannot be said"""


@dataclass(slots=True)
class _Set:
    """A set of rules, or a map, whose entries are looked up under a mask: then at most one fits."""

    rules: list[_Rule]
    default: _Rule | None = None
    is_map: bool = False
    local_bits: int = 0
    remote_bits: int = 0
    port: bool = False
    rport: bool = False


def convert(text: str, source: str) -> str:
    """The policy for a configuration. Raises StartError: the first line that cannot be read."""
    sets = _parse(text, source)
    policy = PolicyText(source, "socketbox")
    policy.comment("the address and port of socketbox's -l and -p; with -t it needs TPROXY or local routes")
    policy.blank()
    policy.line("listen box = transparent [::]:1081")
    policy.blank()
    regions: dict[_Region, str] = {}
    for rule in _flat(sets, policy):
        _add(regions, rule)
    # What matches no rule fails; the last rule of all, so that it loses every overlap.
    regions.setdefault(_EVERYTHING, "deny")
    for region, action in regions.items():
        policy.route(_words(region), action)
    return str(policy)


def _add(regions: dict[_Region, str], rule: _Rule) -> None:
    """Add a rule behind those that are there, and every overlap, which belongs to them."""
    for region, action in list(regions.items()):
        common = region.meet(rule.region)
        if common is not None:
            regions.setdefault(common, action)
    regions.setdefault(rule.region, _action(rule))
    if len(regions) > _MOST_ROUTES:
        raise StartError(f"line {rule.line}: its rules overlap in more than {_MOST_ROUTES:,} ways")


def _action(rule: _Rule) -> str:
    path = path_word(rule.target) if rule.action == "jump-unix" else None
    return "deny" if path is None else f"to socketbox {path}"


def _words(region: _Region) -> str:
    words = [_one_of(region.local.words()) or "any"]
    if region.port:
        words.append(f"port {region.port}")
    if sources := _one_of(region.remote.words()):
        words.append(f"from {sources}")
    return " ".join(words)


def _one_of(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{{ {', '.join(words)} }}" if words else ""


# --- from jumps to one list, in the order of precedence


def _flat(sets: dict[tuple[str, int], _Set], policy: PolicyText) -> list[_Rule]:
    """Every rule that ends somewhere, as if all stood in one set."""
    flat: list[_Rule] = []
    on_the_way: list[tuple[tuple[str, int], _Region]] = []
    visits = itertools.count()

    def walk(name: tuple[str, int], within: _Region) -> None:
        found = sets.get(name)
        if found is None or len(on_the_way) > _DEEPEST or (name, within) in on_the_way:
            flat.append(_Rule(0, within))
            return
        on_the_way.append((name, within))
        default = found.default or _Rule(0)
        for rule in [*found.rules, default]:
            if next(visits) > _MOST_ROUTES:
                raise StartError(f"more than {_MOST_ROUTES:,} rules once every jump is followed")
            if rule.lost is not None:
                policy.lost(f"line {rule.line}", rule.lost)
                continue
            region = rule.region.meet(within)
            if region is None:
                continue
            if rule.action in ("jump-map", "jump-rule"):
                kind = "map-set" if rule.action == "jump-map" else "rule-set"
                walk((kind, int(rule.target)), region)
            else:
                flat.append(replace(rule, region=region))
        on_the_way.pop()

    walk(("rule-set", 0), _EVERYTHING)
    return flat


# --- reading


def _parse(text: str, source: str) -> dict[tuple[str, int], _Set]:
    """The sets by kind and number: a line is an entry of the set named last, or speaks of that set."""
    sets: dict[tuple[str, int], _Set] = {}
    current: _Set | None = None
    for number, line in enumerate(text.splitlines(), 1):
        rule, default = _Rule(number), False
        entry = False
        for word in line.split() if not line.startswith("#") else ():
            key, _, value = word.partition(":")
            try:
                if key in ("rule-set", "map-set"):
                    current = sets.setdefault((key, _number(value, 999)), _Set([], is_map=key == "map-set"))
                elif key in ("max-maps", "max-rules", "size"):
                    _number(value, 1000)
                elif current is None:
                    raise ValueError(f"`{printable(word)}` stands in no set")
                elif key in ("match-lip", "match-rip", "match-lport", "match-rport"):
                    _mask(current, key, value)
                elif key == "default":
                    default = entry = True
                else:
                    rule, entry = _entry(rule, key, value), True
            except (ValueError, AddressError) as error:
                raise StartError(f"{printable(source)}:{number}: {error}") from None
        if current is not None and entry:
            if default:
                current.default = rule
            else:
                current.rules.append(rule)
    for one in sets.values():
        if one.is_map:
            one.rules = [_masked(rule, one) for rule in one.rules]
    if not sets:
        raise StartError(f"{printable(source)} has no `rule-set:0`")
    return sets


def _entry(rule: _Rule, key: str, value: str) -> _Rule:
    """`rule` with what one word says of it. Raises ValueError."""
    region = rule.region
    if key in ("ip", "rip"):
        block = _block(value)
        if block is None:
            return replace(rule, lost=f"a mask with holes: {_LOST}")
        wider = region._replace(local=block) if key == "ip" else region._replace(remote=block)
        return replace(rule, region=wider)
    if key == "port":
        return replace(rule, region=region._replace(port=_number(value, 65535)))
    if key == "rport":
        return replace(rule, lost=f"rport: {_LOST}")
    if key == "jump-fd":
        return replace(rule, lost=f"jump-fd, a descriptor it was started with: {_LOST}")
    if key in ("jump-map", "jump-rule"):
        return replace(rule, action=key, target=str(_number(value, 999)))
    if key in ("jump-unix", "fail"):
        return replace(rule, action=key, target=value)
    raise ValueError(f"`{printable(key)}` is no word of socketbox")


def _mask(current: _Set, key: str, value: str) -> None:
    match key:
        case "match-lip":
            current.local_bits = _number(value, 128)
        case "match-rip":
            current.remote_bits = _number(value, 128)
        case "match-lport":
            current.port = True
        case _:
            current.rport = True


def _masked(rule: _Rule, one: _Set) -> _Rule:
    """An entry of a map, as wide as the map's mask makes it."""
    if one.rport and rule.lost is None:
        return replace(rule, lost=f"rport: {_LOST}")
    lost = None if rule.lost is not None and rule.lost.startswith("rport") else rule.lost
    region = rule.region
    return replace(
        rule,
        lost=lost,
        region=_Region(
            _widened(region.local, one.local_bits),
            region.port if one.port else 0,
            _widened(region.remote, one.remote_bits),
        ),
    )


def _widened(block: _Block, length: int) -> _Block:
    return _Block(block.first >> (128 - length) << (128 - length), length)


def _block(value: str) -> _Block | None:
    """An address with its length or mask; None for a mask with holes. Raises ValueError, AddressError."""
    text, slash, mask = value.partition("/")
    first = _ipv6(text)
    if not slash:
        return _Block(first, 128)
    if ":" not in mask:
        return _widened(_Block(first, 128), _number(mask, 128))
    bits = f"{_ipv6(mask):0128b}"
    length = bits.count("1")
    return None if "0" in bits[:length] else _widened(_Block(first, 128), length)


def _ipv6(text: str) -> int:
    if ":" not in text:
        raise ValueError(f"`{printable(text)}` is not an IPv6 address")
    packed = parse_address(text)
    return int.from_bytes(packed if len(packed) == 16 else MAPPED_PREFIX + packed)


def _number(text: str, most: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 6) or int(text) > most:
        raise ValueError(f"`{printable(text)}` is not a number up to {most}")
    return int(text)
