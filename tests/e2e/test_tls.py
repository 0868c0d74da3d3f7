"""TLS with real servers: nginx, `openssl s_server` and HAProxy; the clients speak plainly."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.relay import serve_command
from tests.e2e.rig import Namespace, Network, Program
from tests.engine.tls_peers import Authority

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
    """nginx on port 443: `/hello` is itself, `/data` a file of two megabytes."""
    (folder / "data").write_bytes(peers.position_coded(2_000_000))
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; user root; pid {folder}/nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n"
        f"fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n"
        f"server {{ listen {FAR}:443 ssl; ssl_certificate {pem}; ssl_certificate_key {pem};\n"
        f"location = /hello {{ return 200 nginx; }} location = /data {{ root {folder}; }} }} }}\n"
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


def test_a_missing_authority_is_told_at_start(tmp_path: Path) -> None:
    policy = tmp_path / "p.urr"
    policy.write_text('upstream web = direct { tls, ca "nowhere.pem" }\nmatch any -> via web\n')
    done = subprocess.run(serve_command(policy), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "cannot read the certificates in" in done.stderr
    assert "nowhere.pem: no such file or directory" in done.stderr
