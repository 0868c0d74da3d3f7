"""IPv4 inside IPv6: RFC 6052 to the bit, a /96 as it stands, and every embedded address is seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import prefix
from urelay.errors import AddressError
from urelay.net.address import Address, Prefix, address_text, parse_address
from urelay.net.nat64 import (
    EMBEDDINGS,
    LENGTHS,
    LOCAL_USE,
    SPECIAL_IPV4,
    WELL_KNOWN,
    embed,
    embedded_ipv4,
    extract,
    has_u_octet,
    sets_u_octet,
    special_use,
)

ipv4 = st.binary(min_size=4, max_size=4)


@st.composite
def nat64_prefixes(draw: st.DrawFn) -> Prefix:
    """A prefix of one of the six lengths, anywhere; bits 64 to 71 of a /96 are of any value."""
    length = draw(st.sampled_from(LENGTHS))
    first = draw(st.integers(0, (1 << 128) - 1)) >> (128 - length) << (128 - length)
    return Prefix(6, first, length)


# RFC 6052, 2.4: 192.0.2.33 under prefixes cut out of 2001:db8::/32.
@pytest.mark.parametrize(
    ("under", "expected"),
    [
        ("2001:db8::/32", "2001:db8:c000:221::"),
        ("2001:db8:100::/40", "2001:db8:1c0:2:21::"),
        ("2001:db8:122::/48", "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::/56", "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::/64", "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::/96", "2001:db8:122:344::c000:221"),
    ],
)
def test_the_table_of_rfc_6052_holds_both_ways(under: str, expected: str) -> None:
    packed = embed(prefix(under), parse_address("192.0.2.33"))
    assert packed == parse_address(expected)
    assert address_text(extract(prefix(under), packed)) == "192.0.2.33"


@given(nat64_prefixes().filter(lambda block: block != WELL_KNOWN), ipv4)
def test_what_is_embedded_is_extracted_again(under: Prefix, address: Address) -> None:
    packed = embed(under, address)
    assert packed in under
    assert packed[8] == under.first.to_bytes(16)[8]
    assert sets_u_octet(under) == (packed[8] != 0)
    assert extract(under, packed) == address


@given(nat64_prefixes(), ipv4, ipv4)
def test_embedding_keeps_the_order_of_addresses(under: Prefix, one: Address, other: Address) -> None:
    if under != WELL_KNOWN:
        assert (embed(under, one) < embed(under, other)) == (one < other)


@given(nat64_prefixes().filter(has_u_octet), ipv4, st.integers(1, 255))
def test_bits_64_to_71_must_be_zero(under: Prefix, address: Address, octet: int) -> None:
    packed = bytearray(embed(under, address))
    packed[8] = octet
    with pytest.raises(AddressError, match="bits 64 to 71"):
        extract(under, bytes(packed))


def test_bits_64_to_71_of_a_96_are_the_prefix_s_own() -> None:
    window = prefix("fedb:1200:4500:7800:5ff:6464::/96")
    assert sets_u_octet(window)
    packed = embed(window, bytes((192, 0, 2, 33)))
    assert packed == parse_address("fedb:1200:4500:7800:5ff:6464:c000:221")
    assert extract(window, packed) == bytes((192, 0, 2, 33))
    with pytest.raises(AddressError, match="is not under"):
        extract(window, parse_address("fedb:1200:4500:7800:4ff:6464:c000:221"))


def test_suffix_bits_are_ignored() -> None:
    assert extract(prefix("2001:db8::/32"), parse_address("2001:db8:c000:221::ffff")) == bytes(
        (192, 0, 2, 33)
    )


def test_only_ipv4_is_embedded_and_only_what_is_under_the_prefix_extracted() -> None:
    with pytest.raises(AddressError, match="is not IPv4"):
        embed(prefix("2001:db8::/96"), parse_address("2001:db8::1"))
    with pytest.raises(AddressError, match="is not under"):
        extract(prefix("2001:db8::/96"), parse_address("2001:db9::1"))
    with pytest.raises(AddressError, match="is not under"):
        extract(prefix("2001:db8::/96"), parse_address("10.0.0.1"))


@pytest.mark.parametrize("block", [block for block, _ in SPECIAL_IPV4], ids=str)
def test_the_well_known_prefix_never_carries_special_ipv4(block: Prefix) -> None:
    """S4, at the edges of every special-use block, both ways."""
    for number in (block.first, block.last):
        address = number.to_bytes(4)
        with pytest.raises(AddressError, match=r"RFC 6052, 3\.1"):
            embed(WELL_KNOWN, address)
        with pytest.raises(AddressError, match=r"RFC 6052, 3\.1"):
            extract(WELL_KNOWN, WELL_KNOWN.first.to_bytes(16)[:12] + address)
        own = prefix("2001:db8:64::/96")
        assert extract(own, embed(own, address)) == address


def test_the_special_blocks_end_where_the_registry_ends_them() -> None:
    """Just outside each block lies a global address, unless that is in another block."""
    inside = [block for block, _ in SPECIAL_IPV4]
    for block in inside:
        for number in (block.first - 1, block.last + 1):
            if 0 <= number < 1 << 32:
                address = number.to_bytes(4)
                assert (special_use(address) is None) == (not any(b.holds(address) for b in inside))
    for text in ("8.8.8.8", "192.0.0.9", "192.0.0.10", "192.31.196.1", "192.175.48.1", "100.63.255.255"):
        assert special_use(parse_address(text)) is None, text
        assert embed(WELL_KNOWN, parse_address(text))[12:] == parse_address(text)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("::127.0.0.1", "127.0.0.1"),
        ("::ffff:0:127.0.0.1", "127.0.0.1"),
        ("64:ff9b::127.0.0.1", "127.0.0.1"),
        ("64:ff9b:1::127.0.0.1", "127.0.0.1"),
        ("64:ff9b:1:7f00:0:100::", "127.0.0.1"),
        ("2002:7f00:1::", "127.0.0.1"),
        ("2002:7f00:1:5::9", "127.0.0.1"),
        ("2001:0:7f00:1::", "127.0.0.1 255.255.255.255"),
        ("2001::80ff:fffe", "0.0.0.0 127.0.0.1"),
        ("2001:db8::5efe:127.0.0.1", ""),
        ("2001:db8::1", ""),
        ("::1", ""),
        ("::", ""),
        ("::2", "0.0.0.2"),
        ("10.0.0.1", ""),
    ],
)
def test_every_form_that_embeds_is_read(spelling: str, expected: str) -> None:
    found = embedded_ipv4(parse_address(spelling))
    assert " ".join(address_text(address) for address in found) == expected


@given(nat64_prefixes().filter(lambda block: block != WELL_KNOWN), ipv4)
def test_a_networks_own_prefix_is_read_as_it_is_used(under: Prefix, address: Address) -> None:
    packed = embed(under, address)
    assert embedded_ipv4(packed, (under,))[0] == address
    sloppy = packed[:8] + (b"\x01" if under.length < 96 else packed[8:9]) + packed[9:]
    assert embedded_ipv4(sloppy, (under,))[0] == address, "a translator may not look at bits 64 to 71"


def test_the_longest_of_a_networks_own_prefixes_is_believed() -> None:
    own = (prefix("64:ff9b:1::/48"), prefix("64:ff9b:1:ffff::/96"))
    assert embedded_ipv4(parse_address("64:ff9b:1:ffff::8.8.8.8"), own) == (bytes((8, 8, 8, 8)),)


@given(st.binary(min_size=16, max_size=16))
def test_outside_the_listed_blocks_nothing_embeds(address: bytes) -> None:
    if not any(block.holds(address) for block in EMBEDDINGS):
        assert embedded_ipv4(address) == ()


def test_the_two_readings_of_the_local_use_prefix_do_not_disturb_each_other() -> None:
    """A public address in either layout is that address alone: no false denial by the other one."""
    eight = bytes((8, 8, 8, 8))
    assert embedded_ipv4(embed(LOCAL_USE, eight)) == (eight,)
    assert embedded_ipv4(parse_address("64:ff9b:1::8.8.8.8")) == (eight,)
