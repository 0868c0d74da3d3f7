"""HTTP CONNECT with a real curl, in and out: names and addresses, logins, refusals, both on one port."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.relay import ROOT
from tests.e2e.rig import Namespace, Network

pytestmark = [pytest.mark.netns, pytest.mark.peer("curl")]

POLICY = """\
    listen proxy = http 127.0.0.1:3128
    listen both  = mixed 127.0.0.1:1080
    match any           -> direct
    match 10.66.0.0/16  -> deny
    match .denied.test  -> deny host-unreachable
    """
NAMES = {
    "web.test": ("198.51.100.10", "2001:db8::10"),
    "inside.test": ("10.66.0.1", "127.0.0.1", "::1"),
    "www.denied.test": ("198.51.100.10",),
}
WEB = "198.51.100.10"


@pytest.fixture
def box(net: Network) -> Namespace:
    """One namespace with a web server's addresses, IPv4 and IPv6, and a denied one."""
    box = net.namespace("box")
    box.address("lo", f"{WEB}/32", "2001:db8::10/128", "10.66.0.1/32")
    return box


@pytest.fixture
def web(box: Namespace, stack: ExitStack) -> peers.Server:
    """A web server on every address of the box."""
    return stack.enter_context(peers.Server(box.listen("::"), peers.web("web")))


@pytest.fixture
def names(box: Namespace, stack: ExitStack) -> peers.NameServer:
    """A name server in the box."""
    return stack.enter_context(peers.NameServer(box.call(lambda: peers.datagram("127.0.0.1")), NAMES))


def curl(box: Namespace, *words: str) -> subprocess.CompletedProcess[bytes]:
    """curl inside, always with CONNECT; silent but for errors, without the user's own settings."""
    return box.run("curl", "-q", "-sS", "--proxytunnel", "--max-time", "20", *words)


def users_file(folder: Path) -> None:
    """A file of one user beside the policy."""
    users = folder / "users.txt"
    users.write_text("ada:lovelace-1815\n")
    users.chmod(0o600)


def test_curl_fetches_through_it(
    box: Namespace, web: peers.Server, names: peers.NameServer, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    ways = [
        (["-x", "http://127.0.0.1:3128"], WEB),
        (["-x", "http://127.0.0.1:3128"], "[2001:db8::10]"),
        (["-x", "http://127.0.0.1:3128"], "web.test"),
        (["--proxy1.0", "127.0.0.1:3128"], "WEB.test"),
        (["-x", "http://127.0.0.1:1080"], "web.test"),
        (["-x", "socks5h://127.0.0.1:1080"], "web.test"),
        (["-x", "socks4a://127.0.0.1:1080"], "web.test"),
    ]
    for number, (options, host) in enumerate(ways, 1):
        got = curl(box, *options, f"http://{host}:{web.port}/1000000")
        assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr
        record = relay.records(number)[-1]
        assert (record["outcome"], record["end"], record["port"]) == ("direct", "eof", web.port)
        assert record["name"] == (host.lower() if host.endswith("test") else None)


def test_a_refusal_has_its_status_and_its_reason(
    box: Namespace, web: peers.Server, names: peers.NameServer, serve: Serve
) -> None:
    relay = serve(POLICY, box, "--resolver", f"127.0.0.1:{names.port}")
    for url, status, told in (
        (f"http://10.66.0.1:{web.port}/", 403, b'error=http_request_denied; details="denied by site.urr:4"'),
        (f"http://inside.test:{web.port}/", 403, b"error=http_request_denied"),
        (f"http://www.denied.test:{web.port}/", 502, b"error=destination_ip_unroutable"),
        (f"http://{WEB}:9/", 502, b"error=connection_refused"),
        ("http://nowhere.test/", 502, b"error=dns_error"),
    ):
        got = curl(box, "-v", "-x", "http://127.0.0.1:3128", url)
        assert got.returncode == 56, got.stderr
        assert b"HTTP/1.1 %d " % status in got.stderr
        assert told in got.stderr
    assert web.accepted == 0
    ends = [record["end"] for record in relay.records(5)]
    assert ends == ["denied", "denied", "denied", "refused", "refused"]


def test_a_proxy_that_is_no_tunnel_says_so(box: Namespace, web: peers.Server, serve: Serve) -> None:
    """Without --proxytunnel curl asks for the page itself: 405, and the page is not fetched."""
    serve(POLICY, box)
    got = box.run("curl", "-q", "-sS", "-D", "-", "-x", "http://127.0.0.1:3128", f"http://{WEB}:{web.port}/")
    assert got.stdout.startswith(b"HTTP/1.1 405 Method Not Allowed\r\nAllow: CONNECT\r\n")
    assert web.accepted == 0


@pytest.mark.parametrize("port", [3128, 1080], ids=["http", "mixed"])
def test_a_login_is_asked_for_and_only_the_right_one_passes(
    box: Namespace, web: peers.Server, serve: Serve, tmp_path: Path, port: int
) -> None:
    users_file(tmp_path)
    relay = serve(
        """\
        listen proxy = http 127.0.0.1:3128 { users "users.txt" }
        listen both  = mixed 127.0.0.1:1080 { users "users.txt" }
        match any -> direct
        """,
        box,
    )
    url = f"http://{WEB}:{web.port}/"
    proxy = f"http://127.0.0.1:{port}"
    right = curl(box, "-x", proxy, "--proxy-user", "ada:lovelace-1815", url)
    assert (right.returncode, right.stdout) == (0, b"web"), right.stderr
    # Asked for by 407 first, as browsers do it: curl opens a second connection with the login.
    asked = curl(box, "-x", proxy, "--proxy-anyauth", "--proxy-user", "ada:lovelace-1815", url)
    assert (asked.returncode, asked.stdout) == (0, b"web"), asked.stderr
    for login in ("ada:wrong", "bob:lovelace-1815", ":"):
        refused = curl(box, "-v", "-x", proxy, "--proxy-user", login, url)
        assert refused.returncode == 56, refused.stderr
        assert b"HTTP/1.1 407 " in refused.stderr
    assert b"HTTP/1.1 407 " in curl(box, "-v", "-x", proxy, url).stderr
    if port == 1080:
        socks = curl(box, "-x", f"socks5h://ada:lovelace-1815@127.0.0.1:{port}", url)
        assert (socks.returncode, socks.stdout) == (0, b"web"), socks.stderr
        assert curl(box, "-x", f"socks5h://127.0.0.1:{port}", url).returncode == 97
    assert web.accepted == 2 + (port == 1080)
    assert "lovelace" not in relay.output + relay.log.read_text()


def test_bytes_sent_behind_the_request_are_kept(box: Namespace, stack: ExitStack, serve: Serve) -> None:
    server = stack.enter_context(peers.Server(box.listen("::"), peers.echo))
    serve(POLICY, box)
    with box.connect("127.0.0.1", 3128) as sock:
        sock.sendall(f"CONNECT {WEB}:{server.port} HTTP/1.0\r\n\r\n".encode() + b"\r\n\r\nearly data")
        sock.shutdown(socket.SHUT_WR)
        assert peers.drain(sock) == b"HTTP/1.1 200 Connection Established\r\n\r\n\r\n\r\nearly data"


# --- out


@pytest.mark.peer("tinyproxy")
def test_a_real_http_proxy_is_a_way_out(net: Network, stack: ExitStack, serve: Serve, tmp_path: Path) -> None:
    """tinyproxy with a login; what the server says first arrives, and names are sent as they are."""
    near, far = net.namespace("near"), net.namespace("far")
    net.wire(near, far, ["10.0.1.1/24"], ["10.0.1.2/24"])
    far.address("lo", f"{WEB}/32")
    stack.callback(programs.tinyproxy(tmp_path, far, "10.0.1.2", 8888, "ada lovelace1815").stop)
    web = stack.enter_context(peers.Server(far.listen(WEB), peers.web("far")))
    speaker = stack.enter_context(peers.Server(far.listen(WEB), peers.says("220 ready\r\n")))
    relay = serve(
        f"""\
        listen both = mixed 127.0.0.1:1080
        listen mail = forward 127.0.0.1:2525 to {WEB}:{speaker.port}
        upstream corp = http 10.0.1.2:8888 {{ login env CORP_LOGIN }}
        upstream anon = http 10.0.1.2:8888
        match any -> via corp
        match 192.0.2.0/24 -> via anon
        """,
        near,
        env={"CORP_LOGIN": "ada:lovelace1815"},
    )
    for proxy in ("http://127.0.0.1:1080", "socks5h://127.0.0.1:1080"):
        got = curl(near, "-x", proxy, f"http://{WEB}:{web.port}/1000000")
        assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr
    for _ in range(20):
        with near.connect("127.0.0.1", 2525) as sock:
            assert peers.drain(sock) == b"220 ready\r\n"
    assert b"502" in curl(near, "-x", "http://127.0.0.1:1080", "http://192.0.2.1/").stderr
    records = relay.records(23)
    assert {record["upstream"] for record in records[:22]} == {"corp"}
    assert {record["end"] for record in records[:22]} == {"eof"}
    assert records[22]["error"] == "upstream `anon`: it asks for a login (HTTP 407)"
    assert "lovelace" not in relay.output + relay.log.read_text()


@pytest.mark.peer("tinyproxy")
@pytest.mark.peer("danted")
def test_a_chain_of_dante_tinyproxy_and_another_urelay(
    net: Network, stack: ExitStack, serve: Serve, tmp_path: Path
) -> None:
    """Each knows its neighbours only; the last one's refusal comes back through all of them."""
    near, one, two, three, files = (
        net.namespace(label) for label in ("near", "one", "two", "three", "files")
    )
    net.wire(near, one, ["10.0.1.1/24"], ["10.0.1.2/24"])
    net.wire(one, two, ["10.0.2.1/24"], ["10.0.2.2/24"])
    net.wire(two, three, ["10.0.3.1/24"], ["10.0.3.2/24"])
    net.wire(three, files, ["203.0.113.1/24"], ["203.0.113.10/24"])
    stack.callback(programs.dante(tmp_path, one, "10.0.1.2", 1080, "two").stop)
    stack.callback(programs.tinyproxy(tmp_path, two, "10.0.2.2", 8888).stop)
    web = stack.enter_context(peers.Server(files.listen("203.0.113.10"), peers.web("files")))
    users_file(tmp_path)
    serve(
        """\
        listen proxy = http 10.0.3.2:3128 { users "users.txt" }
        match 203.0.113.10 -> direct
        """,
        three,
        name="three.urr",
    )
    relay = serve(
        """\
        listen proxy = http 127.0.0.1:3128
        upstream first  = socks5 10.0.1.2:1080
        upstream second = http 10.0.2.2:8888 { via first }
        upstream third  = http 10.0.3.2:3128 { via second, login env LOGIN }
        match any -> via third
        """,
        near,
        env={"LOGIN": "ada:lovelace-1815"},
    )
    proxy = ("-x", "http://127.0.0.1:3128")
    got = curl(near, *proxy, f"http://203.0.113.10:{web.port}/1000000")
    assert (got.returncode, got.stdout) == (0, peers.position_coded(1_000_000)), got.stderr
    assert b"403" in curl(near, *proxy, "http://203.0.113.11/").stderr
    assert b"502" in curl(near, *proxy, "http://203.0.113.10:9/").stderr
    fetched, denied, refused = relay.records(3)
    assert (fetched["upstream"], fetched["end"]) == ("third", "eof")
    assert (denied["end"], refused["end"]) == ("denied", "refused")
    assert refused["error"] == "upstream `third`: connection refused (HTTP 502)"


@pytest.mark.peer("tinyproxy")
def test_the_policy_that_ships(net: Network, stack: ExitStack, serve: Serve, tmp_path: Path) -> None:
    """rules/proxy.urr as it is but for the address of its proxy: in by either protocol, out by CONNECT."""
    clients, gate, far = (net.namespace(label) for label in ("clients", "gate", "far"))
    net.wire(clients, gate, ["10.0.1.1/24"], ["10.0.1.2/24"])
    net.wire(gate, far, ["192.0.2.1/24"], ["192.0.2.10/24"])
    far.address("lo", "203.0.113.80/32")
    stack.callback(programs.tinyproxy(tmp_path, far, "192.0.2.10", 3128, "relay s3cret").stop)
    web = stack.enter_context(peers.Server(far.listen("203.0.113.80", 80), peers.web("far")))
    users_file(tmp_path)
    text = (ROOT / "rules/proxy.urr").read_text(encoding="utf-8")
    relay = serve(text, gate, name="proxy.urr", env={"CORP_LOGIN": "relay:s3cret"})
    for way in ("http", "socks5h"):
        login = ("--proxy-user", "ada:lovelace-1815", "-x", f"{way}://10.0.1.2:3128")
        got = curl(clients, *login, "http://203.0.113.80/1000")
        assert (got.returncode, got.stdout) == (0, peers.position_coded(1000)), got.stderr
        assert curl(clients, *login, "http://203.0.113.80:22/").returncode in (56, 97)
    assert web.hosts() == ["203.0.113.80"] * 2
    assert [record["upstream"] for record in relay.records(4)] == ["corp", None] * 2
