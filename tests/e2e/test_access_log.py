"""The access log: one JSON object a connection, the same keys always, ASCII only, no secrets."""

from __future__ import annotations

import json
import socket
import struct
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import urelay
from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network

pytestmark = pytest.mark.netns

KEYS = [
    *("ts", "id", "policy", "listener", "source", "destination", "name", "port", "outcome", "route"),
    *("upstream", "dialed", "bytes_up", "bytes_down", "duration_ms", "end", "error"),
]
SERVER = "198.51.100.10"
POLICY = f"""\
    listen socks = socks 127.0.0.1:1080
    forbid any port 25
    match {SERVER}         -> direct
    match 198.51.100.11    -> direct with log off
    match 198.51.100.12    -> direct with tag quiet, log full
    """


@pytest.fixture
def box(net: Network) -> Namespace:
    """A namespace with three servers' addresses."""
    box = net.namespace("box")
    box.address("lo", *(f"198.51.100.{last}/32" for last in (10, 11, 12)))
    return box


@pytest.fixture
def echo(box: Namespace, stack: ExitStack) -> peers.Server:
    """An echo server on all of them."""
    return stack.enter_context(peers.Server(box.listen("0.0.0.0"), peers.echo))


def test_every_end_has_its_line_with_the_same_keys(
    box: Namespace, echo: peers.Server, serve: Serve, tmp_path: Path
) -> None:
    relay = serve(POLICY, box)
    began = datetime.now(UTC)

    with box.connect("127.0.0.1", 1080) as sock:
        source = f"127.0.0.1:{sock.getsockname()[1]}"
        assert peers.socks5(sock, peers.literal(SERVER), echo.port) == 0
        sock.sendall(b"12345")
        sock.shutdown(socket.SHUT_WR)
        assert peers.drain(sock) == b"12345"
    relay.records(1)
    with box.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal(SERVER), echo.port) == 0
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    relay.records(2)
    for host, port in ((SERVER, 9), (SERVER, 25), ("198.51.100.99", 80)):
        with box.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, peers.literal(host), port) > 0

    records = relay.records(5)
    assert [list(record)[: len(KEYS)] for record in records] == [KEYS] * 5
    assert len({record["id"] for record in records}) == 5
    good, _, refused, walled, unmatched = records
    digest = urelay.load(str(relay.policy)).decide(SERVER, 80).policy
    assert {record["policy"] for record in records} == {digest}
    assert good | {"ts": "", "id": "", "duration_ms": 0} == {
        "ts": "",
        "id": "",
        "policy": digest,
        "listener": "socks",
        "source": source,
        "destination": SERVER,
        "name": None,
        "port": echo.port,
        "outcome": "direct",
        "route": "site.urr:3",
        "upstream": None,
        "dialed": f"{SERVER}:{echo.port}",
        "bytes_up": 5,
        "bytes_down": 5,
        "duration_ms": 0,
        "end": "eof",
        "error": None,
    }
    assert abs(datetime.fromisoformat(good["ts"]) - began) < timedelta(seconds=30)
    assert 0 <= good["duration_ms"] < 30_000
    assert [record["end"] for record in records] == ["eof", "reset", "refused", "denied", "denied"]
    assert (refused["dialed"], bool(refused["error"])) == (None, True)
    assert (walled["route"], unmatched["route"], unmatched["outcome"]) == (None, None, "deny")


def test_log_off_writes_nothing_and_log_full_and_tag_add_to_the_line(
    box: Namespace, echo: peers.Server, serve: Serve
) -> None:
    relay = serve(POLICY, box)
    for last in (11, 12):
        with box.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, peers.literal(f"198.51.100.{last}"), echo.port) == 0
    (full,) = relay.records(1)
    assert full["tag"] == "quiet"
    assert (full["table"], full["rewrites"]) == ("main", [])


def test_a_hostile_name_is_one_line_of_printable_ascii(box: Namespace, serve: Serve) -> None:
    relay = serve(POLICY, box)
    for name in (b"a\nb.test", b"\x1b[2J.test", b"\xe2\x80\xae.test", b'"},{"x":1.test', b"ok\r\n.test"):
        with box.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, name, 80) not in (0,)
    relay.finish()
    lines = relay.log.read_bytes().splitlines() if relay.log.exists() else []
    for line in lines:
        assert line.isascii()
        assert line.decode().isprintable()
        assert isinstance(json.loads(line), dict)
    assert not any(character in relay.output for character in "\x1b\u202e")
