"""The real Universal Relay beside us: asked for the way out, asking for it, and asked the same as we are.

What it needs is in tests/e2e/universal.py; without it every test here is skipped. The numbers on the lines
that divide the tests are the rows of the table in tests/README.md. An entry of the table here is what is
asked, what Universal Relay makes of it, and what we do.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import subprocess
import sys
import time

import pytest

from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT
from tests.e2e.rig import READY_S
from tests.e2e.universal import (
    FOLDER,
    IMPORTED,
    INDEXES,
    NAMES,
    OURS,
    PREFIX,
    REAL,
    SOCKS,
    WEB,
    WILD,
    Lab,
    everything,
    lab,
    packed,
    reached,
)

__all__ = ["lab"]

pytestmark = [pytest.mark.netns, pytest.mark.origin(FOLDER)]

FAR = {"ip_subst": "203.0.113.0/24"}
"""A group of addresses (`i-hx-GROUP-NUMBER.u-relay.home.arpa`) that is reached through a SOCKS server"""


# --- 6, 7, 8: SOCKS


@pytest.mark.parametrize("proxy", [f"127.0.0.1:{SOCKS}", '{ unix "ur.sock" }'], ids=["tcp", "unix"])
def test_its_socks_server_is_a_way_out(lab: Lab, serve: Serve, proxy: str) -> None:
    lab.universal_relay()
    relay = serve(
        f"""\
        listen socks = socks 127.0.0.1:{OURS}
        upstream ur = socks5 {proxy}
        match any -> via ur
        """,
        lab.box,
    )
    for host, where in (
        (peers.literal("203.0.113.9"), "203.0.113.9"),
        (peers.literal("2001:db8::9"), "2001:db8::9"),
        (b"www.test", "203.0.113.80"),
        (b"six.test", "2001:db8::80"),
    ):
        with lab.dial(OURS) as sock:
            assert peers.socks5(sock, host, WEB) == 0
            assert everything(sock).decode() == f"{where} {WEB}"
    # Its one word for every failure is 1, and so the client hears 1.
    with lab.dial(OURS) as sock:
        assert peers.socks5(sock, peers.literal("203.0.113.9"), WEB + 1) == 1
    records = relay.records(5)
    assert [record["end"] for record in records] == ["eof"] * 4 + ["error"]
    assert [record["name"] for record in records] == [None, None, "www.test", "six.test", None]


@pytest.mark.parametrize("by", ["tcp", "unix"])
def test_our_socks_server_is_its_way_out(lab: Lab, serve: Serve, by: str) -> None:
    places = {"tcp": f"127.0.0.1:{OURS}", "unix": 'unix "ours.sock"'}
    servers = {"tcp": {"host": "127.0.0.1", "port": OURS}, "unix": {"path": lab.path("ours.sock")}}
    relay = serve(
        f"listen socks = socks {places[by]}\nmatch any -> direct\nmatch 203.0.113.13 -> deny\n", lab.box
    )
    lab.universal_relay(groups=[("far", {**FAR, "socks_server": servers[by]})])

    def far(number: int, port: int) -> tuple[int, str]:
        with lab.dial(SOCKS) as sock:
            reply = peers.socks5(sock, f"i-hx-far-{number}.u-relay.home.arpa".encode(), port)
            return reply, everything(sock).decode()

    assert far(9, WEB) == (0, f"203.0.113.9 {WEB}")
    # What we refuse or deny, it passes on as its own failure.
    assert far(9, WEB + 1) == (1, "")
    assert far(13, WEB) == (1, "")
    records = relay.records(3)
    assert [(record["listener"], record["destination"]) for record in records] == [
        ("socks", "203.0.113.9"),
        ("socks", "203.0.113.9"),
        ("socks", "203.0.113.13"),
    ]
    assert [record["end"] for record in records] == ["eof", "refused", "denied"]


def socks5(host: str | bytes, port: int = WEB, methods: bytes = b"\0", command: int = 1) -> bytes:
    """The greeting and the request in one; `bytes` are a name."""
    if isinstance(host, bytes):
        address = b"\3" + bytes([len(host)]) + host
    else:
        address = (b"\4" if ":" in host else b"\1") + packed(host)
    return bytes([5, len(methods)]) + methods + bytes([5, command, 0]) + address + port.to_bytes(2)


def socks4(host: str | bytes, port: int = WEB, command: int = 1) -> bytes:
    """One request; `bytes` are a name, which is 4a."""
    address, name = (b"\0\0\0\1", host + b"\0") if isinstance(host, bytes) else (packed(host), b"")
    return bytes([4, command]) + port.to_bytes(2) + address + b"me\0" + name


def outcome(request: bytes, answer: bytes) -> str:
    """Who was reached, else how the answer ends: the code in its last reply, or `closed`."""
    if request[0] == 4:
        code, said = answer[1:2], answer[8:]
    elif answer[:2] == b"\5\0":
        # Behind the choice of a method: version, code, 0, the bound address, which is IPv4 or IPv6 here.
        code, said = answer[3:4], answer[2 + (22 if answer[5:6] == b"\4" else 10) :]
    else:
        code, said = answer[1:2], b""
    return said.decode().removesuffix(f" {WEB}") or (f"{code[0]:#x}" if code else "closed")


BRACKETED = b"[2001:db8::9]"
REQUESTS = {
    "ipv4": (socks5("203.0.113.9"), "203.0.113.9", "203.0.113.9"),
    "ipv6": (socks5("2001:db8::9"), "2001:db8::9", "2001:db8::9"),
    "mapped": (socks5("::ffff:203.0.113.9"), "203.0.113.9", "203.0.113.9"),
    "name": (socks5(b"www.test"), "203.0.113.80", "203.0.113.80"),
    "name-6": (socks5(b"six.test"), "2001:db8::80", "2001:db8::80"),
    "name-loud": (socks5(b"WWW.Test."), "203.0.113.80", "203.0.113.80"),
    "ipv4-as-name": (socks5(b"203.0.113.9"), "203.0.113.9", "203.0.113.9"),
    "ipv6-as-name": (socks5(b"2001:db8::9"), "2001:db8::9", "2001:db8::9"),
    "mapped-as-name": (socks5(b"::ffff:203.0.113.9"), "203.0.113.9", "203.0.113.9"),
    "two-methods": (socks5("203.0.113.9", methods=b"\2\0"), "203.0.113.9", "203.0.113.9"),
    "4": (socks4("203.0.113.9"), "203.0.113.9", "203.0.113.9"),
    "4a": (socks4(b"www.test"), "203.0.113.80", "203.0.113.80"),
    "4a-ipv4-as-name": (socks4(b"203.0.113.9"), "203.0.113.9", "203.0.113.9"),
    "4a-ipv6-as-name": (socks4(b"2001:db8::9"), "2001:db8::9", "2001:db8::9"),
    # Nobody is reached by either.
    "only-a-login": (socks5("203.0.113.9", methods=b"\2"), "0xff", "0xff"),
    "no-such-name": (socks5(b"www test"), "0x1", "0x1"),
    "4-refused": (socks4("203.0.113.9", WEB + 1), "0x5b", "0x5b"),
    "4-bind": (socks4("203.0.113.9", command=2), "0x5b", "0x5b"),
    "4a-nowhere": (socks4(b"nowhere.test"), "0x5b", "0x5b"),
    "version-6": (b"\6" + socks5("203.0.113.9")[1:], "closed", "closed"),
    # Where it has one word for every failure, ours says what it was (RFC 1928, section 6).
    "refused": (socks5("203.0.113.9", WEB + 1), "0x1", "0x5"),
    "nowhere": (socks5(b"nowhere.test"), "0x1", "0x4"),
    "bind": (socks5("203.0.113.9", command=2), "0x1", "0x7"),
    "udp": (socks5("203.0.113.9", command=3), "0x1", "0x7"),
    # An address in the way of URLs: what it had on its list.
    "brackets": (socks5(BRACKETED), "0x1", "2001:db8::9"),
    # It leaves out of a 4a name what it does not like, and goes wherever the rest of it leads.
    "4a-brackets": (socks4(BRACKETED), "2001:db8::9", "2001:db8::9"),
    "4a-no-such-name": (socks4(b"w/w w\xff.test"), "203.0.113.80", "0x5b"),
}


def test_the_same_requests_to_both_socks_servers(lab: Lab, serve: Serve) -> None:
    lab.universal_relay()
    serve(f"listen socks = socks 127.0.0.1:{OURS}\nmatch any -> direct\n", lab.box, *lab.resolver)
    made = {
        name: tuple(outcome(request, lab.ask(port, request)) for port in (SOCKS, OURS))
        for name, (request, *_) in REQUESTS.items()
    }
    assert made == {name: (theirs, ours) for name, (_, theirs, ours) in REQUESTS.items()}


# --- 9: HTTP CONNECT


@pytest.mark.peer("curl")
def test_curl_tunnels_through_both(lab: Lab, serve: Serve) -> None:
    lab.universal_relay()
    web = lab.stack.enter_context(peers.Server(lab.out.listen("::", 8080), peers.web("web")))
    serve(f"listen proxy = http 127.0.0.1:{OURS}\nmatch any -> direct\n", lab.box, *lab.resolver)

    def curl(port: int, url: str) -> subprocess.CompletedProcess[bytes]:
        proxy = ("--proxytunnel", "-x", f"http://127.0.0.1:{port}")
        return lab.box.run("curl", "-q", "-sS", "--max-time", "20", *proxy, "-w", "%{http_connect}", url)

    for host in ("203.0.113.9", "[2001:db8::9]", "www.test"):
        for port in (REAL, OURS):
            got = curl(port, f"http://{host}:{web.port}/")
            assert (got.returncode, got.stdout) == (0, b"web200"), got.stderr
    # It says 200 before it dials: a tunnel that ends at once. We dial first.
    theirs, ours = (curl(port, f"http://203.0.113.9:{web.port + 1}/") for port in (REAL, OURS))
    assert theirs.returncode in (52, 56), theirs.stderr
    assert theirs.stdout == b"200"
    assert (ours.returncode, ours.stdout) == (56, b"502"), ours.stderr


# --- 24: its maps, as a policy


def imported(lab: Lab) -> str:
    """What `urelay import` writes for the maps that the real one has."""
    maps = lab.folder / "static_maps.json"
    maps.write_text(json.dumps({"relay_map": list(INDEXES.items())}))
    urelay = ("env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "urelay")
    done = lab.box.run(*urelay, "import", "u-relay", str(maps))
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def both(lab: Lab, address: str) -> list[str]:
    """Who is reached by an address of the prefix: by it, and by the imported policy."""
    answers = [(port, reached(lab.box, address, port).decode()) for port in (WILD, IMPORTED)]
    return [answer.removesuffix(f" {port}") for port, answer in answers]


def test_the_imported_map_reaches_the_same_names(lab: Lab, serve: Serve) -> None:
    lab.universal_relay()
    relay = serve(imported(lab), lab.box, *lab.resolver)
    assert f"listen relay = transparent [::]:{IMPORTED}" in relay.policy.read_text()
    for name, index in INDEXES.items():
        (where,) = NAMES.get(name, (name,))
        address = f"{PREFIX}:5ff:7001:{index >> 16:x}:{index & 0xFFFF:x}"
        assert both(lab, address) == [where, where], name


def test_the_imported_window_reaches_the_same_ipv4_addresses(lab: Lab, serve: Serve) -> None:
    lab.universal_relay()
    serve(imported(lab), lab.box)
    for low, where in (("cb00:7109", "203.0.113.9"), ("cb00:712c", "203.0.113.44")):
        assert both(lab, f"{PREFIX}:5ff:6464:{low}") == [where, where]


def test_what_the_maps_do_not_say_is_nobody_to_either(lab: Lab, serve: Serve) -> None:
    """5ff:7007 is no window to IPv4 by itself: what an address there is, is in its configuration."""
    lab.universal_relay()
    serve(imported(lab), lab.box)
    for low in ("5ff:7001:0:9", "5ff:7007:cb00:7109", "5fe:0:0:1", "1:2:3:4"):
        assert both(lab, f"{PREFIX}:{low}") == ["", ""], low


# --- 32: a name of several addresses


def test_two_silent_addresses_before_the_one_that_answers(lab: Lab, serve: Serve) -> None:
    """It begins with the third when the first has had its ten seconds; we wait for nobody that long."""
    lab.universal_relay()
    serve(f"listen socks = socks 127.0.0.1:{OURS}\nmatch any -> direct\n", lab.box, *lab.resolver)
    took = []
    for port in (SOCKS, OURS):
        begun = time.monotonic()
        with lab.dial(port) as sock:
            assert peers.socks5(sock, b"late.test", WEB) == 0
            assert everything(sock).decode() == f"203.0.113.9 {WEB}"
        took.append(time.monotonic() - begun)
    theirs, ours = took
    assert ours < 5 < 9 < theirs, took


# --- 33: half-closes


LATE = 5000
"""Bytes of a client that the other side counts"""


def test_what_a_client_sends_after_the_server_has_ended(lab: Lab, serve: Serve) -> None:
    """It ends the whole connection with the server's side of it; we carry on with the client's."""
    lab.universal_relay()
    serve(f"listen socks = socks 127.0.0.1:{OURS}\nmatch any -> direct\n", lab.box)
    counted: queue.SimpleQueue[int] = queue.SimpleQueue()

    def bye(sock: socket.socket) -> None:
        sock.sendall(b"BYE")
        sock.shutdown(socket.SHUT_WR)
        counted.put(len(everything(sock)))

    server = lab.stack.enter_context(peers.Server(lab.out.listen("::"), bye))
    arrived = []
    for port in (SOCKS, OURS):
        with lab.dial(port) as sock:
            assert peers.socks5(sock, peers.literal("203.0.113.9"), server.port) == 0
            assert everything(sock) == b"BYE"
            with contextlib.suppress(OSError):
                sock.sendall(bytes(LATE))
                sock.shutdown(socket.SHUT_WR)
            arrived.append(counted.get(timeout=READY_S))
    assert arrived == [0, LATE]


@pytest.mark.parametrize("first", ["it", "we"])
def test_a_client_may_end_its_side_in_a_chain_of_both(lab: Lab, serve: Serve, first: str) -> None:
    """What the server says only after the end of the request arrives, whoever of us stands in front."""
    lab.universal_relay(groups=[("far", {**FAR, "socks_server": {"host": "127.0.0.1", "port": OURS}})])
    way = {"it": "direct", "we": f"via socks5 127.0.0.1:{SOCKS}"}[first]
    serve(f"listen socks = socks 127.0.0.1:{OURS}\nmatch any -> {way}\n", lab.box)

    def after_the_end(sock: socket.socket) -> None:
        sock.sendall(b"%d" % len(peers.drain(sock)))

    server = lab.stack.enter_context(peers.Server(lab.out.listen("::"), after_the_end))
    named = b"i-hx-far-9.u-relay.home.arpa"
    port, host = (SOCKS, named) if first == "it" else (OURS, peers.literal("203.0.113.9"))
    with lab.dial(port) as sock:
        assert peers.socks5(sock, host, server.port) == 0
        sock.sendall(bytes(LATE))
        sock.shutdown(socket.SHUT_WR)
        assert everything(sock) == b"%d" % LATE
