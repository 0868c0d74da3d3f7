"""The relays side by side: connection rate, bulk, latency and idle memory, in one run.

All contenders are up at once and take turns: a round is a few short turns of each, in another order every
time and by a new process each round, and a figure is the median of the rounds. So whatever else the machine
does falls on all of them. A ratio is the median of the ratios of the rounds.

The relay has one core and the load (clients and servers) the other; for the latency of a single byte all are
on the relay's core, or the time a sleeping core takes to wake would be most of what is seen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.bench.bars import judge, show
from tests.bench.contenders import ALL, DEBIAN, PYPI, ROUTES, Contender, version
from tests.bench.cpu import Group
from tests.bench.measure import Report, machine
from tests.bench.recipes import WORK, descriptors
from tests.bench.rounds import PARTS, Scale, measure, medians, start_all
from tests.bench.stage import CONGESTION, Running, Stage

FULL = Scale(rounds=8, turns=5, seconds=0.12, pings=1000)
QUICK = FULL._replace(rounds=1)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for; exit status 1 when a bar was missed."""
    options = _options(arguments)
    if options.install:
        install()
    scale = QUICK if options.quick else FULL
    scale = scale._replace(rounds=options.rounds or scale.rounds, held=options.held)
    report = Report()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # namespaces must not outlive us
    with Stage((options.congestion,) if options.congestion else CONGESTION) as stage:
        lacking: dict[str, str] = {}
        running = start_all(stage, [one for one in ALL if _wanted(one, options.only)], lacking)
        head = header(stage, running)
        print("\n".join(head), end="\n\n")
        found = measure(stage, running, options.measure, scale, lacking)
    for name in options.measure:
        show(report, name, found)
    judge(report, found)
    for name, why in lacking.items():
        report.skipped(name, why)
    print("\n" + machine())
    options.json.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "about": head,
        "medians": medians(found),
        "rounds": found,
        "skipped": lacking,
        "bars": report.bars,
    }
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    return report.status()


def header(stage: Stage, running: Iterable[Running]) -> list[str]:
    """Date, machine, versions, and who is on which core."""
    peers = sorted((one.contender for one in running), key=ALL.index)
    versions = {one.package: version(one) for one in peers if one.package}
    clock = "control groups" if any(isinstance(one.processes, Group) for one in running) else "their clocks"
    load = "the load and the servers" if stage.load_core != stage.relay_core else "the load as well"
    return [
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, Linux {platform.release()}, {machine()}",
        ", ".join(f"{name} {told}" for name, told in versions.items()),
        f"relay on core {stage.relay_core}, {load} on core {stage.load_core}; for latency, all on one core",
        f"relay CPU from {clock}; {descriptors():,} descriptors a process",
        f"TCP's congestion control is {stage.congestion}",
        f"urelay with {ROUTES:,} routes and an access log; the peers without a log",
    ]


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench peers", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install the peers on Debian first (root)")
    parser.add_argument(
        "--only", type=_names, default=[], metavar="NAMES", help="these; `urelay` is all of urelay"
    )
    parser.add_argument("--measure", type=_measures, default=list(PARTS), metavar=",".join(PARTS))
    parser.add_argument("--rounds", type=_count, metavar="N", help=f"the default is {FULL.rounds}")
    parser.add_argument("--quick", action="store_true", help="one round: for a look, not for the record")
    parser.add_argument(
        "--congestion", choices=_congestion_controls(), help="of TCP; the default is cubic, else reno"
    )
    parser.add_argument("--held", type=_count, default=9000, metavar="N", help="idle connections (9000)")
    parser.add_argument("--json", type=Path, default=WORK / "peers.json", metavar="FILE")
    return parser.parse_args(arguments)


def _congestion_controls() -> list[str]:
    """Those that a new namespace may use."""
    return Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1_000_000:
        raise argparse.ArgumentTypeError(f"not a number of them: {text}")
    return int(text)


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _names(text: str) -> list[str]:
    names = _list(text)
    for name in names:
        if not any(one.name.startswith(name) for one in ALL):
            raise argparse.ArgumentTypeError(f"nobody is called {name}: {', '.join(one.name for one in ALL)}")
    return names


def _measures(text: str) -> list[str]:
    names = _list(text)
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"not a measure: {', '.join(unknown) or 'nothing'}")
    return names


def _wanted(contender: Contender, only: Sequence[str]) -> bool:
    return not only or contender.recipe is None or any(contender.name.startswith(one) for one in only)


def install() -> None:
    """Installs the peers: Debian's packages, and those of PyPI in an environment of their own."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=False)
    for package in DEBIAN:  # one by one: a package that this release lacks must not cost the others
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", package]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    if not (WORK / "venv").exists():
        subprocess.run([sys.executable, "-m", "venv", str(WORK / "venv")], check=True)
    for package in PYPI:
        subprocess.run([str(WORK / "venv/bin/pip"), "install", "--quiet", package], check=False)
