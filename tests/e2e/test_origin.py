"""ctrtool, socketbox and python-socketbox themselves open our listeners, hand us connections and take ours.

What they send and expect, byte for byte, is tested without them too: tests/README.md says where.
"""

from __future__ import annotations

import json
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import origin
from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.family import SERVER, get, run, web_box
from tests.e2e.relay import ROOT, Urelay
from tests.e2e.rig import Namespace, Network, Program, until
from urelay.namespaces.enter import call_inside

pytestmark = pytest.mark.netns

# Every port of two networks, to the one socket, as the wiki of Universal Relay sets it up.
TPROXY = """
table inet relay {
    chain in {
        type filter hook prerouting priority mangle; policy accept;
        ip daddr 198.51.100.0/24 meta l4proto tcp tproxy ip to 127.0.0.20:1 accept
        ip6 daddr 2001:db8::/32 meta l4proto tcp tproxy ip6 to [::ffff:127.0.0.20]:1 accept
    }
}
"""


@pytest.fixture
def box(net: Network, stack: ExitStack) -> Namespace:
    """Where the web server is, and the relay."""
    return web_box(net, stack)


# --- ctrtool: 1, 2, 3, 5


@pytest.mark.origin("ctrtool")
@pytest.mark.parametrize("way", ["environment", "systemd"])
def test_a_listener_that_ctrtool_opens_elsewhere(
    net: Network, box: Namespace, stack: ExitStack, tmp_path: Path, way: str
) -> None:
    place = {"environment": "fd env CTRTOOL_NS_OPEN_FILE_FD_1", "systemd": 'systemd "unknown"'}[way]
    policy = tmp_path / "site.urr"
    policy.write_text(f"listen lan = socks {place}\nmatch {SERVER} -> direct\n")
    inside = net.namespace("inside")
    ctrtool = str(origin("ctrtool"))
    prefix = [ctrtool, "ns_open_file", "-o", "1", "-n", "-N", inside.path, "-d", "inet"]
    prefix += ["-4", "127.0.0.1,1080,a", "-l", "128"]
    if way == "systemd":
        prefix += [ctrtool, "set_fds", "-s", "-e", ":CTRTOOL_NS_OPEN_FILE_FD_1"]
    relay = Urelay(policy, box, prefix=prefix, env={"PYTHONPATH": str(ROOT)})
    stack.callback(relay.stop)
    relay.ready()
    assert relay.namespaces() == {box.inode()}
    client = inside.connect("127.0.0.1", 1080)
    assert peers.socks5(client, peers.literal(SERVER), 80) == 0
    assert get(client) == b"server"
    relay.finish()


@pytest.mark.origin("ctrtool")
def test_a_listener_that_ctrtool_opens_in_a_rootless_namespace(
    box: Namespace, stack: ExitStack, tmp_path: Path
) -> None:
    """[3] `-U`: it enters the user namespace that owns the network namespace first."""
    script = "ip link set lo up; echo up; exec sleep 600"
    rootless = Program(["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script])
    stack.callback(rootless.stop)
    rootless.wait_line("up")
    there = f"/proc/{rootless.pid}/ns/net"
    policy = tmp_path / "site.urr"
    policy.write_text(f"listen lan = socks fd env CTRTOOL_NS_OPEN_FILE_FD_0\nmatch {SERVER} -> direct\n")
    prefix = [str(origin("ctrtool")), "ns_open_file", "-n", "-U", "-N", there, "-d", "inet"]
    relay = Urelay(policy, box, prefix=[*prefix, "-4", "127.0.0.1,1080,a", "-l", "128"])
    stack.callback(relay.stop)
    relay.ready()
    client = call_inside(there, lambda: socket.create_connection(("127.0.0.1", 1080), 20))
    assert peers.socks5(client, peers.literal(SERVER), 80) == 0
    assert get(client) == b"server"
    relay.finish()


@pytest.mark.origin("ctrtool")
@pytest.mark.peer("nft")
def test_a_transparent_listener_of_ctrtool_gets_every_port(
    net: Network, box: Namespace, stack: ExitStack, tmp_path: Path
) -> None:
    """[5] the flag `t`, and TPROXY to an IPv6 socket at an IPv4-mapped address."""
    inside = net.namespace("inside")
    inside.everything_is_local()
    inside.nft(TPROXY)
    policy = tmp_path / "site.urr"
    policy.write_text(
        "listen lan = transparent fd env CTRTOOL_NS_OPEN_FILE_FD_0\n"
        f"match {{ 198.51.100.0/24, 2001:db8::/32 }} -> rewrite to {SERVER}, port 80 then direct\n"
    )
    prefix = [str(origin("ctrtool")), "ns_open_file", "-n", "-N", inside.path]
    relay = Urelay(policy, box, prefix=[*prefix, "-6", "::ffff:127.0.0.20,1,at", "-l", "128"])
    stack.callback(relay.stop)
    relay.ready()
    dialled = [("198.51.100.7", 80), ("198.51.100.8", 65535), ("2001:db8::7", 443)]
    for host, port in dialled:
        assert get(inside.connect(host, port)) == b"server"
    assert [(record["destination"], record["port"]) for record in relay.records(3)] == dialled
    relay.finish()


# --- socketbox: 4, 14, 15, 16


@pytest.mark.origin("socketbox")
def test_socketbox_hands_its_connections_to_us(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    serve(f'listen box = forward socketbox "box" to {SERVER}:80\nmatch {SERVER} -> direct\n', box)
    sender = run(
        stack, box, origin("socketbox"), "-l", "::ffff:127.0.0.1", "-p", 1080, "-S", tmp_path / "box"
    )
    sender.wait_listening(1080)
    assert get(box.connect("127.0.0.1", 1080)) == b"server"


@pytest.mark.origin("socketbox")
def test_socketbox_accepts_for_every_address(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """[4, 14] What is handed over still knows which address was dialled."""
    box.everything_is_local()
    relay = serve(
        f"""\
        listen box = transparent socketbox "box"
        match {{ 198.51.100.0/24, 2001:db8::/32 }} -> rewrite to {SERVER}, port 80 then direct
        """,
        box,
    )
    sender = run(stack, box, origin("socketbox"), "-l", "::", "-p", 8080, "-S", tmp_path / "box")
    sender.wait_listening(8080)
    for host in ("198.51.100.7", "2001:db8::7"):
        assert get(box.connect(host, 8080)) == b"server"
    assert [record["destination"] for record in relay.records(2)] == ["198.51.100.7", "2001:db8::7"]


@pytest.mark.origin("socketbox")
@pytest.mark.origin("socketbox-inetd")
def test_socketbox_registers_with_us_and_hands_on(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """[16] `-P 7:PATH`: its connections come from our slot."""
    listener = f"listen web = forward 127.0.0.1:1080 to {SERVER}:80\n"
    serve(f'{listener}match {SERVER} -> to socketbox "slots" slot 7\n', box)
    run(stack, box, origin("socketbox-inetd"), tmp_path / "box", "echo", "hello")
    until((tmp_path / "box").is_socket, "it receives")
    run(stack, box, origin("socketbox"), "-P", f"7:{tmp_path}/slots", "-S", tmp_path / "box")
    until((tmp_path / "slots.7").is_socket, "it is registered")
    for _ in range(3):
        with box.connect("127.0.0.1", 1080) as client:
            assert peers.drain(client) == b"hello\n"


@pytest.mark.origin("socketbox-inetd")
def test_we_hand_our_connections_to_socketbox_inetd(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    serve(f'listen web = forward 127.0.0.1:1080 to {SERVER}:80\nmatch {SERVER} -> to socketbox "box"\n', box)
    run(stack, box, origin("socketbox-inetd"), tmp_path / "box", "echo", "hello")
    until((tmp_path / "box").is_socket, "it receives")
    with box.connect("127.0.0.1", 1080) as client:
        assert peers.drain(client) == b"hello\n"


@pytest.mark.origin("socketbox-relay")
def test_we_hand_our_connections_to_socketbox_relay(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    serve(f'listen web = forward 127.0.0.1:1080 to {SERVER}:80\nmatch {SERVER} -> to socketbox "box"\n', box)
    target = ("-c", f"::ffff:{SERVER}", "-p", 80)
    run(stack, box, origin("socketbox-relay"), "-s", tmp_path / "box", *target)
    until((tmp_path / "box").is_socket, "it receives")
    assert get(box.connect("127.0.0.1", 1080)) == b"server"


@pytest.mark.origin("python-socketbox")
def test_python_socketbox_hands_its_connections_to_us(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    config = {
        "socketbox-version": 1,
        "daemon": {},
        "incoming": [{"address": "::ffff:127.0.0.1", "port": 1080}],
        "outgoing": [{"uid": 0, "path_nr": 0}, {"uid": 0, "path_nr": 0}],
        "paths": [{"socket": str(tmp_path / "slots"), "uid": 0, "gid": 0}],
        "rules": {"_start": {"type": "rule", "rules": [{"jump": "o:1"}]}},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = (sys.executable, origin("python-socketbox") / "socketbox_main.py", tmp_path / "config.json")
    sender = run(stack, box, *command)
    sender.wait_listening(1080)
    until((tmp_path / "slots").is_socket, "it takes registrations")
    listener = f'listen box = forward socketbox "slots" slot 1 to {SERVER}:80\n'
    relay = serve(f"{listener}match {SERVER} -> direct\n", box, "--workers", "2")
    assert get(box.connect("127.0.0.1", 1080)) == b"server"
    relay.reload()
    assert get(box.connect("127.0.0.1", 1080)) == b"server"
    since = len(relay.lines)
    sender.stop()
    run(stack, box, *command).wait_listening(1080)
    relay.wait_line("registered for slot 1 again", since)
    assert get(box.connect("127.0.0.1", 1080)) == b"server"


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("socketbox-inetd-p", marks=pytest.mark.origin("socketbox-inetd-p")),
        pytest.param("client_test.py", marks=pytest.mark.origin("python-socketbox")),
    ],
)
def test_programs_register_with_us(
    box: Namespace, stack: ExitStack, serve: Serve, tmp_path: Path, program: str
) -> None:
    listener = f"listen web = forward 127.0.0.1:1080 to {SERVER}:80\n"
    serve(f'{listener}match {SERVER} -> to socketbox "slots" slot 7\n', box)
    if program == "client_test.py":
        command = [sys.executable, origin("python-socketbox") / program]
    else:
        command = [origin(program)]
    run(stack, box, *command, tmp_path / "slots", 7, "echo", "hello")
    until((tmp_path / "slots.7").is_socket, "it is registered")
    for _ in range(3):
        with box.connect("127.0.0.1", 1080) as client:
            assert peers.drain(client) == b"hello\n"
