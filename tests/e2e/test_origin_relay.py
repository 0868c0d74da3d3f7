"""socketbox-relay beside us: given the same connection it goes where we go, and ends it as we end it.

Both listen in one namespace, where every address is local: the server that both reach says at which
address it was reached.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import origin
from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.family import run
from tests.e2e.rig import Namespace, Network, Program, until

pytestmark = [pytest.mark.netns, pytest.mark.origin("socketbox-relay")]

SERVER = "203.0.113.10"
PORT, OURS = 81, 1080
LATE = 5000


@pytest.fixture
def box(net: Network) -> Namespace:
    """Every address is its own."""
    made = net.namespace("box")
    made.everything_is_local()
    return made


def theirs(stack: ExitStack, box: Namespace, *options: object) -> tuple[Program, int]:
    """A socketbox-relay that listens at every address, and its port."""
    with box.listen("::") as listener:
        number = listener.fileno()
        program = run(stack, box, origin("socketbox-relay"), "-l", number, *options, pass_fds=(number,))
        # `nsenter` and the program behind it have the socket from here on.
        return program, listener.getsockname()[1]


def where(sock: socket.socket) -> None:
    """A server that says at which address it was reached."""
    sock.sendall(sock.getsockname()[0].removeprefix("::ffff:").encode())
    sock.shutdown(socket.SHUT_WR)
    peers.drain(sock)


def said(box: Namespace, host: str, port: int) -> str:
    """What is said at `host`, `reset` when nothing is."""
    try:
        with box.connect(host, port) as sock:
            return peers.drain(sock).decode()
    except ConnectionResetError:
        return "reset"


@pytest.mark.parametrize(
    ("options", "rewrite", "targets"),
    [
        pytest.param(
            ("-N", "-c", "::ffff:0.0.0.0"),
            f"match 64:ff9b::/96 -> rewrite from nat64 64:ff9b::/96, port {PORT} then direct",
            {"64:ff9b::909:909": "9.9.9.9", "64:ff9b::909:a0a": "9.9.10.10", "64:ff9b:0:1::909:909": ""},
            id="21-plat",
        ),
        pytest.param(
            ("-N", "-P", "::ffff:0:0", "-c", "64:ff9b::"),
            f"match 0.0.0.0/0 -> rewrite to nat64 64:ff9b::/96, port {PORT} then direct",
            {"9.9.9.9": "64:ff9b::909:909", "2001:db8::1": ""},
            id="21-clat",
        ),
        pytest.param(
            ("-N", "-x", "-P", "2001:db8:1::", "-c", "2001:db8:2::"),
            f"match 2001:db8:1::/64 -> rewrite to 2001:db8:2::/64, port {PORT} then direct",
            {
                "2001:db8:1::5ff:7007:cb00:710a": "2001:db8:2:0:5ff:7007:cb00:710a",
                "2001:db8:1::7": "2001:db8:2::7",
                "2001:db8:1:1::7": "",
            },
            id="22-extended",
        ),
        pytest.param(
            ("-N", "-x", "-P", "2001:db8:64::", "-c", "::"),
            "match 2001:db8:64::ffff:0:0/96 -> "
            f"rewrite from nat64 2001:db8:64:0:0:ffff::/96, port {PORT} then direct",
            {"2001:db8:64::ffff:203.0.113.10": SERVER},
            id="22-extended-ipv4",
        ),
    ],
)
def test_an_address_leads_to_the_same_address(
    box: Namespace,
    stack: ExitStack,
    serve: Serve,
    options: tuple[str, ...],
    rewrite: str,
    targets: dict[str, str],
) -> None:
    """[21, 22] `-x` keeps the last 64 bits of the address and takes the others from `-c`."""
    stack.enter_context(peers.Server(box.listen("::", PORT), where))
    serve(f"listen all = transparent [::]:{OURS}\n{rewrite}\n", box)
    _, port = theirs(stack, box, *options, "-p", PORT)
    for host, target in targets.items():
        assert said(box, host, port) == target, host
        assert said(box, host, OURS) == (target or "reset"), host


def test_the_well_known_prefix_carries_no_private_address(
    box: Namespace, stack: ExitStack, serve: Serve
) -> None:
    """[21] RFC 6052, section 3.1, forbids it: they take the client there all the same, we do not."""
    stack.enter_context(peers.Server(box.listen("::", PORT), where))
    serve(
        f"""\
        listen all = transparent [::]:{OURS}
        match 64:ff9b::/96 -> rewrite from nat64 64:ff9b::/96, port {PORT} then direct
        """,
        box,
    )
    _, port = theirs(stack, box, "-N", "-c", "::ffff:0.0.0.0", "-p", PORT)
    for embedded in ("10.0.0.1", "127.0.0.1"):
        assert said(box, f"64:ff9b::{embedded}", port) == embedded
        assert said(box, f"64:ff9b::{embedded}", OURS) == "reset"


def test_an_address_leads_to_the_same_socket(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """[23] `-u PATH` with `-N` is `to unix "PATH-{low32}"`."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(f"{tmp_path}/box-cb00710a")
    sock.listen()
    stack.enter_context(peers.Server(sock, peers.says("boxed")))
    serve(
        f'listen all = transparent [::]:{OURS}\nmatch 64:ff9b::/96 -> to unix "{tmp_path}/box-{{low32}}"\n',
        box,
    )
    _, port = theirs(stack, box, "-N", "-u", tmp_path / "box")
    for asked in (port, OURS):
        assert said(box, "64:ff9b::cb00:710a", asked) == "boxed"


def test_a_client_it_announces_is_the_client(box: Namespace, stack: ExitStack, serve: Serve) -> None:
    """[10] `-i` writes PROXY, version 1, and always TCP6: IPv4 addresses are mapped ones."""
    stack.enter_context(peers.Server(box.listen("::", PORT), where))
    relay = serve(
        f"""\
        listen lb = transparent 127.0.0.1:{OURS} {{ accept-proxy from 127.0.0.1 }}
        match any -> rewrite port {PORT} then direct
        """,
        box,
    )
    _, port = theirs(stack, box, "-i", "-c", "::ffff:127.0.0.1", "-p", OURS)
    announced = []
    for host in (SERVER, "2001:db8::7"):
        with box.connect(host, port) as client:
            name, number = client.getsockname()[:2]
            announced.append((f"[{name}]:{number}" if ":" in name else f"{name}:{number}", host))
            assert peers.drain(client).decode() == host
    assert [(record["source"], record["destination"]) for record in relay.records(2)] == announced


@pytest.mark.parametrize("order", ["theirs", "ours", "ours-then-theirs", "theirs-then-ours"])
def test_what_is_said_after_a_goodbye_arrives(
    box: Namespace, stack: ExitStack, serve: Serve, order: str
) -> None:
    """[33] The server ends its direction at once; what the client sends from then on still gets there."""
    heard: list[bytes] = []

    def goodbye(sock: socket.socket) -> None:
        sock.sendall(b"BYE")
        sock.shutdown(socket.SHUT_WR)
        heard.append(peers.drain(sock))

    stack.enter_context(peers.Server(box.listen(SERVER, PORT), goodbye))
    port, first = PORT, 0
    for hop in reversed(order.split("-then-")):
        if hop == "theirs":
            _, first = theirs(stack, box, "-c", f"::ffff:{SERVER}", "-p", port)
        else:
            serve(f"listen hop = forward {SERVER}:{OURS} to {SERVER}:{port}\nmatch {SERVER} -> direct\n", box)
            first = OURS
        port = first
    with box.connect(SERVER, first) as client:
        assert peers.drain(client) == b"BYE"
        client.sendall(peers.position_coded(LATE))
        client.shutdown(socket.SHUT_WR)
        until(lambda: heard, "the server has heard the end")
    assert heard == [peers.position_coded(LATE)]
