"""What a word of the language means: an element of a set, a port range, a duration, a number.

The grammar has one coarse word, so `10.0.0.0/8`, `443` and `5s` are told apart here. Everything in
this module is a function from text to value that raises WordError, whose message knows what was
meant; it has no place in a file, so the same readers serve words of a statement and lines of a list.

A prefix is digits, dots, colons and an obligatory `/length` whose host bits are zero; an address
without a length is a /32 or /128. IPv4-mapped IPv6 is IPv4, as it is for connections: at /96 and
longer a mapped prefix becomes the IPv4 prefix it stands for. Nothing else is an address, and a text
that looks like one and is not is refused, never taken for a name.

netaddr reads the digits (`str_to_int` with inet_pton's strictness: half the time of an IPNetwork, and
a list may hold a million prefixes); what netaddr would let pass, host bits and netmasks, is refused
here. What the quick path refuses, the slow one below explains.
"""

from __future__ import annotations

import re
from typing import TypeAlias

from netaddr.core import INET_PTON, AddrFormatError
from netaddr.ip import iprange_to_cidrs
from netaddr.strategy import ipv4, ipv6

from urelay.errors import AddressError
from urelay.net.address import (
    Endpoint,
    Prefix,
    address_text,
    host_prefix,
    parse_address,
    parse_endpoint,
    parse_name,
    parse_port,
    printable,
)
from urelay.policy.model import NameKind, NamePattern, PortRange

Element: TypeAlias = Prefix | NamePattern
"""What a set of addresses and names is made of."""

_PREFIX_SHAPE = re.compile(r"[0-9][0-9.]*(?:[/-].*)?|\[?[0-9A-Fa-f]*:.*|.*/.*", re.DOTALL)
_PORTS_SHAPE = re.compile(r"[0-9]+(?:-[0-9]+)?")
_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m|h|d)")
_LOOSE_DURATION = re.compile(
    r"([0-9.]+)\s*(ms|msec|s|sec|secs|seconds?|m|min|mins|minutes?|h|hours?|d|days?)", re.I
)
_HIGHEST_SLOT = 0xFFFF_FFFF
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]{1,16}|0|[1-9][0-9]{0,18}")

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LONGEST_S = 366 * 86400.0

# Looked up instead of computed: quick_prefix runs a million times for a large list.
_LENGTHS_4 = {str(length): length for length in range(33)}
_LENGTHS_6 = {str(length): length for length in range(129)}
_HOST_BITS = tuple((1 << bits) - 1 for bits in range(129))

_MAPPED_NETWORK = 0xFFFF << 32
_MAPPED_MASK = ((1 << 96) - 1) << 32


class WordError(Exception):
    """A word that is not what is needed: a diagnostic without its place."""

    def __init__(self, code: str, message: str, help_text: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.help_text = help_text


def looks_like_ports(text: str) -> bool:
    """Whether an unquoted word of a set counts as ports: only digits, or digits `-` digits."""
    return _PORTS_SHAPE.fullmatch(text) is not None


def read_element(text: str, *, quoted: bool = False) -> Element:
    """A prefix, an address or a name pattern. Raises WordError (UR104, UR105, UR118).

    `quoted` lifts the one rule that guards against typing errors: a host name of one label.
    """
    prefix = quick_prefix(text)
    if prefix is not None:
        return prefix
    host, colon, port = text.partition(":")
    if colon and port.isdigit() and host:
        raise WordError(
            "UR105", f"`{printable(text)}` holds a port", f"write `{printable(host)} port {port}`"
        )
    if _PREFIX_SHAPE.fullmatch(text):
        return read_prefix(text)
    return read_pattern(text, quoted=quoted)


def quick_prefix(text: str) -> Prefix | None:
    """The prefix that a faultless text spells, else None: read_prefix then says what is wrong.

    Large lists live here: one call a line, no exception on the common path.
    """
    address, slash, digits = text.partition("/")
    first: int
    try:
        if ":" in address:
            first = ipv6.str_to_int(address, INET_PTON)
            length = _LENGTHS_6[digits] if slash else 128
            if first & _HOST_BITS[128 - length]:
                return None
            if length >= 96 and first & _MAPPED_MASK == _MAPPED_NETWORK:
                return Prefix(4, first & 0xFFFFFFFF, length - 96)
            return Prefix(6, first, length)
        if not address[:1].isdigit():
            return None  # a name, of which a list may hold as many
        first = ipv4.str_to_int(address, INET_PTON)
        length = _LENGTHS_4[digits] if slash else 32
    except (AddrFormatError, KeyError, ValueError):
        return None
    return None if first & _HOST_BITS[32 - length] else Prefix(4, first, length)


def read_prefix(text: str) -> Prefix:
    """A prefix or a plain address. Raises WordError (UR104, UR105)."""
    prefix = quick_prefix(text)
    if prefix is not None:
        return prefix
    shown = printable(text)
    if text.startswith("[") and text.endswith("]"):
        raise WordError("UR105", f"`{shown}` is not an address: brackets are for `[ADDRESS]:PORT`")
    address, slash, digits = text.partition("/")
    if not slash and "-" in text:
        raise _address_range(text)
    try:
        packed = parse_address(address)
    except AddressError as error:
        raise WordError("UR105", str(error) if address else f"`{shown}` is not a prefix") from None
    bits = len(packed) * 8
    if not _LENGTH.fullmatch(digits):
        raise _bad_length(address, digits, bits)
    mapped = bits == 32 and ":" in address
    if int(digits) > (128 if mapped else bits):
        family, most = ("IPv6", 128) if ":" in address else ("IPv4", 32)
        raise WordError("UR105", f"`{shown}` is not a prefix: /{digits} is more than /{most} ({family})")
    number = int.from_bytes(packed) if not mapped else _MAPPED_NETWORK | int.from_bytes(packed)
    width = 128 if mapped else bits
    network = number >> (width - int(digits)) << (width - int(digits))
    shown_network = address_text(network.to_bytes(width // 8))
    raise WordError(
        "UR104",
        f"{address}/{digits} has host bits set: "
        f"{shown_network}/{digits} (the network) or {address}/{width} (the host)?",
    )


def read_pattern(text: str, *, quoted: bool = False) -> NamePattern:
    """`example.com`, `*.example.com` or `.example.com`. Raises WordError (UR105, UR118)."""
    if text.startswith("*."):
        kind, name = NameKind.BELOW, text[2:]
    elif text.startswith("."):
        kind, name = NameKind.SELF_AND_BELOW, text[1:]
    else:
        kind, name = NameKind.EXACT, text
    if "*" in name:
        raise WordError(
            "UR105",
            f"`{printable(text)}` is not a name: `*` stands only in front, for every name below",
            "`*.example.com` is every name below example.com, `.example.com` itself too",
        )
    try:
        canonical = parse_name(name)
    except AddressError as error:
        help_text = None if text.isascii() else "write international names as A-labels (`xn--…`)"
        raise WordError("UR105", str(error), help_text) from None
    if kind is NameKind.EXACT and "." not in canonical and not quoted:
        raise WordError("UR118", f"`{printable(text)}` has one label: quote it if it is a host name")
    return NamePattern(kind, canonical)


def read_ports(text: str) -> PortRange:
    """`443` or `8000-8099`. Raises WordError (UR106)."""
    if not _PORTS_SHAPE.fullmatch(text):
        raise WordError("UR106", f"`{printable(text)}` is not a port: a number or a range such as 8000-8099")
    low, dash, high = text.partition("-")
    try:
        first = parse_port(low)
        last = parse_port(high) if dash else first
    except AddressError as error:
        raise WordError("UR106", str(error)) from None
    if first > last:
        raise WordError("UR106", f"range {first}-{last} runs backwards", f"write {last}-{first}")
    return PortRange(first, last)


def read_duration(text: str) -> float:
    """`5s`, `500ms`, `1.5h` in seconds, more than nothing and at most a year. Raises WordError (UR110)."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise WordError("UR110", f'"{printable(text)}" is not a duration; write {_likely_duration(text)}')
    seconds = float(match[1]) * _SECONDS[match[2]]
    if not 0.001 <= seconds <= _LONGEST_S:
        raise WordError("UR110", f'"{text}" is not a duration to wait: between 1ms and 366d')
    return seconds


def read_number(text: str, low: int, high: int) -> int:
    """A decimal or `0x` number between `low` and `high`. Raises WordError (UR110)."""
    if _NUMBER.fullmatch(text):
        number = int(text, 0)
        if low <= number <= high:
            return number
    raise WordError("UR110", f"`{printable(text)}` is not a number from {low} to {high}")


def read_slot(text: str) -> int:
    """The number of a slot of a socketbox. Raises WordError (UR110)."""
    return read_number(text, 0, _HIGHEST_SLOT)


def read_endpoint(text: str) -> Endpoint:
    """`HOST:PORT`; the port makes it plain that a single label is meant. Raises WordError (UR105, UR106)."""
    try:
        return parse_endpoint(text)
    except AddressError as error:
        raise WordError(_endpoint_code(text), str(error)) from None


def read_place(text: str) -> Endpoint:
    """`ADDR:PORT` to listen on: no name, which could change. Raises WordError (UR105, UR106)."""
    host, colon, _ = text.rpartition(":")
    if host == "*" and colon:
        raise WordError("UR105", f"`{text}` names no address", "write 0.0.0.0 for IPv4 or [::] for both")
    endpoint = read_endpoint(text)
    if isinstance(endpoint.host, str):
        raise WordError(
            "UR105", f"`{printable(text)}` is not an address to listen on: names are not looked up"
        )
    return endpoint


def split_endpoint(text: str) -> tuple[str, str] | None:
    """The host and port texts of a word that ends in `:PORT`; None when the word is no such thing.

    `2001:db8::1` is an address: an IPv6 host needs its brackets before a port can follow, and keeps
    them here.
    """
    if text.startswith("["):
        host, bracket, port = text.rpartition("]:")
        return (f"{host}]", port) if bracket else None
    host, colon, port = text.partition(":")
    return (host, port) if colon and ":" not in port else None


def _endpoint_code(text: str) -> str:
    """Whether it is the port that is wrong, of what parse_endpoint refused."""
    host, colon, port = text.rpartition(":")
    try:
        parse_port(port)
    except AddressError:
        return "UR106" if colon and ":" not in host.strip("[]") else "UR105"
    return "UR105"


def _address_range(text: str) -> WordError:
    """`10.0.0.1-10.0.0.9`: no prefix, but the prefixes that cover it can be pasted."""
    low, _, high = text.partition("-")
    message = f"`{printable(text)}` is not a prefix: ranges of addresses are written as prefixes"
    try:
        first, last = host_prefix(parse_address(low)), host_prefix(parse_address(high))
    except AddressError:
        return WordError("UR105", f"`{printable(text)}` is not a prefix")
    if first.family != last.family or first.first > last.first:
        return WordError("UR105", message)
    covering = [str(cidr) for cidr in iprange_to_cidrs(low, high)]
    if len(covering) > 8:
        return WordError("UR105", message)
    return WordError("UR105", message, f"write {{ {', '.join(covering)} }}")


def _bad_length(address: str, digits: str, bits: int) -> WordError:
    """What stands behind the slash is no length: a netmask, a leading zero, nothing."""
    shown = f"`{printable(f'{address}/{digits}')}`"
    try:
        mask = int.from_bytes(parse_address(digits))
    except AddressError:
        return WordError("UR105", f"{shown} is not a prefix: a length of 0 to {bits} stands after the slash")
    length = mask.bit_count()
    if bits == 32 and mask == (0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:
        return WordError(
            "UR105", f"{shown} is not a prefix: the netmask form is not used", f"write {address}/{length}"
        )
    return WordError("UR105", f"{shown} is not a prefix: netmasks are not used, only /0 to /{bits}")


def _likely_duration(text: str) -> str:
    match = _LOOSE_DURATION.fullmatch(text.strip())
    if match is None:
        return "a number and ms, s, m, h or d, such as 5s"
    unit = match[2].lower()
    return match[1] + ("ms" if unit.startswith("ms") else unit[0])
