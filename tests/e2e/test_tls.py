"""TLS with real servers, near and beyond real proxies; the clients speak plainly."""

from __future__ import annotations

import socket
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.relay import serve_command
from tests.e2e.rig import Namespace, Network, Program
from tests.engine.tls_peers import Authority, TlsEnd

pytestmark = [pytest.mark.netns, pytest.mark.peer("openssl")]

FAR = "203.0.113.10"


@pytest.fixture
def pair(net: Network, tmp_path: Path) -> tuple[Namespace, Namespace]:
    near, far = net.namespace("near"), net.namespace("far")
    net.wire(near, far, ["203.0.113.1/24"], [f"{FAR}/24"])
    return near, far


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def nginx(folder: Path, netns: Namespace, pem: Path) -> Program:
    """nginx on port 443, and behind PROXY headers on 444.

    `/hello` says who is announced, `/data` is a file of two megabytes. `requests` lists what was asked for.
    """
    (folder / "data").write_bytes(peers.position_coded(2_000_000))
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; user root; pid {folder}/nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 64; }\n"
        f"http {{ log_format uri $uri; access_log {folder}/requests uri;\n"
        f"client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n"
        f"server {{ listen {FAR}:443 ssl; listen {FAR}:444 ssl proxy_protocol;\n"
        f"ssl_certificate {pem}; ssl_certificate_key {pem};\n"
        'location = /hello { return 200 "$proxy_protocol_addr"; }\n'
        f"location = /data {{ root {folder}; }} }} }}\n"
    )
    binary = programs.find("nginx")
    assert binary is not None
    program = Program([binary, "-c", str(config), "-p", str(folder), "-e", "stderr"], netns)
    program.wait_listening(443)
    return program


def haproxy(folder: Path, netns: Namespace, pem: Path, behind: str) -> Program:
    """HAProxy that takes TLS off on port 1443, and goes on to `behind`."""
    config = folder / "haproxy.cfg"
    config.write_text(
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n"
        f"listen door\n bind {FAR}:1443 ssl crt {pem}\n server way {behind}\n"
    )
    binary = programs.find("haproxy")
    assert binary is not None
    program = Program([binary, "-db", "-f", str(config)], netns)
    program.wait_listening(1443)
    return program


@pytest.mark.peer("nginx")
@pytest.mark.peer("curl")
def test_a_plain_client_reads_a_web_server_that_speaks_tls(
    pair: tuple[Namespace, Namespace], stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """Row 34 of the family: the client speaks plainly, the certificate is verified for it."""
    near, far = pair
    stack.callback(nginx(tmp_path, far, authority.sign("DNS:web.example", f"IP:{FAR}")).stop)
    relay = serve(
        f"""\
        listen web   = forward 127.0.0.1:8080 to {FAR}:443
        listen named = forward 127.0.0.1:8081 to {FAR}:443
        listen wrong = forward 127.0.0.1:8082 to {FAR}:443
        upstream web   = direct {{ tls, ca "ca.pem" }}
        upstream named = direct {{ tls, ca "ca.pem", server-name web.example }}
        upstream wrong = direct {{ tls, ca "ca.pem", server-name other.example }}
        match any on web   -> via web
        match any on named -> via named
        match any on wrong -> via wrong
        """,
        near,
    )
    for port in (8080, 8081):
        got = near.run("curl", "-q", "-sS", "--max-time", "20", f"http://127.0.0.1:{port}/data")
        assert (got.returncode, got.stdout) == (0, peers.position_coded(2_000_000)), got.stderr
    got = near.run("curl", "-q", "-sS", "--max-time", "20", "http://127.0.0.1:8082/hello")
    assert got.returncode != 0
    assert not got.stdout
    records = {record["listener"]: record for record in relay.records(3)}
    assert records["web"]["dialed"] == f"{FAR}:443"
    assert records["web"]["bytes_down"] > 2_000_000
    assert "hostname mismatch" in records["wrong"]["error"]


def test_a_half_close_reaches_openssl_and_its_answer_comes_back(
    pair: tuple[Namespace, Namespace], stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    near, far = pair
    pem = authority.sign(f"IP:{FAR}")
    # -rev answers each line reversed; it ends when the client's close_notify comes.
    server = Program(
        ["openssl", "s_server", "-accept", f"{FAR}:443", "-cert", str(pem), "-key", str(pem), "-rev"], far
    )
    stack.callback(server.stop)
    server.wait_listening(443)
    relay = serve(
        f"""\
        listen web = forward 127.0.0.1:8080 to {FAR}:443
        upstream web = direct {{ tls, ca "ca.pem" }}
        match any -> via web
        """,
        near,
    )
    with near.connect("127.0.0.1", 8080) as sock:
        sock.sendall(b"hello relay\n")
        assert peers.read_exactly(sock, 12) == b"yaler olleh\n"
        sock.shutdown(1)
        assert peers.drain(sock) == b""
    (record,) = relay.records(1)
    assert (record["end"], record["bytes_up"], record["bytes_down"]) == ("eof", 12, 12)


@pytest.mark.peer("haproxy")
@pytest.mark.peer("danted")
def test_a_proxy_behind_tls(
    pair: tuple[Namespace, Namespace], stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """HAProxy takes the TLS off, dante is the proxy: as a provider would set it up."""
    near, far = pair
    stack.callback(programs.dante(tmp_path, far, "127.0.0.1", 1080, "lo").stop)
    stack.callback(haproxy(tmp_path, far, authority.sign("DNS:proxy.example"), "127.0.0.1:1080").stop)
    with peers.Server(far.listen("127.0.0.1"), peers.echo) as echo:
        relay = serve(
            f"""\
            listen socks = socks 127.0.0.1:1080
            upstream corp  = socks5 {FAR}:1443 {{ tls, ca "ca.pem", server-name proxy.example }}
            upstream wrong = socks5 {FAR}:1443 {{ tls, ca "ca.pem" }}
            match 127.0.0.1 -> via corp
            match any       -> via wrong
            """,
            near,
        )
        with near.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, peers.literal("127.0.0.1"), echo.port) == 0
            data = peers.position_coded(300_000)
            sock.sendall(data)
            sock.shutdown(1)
            assert peers.drain(sock) == data
        with near.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, peers.literal("192.0.2.1"), echo.port) == 1
        # What the proxy says of the destination comes through.
        with near.connect("127.0.0.1", 1080) as sock:
            assert peers.socks5(sock, peers.literal("127.0.0.1"), 9) == 5
    fetched, wrong, _ = relay.records(3)
    assert (fetched["end"], fetched["dialed"]) == ("eof", f"{FAR}:1443")
    assert "IP address mismatch" in wrong["error"]


# --- through proxies to the destination


@dataclass
class Beyond:
    """near - middle - far: near knows no way to far, which is middle's to reach."""

    near: Namespace
    middle: Namespace
    far: Namespace

    def curl(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """curl in `near`."""
        return self.near.run("curl", "-q", "-sS", "--max-time", "20", *words)


@pytest.fixture
def beyond(net: Network) -> Beyond:
    near, middle, far = (net.namespace(label) for label in ("near", "middle", "far"))
    net.wire(near, middle, ["10.0.1.1/24"], ["10.0.1.2/24"])
    net.wire(middle, far, ["203.0.113.1/24"], [f"{FAR}/24"])
    return Beyond(near, middle, far)


@pytest.mark.peer("nginx")
@pytest.mark.peer("danted")
@pytest.mark.peer("curl")
def test_a_web_server_beyond_a_socks_proxy(
    beyond: Beyond, stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    stack.callback(programs.dante(tmp_path, beyond.middle, "10.0.1.2", 1080, "far").stop)
    stack.callback(nginx(tmp_path, beyond.far, authority.sign("DNS:web.example", f"IP:{FAR}")).stop)
    relay = serve(
        f"""\
        listen web   = forward 127.0.0.1:8080 to {FAR}:443
        listen told  = forward 127.0.0.1:8081 to {FAR}:444
        listen wrong = forward 127.0.0.1:8082 to {FAR}:443
        listen socks = socks 127.0.0.1:1080
        upstream gone  = socks5 10.0.1.2:9
        upstream corp  = socks5 10.0.1.2:1080
        upstream out   = first gone, corp
        upstream web   = direct {{ tls, ca "ca.pem", via out }}
        upstream told  = direct {{ tls, ca "ca.pem", server-name web.example, send-proxy v2, via corp }}
        upstream wrong = direct {{ tls, ca "ca.pem", server-name other.example, via corp }}
        match any on {{ web, socks }} -> via web with log full
        match any on told             -> via told
        match any on wrong            -> via wrong
        """,
        beyond.near,
    )
    got = beyond.curl("http://127.0.0.1:8080/data")
    assert (got.returncode, got.stdout) == (0, peers.position_coded(2_000_000)), got.stderr
    got = beyond.curl("http://127.0.0.1:8081/hello")
    assert (got.returncode, got.stdout) == (0, b"127.0.0.1"), got.stderr
    got = beyond.curl("http://127.0.0.1:8082/hello")
    assert (got.returncode != 0, got.stdout) == (True, b"")
    with beyond.near.connect("127.0.0.1", 1080) as sock:
        # dante says that the destination refused, and the client hears it.
        assert peers.socks5(sock, peers.literal(FAR), 9) == 5
    records = {record["listener"]: record for record in relay.records(4)}
    assert (records["web"]["upstream"], records["web"]["dialed"]) == ("web", "10.0.1.2:1080")
    assert records["web"]["tries"] == [
        *("out by gone", "10.0.1.2:9"),
        *("out by corp", "10.0.1.2:1080", f"corp to {FAR}:443"),
    ]
    assert records["wrong"]["error"].startswith(
        f"upstream `wrong`: {FAR}:443: TLS: its certificate: hostname mismatch"
    )
    assert records["socks"]["error"] == "upstream `web`: upstream `corp`: connection refused"
    assert (tmp_path / "requests").read_text() == "/data\n/hello\n"


@pytest.mark.peer("tinyproxy")
@pytest.mark.peer("curl")
def test_a_server_that_only_an_http_proxy_can_name(
    beyond: Beyond, stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """`localhost` is the proxy's own: nobody resolves it here, and the certificate holds it."""
    stack.callback(programs.tinyproxy(tmp_path, beyond.middle, "10.0.1.2", 3128).stop)
    pem = authority.sign("DNS:localhost")
    server = Program(
        ["openssl", "s_server", "-accept", "127.0.0.1:443", "-cert", str(pem), "-key", str(pem), "-www"],
        beyond.middle,
    )
    stack.callback(server.stop)
    server.wait_listening(443)
    relay = serve(
        """\
        listen proxy = http 127.0.0.1:3128
        upstream corp = http 10.0.1.2:3128
        upstream web  = direct { tls, ca "ca.pem", via corp }
        match "localhost" -> via web
        """,
        beyond.near,
    )
    got = beyond.curl("-p", "-x", "http://127.0.0.1:3128", "http://localhost:443/")
    assert got.returncode == 0, got.stderr
    assert b"s_server -accept 127.0.0.1:443" in got.stdout
    (record,) = relay.records(1)
    assert (record["name"], record["destination"], record["end"]) == ("localhost", None, "eof")


@pytest.mark.peer("nginx")
@pytest.mark.peer("danted")
@pytest.mark.peer("tinyproxy")
@pytest.mark.peer("curl")
def test_a_web_server_beyond_a_chain(
    beyond: Beyond, stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    stack.callback(programs.dante(tmp_path, beyond.middle, "10.0.1.2", 1080, "far").stop)
    stack.callback(programs.tinyproxy(tmp_path, beyond.far, FAR, 3128).stop)
    stack.callback(nginx(tmp_path, beyond.far, authority.sign(f"IP:{FAR}")).stop)
    relay = serve(
        f"""\
        listen socks = socks 127.0.0.1:1080
        upstream first  = socks5 10.0.1.2:1080
        upstream second = http {FAR}:3128 {{ via first }}
        upstream web    = direct {{ tls, ca "ca.pem", via second }}
        match any -> via web
        """,
        beyond.near,
    )
    got = beyond.curl("-x", "socks5h://127.0.0.1:1080", f"http://{FAR}:443/data")
    assert (got.returncode, got.stdout) == (0, peers.position_coded(2_000_000)), got.stderr
    (record,) = relay.records(1)
    assert (record["upstream"], record["dialed"]) == ("web", "10.0.1.2:1080")


@pytest.mark.peer("danted")
def test_a_half_close_goes_through_the_proxy(
    beyond: Beyond, stack: ExitStack, serve: Serve, authority: Authority, tmp_path: Path
) -> None:
    """The server (the test plays it, with Python's TLS) answers only behind the end of what it hears."""
    stack.callback(programs.dante(tmp_path, beyond.middle, "10.0.1.2", 1080, "far").stop)
    context = authority.server(f"IP:{FAR}")

    def answer(sock: socket.socket) -> None:
        end = TlsEnd(sock, context).shake_hands()
        end.sendall(end.read_all()[::-1])
        end.say_goodbye()

    with peers.Server(beyond.far.listen(FAR), answer) as server:
        relay = serve(
            f"""\
            listen web = forward 127.0.0.1:8080 to {FAR}:{server.port}
            upstream corp = socks5 10.0.1.2:1080
            upstream web  = direct {{ tls, ca "ca.pem", via corp }}
            match any -> via web
            """,
            beyond.near,
        )
        data = peers.position_coded(300_000)
        with beyond.near.connect("127.0.0.1", 8080) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert peers.drain(sock) == data[::-1]
        (record,) = relay.records(1)
        assert (record["end"], record["bytes_up"], record["bytes_down"]) == ("eof", len(data), len(data))


def test_what_a_proxy_denies_is_denied_in_the_clients_words(beyond: Beyond, serve: Serve) -> None:
    serve(
        "listen socks = socks 10.0.1.2:1080\nmatch 203.0.113.99 -> direct\n", beyond.middle, name="middle.urr"
    )
    relay = serve(
        """\
        listen both = mixed 127.0.0.1:1080
        upstream corp = socks5 10.0.1.2:1080
        upstream web  = direct { tls, insecure, via corp }
        match any -> via web
        """,
        beyond.near,
    )
    with beyond.near.connect("127.0.0.1", 1080) as sock:
        assert peers.socks5(sock, peers.literal(FAR), 443) == 2
    with beyond.near.connect("127.0.0.1", 1080) as sock:
        assert peers.connect(sock, f"{FAR}:443".encode()) == 403
    for record in relay.records(2):
        assert record["error"] == "upstream `web`: upstream `corp`: its rules deny the destination"


def test_a_missing_authority_is_told_at_start(tmp_path: Path) -> None:
    policy = tmp_path / "p.urr"
    policy.write_text('upstream web = direct { tls, ca "nowhere.pem" }\nmatch any -> via web\n')
    done = subprocess.run(serve_command(policy), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot read the certificates in" in done.stderr
    assert "nowhere.pem: no such file or directory" in done.stderr
