"""What goes ahead on a connection: the client's own ends, the name beside them in version 2 only."""

from __future__ import annotations

import pytest

from tests.strategies import upstream
from urelay.engine.preface import Caller, preface
from urelay.net.address import Endpoint, parse_endpoint
from urelay.policy.model import Upstream, UpstreamKind
from urelay.protocols.proxy_header import Header, HeaderReader

CLIENT = parse_endpoint("192.0.2.7:51000")
ADDRESS = parse_endpoint("198.51.100.9:443")
NAME = Endpoint("www.example.com", 443)
RESOLVED = parse_endpoint("203.0.113.80:443")
REWRITTEN = parse_endpoint("203.0.113.80:8443")


def way(version: str | None) -> Upstream:
    options = {} if version is None else {"send-proxy": version}
    return upstream("out", UpstreamKind.DIRECT, **options)


def said(data: bytes) -> Header:
    reader = HeaderReader()
    header = reader.receive(data)
    assert header is not None
    assert reader.leftover == b""
    return header


@pytest.mark.parametrize("asked", [ADDRESS, NAME])
def test_most_connections_have_none(asked: Endpoint) -> None:
    assert preface(way(None), Caller(CLIENT, asked)) == b""


@pytest.mark.parametrize(
    ("version", "asked", "reached", "expected"),
    [
        ("v1", ADDRESS, None, Header(CLIENT, ADDRESS)),
        ("v1", ADDRESS, REWRITTEN, Header(CLIENT, ADDRESS)),
        ("v1", NAME, RESOLVED, Header(CLIENT, RESOLVED)),
        ("v1", NAME, None, Header(CLIENT, Endpoint(bytes(4), 443))),
        ("v2", ADDRESS, None, Header(CLIENT, ADDRESS)),
        ("v2", NAME, RESOLVED, Header(CLIENT, RESOLVED, "www.example.com")),
        ("v2", NAME, REWRITTEN, Header(CLIENT, RESOLVED, "www.example.com")),
        ("v2", NAME, None, Header(CLIENT, Endpoint(bytes(4), 443), "www.example.com")),
    ],
)
def test_a_header_speaks_of_the_client_s_connection(
    version: str, asked: Endpoint, reached: Endpoint | None, expected: Header
) -> None:
    data = preface(way(version), Caller(CLIENT, asked), reached)
    assert data.startswith(b"PROXY " if version == "v1" else b"\r\n\r\n\0")
    assert said(data) == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_client_without_an_address_has_a_header_that_says_so(version: str) -> None:
    assert said(preface(way(version), Caller(None, ADDRESS))) == Header()
