"""Every `deny` as its client sees it: a reset, the right SOCKS reply, or silence to the deadline."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network

pytestmark = pytest.mark.netns

POLICY = """\
    listen lan   = transparent [::]:1080
    listen socks = socks 127.0.0.1:1081

    forbid 198.51.100.7
    match any           port 22  -> direct
    match 198.51.100.1  -> deny
    match 198.51.100.2  -> deny refused
    match 198.51.100.3  -> deny host-unreachable
    match 198.51.100.4  -> deny net-unreachable
    match 198.51.100.5  -> deny ttl-expired
    match 198.51.100.6  -> deny silently
    match 198.51.100.7  -> direct
    match 2001:db8::1   -> deny
    """

# RFC 1928, section 6. What no route matches (.8) and what a wall covers (.7) are denied like `deny`.
REPLIES = {
    "198.51.100.1": 0x02,
    "198.51.100.2": 0x05,
    "198.51.100.3": 0x04,
    "198.51.100.4": 0x03,
    "198.51.100.5": 0x06,
    "198.51.100.7": 0x02,
    "198.51.100.8": 0x02,
    "2001:db8::1": 0x02,
}
SILENT = "198.51.100.6"


@pytest.fixture
def box(net: Network) -> Namespace:
    """A namespace in which every address above is local, so that a slip would be answered."""
    box = net.namespace("box")
    for address in (*REPLIES, SILENT):
        box.address("lo", f"{address}/{128 if ':' in address else 32}")
    return box


def test_a_denied_transparent_client_is_reset_at_once(box: Namespace, serve: Serve) -> None:
    relay = serve(POLICY, box)
    for address in REPLIES:
        began = time.monotonic()
        assert peers.fate(box, address, 1080) == "reset", address
        assert time.monotonic() - began < 5.0
    records = relay.records(len(REPLIES))
    assert {(record["outcome"], record["end"]) for record in records} == {("deny", "denied")}
    assert {record["dialed"] for record in records} == {None}


@pytest.mark.parametrize("spelling", ["address", "domain"])
def test_a_denied_socks5_client_gets_the_code_of_its_deny(
    box: Namespace, serve: Serve, spelling: str
) -> None:
    relay = serve(POLICY, box)
    got = {}
    for address in REPLIES:
        with box.connect("127.0.0.1", 1081) as sock:
            host = peers.literal(address) if spelling == "address" else address.encode()
            got[address] = peers.socks5(sock, host, 80)
            assert peers.ending(sock) == "eof"
    assert got == REPLIES
    relay.records(len(REPLIES))


def test_a_denied_socks4_client_gets_request_rejected(box: Namespace, serve: Serve) -> None:
    relay = serve(POLICY, box)
    ipv4 = [address for address in REPLIES if ":" not in address]
    for address in ipv4:
        for host in (peers.literal(address), address.encode()):
            with box.connect("127.0.0.1", 1081) as sock:
                assert peers.socks4(sock, host, 80) == 0x5B
                assert peers.ending(sock) == "eof"
    relay.records(2 * len(ipv4))


def test_silence_slowness_and_muteness_all_end_at_the_handshake_deadline(
    box: Namespace, serve: Serve, stack: ExitStack
) -> None:
    relay = serve(POLICY, box)
    began = time.monotonic()
    silent = stack.enter_context(box.connect(SILENT, 1080))
    silent_socks = stack.enter_context(box.connect("127.0.0.1", 1081))
    mute = stack.enter_context(box.connect("127.0.0.1", 1081))
    slow = stack.enter_context(box.connect("127.0.0.1", 1081))
    silent_socks.sendall(b"\x05\x01\x00")
    assert peers.read_exactly(silent_socks, 2) == b"\x05\x00"
    silent_socks.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(SILENT) + b"\x00\x50")
    slow.sendall(b"\x05\xff")

    # A byte of methods every half second would never finish, and buys no time.
    waiting = {"silent": silent, "silent socks": silent_socks, "mute": mute, "slow": slow}
    ended: dict[str, float] = {}
    while waiting and time.monotonic() - began < 30:
        for label, sock in list(waiting.items()):
            sock.settimeout(0.1)
            try:
                assert sock.recv(1) == b"", f"{label} was told something"
            except TimeoutError:
                continue
            except ConnectionResetError:
                pass
            ended[label] = time.monotonic() - began
            del waiting[label]
        if "slow" in waiting:
            try:
                slow.sendall(b"\x01")
            except OSError:
                continue
    assert not waiting, f"never closed: {sorted(waiting)}"
    assert all(9.0 < after < 30.0 for after in ended.values()), ended
    assert [record["outcome"] for record in relay.records(4)].count("silent") == 2
