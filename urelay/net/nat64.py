"""IPv4 addresses inside IPv6 ones: RFC 6052, and every other form a clever client may try.

`embed` and `extract` are the translation a policy asks for. `embedded_ipv4` answers a different
question, for the evaluator: which IPv4 hosts might be reached by dialling this IPv6 address, on a
network that still runs some translator or tunnel? It reads generously (two readings where the
prefix does not tell the layout, the u-octet ignored), because its answers are only ever used to
refuse. IPv4-mapped addresses do not occur: urelay.net.address unmaps them on arrival.
"""

from __future__ import annotations

from collections.abc import Sequence

from urelay.errors import AddressError
from urelay.net.address import Address, Prefix, address_text, parse_address

LENGTHS = (32, 40, 48, 56, 64, 96)
"""The prefix lengths RFC 6052 defines (2.2)."""

# Where the four IPv4 octets stand. Octet 8 (bits 64 to 71) is the u-octet and always stepped over: it
# is zero in what a prefix of /64 or less carries, and in a /96 it is the prefix's own.
_OCTETS: dict[int, tuple[int, int, int, int]] = {
    32: (4, 5, 6, 7),
    40: (5, 6, 7, 9),
    48: (6, 7, 9, 10),
    56: (7, 9, 10, 11),
    64: (9, 10, 11, 12),
    96: (12, 13, 14, 15),
}
_U_OCTET = 8


def has_u_octet(prefix: Prefix) -> bool:
    """Whether the addresses `prefix` carries have bits 64 to 71 of their own, which must be zero.

    RFC 6052, 2.2 wants them zero in a /96 too. There they belong to the prefix and nothing is embedded
    around them, so that the prefix alone tells where IPv4 stands, whatever they are.
    """
    return prefix.length < 96


def sets_u_octet(prefix: Prefix) -> bool:
    """Whether `prefix` is a /96 with bits 64 to 71 set, which other translators may refuse."""
    return not has_u_octet(prefix) and bool(prefix.first >> 56 & 0xFF)


def _prefix(text: str) -> Prefix:
    address, _, length = text.partition("/")
    packed = parse_address(address)
    return Prefix(4 if len(packed) == 4 else 6, int.from_bytes(packed), int(length))


WELL_KNOWN = _prefix("64:ff9b::/96")
"""RFC 6052, 2.1."""
LOCAL_USE = _prefix("64:ff9b:1::/48")
"""RFC 8215: a network cuts its own translation prefixes, of any length, out of it."""

SPECIAL_IPV4: tuple[tuple[Prefix, str], ...] = (
    (_prefix("0.0.0.0/8"), "this network"),
    (_prefix("10.0.0.0/8"), "private use"),
    (_prefix("100.64.0.0/10"), "shared address space"),
    (_prefix("127.0.0.0/8"), "loopback"),
    (_prefix("169.254.0.0/16"), "link local"),
    (_prefix("172.16.0.0/12"), "private use"),
    (_prefix("192.0.0.0/24"), "protocol assignments"),
    (_prefix("192.0.2.0/24"), "documentation"),
    (_prefix("192.88.99.0/24"), "the former 6to4 relays"),
    (_prefix("192.168.0.0/16"), "private use"),
    (_prefix("198.18.0.0/15"), "benchmarking"),
    (_prefix("198.51.100.0/24"), "documentation"),
    (_prefix("203.0.113.0/24"), "documentation"),
    (_prefix("224.0.0.0/4"), "multicast"),
    (_prefix("240.0.0.0/4"), "reserved"),
)
"""What is not a globally reachable unicast IPv4 address, and what it is for.

The blocks the IANA IPv4 Special-Purpose Address Registry marks not globally reachable (or, for
192.88.99.0/24, withdrawn by RFC 7526), and multicast. 192.0.0.9 and 192.0.0.10 are globally
reachable anycast addresses (RFC 7723, RFC 8155): `special_use` leaves them out. The table is ours
because the answers of Python's `ipaddress` differ between Python versions.
"""
_GLOBAL_IN_192_0_0 = (bytes((192, 0, 0, 9)), bytes((192, 0, 0, 10)))


def special_use(ipv4: Address) -> tuple[Prefix, str] | None:
    """The block of SPECIAL_IPV4 that holds `ipv4`; None when it is globally reachable."""
    if ipv4 in _GLOBAL_IN_192_0_0:
        return None
    for block in SPECIAL_IPV4:
        if block[0].holds(ipv4):
            return block
    return None


def embed(prefix: Prefix, ipv4: Address) -> Address:
    """`ipv4` under `prefix` (RFC 6052, 2.2); suffix bits are zero.

    Raises AddressError for an address that is not IPv4, and for one that the well-known prefix
    must not carry (3.1).
    """
    if len(ipv4) != 4:
        raise AddressError(f"{address_text(ipv4)} is not IPv4 and has no place under {prefix}")
    _refuse_special(prefix, ipv4)
    octets = bytearray(prefix.first.to_bytes(16))
    for place, octet in zip(_OCTETS[prefix.length], ipv4, strict=True):
        octets[place] = octet
    return bytes(octets)


def extract(prefix: Prefix, ipv6: Address) -> Address:
    """The IPv4 address that `ipv6` carries under `prefix`. Suffix bits are ignored.

    Raises AddressError when `ipv6` is not under `prefix`, when bits 64 to 71 behind it are not zero
    (2.2), and when the well-known prefix carries what it must not (3.1).
    """
    if not prefix.holds(ipv6):
        raise AddressError(f"{address_text(ipv6)} is not under {prefix}")
    if ipv6[_U_OCTET] and has_u_octet(prefix):
        raise AddressError(f"{address_text(ipv6)} has bits 64 to 71 set (RFC 6052, 2.2)")
    ipv4 = _read(prefix.length, ipv6)
    _refuse_special(prefix, ipv4)
    return ipv4


def _refuse_special(prefix: Prefix, ipv4: Address) -> None:
    if prefix != WELL_KNOWN:
        return
    block = special_use(ipv4)
    if block is not None:
        raise AddressError(
            f"{WELL_KNOWN} never carries {address_text(ipv4)} ({block[0]}, {block[1]}; RFC 6052, 3.1)"
        )


def _read(length: int, ipv6: Address) -> Address:
    a, b, c, d = _OCTETS[length]
    return bytes((ipv6[a], ipv6[b], ipv6[c], ipv6[d]))


_COMPATIBLE = _prefix("::/96")
_TRANSLATED = _prefix("::ffff:0:0:0/96")
_SIX_TO_FOUR = _prefix("2002::/16")
_TEREDO = _prefix("2001::/32")

EMBEDDINGS: tuple[Prefix, ...] = (_COMPATIBLE, _TRANSLATED, WELL_KNOWN, LOCAL_USE, _SIX_TO_FOUR, _TEREDO)
"""The blocks in which addresses carry IPv4 addresses.

ISATAP (RFC 5214, 6.1) is not among them: it is a form of the lower half under any prefix at all, so
reading it would put holes into every IPv6 route, and `2001:db8::/32 -> direct` could never be proved.
Where it reaches the site's own hosts without a router of the site's choosing, under fe80::/10, the
guard denies it."""

_NOWHERE = bytes(4)
_TWO_HALVES = (bytes(16), bytes(15) + b"\x01")  # :: and ::1 are themselves, not 0.0.0.0 and 0.0.0.1


def embedded_ipv4(ipv6: Address, own_prefixes: Sequence[Prefix] = ()) -> tuple[Address, ...]:
    """Every IPv4 address that dialling `ipv6` might reach; empty for most.

    `own_prefixes` are the NAT64 prefixes the policy itself uses. The longest of them that covers
    the address is believed and the registered forms are not tried: a network may cut its own /96
    out of 64:ff9b:1::/48, and the /48 reading of it would be noise.
    """
    if len(ipv6) == 4:
        return ()
    own = [prefix for prefix in own_prefixes if prefix.holds(ipv6)]
    if own:
        found = [_read(max(prefix.length for prefix in own), ipv6)]
    else:
        found = _registered(ipv6)
    return tuple(dict.fromkeys(found))


def _registered(ipv6: Address) -> list[Address]:
    if _COMPATIBLE.holds(ipv6):
        return [] if ipv6 in _TWO_HALVES else [ipv6[12:]]
    if _TRANSLATED.holds(ipv6) or WELL_KNOWN.holds(ipv6):
        return [ipv6[12:]]
    if LOCAL_USE.holds(ipv6):
        # Either layout is possible, and each reads as 0.0.0.0 when the other one is meant.
        return [found for found in (_read(48, ipv6), _read(96, ipv6)) if found != _NOWHERE]
    if _SIX_TO_FOUR.holds(ipv6):
        return [ipv6[2:6]]
    if _TEREDO.holds(ipv6):
        # The server's address stands plain, the client's with every bit turned (RFC 4380, 4).
        return [ipv6[4:8], bytes(octet ^ 0xFF for octet in ipv6[12:])]
    return []
