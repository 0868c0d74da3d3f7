"""PROXY headers: both versions byte by byte, with what follows left exact; whatever else comes is refused.

The vectors with 216 bytes of addresses are what u-relay-tproxy puts on the wire (its types 2, 4 and 5).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.mutations import COUNT, halves, mutations
from urelay.errors import ProtocolError
from urelay.net.address import Endpoint, parse_address, parse_endpoint
from urelay.protocols.proxy_header import KEPT, Header, HeaderReader, header_v1, header_v2

SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a")
V4_SOURCE, V4_TARGET = parse_endpoint("192.0.2.7:51000"), parse_endpoint("198.51.100.9:443")
V6_SOURCE, V6_TARGET = parse_endpoint("[2001:db8::7]:51000"), parse_endpoint("[2001:db8::9]:443")
V4_PAIR = bytes((192, 0, 2, 7, 198, 51, 100, 9)) + (51000).to_bytes(2) + (443).to_bytes(2)
V6_PAIR = parse_address("2001:db8::7") + parse_address("2001:db8::9") + V4_PAIR[8:]
MAPPED = bytes(10) + b"\xff\xff"


def v2(body: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    """A header of version 2 around `body`."""
    announced = len(body) if length is None else length
    return SIGNATURE + bytes((command, family)) + announced.to_bytes(2) + body


def tlv(kind: int, value: bytes, length: int | None = None) -> bytes:
    return bytes((kind,)) + (len(value) if length is None else length).to_bytes(2) + value


def tproxy(destination: bytes, port: int, inner: bytes = b"", name: bytes = b"") -> bytes:
    """What u-relay-tproxy writes: 216 bytes, then perhaps the name."""
    block = bytes(16) + destination + bytes(2) + port.to_bytes(2) + inner
    block += bytes(216 - len(block))
    return v2(block + (tlv(2, name) if name else b""), 0x21)


INNER = b"\x01" + (8443).to_bytes(2) + parse_address("2001:db8::77") + bytes(8)


@dataclass
class Outcome:
    """What a reader made of some bytes."""

    header: Header | None
    leftover: bytes
    error: str | None
    most_kept: int


def read(pieces: Iterable[bytes]) -> Outcome:
    """Feed the pieces as a caller does: what comes behind the header is not the reader's."""
    reader = HeaderReader()
    header, behind, most = None, b"", 0
    for piece in pieces:
        if header is not None:
            behind += piece
            continue
        try:
            header = reader.receive(piece)
        except ProtocolError as error:
            return Outcome(None, b"", str(error), most)
        most = max(most, len(reader._buffer))
    return Outcome(header, reader.leftover + behind, None, most)


def every_way(data: bytes) -> Outcome:
    """Whole, byte by byte, in every split in two, and with data behind: the same each time."""
    whole = read([data])
    ways = [read([data[i : i + 1] for i in range(len(data))])]
    ways += [read([data[:cut], data[cut:]]) for cut in range(1, len(data), max(1, len(data) // 40))]
    for way in ways:
        assert (way.header, way.leftover) == (whole.header, whole.leftover)
        assert (way.error is None) == (whole.error is None)
        assert way.most_kept <= KEPT
    if whole.header is not None:
        trailed = read([data + b"PROXY early\r\n"])
        assert (trailed.header, trailed.leftover) == (whole.header, whole.leftover + b"PROXY early\r\n")
    return whole


READ = [
    pytest.param(
        b"PROXY TCP4 192.0.2.7 198.51.100.9 51000 443\r\n", Header(V4_SOURCE, V4_TARGET), id="1-tcp4"
    ),
    pytest.param(
        b"PROXY TCP6 2001:db8::7 2001:DB8::9 51000 443\r\n", Header(V6_SOURCE, V6_TARGET), id="1-tcp6"
    ),
    pytest.param(
        b"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:198.51.100.9 51000 443\r\n",
        Header(V4_SOURCE, V4_TARGET),
        id="1-mapped",
    ),
    pytest.param(
        b"PROXY TCP4 192.0.2.7 198.51.100.9 0 65535\r\n",
        Header(Endpoint(V4_SOURCE.host, 0), Endpoint(V4_TARGET.host, 65535)),
        id="1-ports-at-their-ends",
    ),
    pytest.param(b"PROXY UNKNOWN\r\n", Header(), id="1-unknown"),
    pytest.param(
        b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", Header(), id="1-unknown-with-more"
    ),
    pytest.param(b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", Header(), id="1-of-107-bytes"),
    pytest.param(v2(V4_PAIR), Header(V4_SOURCE, V4_TARGET), id="2-tcp4"),
    pytest.param(v2(V6_PAIR, 0x21), Header(V6_SOURCE, V6_TARGET), id="2-tcp6"),
    pytest.param(
        v2(MAPPED + V4_PAIR[:4] + MAPPED + V4_PAIR[4:8] + V4_PAIR[8:], 0x21),
        Header(V4_SOURCE, V4_TARGET),
        id="2-mapped",
    ),
    pytest.param(v2(b"", 0x00, 0x20), Header(), id="2-local"),
    pytest.param(v2(V4_PAIR, 0x11, 0x20), Header(), id="2-local-discards-its-addresses"),
    pytest.param(v2(b"\xff" * 9, 0x31, 0x20), Header(), id="2-local-discards-whatever-it-has"),
    pytest.param(v2(b"", 0x00), Header(), id="2-unspec"),
    pytest.param(
        v2(tlv(2, b"example.com"), 0x00), Header(authority="example.com"), id="2-unspec-with-a-name"
    ),
    pytest.param(
        v2(V4_PAIR + tlv(2, b"WWW.Example.com.")),
        Header(V4_SOURCE, V4_TARGET, "www.example.com"),
        id="2-authority",
    ),
    pytest.param(
        v2(V4_PAIR + tlv(2, b"192.0.2.80")),
        Header(V4_SOURCE, V4_TARGET, bytes((192, 0, 2, 80))),
        id="2-authority-that-is-an-address",
    ),
    pytest.param(
        v2(V4_PAIR + tlv(1, b"h2") + tlv(4, bytes(9)) + tlv(0x20, b"\x07" + bytes(4)) + tlv(2, b"a.b")),
        Header(V4_SOURCE, V4_TARGET, "a.b"),
        id="2-other-tlvs",
    ),
    pytest.param(
        v2(V4_PAIR + tlv(0xE0, INNER)),
        Header(V4_SOURCE, V4_TARGET, None, parse_endpoint("[2001:db8::77]:8443")),
        id="2-inner",
    ),
    pytest.param(
        v2(V4_PAIR + tlv(0xE0, INNER[:3] + MAPPED + b"\x0a\0\0\1" + bytes(12))),
        Header(V4_SOURCE, V4_TARGET, None, parse_endpoint("10.0.0.1:8443")),
        id="2-inner-ipv4-and-longer",
    ),
    pytest.param(
        tproxy(MAPPED + b"\xcb\x00\x71\x09", 80),
        Header(None, parse_endpoint("203.0.113.9:80")),
        id="tproxy-2",
    ),
    pytest.param(
        tproxy(bytes(16), 443, name=b"example.test"),
        Header(None, Endpoint(bytes(16), 443), "example.test"),
        id="tproxy-4",
    ),
    pytest.param(
        tproxy(parse_address("fedb::1"), 8083, tlv(0xE0, INNER), b"example.test"),
        Header(
            None,
            parse_endpoint("[fedb::1]:8083"),
            "example.test",
            parse_endpoint("[2001:db8::77]:8443"),
        ),
        id="tproxy-5",
    ),
    pytest.param(
        v2(V4_PAIR + tlv(5, bytes(KEPT - 16 - 12 - 3))), Header(V4_SOURCE, V4_TARGET), id="2-of-2-kib"
    ),
]


@pytest.mark.parametrize(("data", "header"), READ)
def test_a_header_is_read_however_it_arrives(data: bytes, header: Header) -> None:
    outcome = every_way(data)
    assert (outcome.header, outcome.leftover, outcome.error) == (header, b"", None)


def test_the_lengths_of_tproxy_s_headers_are_those_on_the_wire() -> None:
    two, four = tproxy(bytes(16), 80), tproxy(bytes(16), 443, name=b"example.test")
    assert (len(two), two[14:16].hex()) == (232, "00d8")
    assert (len(four), four[14:16].hex()) == (247, "00e7")
    assert tproxy(bytes(16), 1, tlv(0xE0, INNER))[52:56].hex() == "e0001b01"


REFUSED = [
    pytest.param(b"GET / HTTP/1.1\r\n\r\n", "expected a PROXY header", id="http"),
    pytest.param(b"\x05\x01\x00", "expected a PROXY header", id="socks"),
    pytest.param(b"\x16\x03\x01\x02\x00", "expected a PROXY header", id="tls"),
    pytest.param(b"PROXX", "expected a PROXY header", id="almost-1"),
    pytest.param(b"proxy TCP4 1.1.1.1 2.2.2.2 1 2\r\n", "expected a PROXY header", id="lower-case"),
    pytest.param(SIGNATURE[:11] + b"\r", "expected a PROXY header", id="almost-2"),
    pytest.param(b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n", "more than 107", id="1-of-108-bytes"),
    pytest.param(b"PROXY TCP4 " + b"1" * 3000, "more than 107", id="1-without-end"),
    pytest.param(b"PROXY \r\n", "expected TCP4", id="1-empty"),
    pytest.param(b"PROXY TCP5 192.0.2.7 198.51.100.9 1 2\r\n", "expected TCP4", id="1-family"),
    pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.9 1\r\n", "expected 6 words", id="1-too-few"),
    pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2 3\r\n", "expected 6 words", id="1-too-many"),
    pytest.param(b"PROXY TCP4  192.0.2.7 198.51.100.9 1 2\r\n", "expected 6 words", id="1-two-spaces"),
    pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.9 1 65536\r\n", "not a port", id="1-port"),
    pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.9 1 00443\r\n", "not a port", id="1-port-with-zeros"),
    pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.9 1 -1\r\n", "not a port", id="1-negative"),
    pytest.param(b"PROXY TCP4 192.0.2.07 198.51.100.9 1 2\r\n", "leading zero", id="1-octal"),
    pytest.param(b"PROXY TCP4 2001:db8::7 198.51.100.9 1 2\r\n", "does not fit", id="1-v6-in-tcp4"),
    pytest.param(b"PROXY TCP6 2001:db8::7 198.51.100.9 1 2\r\n", "does not fit", id="1-v4-in-tcp6"),
    pytest.param(b"PROXY TCP4 ::ffff:1.2.3.4 198.51.100.9 1 2\r\n", "does not fit", id="1-mapped-in-tcp4"),
    pytest.param(b"PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n", "not an IPv6 address", id="1-zone"),
    pytest.param(b"PROXY TCP4 a\xff.b 198.51.100.9 1 2\r\n", "not ASCII", id="1-not-ascii"),
    pytest.param(b"PROXY TCP4 192.0.2.7 198.51.100.9 1 2\nx\r\n", "not a port", id="1-bare-lf"),
    pytest.param(v2(b"", length=65535), "65,551 bytes", id="2-of-64-kib"),
    pytest.param(v2(bytes(KEPT - 15)), "2,049 bytes", id="2-one-too-long"),
    pytest.param(v2(V4_PAIR, command=0x11), "version and command", id="2-version"),
    pytest.param(v2(V4_PAIR, command=0x22), "version and command", id="2-command"),
    pytest.param(v2(V4_PAIR, 0x12), "0x12", id="2-udp"),
    pytest.param(v2(V4_PAIR, 0x10), "0x10", id="2-no-transport"),
    pytest.param(v2(bytes(216), 0x31), "0x31", id="2-unix"),
    pytest.param(v2(V4_PAIR, 0x41), "0x41", id="2-family"),
    pytest.param(v2(b""), "12 bytes of addresses", id="2-no-addresses"),
    pytest.param(v2(V4_PAIR[:-1]), "12 bytes of addresses", id="2-truncated-tcp4"),
    pytest.param(v2(V6_PAIR[:-1], 0x21), "36 bytes of addresses", id="2-truncated-tcp6"),
    pytest.param(v2(V4_PAIR + b"\x01"), "a TLV that does not end", id="2-half-a-tlv"),
    pytest.param(v2(V4_PAIR + tlv(1, b"h2", 3)), "a TLV that does not end", id="2-tlv-overrun"),
    pytest.param(v2(V4_PAIR + tlv(1, b"", 65535)), "a TLV that does not end", id="2-tlv-far-overrun"),
    pytest.param(v2(V4_PAIR + tlv(2, b"a.b") * 2), "two names", id="2-two-names"),
    pytest.param(v2(V4_PAIR + tlv(2, b"")), "empty host name", id="2-empty-name"),
    pytest.param(v2(V4_PAIR + tlv(2, b"b\xc3\xbc.de")), "not a host name", id="2-utf-8-name"),
    pytest.param(v2(V4_PAIR + tlv(2, b"0177.1")), "looks like an address", id="2-numeric-name"),
    pytest.param(v2(V4_PAIR + tlv(2, b"a\0.b")), "not a host name", id="2-nul-in-a-name"),
    pytest.param(v2(V4_PAIR + tlv(0xE0, INNER[:-1])), "27 bytes of an inner", id="2-short-inner"),
    pytest.param(v2(V4_PAIR + tlv(0xE0, b"\2" + INNER[1:])), "version 1 of an inner", id="2-inner-version"),
    pytest.param(v2(V4_PAIR + tlv(0xE0, INNER) * 2), "two inner", id="2-two-inner"),
]


@pytest.mark.parametrize(("data", "why"), REFUSED)
def test_whatever_is_no_header_is_refused(data: bytes, why: str) -> None:
    outcome = every_way(data)
    assert outcome.header is None
    assert why in (outcome.error or "")


def test_the_first_wrong_byte_is_refused_without_waiting_for_more() -> None:
    for signature in (b"PROXY ", SIGNATURE):
        for right in range(len(signature)):
            wrong = bytes((signature[right] ^ 0x20,))
            assert read([signature[:right]]).error is None
            assert read([signature[:right] + wrong]).error is not None


def test_a_long_header_is_refused_by_its_announcement() -> None:
    assert read([v2(b"", length=KEPT - 15)]).error is not None
    assert read([v2(b"", length=KEPT - 16)]).error is None


def test_a_reader_that_refused_refuses_for_ever() -> None:
    reader = HeaderReader()
    for _ in range(2):
        with pytest.raises(ProtocolError):
            reader.receive(b"\x05\x01\x00")


@pytest.mark.parametrize(
    ("source", "destination", "line"),
    [
        (V4_SOURCE, V4_TARGET, b"PROXY TCP4 192.0.2.7 198.51.100.9 51000 443\r\n"),
        (V6_SOURCE, V6_TARGET, b"PROXY TCP6 2001:db8::7 2001:db8::9 51000 443\r\n"),
        (V4_SOURCE, V6_TARGET, b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::9 51000 443\r\n"),
        (V6_SOURCE, V4_TARGET, b"PROXY TCP6 2001:db8::7 ::ffff:198.51.100.9 51000 443\r\n"),
        (V4_SOURCE, Endpoint("a.example", 443), b"PROXY TCP4 192.0.2.7 0.0.0.0 51000 443\r\n"),
        (V6_SOURCE, Endpoint("a.example", 443), b"PROXY TCP6 2001:db8::7 :: 51000 443\r\n"),
        (None, V4_TARGET, b"PROXY UNKNOWN\r\n"),
    ],
)
def test_version_1_as_written(source: Endpoint | None, destination: Endpoint, line: bytes) -> None:
    assert header_v1(source, destination) == line


def test_version_2_as_written() -> None:
    assert header_v2(V4_SOURCE, V4_TARGET) == v2(V4_PAIR)
    assert header_v2(V6_SOURCE, V6_TARGET, "a.example") == v2(V6_PAIR + tlv(2, b"a.example"), 0x21)
    assert header_v2(None, V4_TARGET, "a.example") == v2(tlv(2, b"a.example"), 0x00)
    assert header_v2(V4_SOURCE, Endpoint("a.example", 80)) == v2(
        V4_PAIR[:4] + bytes(4) + V4_PAIR[8:10] + (80).to_bytes(2) + tlv(2, b"a.example")
    )


ADDRESSES = st.one_of(
    st.binary(min_size=4, max_size=4),
    st.binary(min_size=16, max_size=16).filter(lambda packed: not packed.startswith(MAPPED)),
)
ENDPOINTS = st.builds(Endpoint, ADDRESSES, st.integers(1, 65535))


@given(ENDPOINTS, ENDPOINTS, st.sampled_from([None, "a.example", "x" * 63 + ".example"]))
def test_what_is_written_is_what_is_read(source: Endpoint, destination: Endpoint, name: str | None) -> None:
    assert every_way(header_v1(source, destination)).header == Header(source, destination)
    assert every_way(header_v2(source, destination, name)).header == Header(source, destination, name)


@given(st.sampled_from([READ[0].values[0], READ[-2].values[0]]), st.binary(max_size=80), st.data())
def test_splitting_changes_nothing(data: object, tail: bytes, choices: st.DataObject) -> None:
    assert isinstance(data, bytes)
    stream = data[: choices.draw(st.integers(0, len(data)))] + tail
    whole = read([stream])
    cuts = sorted(choices.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    edges = [0, *cuts, len(stream)]
    split = read([stream[start:end] for start, end in itertools.pairwise(edges)])
    assert (split.header, split.leftover, split.error is None) == (
        whole.header,
        whole.leftover,
        whole.error is None,
    )


def test_mutated_headers_raise_protocol_errors_only() -> None:
    """S7, S11: 100,000 seeded mutations: no other exception, and no more than 2 KiB kept."""
    seeds = [case.values[0] for case in READ if len(case.values[0]) < 300]  # type: ignore[arg-type]
    started = time.process_time()
    accepted = 0
    for number, data in mutations(seeds, bytes(300), tlv(2, b"a.b"), b"PROXY TCP4 "):  # type: ignore[arg-type]
        outcome = read(halves(number, data))
        assert outcome.most_kept <= KEPT
        if outcome.header is not None:
            accepted += 1
            assert data.endswith(outcome.leftover)
    assert accepted > COUNT / 100
    assert time.process_time() - started < 30
