"""Addresses, host names and endpoints: the one place that reads and prints them.

An *address* is `bytes` in network order: 4 of them are IPv4, 16 are IPv6, and an IPv4-mapped IPv6
address (RFC 4291, 2.5.5.2) is never kept: it becomes its IPv4 address on arrival. Packed bytes are
what sockets give, what SOCKS carries and what the lookup table indexes, so nothing is converted on
the way. A *host name* is `str`: lower case, ASCII, no final dot. A *host* is either, told apart by
its type.

Text that looks numeric and is not a strict dotted quad or a valid IPv6 text is refused here, before
anybody could hand it to a resolver (`0177.1`, `2130706433`, `127.0.0.1\\0.example.com`, `127.1`).
"""

from __future__ import annotations

import codecs
import functools
import ipaddress
import re
from typing import NamedTuple, TypeAlias

from urelay.errors import AddressError

Address: TypeAlias = bytes
"""4 (IPv4) or 16 (IPv6, never IPv4-mapped) bytes in network order."""

Host: TypeAlias = bytes | str
"""An address (`bytes`) or a host name (`str`: lower case, ASCII, no final dot)."""

MAPPED_PREFIX = bytes(10) + b"\xff\xff"

_V4 = re.compile(r"(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})")
_V6_SHAPE = re.compile(r"[0-9A-Fa-f:.]{2,45}")
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
# The WHATWG "ends in a number" rule: such a last label means somebody wrote an address.
_NUMERIC_LABEL = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")


class Endpoint(NamedTuple):
    """A host and a TCP port; the text form puts brackets round IPv6."""

    host: Host
    port: int

    def __str__(self) -> str:
        host = host_text(self.host)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def unmap(packed: bytes) -> Address:
    """The canonical address of 4 or 16 packed bytes: IPv4-mapped IPv6 becomes IPv4."""
    if len(packed) == 16 and packed.startswith(MAPPED_PREFIX):
        return packed[12:]
    return packed


def parse_address(text: str) -> Address:
    """The address that `text` spells strictly, unmapped.

    IPv4: exactly four decimal octets without leading zeros. IPv6: RFC 4291 text without a zone.
    Raises AddressError, whose text says what is wrong in the writer's words.
    """
    if ":" in text:
        # The shape first: the parser below would accept a zone id and raises on nothing stranger.
        if not _V6_SHAPE.fullmatch(text):
            raise AddressError(f"`{printable(text)}` is not an IPv6 address{_zone_hint(text)}")
        try:
            return unmap(ipaddress.IPv6Address(text).packed)
        except ValueError:
            raise AddressError(f"`{printable(text)}` is not an IPv6 address") from None
    match = _V4.fullmatch(text)
    if match is None:
        raise AddressError(_why_not_ipv4(text))
    octets = [int(part) for part in match.groups()]
    for octet in octets:
        if octet > 255:
            raise AddressError(f"`{text}` is not an address: {octet} is more than 255")
    return bytes(octets)


@functools.lru_cache(maxsize=4096)
def address_text(address: Address) -> str:
    """The canonical text (RFC 5952 for IPv6; an IPv4-mapped address ends as IPv4 does, section 5)."""
    # Cached, for a relay writes the same few into its log again and again.
    if len(address) == 4:
        return "{}.{}.{}.{}".format(*address)
    if address.startswith(MAPPED_PREFIX):
        # Before Python 3.13 `ipaddress` writes these as any other.
        return "::ffff:{}.{}.{}.{}".format(*address[12:])
    return str(ipaddress.IPv6Address(address))


def parse_name(text: str) -> str:
    """The canonical form of a host name: lower case, no final dot, at most 253 characters.

    Labels are ASCII letters, digits, `-` and `_`, 1 to 63 long, with no `-` at either end.
    Raises AddressError, also for a name whose last label is a number (`1.2.3`, `0x7f.1`): that is a
    misspelt address, which a careless resolver would dial.
    """
    name = text.lower() if text.isascii() else text
    name = name.removesuffix(".")
    if not name:
        raise AddressError("an empty host name")
    if len(name) > 253:
        raise AddressError(f"a host name of {len(name)} characters; 253 is the most (RFC 1035, 2.3.4)")
    labels = name.split(".")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise AddressError(f"`{printable(text)}` is not a host name")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        raise AddressError(f"`{printable(text)}` looks like an address and is not one")
    return name


def parse_host(text: str) -> Host:
    """An address or a host name, as a client may spell either; brackets are accepted round IPv6.

    Raises AddressError. The result never needs a second look: what is not an address here is a
    name that no resolver can take for one.
    """
    if text.startswith("["):
        inner = text[1:-1]
        if not text.endswith("]") or ":" not in inner:
            raise AddressError(f"`{printable(text)}` is not an IPv6 address in brackets")
        return parse_address(inner)
    if ":" in text or _V4.fullmatch(text):
        return parse_address(text)
    return parse_name(text)


def host_text(host: Host) -> str:
    """The text of an address or a name, without brackets."""
    return host if isinstance(host, str) else address_text(host)


def parse_port(text: str) -> int:
    """A TCP port, 1 to 65535; raises AddressError."""
    if not (text.isascii() and text.isdigit()) or (len(text) > 1 and text[0] == "0"):
        raise AddressError(f"`{printable(text)}` is not a port")
    port = int(text[:8])
    if port > 65535:
        raise AddressError(f"port {text[:8]} is more than 65535")
    if port == 0:
        raise AddressError("port 0 cannot be connected to")
    return port


def parse_endpoint(text: str) -> Endpoint:
    """`HOST:PORT`, with brackets round an IPv6 host; raises AddressError."""
    host, colon, port = text.rpartition(":")
    if not colon:
        raise AddressError(f"`{printable(text)}` names no port")
    if ":" in host and not host.startswith("["):
        hint = f"[{printable(host)}]:{printable(port)}"
        raise AddressError(f"`{printable(text)}` needs brackets round the IPv6 address: {hint}")
    return Endpoint(parse_host(host), parse_port(port))


class Prefix(NamedTuple):
    """A block of addresses. `first` is an integer with no host bits; sorts by family, then place."""

    family: int
    """4 or 6"""
    first: int
    length: int

    @property
    def last(self) -> int:
        """The highest address of the block, as an integer."""
        return self.first | ((1 << (self.bits - self.length)) - 1)

    @property
    def bits(self) -> int:
        """The width of an address of this family: 32 or 128."""
        return 32 if self.family == 4 else 128

    def __contains__(self, address: object) -> bool:
        """Whether a packed address lies in the block."""
        return isinstance(address, bytes) and self.holds(address)

    def holds(self, address: Address) -> bool:
        """Whether a packed address lies in the block (as `in` does, in words a type checker follows)."""
        if len(address) * 8 != self.bits:
            return False
        return int.from_bytes(address) >> (self.bits - self.length) == self.first >> (self.bits - self.length)

    def covers(self, other: Prefix) -> bool:
        """Whether every address of `other` is in this block."""
        return (
            self.family == other.family
            and self.length <= other.length
            and self.first <= other.first <= self.last
        )

    def __str__(self) -> str:
        return f"{address_text(self.first.to_bytes(self.bits // 8))}/{self.length}"


def host_prefix(address: Address) -> Prefix:
    """The /32 or /128 of one address."""
    bits = len(address) * 8
    return Prefix(4 if bits == 32 else 6, int.from_bytes(address), bits)


def address_of(family: int, number: int) -> Address:
    """The packed address of an integer; `family` is 4 or 6."""
    return number.to_bytes(4 if family == 4 else 16)


# Loaded now: it is needed when things go wrong, and then there may be no descriptor to load it with.
codecs.lookup("unicode_escape")


def printable(text: str, limit: int = 80) -> str:
    """`text` safe to show: ASCII, escaped, cut after `limit` characters with three dots."""
    shown = text[:limit].encode("unicode_escape").decode("ascii")
    return shown + "..." if len(text) > limit else shown


def _why_not_ipv4(text: str) -> str:
    parts = text.split(".")
    if len(parts) == 4 and all(part.isascii() and part.isdigit() for part in parts):
        for part in parts:
            if len(part) > 1 and part[0] == "0":
                return f"`{printable(text)}` is not an address: {part} has a leading zero"
            if len(part) > 3 or int(part) > 255:
                return f"`{printable(text)}` is not an address: {part} is more than 255"
    return f"`{printable(text)}` is not an address"


def _zone_hint(text: str) -> str:
    return ": a zone id (`%`) has no meaning in a policy" if "%" in text else ""
