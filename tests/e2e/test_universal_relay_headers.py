"""PROXY headers between Universal Relay and us: ours to it, and the same ones to its ports and to ours.

What it needs is in tests/e2e/universal.py; without it every test here is skipped. Its port 8082 is our
`as name`, 8081 is `as address`, and 8083 behind 8081 is `as inner`: rows 10 to 13 of the table in
tests/README.md. An entry here is a header, who is reached through Universal Relay, and who through us.
"""

from __future__ import annotations

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.universal import (
    BY_IID,
    FOLDER,
    IMPLICIT,
    OURS,
    PREFIX,
    REAL,
    SERVICES,
    WEB,
    Lab,
    everything,
    lab,
    packed,
)

__all__ = ["lab"]

pytestmark = [pytest.mark.netns, pytest.mark.origin(FOLDER)]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_our_headers_tell_it_where_to(lab: Lab, serve: Serve, version: str) -> None:
    """All goes to its port 8082: what was asked for is in the header only."""
    lab.universal_relay()
    serve(
        f"""\
        listen socks = socks 127.0.0.1:{OURS}
        upstream loud = direct {{ send-proxy {version} }}
        match any -> rewrite to 127.0.0.1, port {REAL} then via loud
        """,
        lab.box,
    )
    asked = {
        peers.literal("203.0.113.9"): f"203.0.113.9 {WEB}",
        peers.literal("2001:db8::9"): f"2001:db8::9 {WEB}",
    }
    if version == "v2":
        asked[b"six.test"] = f"2001:db8::80 {WEB}"
    for host, where in asked.items():
        with lab.dial(OURS) as sock:
            assert peers.socks5(sock, host, WEB) == 0
            assert everything(sock).decode() == where


SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(host: str, port: int = WEB, tail: bytes = b"", command: int = 0x21) -> bytes:
    """A header with TLVs."""
    source = packed("2001:db8::77" if ":" in host else "192.0.2.77")
    body = source + packed(host) + (51000).to_bytes(2) + port.to_bytes(2) + tail
    return SIGNATURE + bytes([command, 0x21 if ":" in host else 0x11]) + len(body).to_bytes(2) + body


def padded(host: str, port: int = WEB, inside: bytes = b"", behind: bytes = b"") -> bytes:
    """As u-relay-tproxy sends it: IPv6, no source, and 216 bytes up to what stands behind."""
    body = (bytes(16) + packed(host) + bytes(2) + port.to_bytes(2) + inside).ljust(216, b"\0") + behind
    return SIGNATURE + b"\x21\x21" + len(body).to_bytes(2) + body


def tlv(kind: int, value: bytes) -> bytes:
    """One of a header's additions."""
    return bytes([kind]) + len(value).to_bytes(2) + value


def inner(host: str, port: int = WEB) -> bytes:
    """The destination inside the destination."""
    address = packed(host if ":" in host else f"::ffff:{host}")
    return tlv(0xE0, b"\1" + port.to_bytes(2) + address + bytes(8))


def v1(family: str, host: str) -> bytes:
    """A header of version 1."""
    source = "192.0.2.77" if family == "TCP4" else "2001:db8::77"
    return f"PROXY {family} {source} {host} 51000 {WEB}\r\n".encode()


NAME, LITERAL = tlv(2, b"six.test"), tlv(2, b"203.0.113.99")
INDEXED = f"{PREFIX}:5ff:7001:0:1"
"""The address that stands for the first name of its map"""
HEADERS = {
    "name": {
        "v2-ipv4": (v2("203.0.113.9"), "203.0.113.9", "203.0.113.9"),
        "v2-ipv6": (v2("2001:db8::9"), "2001:db8::9", "2001:db8::9"),
        "v2-name": (v2("203.0.113.9", tail=NAME), "2001:db8::80", "2001:db8::80"),
        "v2-name-alone": (v2("::", tail=NAME), "2001:db8::80", "2001:db8::80"),
        "v2-literal": (v2("203.0.113.9", tail=LITERAL), "203.0.113.99", "203.0.113.99"),
        "v2-padded": (padded("::ffff:203.0.113.9"), "203.0.113.9", "203.0.113.9"),
        "v2-padded-name": (padded("::", behind=NAME), "2001:db8::80", "2001:db8::80"),
        "v2-inner-is-not-asked": (v2("203.0.113.9", tail=inner("203.0.113.7")), "203.0.113.9", "203.0.113.9"),
        "v2-others-pass": (
            v2("203.0.113.9", tail=tlv(4, b"x") + tlv(0xEE, b"")),
            "203.0.113.9",
            "203.0.113.9",
        ),
        "v1-ipv4": (v1("TCP4", "203.0.113.9"), "203.0.113.9", "203.0.113.9"),
        "v1-ipv6": (v1("TCP6", "2001:db8::9"), "2001:db8::9", "2001:db8::9"),
        "v1-unknown": (b"PROXY UNKNOWN\r\n", "", ""),
        "v2-local": (v2("203.0.113.9", command=0x20), "", ""),
        "v2-refused": (v2("203.0.113.9", WEB + 1), "", ""),
        "neither": (b"GET / HTTP/1.0\r\n\r\n", "", ""),
        # It is less strict, and it takes CONNECT on this port.
        "v1-lower-case": (v1("TCP4", "203.0.113.9").lower(), "203.0.113.9", ""),
        "connect": (b"CONNECT 203.0.113.9:80 HTTP/1.0\r\n\r\n", "203.0.113.9", ""),
    },
    "address": {
        "index": (v2(INDEXED), "203.0.113.80", "203.0.113.80"),
        "index-padded": (padded(INDEXED), "203.0.113.80", "203.0.113.80"),
        "name-is-not-asked": (v2(INDEXED, tail=NAME), "203.0.113.80", "203.0.113.80"),
        "no-such-index": (v2(f"{PREFIX}:5ff:7001:0:7"), "", ""),
        # An address that means nothing to it is none to go to; and version 1 breaks it.
        "elsewhere": (v2("2001:db8::9"), "", "2001:db8::9"),
        "v1": (v1("TCP6", INDEXED), "", "203.0.113.80"),
    },
    "inner": {
        "address": (v2(SERVICES, IMPLICIT, inner("203.0.113.7")), "203.0.113.7", "203.0.113.7"),
        "address-6": (v2(SERVICES, IMPLICIT, inner("2001:db8::7")), "2001:db8::7", "2001:db8::7"),
        "name": (v2(SERVICES, IMPLICIT, inner("203.0.113.7") + NAME), "2001:db8::80", "2001:db8::80"),
        "padded-name": (
            padded(SERVICES, IMPLICIT, inner("::"), behind=NAME),
            "2001:db8::80",
            "2001:db8::80",
        ),
        "padded": (padded(SERVICES, IMPLICIT, inner("203.0.113.7")), "203.0.113.7", "203.0.113.7"),
        "index": (v2(INDEXED), "203.0.113.80", "203.0.113.80"),
        "too-short": (v2(SERVICES, IMPLICIT, tlv(0xE0, b"\1\0\x50")), "", ""),
    },
}


@pytest.mark.parametrize("what", HEADERS)
def test_the_same_headers_to_both(lab: Lab, serve: Serve, what: str) -> None:
    lab.universal_relay()
    trusted = "{ accept-proxy from 127.0.0.1 as " + what + " }"
    serve(
        f"""\
        listen in = transparent 127.0.0.1:{OURS} {trusted}
        match any -> direct
        match {INDEXED} -> rewrite to www.test then direct
        match {PREFIX}:5ff:7001:0:7 -> deny
        """,
        lab.box,
        *lab.resolver,
    )
    theirs = REAL if what == "name" else BY_IID

    def reached(port: int, header: bytes) -> str:
        # Its answer to CONNECT stands in front of the server's.
        return lab.ask(port, header).rpartition(b"\r\n\r\n")[2].decode().removesuffix(f" {WEB}")

    made = {
        name: (reached(theirs, header), reached(OURS, header)) for name, (header, *_) in HEADERS[what].items()
    }
    assert made == {name: (theirs, ours) for name, (_, theirs, ours) in HEADERS[what].items()}
