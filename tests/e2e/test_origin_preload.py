"""Programs that socketbox-preload and u-relay-tproxy make talk to us, by the LD_PRELOAD libraries themselves.

What the libraries do to a connection, byte for byte, is tested without them in services/test_family. Socket
Enhancer is loaded into the relay instead, and gives its connections the address they leave from.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import origin
from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.family import SERVER, get, run, web_box
from tests.e2e.relay import Urelay
from tests.e2e.rig import Namespace, Network, until

pytestmark = pytest.mark.netns

PORT = 80
OUTER, OUTER_PORT = "2001:db8::8083", 8083

# Dials argv[1]:argv[2], as any program would, and prints what a web server there is named.
CLIENT = r"""
import socket, sys
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20)
sock.sendall(b"GET /name HTTP/1.0\r\n\r\n")
print(sock.makefile("rb").read().rpartition(b"\r\n\r\n")[2].decode())
"""
# Listens at argv[1]:argv[2] and greets three clients.
GREETER = """
import socket, sys
listener = socket.socket(socket.AF_INET6)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
for _ in range(3):
    sock, _ = listener.accept()
    sock.sendall(b"hello")
    sock.close()
"""


@pytest.fixture
def box(net: Network, stack: ExitStack) -> Namespace:
    """Where the web server is, the relay, and the programs."""
    return web_box(net, stack)


def dial(box: Namespace, host: str, port: int, **env: object) -> str:
    """The name of the web server that CLIENT reaches with these variables."""
    words = [f"{key}={value}" for key, value in env.items()]
    done = box.run("env", *words, sys.executable, "-c", CLIENT, host, str(port))
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().rstrip()


# --- socketbox-preload: 15, 19, 20


@pytest.mark.origin("libsocketbox-preload.so")
@pytest.mark.parametrize(
    ("mode", "address", "place"),
    [
        pytest.param(1, "fe8f::3:10:1", 'unix "00016/00001_00443"', id="19-stream"),
        pytest.param(2, "fe8f::2:10:1", 'socketbox "00016/00001_00443"', id="20-socketpair"),
    ],
)
def test_a_client_whose_connections_go_to_our_socket(
    box: Namespace, serve: Serve, tmp_path: Path, mode: int, address: str, place: str
) -> None:
    (tmp_path / "00016").mkdir()
    relay = serve(f"listen acme = forward {place} to {SERVER}:80\nmatch {SERVER} -> direct\n", box)
    got = dial(
        box, address, 443,
        LD_PRELOAD=origin("libsocketbox-preload.so"),
        SKBOX_DIRECTORY_ROOT2=tmp_path, SKBOX_ENABLE_CONNECT=mode,
    )  # fmt: skip
    assert got == "server"
    (record,) = relay.records(1)
    assert (record["listener"], record["end"]) == ("acme", "eof")


@pytest.mark.origin("libsocketbox-preload.so")
def test_a_server_that_accepts_what_we_hand_over(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    (tmp_path / "00016").mkdir()
    path = tmp_path / "00016" / "00001_00080"
    env = {"LD_PRELOAD": str(origin("libsocketbox-preload.so")), "SKBOX_DIRECTORY_ROOT2": str(tmp_path)}
    run(stack, box, sys.executable, "-c", GREETER, "fe8f::2:10:1", 80, env=env)
    until(path.is_socket, "it listens")
    serve(
        f'listen web = forward 127.0.0.1:1080 to {SERVER}:80\nmatch {SERVER} -> to socketbox "{path}"\n', box
    )
    for _ in range(3):
        with box.connect("127.0.0.1", 1080) as client:
            assert peers.drain(client) == b"hello"


# --- u-relay-tproxy: 10, 11, 13, 18


def packed(address: str) -> bytes:
    """Sixteen bytes; an IPv4 address is mapped."""
    return socket.inet_pton(socket.AF_INET6, address if ":" in address else f"::ffff:{address}")


def config(folder: Path, kind: int, path: str, extra: bytes = b"") -> Path:
    """URELAY_TPROXY_FILE with one entry: connections to SERVER go to `path`, by type `kind`."""
    data = extra + path.encode() + b"\0"
    data += bytes(-len(data) % 8)
    entry = struct.pack(">16sBBHI8x", packed(SERVER), 128, kind, len(data), 0)
    whole = struct.pack(">IHHII", 0xF200A01F, 1, 1, 0, 0) + entry + data
    made = folder / "tproxy"
    made.write_bytes(whole + bytes(4096 - len(whole)))
    return made


def selector(index: int, mask: int) -> bytes:
    """Which name: of list `index`, the one numbered by these low bits of the address."""
    return struct.pack(">BBBBIIII12x", 1, 0, 0, 0, 0, mask, index, 0)


def domain_file(folder: Path, names: dict[int, str]) -> Path:
    """A list of numbered names, as gen-idx-file.py writes it."""
    index, text = b"", b""
    for number, name in sorted(names.items()):
        index += struct.pack(">II", number, len(text) // 4)
        text += name.encode() + b"\0"
        text += bytes(-len(text) % 4)
    made = folder / "names"
    made.write_bytes(struct.pack(">II", 0xF200A01E, len(names)) + index + text)
    return made


@pytest.mark.origin("liburelay-tproxy.so")
def test_type_1_and_we_spell_a_path_alike(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """[18] `#//n_` is filled in by the library for its client, and by us for ours."""
    template = f"{tmp_path}/#//6_-#//7_.#//P_"
    serve(
        f'listen web = forward 127.0.0.1:1080 to {SERVER}:80\nmatch {SERVER} -> to unix "{template}"\n', box
    )
    # 203.0 and 113.10 as numbers of 16 bits.
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{tmp_path}/51968-28938.00080")
    sock.listen()
    server = stack.enter_context(peers.Server(sock, peers.web("boxed")))
    library = {
        "LD_PRELOAD": origin("liburelay-tproxy.so"),
        "URELAY_TPROXY_FILE": config(tmp_path, 1, template),
    }
    assert dial(box, SERVER, PORT, **library) == "boxed"
    assert get(box.connect("127.0.0.1", 1080)) == b"boxed"
    assert server.accepted == 2


@pytest.mark.origin("liburelay-tproxy.so")
def test_type_2_announces_the_address(box: Namespace, serve: Serve, tmp_path: Path) -> None:
    """A header of 232 bytes, whose address block is padded to 216."""
    relay = serve(f'listen in = transparent unix "in" {{ accept-proxy }}\nmatch {SERVER} -> direct\n', box)
    library = {
        "LD_PRELOAD": origin("liburelay-tproxy.so"),
        "URELAY_TPROXY_FILE": config(tmp_path, 2, f"{tmp_path}/in"),
    }
    assert dial(box, SERVER, PORT, **library) == "server"
    (record,) = relay.records(1)
    assert (record["destination"], record["port"]) == (SERVER, PORT)


@pytest.mark.origin("liburelay-tproxy.so")
@pytest.mark.parametrize("lists", ["pattern", "file"])
def test_type_4_announces_a_name(box: Namespace, serve: Serve, tmp_path: Path, lists: str) -> None:
    """The address is `::` then; `#` in a name stands for a digit of the dialled one, here the last of 0a."""
    relay = serve(
        f"""\
        listen in = transparent unix "in" {{ accept-proxy }}
        match boxa.example -> rewrite to {SERVER} then direct
        """,
        box,
    )
    named = {
        "pattern": "7,box#.example",
        "file": f"7={domain_file(tmp_path, {9: 'box9.example', 10: 'boxa.example', 11: 'boxb.example'})}",
    }[lists]
    got = dial(
        box, SERVER, PORT,
        LD_PRELOAD=origin("liburelay-tproxy.so"), URELAY_TPROXY_IDX_FILES=named,
        URELAY_TPROXY_FILE=config(tmp_path, 4, f"{tmp_path}/in", selector(7, 0xFF)),
    )  # fmt: skip
    assert got == "server"
    (record,) = relay.records(1)
    assert (record["name"], record["destination"], record["port"]) == ("boxa.example", None, PORT)


@pytest.mark.origin("liburelay-tproxy.so")
@pytest.mark.parametrize(
    ("counts", "named", "destination"),
    [
        pytest.param("address", False, (OUTER, OUTER_PORT), id="13-8081"),
        pytest.param("address", True, (OUTER, OUTER_PORT), id="13-8081-named"),
        pytest.param("inner", False, (SERVER, PORT), id="13-8083"),
        pytest.param("inner", True, ("boxa.example", PORT), id="13-8083-named"),
        pytest.param("name", True, ("boxa.example", OUTER_PORT), id="13-8082-named"),
    ],
)
def test_type_5_announces_two_destinations(
    box: Namespace, serve: Serve, tmp_path: Path, counts: str, named: bool, destination: tuple[str, int]
) -> None:
    """The outer one is the socket of Universal Relay's that unpacks the inner one, and a name beside both."""
    relay = serve(
        f"""\
        listen in = transparent unix "in" {{ accept-proxy as {counts} }}
        match {SERVER}                 -> direct
        match {{ {OUTER}, .example }}  -> rewrite to {SERVER}, port {PORT} then direct
        """,
        box,
    )
    keep_inner_port, send_inner = 2, 4
    extra = struct.pack(
        ">BBBBHHI16s16s", 1, keep_inner_port | send_inner, 128, 0, OUTER_PORT, 0, 0, packed(OUTER), bytes(16)
    )
    extra += selector(7, 0) if named else bytes(32)
    got = dial(
        box, SERVER, PORT,
        LD_PRELOAD=origin("liburelay-tproxy.so"), URELAY_TPROXY_IDX_FILES="7,boxa.example",
        URELAY_TPROXY_FILE=config(tmp_path, 5, f"{tmp_path}/in", extra),
    )  # fmt: skip
    assert got == "server"
    (record,) = relay.records(1)
    assert (record["name"] or record["destination"], record["port"]) == destination


# --- Socket Enhancer: 36


@pytest.mark.origin("socket-enhancer")
@pytest.mark.parametrize(
    ("options", "source"),
    [("connect 5s", "192.0.2.7"), ("source 192.0.2.8", "192.0.2.8")],
    ids=["theirs", "ours"],
)
def test_our_connections_leave_from_where_it_says_unless_the_policy_does(
    net: Network, stack: ExitStack, tmp_path: Path, options: str, source: str
) -> None:
    box = net.namespace("box")
    for address in (SERVER, "192.0.2.7", "192.0.2.8"):
        box.address("lo", f"{address}/32")
    server = stack.enter_context(peers.Server(box.listen(SERVER, PORT), peers.web("server")))
    policy = tmp_path / "site.urr"
    policy.write_text(
        f"listen web = forward 127.0.0.1:1080 to {SERVER}:{PORT}\n"
        f"upstream out = direct {{ {options} }}\n"
        f"match {SERVER} -> via out\n"
    )
    library = str(origin("socket-enhancer"))
    loaded = {"LD_PRELOAD": library, "SOCKET_ENHANCER_CONFIG": "ipv4=192.0.2.7"}
    relay = Urelay(policy, box, env=loaded)
    stack.callback(relay.stop)
    relay.ready()
    assert get(box.connect("127.0.0.1", 1080)) == b"server"
    assert server.hosts() == [source]
