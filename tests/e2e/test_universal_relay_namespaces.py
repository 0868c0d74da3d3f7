"""What is dialled in a namespace, with the real Universal Relay and with us: the same requests leave it.

What it needs is in tests/e2e/universal.py; without it every test here is skipped. Universal Relay has no
policy: here it is put together from its parts, as its own examples are, with a table of filters or of names.
Rows 1, 4, 5, 21 and 34 of the table in tests/README.md.
"""

from __future__ import annotations

import json
import socket

import pytest

from tests.conftest import origin
from tests.e2e import peers
from tests.e2e.conftest import Serve
from tests.e2e.rig import Namespace, Network
from tests.e2e.universal import FOLDER, WEB, Lab, lab, reached, whereabouts
from tests.engine.tls_peers import Authority

__all__ = ["lab"]

pytestmark = [pytest.mark.netns, pytest.mark.origin(FOLDER)]

# As its exampleWithFilters.js is built: to a SOCKS server, through filters.
SEED = """
const [folder, path, table] = process.argv.slice(2);
const urelay = require(folder + '/src');
const rewrite = require(folder + '/src/filters/simpleIPRewrite.js');
const deeds = {
    block: () => rewrite.makeBlock(),
    clat: (to) => rewrite.makeNAT64(to, true),
    plat: () => rewrite.makeNAT64(null, false),
    to: (to) => async (data) => { data.host = to; data.hostBuf = null; },
};
const filters = JSON.parse(table).map(([prefix, deed, to]) => {
    const [first, length] = urelay.endpoint.ofPrefix(prefix);
    const contains = (x) => new urelay.endpoint.Endpoint().setIPString(x).getHostNR(first, length) >= 0n;
    const six = prefix.includes(':');
    return {ipv4: !six, ipv6: six, cidrPrefix: {contains}, filter: deeds[deed](to)};
});
const serve = urelay.server_generic.make_server(
    urelay.transparent_server.transparent_server,
    rewrite.makeSimpleIPRewrite(filters),
    urelay.socks_server.make_socks_client({path}),
);
"""
# As its connFuncType `directTLS` is used: the client speaks plainly, the server TLS.
ENCRYPTED = """
const [folder, authority, table] = process.argv.slice(2);
const urelay = require(folder + '/src');
const ca = require('fs').readFileSync(authority);
const names = JSON.parse(table);
const encrypt = async (asked) => {
    const target = urelay.endpoint.fromCRAreq(asked.req);
    target.options_map_.set('!connFuncType', 'directTLS');
    target.options_map_.set('!tls_options', {ca, servername: names[target.getIPString()]});
    asked.req = [target.toCRAreq()];
    return null;
};
const serve = urelay.server_generic.make_server(
    urelay.transparent_server.transparent_server, encrypt, urelay.dns_he.simple_connect_HE
);
"""
LISTEN = """
const fd = process.env.CTRTOOL_NS_OPEN_FILE_FD_1;
require('net').createServer({pauseOnConnect: true, allowHalfOpen: true}, serve)
    .listen(fd ? {fd: +fd} : {host: '::', port: 80}, () => console.log('listening'));
"""
IPV6_TRANSPARENT = 75
"""linux/in6.h"""
INHERITED = "CTRTOOL_NS_OPEN_FILE_FD_1"
Filter = tuple[str, str, str | None]
FILTERS: list[Filter] = [
    ("64:ff9b::/96", "plat", None),
    ("2001:db8:65::/96", "plat", None),
    ("127.0.0.0/8", "block", None),
    ("169.254.169.254/32", "block", None),
    ("::1/128", "block", None),
    ("172.21.21.22/32", "to", "2001:db8::2961"),
    ("fd00::1000/128", "to", "203.0.113.66"),
    ("192.168.100.0/24", "clat", "2001:db8:64::"),
]
THE_SAME = """\
upstream out = socks5 { unix "out.sock" }
match any              -> via out
match 64:ff9b::/96     -> rewrite from nat64 64:ff9b::/96 then lookup main
match 2001:db8:65::/96 -> rewrite from nat64 2001:db8:65::/96 then lookup main
match 127.0.0.0/8      -> deny
match 169.254.169.254  -> deny
match ::1              -> deny
match 172.21.21.22     -> rewrite to 2001:db8::2961 then lookup main
match fd00::1000       -> rewrite to 203.0.113.66 then lookup main
match 192.168.100.0/24 -> rewrite to nat64 2001:db8:64::/96 then lookup main
"""
TAKEN = (80, 443, 65000)
TPROXY = f"""
table inet relay {{
    chain in {{
        type filter hook prerouting priority mangle; policy accept;
        meta nfproto ipv4 tcp dport {{ {", ".join(map(str, TAKEN))} }} tproxy ip to :1 accept
        meta nfproto ipv6 tcp dport {{ {", ".join(map(str, TAKEN))} }} tproxy ip6 to :1 accept
    }}
}}
"""
DIALLED = {
    "203.0.113.9": "01 cb007109 0050",
    "2001:db8::5": "04 20010db8000000000000000000000005 0050",
    "10.0.0.1": "01 0a000001 0050",
    "172.21.21.22": "04 20010db8000000000000000000002961 0050",
    "172.21.21.23": "01 ac151517 0050",
    "fd00::1000": "01 cb007142 0050",
    "fd00::1001": "04 fd000000000000000000000000001001 0050",
    "192.168.100.1": "04 20010db80064000000000000c0a86401 0050",
    "64:ff9b::808:808": "01 08080808 0050",
    "2001:db8:65::c000:201": "01 c0000201 0050",
    "2001:db8:65::c0a8:6401": "04 20010db80064000000000000c0a86401 0050",
    "127.0.0.1": None,
    "127.1.2.3": None,
    "169.254.169.254": None,
    "::1": None,
    "64:ff9b::7f00:1": None,
    "2001:db8:65::7f00:1": None,
    "2001:db8:65::a9fe:a9fe": None,
}
"""What is dialled, and the request that the SOCKS server gets, but for its first three bytes"""
NEVER_CARRIED = {"64:ff9b::c000:201": "01 c0000201 0050", "64:ff9b::a01:203": "01 0a010203 0050"}
"""It asks for these, we do not: the well-known prefix carries global addresses only (RFC 6052, 3.1)"""


def listener(port: int) -> socket.socket:
    """A socket for every address, by TPROXY too, in the namespace of the calling thread."""
    sock = socket.socket(socket.AF_INET6)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    sock.bind(("::", port))
    sock.listen()
    return sock


def recorder(sock: socket.socket) -> None:
    """A SOCKS5 server that says, as the destination, what it was asked for: its own request."""
    assert peers.read_exactly(sock, 3) == b"\5\1\0"
    sock.sendall(b"\5\0")
    head = peers.read_exactly(sock, 4)
    asked = head + peers.read_exactly(sock, {1: 4, 4: 16}[head[3]] + 2)
    # The reply comes in one piece with what the destination says first.
    sock.sendall(b"\5\0\0\1" + bytes(6) + asked)
    sock.shutdown(socket.SHUT_WR)
    peers.drain(sock)


def whole(request: str | None) -> bytes:
    """The request as the recorder says it; nothing for one that was not made."""
    return b"" if request is None else bytes.fromhex("050100" + request)


def put_together(
    lab: Lab, netns: Namespace, script: str, *arguments: str, inherited: socket.socket | None = None
) -> None:
    """Starts it in a namespace, on port 80 of every address there or on a socket that is handed to it."""
    path = lab.folder / "relay.js"
    path.write_text(script + LISTEN)
    argv = (str(path), str(origin(FOLDER)), *arguments)
    if inherited is None:
        program = lab.node(netns, *argv)
    else:
        number = inherited.fileno()
        program = lab.node(netns, *argv, env={INHERITED: str(number)}, pass_fds=[number])
    program.wait_line("listening")


@pytest.fixture
def twins(net: Network) -> tuple[Namespace, Namespace]:
    """Two namespaces alike: everything is local."""
    made = (net.namespace("theirs"), net.namespace("ours"))
    for netns in made:
        netns.everything_is_local()
    return made


def test_the_same_addresses_dialled_through_both(
    lab: Lab, twins: tuple[Namespace, Namespace], serve: Serve
) -> None:
    """IPv4 reaches a listener for both families, and is asked for as IPv4."""
    theirs, ours = twins
    lab.unix_server("out.sock", recorder)
    put_together(lab, theirs, SEED, lab.path("out.sock"), json.dumps(FILTERS))
    serve(f"listen lan = transparent [::]:80 {{ netns {ours.name} }}\n{THE_SAME}", lab.box)
    asked = {address: (request, request) for address, request in DIALLED.items()}
    asked |= {address: (request, None) for address, request in NEVER_CARRIED.items()}
    made = {address: (reached(theirs, address, 80), reached(ours, address, 80)) for address in asked}
    assert made == {address: tuple(map(whole, requests)) for address, requests in asked.items()}


@pytest.mark.peer("nft")
def test_the_same_ports_by_tproxy(lab: Lab, twins: tuple[Namespace, Namespace], serve: Serve) -> None:
    """One socket that was opened for each of us, as ctrtool opens it; the rule brings it every port."""
    sockets = []
    for netns in twins:
        netns.nft(TPROXY)
        sockets.append(lab.stack.enter_context(netns.call(lambda: listener(1))))
    lab.unix_server("out.sock", recorder)
    filters = json.dumps(FILTERS)
    put_together(lab, twins[0], SEED, lab.path("out.sock"), filters, inherited=sockets[0])
    number = sockets[1].fileno()
    serve(
        f"listen lan = transparent fd env {INHERITED}\n{THE_SAME}",
        lab.box,
        env={INHERITED: str(number)},
        pass_fds=[number],
    )
    for port in TAKEN:
        for address, request in (
            ("203.0.113.9", f"01 cb007109 {port:04x}"),
            ("2001:db8::5", f"04 20010db8000000000000000000000005 {port:04x}"),
            ("192.168.100.1", f"04 20010db80064000000000000c0a86401 {port:04x}"),
        ):
            assert [reached(netns, address, port) for netns in twins] == [whole(request)] * 2, (address, port)


def test_it_sends_a_namespace_out_through_us(lab: Lab, net: Network, serve: Serve) -> None:
    """The setting it was written for, with us where `ssh -D` was."""
    inside = net.namespace("inside")
    inside.everything_is_local()
    relay = serve('listen socks = socks unix "ours.sock"\nmatch any -> direct\n', lab.box)
    put_together(lab, inside, SEED, lab.path("ours.sock"), "[]")
    addresses = ["203.0.113.9", "2001:db8::5"]
    assert [reached(inside, a, 80).decode() for a in addresses] == [f"{a} {WEB}" for a in addresses]
    assert [record["destination"] for record in relay.records(2)] == addresses


@pytest.mark.peer("openssl")
def test_the_same_tls_server_for_plain_clients(
    lab: Lab, twins: tuple[Namespace, Namespace], serve: Serve
) -> None:
    """Both check the certificate for the client: who has another name is not spoken to."""
    theirs, ours = twins
    authority = Authority(lab.folder)
    context = authority.server("DNS:far.test")

    def encrypted(sock: socket.socket) -> None:
        sock.settimeout(20)
        with context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(whereabouts(tls).encode())
            tls.unwrap()

    lab.stack.enter_context(peers.Server(lab.out.listen("::", 443), encrypted))
    names = {"203.0.113.9": "far.test", "2001:db8::9": "far.test", "203.0.113.10": "other.test"}
    taken = lab.stack.enter_context(theirs.call(lambda: listener(443)))
    table = (str(authority.certificate), json.dumps(names))
    put_together(lab, lab.box, ENCRYPTED, *table, inherited=taken)
    serve(
        f"""\
        listen lan = transparent [::]:443 {{ netns {ours.name} }}
        upstream far   = direct {{ tls, ca "ca.pem", server-name far.test }}
        upstream other = direct {{ tls, ca "ca.pem", server-name other.test }}
        match any -> via far
        match 203.0.113.10 -> via other
        """,
        lab.box,
    )
    made = {address: [reached(netns, address, 443).decode() for netns in twins] for address in names}
    assert made == {
        "203.0.113.9": ["203.0.113.9 443"] * 2,
        "2001:db8::9": ["2001:db8::9 443"] * 2,
        "203.0.113.10": ["", ""],
    }
