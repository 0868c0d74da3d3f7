"""A word means one thing or is refused with words that help; prefixes agree with netaddr."""

from __future__ import annotations

from collections.abc import Callable

import netaddr
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from urelay.errors import AddressError
from urelay.net.address import Endpoint, Prefix, host_prefix, parse_address
from urelay.policy.model import NameKind, NamePattern, PortRange
from urelay.policy.words import (
    WordError,
    looks_like_ports,
    quick_prefix,
    read_duration,
    read_element,
    read_endpoint,
    read_number,
    read_place,
    read_ports,
    split_endpoint,
)


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("10.0.0.0/8", Prefix(4, 10 << 24, 8)),
        ("192.0.2.1", Prefix(4, 0xC0000201, 32)),
        ("0.0.0.0/0", Prefix(4, 0, 0)),
        ("::/0", Prefix(6, 0, 0)),
        ("2001:DB8::/32", Prefix(6, 0x20010DB8 << 96, 32)),
        ("::1", Prefix(6, 1, 128)),
        ("::ffff:10.0.0.1", Prefix(4, 0x0A000001, 32)),
        ("::ffff:10.0.0.0/104", Prefix(4, 10 << 24, 8)),
        ("::ffff:0:0/96", Prefix(4, 0, 0)),
        ("::ffff:0:0/95", None),
        ("::fffe:0:0/95", Prefix(6, 0xFFFE << 32, 95)),
        ("example.com", NamePattern(NameKind.EXACT, "example.com")),
        ("Example.COM.", NamePattern(NameKind.EXACT, "example.com")),
        ("*.example.com", NamePattern(NameKind.BELOW, "example.com")),
        (".example.com", NamePattern(NameKind.SELF_AND_BELOW, "example.com")),
        ("*.onion", NamePattern(NameKind.BELOW, "onion")),
        ("3com.example", NamePattern(NameKind.EXACT, "3com.example")),
        ("dead.beef", NamePattern(NameKind.EXACT, "dead.beef")),
    ],
)
def test_elements(text: str, element: Prefix | NamePattern | None) -> None:
    if element is None:
        with pytest.raises(WordError):
            read_element(text)
    else:
        assert read_element(text) == element


def test_quotes_lift_the_rule_about_one_label_and_no_other() -> None:
    assert read_element("intranet", quoted=True) == NamePattern(NameKind.EXACT, "intranet")
    with pytest.raises(WordError) as caught:
        read_element("10.0.0.300", quoted=True)
    assert caught.value.code == "UR105"


def complaint(read: Callable[[str], object], text: str) -> str | None:
    """What is said against `text`, which may hold anything; None when it is read."""
    try:
        read(text)
    except WordError as error:
        return error.message
    return None


prefixes = st.builds(
    lambda family, number, length: netaddr.IPNetwork(
        (number % (1 << (32 if family == 4 else 128)), length % (33 if family == 4 else 129)), family
    ),
    st.sampled_from([4, 6]),
    st.integers(0, (1 << 128) - 1),
    st.integers(0, 128),
)


@given(prefixes)
def test_a_prefix_is_what_netaddr_says_it_is(network: netaddr.IPNetwork) -> None:
    mapped = network.version == 6 and network.prefixlen >= 96 and network.first >> 32 == 0xFFFF
    expected = (
        Prefix(4, network.first & 0xFFFFFFFF, network.prefixlen - 96)
        if mapped
        else Prefix(network.version, network.first, network.prefixlen)
    )
    text = str(network.cidr)
    assert read_element(text) == quick_prefix(text) == expected


@given(prefixes)
def test_host_bits_are_never_dropped_in_silence(network: netaddr.IPNetwork) -> None:
    if network.ip == network.network:
        return
    assert quick_prefix(str(network)) is None
    with pytest.raises(WordError) as caught:
        read_element(str(network))
    assert caught.value.code == "UR104"
    assert caught.value.message.endswith("(the host)?")


@given(st.text("0123456789abcdefABF:./%", max_size=45) | st.ip_addresses().map(str))
@example("1.2.3.04")
@example("1.2.3")
@example("1.2.3.4\0")
@example("::ffff:1.2.3.4")
@example("::1.2.3.04")
@example("fe80::1%eth0")
@example("1:2:3:4:5:6:7::")
def test_a_policy_and_a_client_spell_addresses_alike(text: str) -> None:
    """netaddr reads the one, urelay.net.address the other, and they accept the same."""
    try:
        address = parse_address(text)
    except AddressError:
        assert "/" in text or quick_prefix(text) is None
    else:
        assert quick_prefix(text) == host_prefix(address)


@given(st.text(st.characters(codec="utf-8"), max_size=30) | st.text("0123456789abcdefx.:/-*[]%", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (read_element, read_ports, read_duration, read_endpoint, read_place):
        said = complaint(read, text)
        assert said is None or said.isascii()


@given(st.text("0123456789abcdefx.:/", min_size=1, max_size=30))
def test_what_is_read_as_a_name_no_resolver_takes_for_an_address(text: str) -> None:
    try:
        element = read_element(text, quoted=True)
    except WordError:
        return
    if isinstance(element, NamePattern):
        last = element.name.rpartition(".")[2]
        assert not last.isdigit()
        assert not last.startswith("0x") or not set(last[2:]) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    ("text", "ports"),
    [("1", (1, 1)), ("443", (443, 443)), ("8000-8099", (8000, 8099)), ("1-65535", (1, 65535))],
)
def test_ports(text: str, ports: tuple[int, int]) -> None:
    assert looks_like_ports(text)
    assert read_ports(text) == PortRange(*ports)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("5s", 5.0), ("1.5m", 90.0), ("2h", 7200.0), ("1d", 86400.0), ("1ms", 0.001)],
)
def test_durations(text: str, seconds: float) -> None:
    assert read_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("5 sec", "write 5s"),
        ("10 Minutes", "write 10m"),
        ("250 msec", "write 250ms"),
        ("1hour", "write 1h"),
        ("5", "such as 5s"),
        ("-5s", "such as 5s"),
        ("0s", "between 1ms and 366d"),
        ("367d", "between 1ms and 366d"),
        ("999999999d", "between 1ms and 366d"),
    ],
)
def test_what_is_no_duration_is_told_how_to_write_one(text: str, hint: str) -> None:
    with pytest.raises(WordError) as caught:
        read_duration(text)
    assert caught.value.code == "UR110"
    assert caught.value.message.endswith(hint)


@pytest.mark.parametrize(("text", "number"), [("0x51", 81), ("81", 81), ("0xFFFFFFFF", 0xFFFFFFFF)])
def test_numbers(text: str, number: int) -> None:
    assert read_number(text, 1, 0xFFFFFFFF) == number


@pytest.mark.parametrize("text", ["0", "081", "0x100000000", "-1", "1e3", "", "٣"])
def test_what_is_no_number_in_range(text: str) -> None:
    with pytest.raises(WordError):
        read_number(text, 1, 0xFFFFFFFF)


def test_an_endpoint_may_have_a_host_of_one_label() -> None:
    assert read_endpoint("proxy:1080") == Endpoint("proxy", 1080)
    assert read_endpoint("[::ffff:192.0.2.1]:80") == Endpoint(bytes((192, 0, 2, 1)), 80)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("10.1.2.3:80", ("10.1.2.3", "80")),
        ("www.example.com:443", ("www.example.com", "443")),
        ("[2001:db8::1]:443", ("[2001:db8::1]", "443")),
        ("2001:db8::1", None),
        ("[2001:db8::1]", None),
        ("10.1.2.3", None),
        ("10.0.0.0/8", None),
    ],
)
def test_an_address_is_told_from_an_endpoint(text: str, parts: tuple[str, str] | None) -> None:
    assert split_endpoint(text) == parts
