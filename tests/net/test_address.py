"""One spelling of an address means that address, every other numeric spelling is refused."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutations import COUNT, mutations
from urelay.errors import AddressError
from urelay.net.address import (
    Endpoint,
    Prefix,
    address_of,
    address_text,
    host_prefix,
    parse_address,
    parse_endpoint,
    parse_host,
    parse_name,
    parse_port,
    printable,
    unmap,
)

ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)).map(unmap)


@given(ADDRESSES)
def test_text_of_an_address_reads_back(address: bytes) -> None:
    assert parse_address(address_text(address)) == address


@given(ADDRESSES)
def test_text_is_what_the_kernel_prints(address: bytes) -> None:
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    kernel = socket.inet_ntop(family, address)
    assert parse_address(kernel) == address


@given(st.text(max_size=30))
def test_an_accepted_literal_is_one_the_kernel_reads_alike(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    assert unmap(socket.inet_pton(family, text)) == address


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("10.0.0.300", "300 is more than 255"),
        ("10.0.0.01", "01 has a leading zero"),
        ("127.1", "is not an address"),
        ("2130706433", "is not an address"),
        ("", "is not an address"),
        ("fe80::1%eth0", "a zone id"),
        ("::1::", "is not an IPv6 address"),
        ("１０.0.0.1", "is not an address"),
    ],
)
def test_a_refusal_says_what_is_wrong(text: str, complaint: str) -> None:
    with pytest.raises(AddressError, match=complaint):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("192.0.2.1", bytes([192, 0, 2, 1])),
        ("::ffff:192.0.2.1", bytes([192, 0, 2, 1])),
        ("[::ffff:192.0.2.1]", bytes([192, 0, 2, 1])),
        ("[2001:db8::1]", bytes.fromhex("20010db8000000000000000000000001")),
        ("2001:db8::1", bytes.fromhex("20010db8000000000000000000000001")),
        ("WWW.Example.COM.", "www.example.com"),
        ("intranet", "intranet"),
        ("_sip._tcp.example.com", "_sip._tcp.example.com"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1.0.0.127.in-addr.arpa", "1.0.0.127.in-addr.arpa"),
    ],
)
def test_a_host_is_an_address_or_a_name(text: str, host: bytes | str) -> None:
    assert parse_host(text) == host


@pytest.mark.parametrize(
    "text",
    [
        "[127.0.0.1]",
        "[::1",
        "::1]",
        "[]",
        "127.0.0.1.",
        "127.0.0.1\0.example.com",
        "example.com\0",
        "0x7f.1",
        "example.0x",
        "1.2.3",
        "a..b",
        ".example.com",
        "-a.example",
        "a-.example",
        "x" * 64 + ".example",
        "bücher.example",
        "a b",
        "example.com:80",
        "",
        ".",
    ],
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_host(text)


def test_a_name_has_at_most_253_characters() -> None:
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(longest) == 253
    assert parse_name(longest + ".") == longest
    with pytest.raises(AddressError, match="253 is the most"):
        parse_name(longest + "b")


@pytest.mark.parametrize("text", ["0", "65536", "080", "+80", " 80", "8 0", "", "٣", "9" * 5000])
def test_a_port_is_a_plain_number_from_1_to_65535(text: str) -> None:
    with pytest.raises(AddressError):
        parse_port(text)


@given(ADDRESSES, st.integers(1, 65535))
def test_an_endpoint_reads_back(address: bytes, port: int) -> None:
    endpoint = Endpoint(address, port)
    assert parse_endpoint(str(endpoint)) == endpoint


def test_an_endpoint_without_brackets_is_told_how_to_spell_it() -> None:
    with pytest.raises(AddressError, match=r"\[2001:db8::1\]:443"):
        parse_endpoint("2001:db8::1:443")


@given(ADDRESSES, st.data())
def test_a_prefix_holds_exactly_its_first_to_last(address: bytes, data: st.DataObject) -> None:
    host = host_prefix(address)
    length = data.draw(st.integers(0, host.bits))
    first = host.first >> (host.bits - length) << (host.bits - length)
    prefix = Prefix(host.family, first, length)
    assert address in prefix
    assert prefix.covers(host)
    assert address_of(host.family, prefix.last) in prefix
    if prefix.last + 1 < 1 << host.bits:
        assert address_of(host.family, prefix.last + 1) not in prefix
    if first:
        assert address_of(host.family, first - 1) not in prefix


def test_what_is_shown_of_hostile_text_is_short_printable_ascii() -> None:
    shown = printable("\x1b[31m\u202e\n" + "x" * 500)
    assert shown.isascii()
    assert shown.isprintable()
    assert len(shown) < 200


def test_mutated_endpoints_read_back_or_are_refused() -> None:
    """S11: 100,000 seeded mutations."""
    seeds = [b"www.example.com:443", b"[2001:db8::192.0.2.7]:443", b"192.0.2.7:80", b"[::1]:1"]
    read = 0
    for _, data in mutations(seeds, b":", b"[", b"]", b".", b"0", b"%eth0", "①".encode()):
        for text in {data.decode("latin-1"), data.decode("utf-8", "replace")}:
            try:
                endpoint = parse_endpoint(text)
            except AddressError:
                continue
            assert parse_endpoint(str(endpoint)) == endpoint
            read += 1
    assert read > COUNT / 100
