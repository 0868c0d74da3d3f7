"""What the programs of urelay's family send and expect, byte for byte, without these programs.

The real ones are in tests/e2e/test_origin*.py; the numbers in brackets are those of tests/README.md.
"""

from __future__ import annotations

import array
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.rig import SERVING, Echo, Relay, echoes

POLICY = """
upstream seed = socks5 {{ unix "recorder" }}
listen acme  = forward unix "root/00016/00001_00443" to 127.0.0.1:{echo}
listen pair  = forward socketbox "root/00016/00002_00443" to 127.0.0.1:{echo}
listen tp    = transparent unix "in" {{ accept-proxy }}

match 127.0.0.1 port {echo}      -> direct
match 198.51.100.0/24            -> to unix "boxes/#//6_#//7_.#//P_"
match 2001:db8:51::/48           -> to unix "boxes/#//0_#//1_.#//P_"
match 203.0.113.10               -> to unix "relay-{{low32}}"
match 203.0.113.9                -> via seed
match {{ 2001:db8::/64, .example }} -> via seed
match 2001:db8:64::/64           -> rewrite from nat64 2001:db8:64::/64 then lookup main
match 2001:db8:65::/96           -> rewrite from nat64 2001:db8:65::/96 then lookup main
"""

# u-relay-tproxy's header (type 2): 16 bytes, a source of zeros, the destination, its port, padding.
SIGNATURE = bytes.fromhex("0d0a0d0a000d0a515549540a21 21 00d8")


def tproxy(address: str, port: int, authority: bytes = b"") -> bytes:
    """`authority` makes it type 4: a TLV 0x02 behind the padding."""
    packed = socket.inet_pton(socket.AF_INET6, address if ":" in address else f"::ffff:{address}")
    head = bytes(16) + packed + bytes(2) + port.to_bytes(2) + bytes(180)
    assert len(head) == 216
    if not authority:
        return SIGNATURE + head
    tlv = b"\2\0" + bytes((len(authority),)) + authority
    return SIGNATURE[:-2] + (216 + len(tlv)).to_bytes(2) + head + tlv


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("family")
    for inner in ("root/00016", "boxes"):
        (made / inner).mkdir(parents=True)
    return made


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture(scope="module", autouse=True)
def relay(folder: Path, echo: Echo) -> Iterator[Relay]:
    """One for all: nothing here changes it."""
    policy = folder / "p.urr"
    policy.write_text(POLICY.format(echo=echo.port))
    made = Relay(policy)
    try:
        made.hear(SERVING.pattern)
        yield made
    finally:
        made.process.terminate()
        made.end()
        assert made.process.stderr is not None
        made.process.stderr.close()


def at(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


@pytest.fixture
def server(folder: Path) -> Iterator[Callable[[str], socket.socket]]:
    """Listens at a path of the test's folder."""
    made = []

    def listen(path: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.bind(str(folder / path))
        sock.listen()
        made.append(sock)
        return sock

    yield listen
    for sock in made:
        Path(sock.getsockname()).unlink()
        sock.close()


Listen = Callable[[str], socket.socket]


def test_a_socket_for_each_name_and_port(folder: Path) -> None:
    """[19] socketbox-preload: connect() to fe8f::3:10:1 port 443 is a connection to this very path."""
    with at(folder / "root/00016/00001_00443") as client:
        assert echoes(client)


def test_an_end_of_a_socketpair(folder: Path) -> None:
    """[20] socketbox-preload with enable_connect=2: fe8f::2:10:2 is handed one end, by "A"."""
    client, inner = socket.socketpair()
    client.settimeout(20)
    with client, inner, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [inner.fileno()]))
        sender.sendmsg([b"\0"], [rights], 0, str(folder / "root/00016/00002_00443"))
        inner.close()
        assert echoes(client)


@pytest.mark.parametrize(
    ("address", "port", "path"),
    [
        ("198.51.100.7", 80, "boxes/5073925607.00080"),
        ("2001:db8:51::1", 65535, "boxes/0819303512.65535"),
        ("203.0.113.10", 443, "relay-cb00710a"),
    ],
    ids=["18-ipv4", "18-ipv6", "23"],
)
def test_paths_by_address(server: Listen, folder: Path, address: str, port: int, path: str) -> None:
    """[18] socketbox -U, u-relay-tproxy; [23] socketbox-relay -u; [10, 11] the header that says where to."""
    listening = server(path)
    with at(folder / "in") as client:
        client.sendall(tproxy(address, port) + b"hello")
        inside, _ = listening.accept()
        with inside:
            assert inside.recv(5, socket.MSG_WAITALL) == b"hello"


@pytest.mark.parametrize(
    "address",
    [
        pytest.param("2001:db8:64:0:7f:0:100:0", id="rfc6052-64"),
        pytest.param("2001:db8:65::7f00:1", id="last-four-bytes"),
    ],
)
def test_nat64_beyond_96(folder: Path, echo: Echo, address: str) -> None:
    """[22] a /64 as RFC 6052 has it, and the last four bytes, as socketbox-relay has them."""
    with at(folder / "in") as client:
        client.sendall(tproxy(address, echo.port))
        assert echoes(client)


@pytest.mark.parametrize(
    ("header", "request_"),
    [
        pytest.param(tproxy("203.0.113.9", 2), "01 cb007109 0002", id="ipv4"),
        pytest.param(tproxy("2001:db8::9", 2), "04 20010db8000000000000000000000009 0002", id="ipv6"),
        pytest.param(tproxy("::", 443, b"host.example"), "03 0c 686f73742e6578616d706c65 01bb", id="name"),
    ],
)
def test_the_bytes_of_the_socks_client(server: Listen, folder: Path, header: bytes, request_: str) -> None:
    """[6] what the seed of Universal Relay sends to `ssh -D`, an IPv4 address never as ::ffff:a.b.c.d."""
    recorder = server("recorder")
    expected = bytes.fromhex("05 01 00" + request_)
    seen: list[bytes] = []

    def answer() -> None:
        inside, _ = recorder.accept()
        inside.settimeout(20)
        with inside:
            seen.append(inside.recv(3, socket.MSG_WAITALL))
            inside.sendall(b"\5\0")
            seen.append(inside.recv(len(expected), socket.MSG_WAITALL))
            # Data right behind the reply, whose bound address is a name.
            inside.sendall(b"\5\0\0\3\1x\0\0banner")
            inside.recv(1)

    thread = threading.Thread(target=answer)
    thread.start()
    with at(folder / "in") as client:
        client.sendall(header)
        assert client.recv(6, socket.MSG_WAITALL) == b"banner"
    thread.join(20)
    assert seen == [b"\5\1\0", b"\5\1\0" + expected[3:]]
