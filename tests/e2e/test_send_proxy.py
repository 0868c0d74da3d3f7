"""`send-proxy`: HAProxy, nginx and another urelay know the client behind the relay.

inside ---- box (the relay) ---- out (HAProxy, nginx, another relay)
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e import peers, programs
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network, Program

pytestmark = pytest.mark.netns

INSIDE, BOX, NEAR, OUT = "192.0.2.2", "192.0.2.1", "198.51.100.1", "198.51.100.80"


class Lab:
    """The three namespaces; who goes out comes from NEAR, unless a header says otherwise."""

    def __init__(self, net: Network) -> None:
        self.inside, self.box, self.out = (net.namespace(name) for name in ("inside", "box", "out"))
        net.wire(self.inside, self.box, (f"{INSIDE}/24",), (f"{BOX}/24",))
        net.wire(self.box, self.out, (f"{NEAR}/24",), (f"{OUT}/24",))


@pytest.fixture
def lab(net: Network) -> Lab:
    return Lab(net)


def ask(netns: Namespace, host: bytes, port: int) -> str:
    """What a web server that is asked for through the relay's SOCKS listener says."""
    with netns.connect(BOX, 1080) as sock:
        assert peers.socks5(sock, host, port) == 0
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return peers.drain(sock).partition(b"\r\n\r\n")[2].decode().strip()


def policy(version: str) -> str:
    return f"""\
        listen socks = socks {BOX}:1080
        upstream loud = direct {{ send-proxy {version} }}
        match any -> via loud
        """


@pytest.mark.peer("haproxy")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_sees_the_client_and_what_it_asked_for(
    lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path, version: str
) -> None:
    names = stack.enter_context(
        peers.NameServer(lab.box.call(lambda: peers.datagram("127.0.0.1")), {"web.example": (OUT,)})
    )
    server = programs.haproxy(
        tmp_path,
        lab.out,
        """\
        listen web
            bind :8080 accept-proxy
            mode http
            http-request return status 200 content-type text/plain lf-string "SEEN"
        """.replace("SEEN", "%[src] %[dst]:%[dst_port] <%[fc_pp_authority]>"),
        8080,
    )
    stack.callback(server.stop)
    relay = serve(policy(version), lab.box, "--resolver", f"127.0.0.1:{names.port}")
    assert ask(lab.inside, peers.literal(OUT), 8080) == f"{INSIDE} {OUT}:8080 <>"
    name = "web.example" if version == "v2" else ""
    assert ask(lab.inside, b"web.example", 8080) == f"{INSIDE} {OUT}:8080 <{name}>"
    assert [record["upstream"] for record in relay.records(2)] == ["loud", "loud"]


@pytest.mark.peer("nginx")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nginx_sees_the_client(
    lab: Lab, stack: ExitStack, serve: Serve, tmp_path: Path, version: str
) -> None:
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; master_process off; pid {tmp_path}/nginx.pid; error_log stderr warn;\n"
        "events { worker_connections 64; }\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy;\n"
        f"fastcgi_temp_path {tmp_path}/f; uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s;\n"
        "server { listen 8081 proxy_protocol; default_type text/plain; location / {\n"
        'return 200 "$proxy_protocol_addr $proxy_protocol_server_addr:$proxy_protocol_server_port"; } } }\n'
    )
    binary = programs.find("nginx")
    assert binary is not None
    server = Program([binary, "-c", str(config), "-p", str(tmp_path), "-e", "stderr"], lab.out)
    stack.callback(server.stop)
    server.wait_listening(8081)
    serve(policy(version), lab.box)
    assert ask(lab.inside, peers.literal(OUT), 8081) == f"{INSIDE} {OUT}:8081"


def test_the_next_relay_knows_the_client_of_the_first(lab: Lab, stack: ExitStack, serve: Serve) -> None:
    """A proxy gets the header before it is asked for anything."""
    lab.out.address("lo", "203.0.113.9/32")
    stack.enter_context(peers.Server(lab.out.listen("203.0.113.9", 8080), peers.web("far")))
    far = serve(
        f"""\
        listen edge = socks {OUT}:1080 {{ accept-proxy from {NEAR} }}
        match any from {INSIDE}/32 -> direct
        """,
        lab.out,
        name="far.urr",
    )
    serve(
        f"""\
        listen socks = socks {BOX}:1080
        upstream far = socks5 {OUT}:1080 {{ send-proxy v2 }}
        match any -> via far
        """,
        lab.box,
        name="near.urr",
    )
    assert ask(lab.inside, peers.literal("203.0.113.9"), 8080) == "far"
    (record,) = far.records(1)
    assert record["source"].startswith(f"{INSIDE}:")
