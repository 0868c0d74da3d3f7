"""The relays side by side: connection rate, bulk, latency and idle memory, in one run.

All contenders are up at once and take turns: every round measures each of them once, in another order,
and a figure is the median of the rounds. So whatever else the machine does falls on all of them. A bar is
a ratio between two contenders of the same run.

The relay has one core and the load (clients and servers) the other; for the latency of a single byte all are
on the relay's core, or the time a sleeping core takes to wake would be most of what is seen.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.contenders import ALL, DEBIAN, PYPI, WORK, Contender, Missing, version
from tests.bench.measure import Report, machine
from tests.bench.stage import Failed, Running, Stage, one_line

Row = dict[str, float]
"""What one round found out about one contender"""

Figures = dict[str, dict[str, Row]]
"""The medians of a contender's rows, by part"""


class Scale(NamedTuple):
    """How much a round does."""

    rounds: int
    seconds: float
    pings: int
    flight: int = 64
    held: int = 9000


FULL = Scale(rounds=5, seconds=1.0, pings=5000)
QUICK = Scale(rounds=3, seconds=0.5, pings=2000)


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments ask for; exit status 1 when a bar was missed."""
    options = _options(arguments)
    if options.install:
        install()
    scale = QUICK if options.quick else FULL
    scale = scale._replace(rounds=options.rounds or scale.rounds, held=options.held)
    report = Report()
    with Stage() as stage:
        lacking: dict[str, str] = {}
        running = start_all(stage, [one for one in ALL if _wanted(one, options.only)], lacking)
        head = header(stage, running)
        print("\n".join(head), end="\n\n")
        found = measure(stage, running, options.measure, scale, lacking)
    figures = medians(found)
    for name in options.measure:
        show(report, name, figures)
    judge(report, figures)
    for name, why in lacking.items():
        report.skipped(name, why)
    print("\n" + machine())
    options.json.parent.mkdir(parents=True, exist_ok=True)
    content = {"about": head, "medians": figures, "rounds": found, "skipped": lacking, "bars": report.bars}
    options.json.write_text(json.dumps(content, indent=1) + "\n")
    return report.status()


# --- measuring


def start_all(stage: Stage, wanted: Iterable[Contender], lacking: dict[str, str]) -> list[Running]:
    """The contenders that are here and work; the others go to `lacking` with the reason."""
    running = []
    for contender in wanted:
        try:
            running.append(stage.start(contender))
        except (Missing, Failed) as error:
            lacking[contender.name] = one_line(error)
    return running


def measure(
    stage: Stage, running: list[Running], names: Sequence[str], scale: Scale, lacking: dict[str, str]
) -> dict[str, dict[str, list[Row]]]:
    """The rows of each contender, by part. Whoever fails is named in `lacking` and out of that part."""
    found: dict[str, dict[str, list[Row]]] = {one.contender.name: {} for one in running}
    parts = [part for name in names for part in PARTS[name]]
    failed: set[tuple[str, str]] = set()
    shuffle = random.Random(0).shuffle
    for _ in range(scale.rounds):
        for part in parts:
            shuffle(running)
            for one in running:
                name = one.contender.name
                if (name, part) in failed:
                    continue
                try:
                    row = _TAKE[part](stage, one, scale)
                    found[name].setdefault(part, []).append(row)
                except Failed as error:
                    failed.add((name, part))
                    found[name].pop(part, None)
                    lacking[f"{name}, {part}"] = one_line(error)
                    one.restart()
    return found


def _rate(stage: Stage, one: Running, scale: Scale) -> Row:
    got = one.ask("rate", seconds=scale.seconds, flight=scale.flight)
    count = got["connections"]
    return {"rate": count / got["seconds"], "cpu": got["cpu_ns"] / count / 1000, "busy": got["busy"]}


def _bulk(streams: int) -> Callable[[Stage, Running, Scale], Row]:
    def take(stage: Stage, one: Running, scale: Scale) -> Row:
        got = one.ask("bulk", streams=streams, seconds=scale.seconds)
        count = got["bytes"] / 1e9
        return {"rate": count / got["seconds"], "cpu": got["cpu_ns"] / 1e9 / count, "busy": got["busy"]}

    return take


def _latency(stage: Stage, one: Running, scale: Scale) -> Row:
    got = one.ask("latency", count=scale.pings, core=stage.relay_core)
    return {"p50": got["p50"], "p99": got["p99"], "cpu": got["cpu_ns"] / scale.pings / 1000}


def _idle(stage: Stage, one: Running, scale: Scale) -> Row:
    """A process that has just started: one that has carried load keeps what it once needed."""
    if one.group is None:
        return {}
    one.restart()
    resident, pipes = one.group.resident(), one.group.pipes()
    one.ask("hold", count=scale.held, flight=scale.flight)
    try:
        kib = (one.group.resident() - resident) / 1024
        return {"kib": kib / scale.held, "pipes": (one.group.pipes() - pipes) / scale.held}
    finally:
        one.ask("drop")
        one.restart()


PARTS = {
    "rate": ("rate",),
    "bulk": ("bulk, 1 stream", "bulk, 8 streams"),
    "latency": ("latency",),
    "idle": ("idle",),
}
_TAKE: dict[str, Callable[[Stage, Running, Scale], Row]] = {
    "rate": _rate,
    "bulk, 1 stream": _bulk(1),
    "bulk, 8 streams": _bulk(8),
    "latency": _latency,
    "idle": _idle,
}


def medians(found: Mapping[str, Mapping[str, list[Row]]]) -> Figures:
    """The median of every figure."""
    return {
        name: {
            part: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for part, rows in parts.items()
        }
        for name, parts in found.items()
    }


# --- showing


def header(stage: Stage, running: Iterable[Running]) -> list[str]:
    """Date, machine, versions, and who is on which core."""
    versions = {one.contender.program: version(one.contender) for one in running if one.contender.program}
    load = "the load and the servers" if stage.load_core != stage.relay_core else "and the load too"
    return [
        f"{time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC, Linux {platform.release()}, {machine()}",
        ", ".join(f"{name} {told}" for name, told in versions.items()),
        f"the relay on core {stage.relay_core}, {load} on core {stage.load_core}; for latency all on core"
        f" {stage.relay_core}",
    ]


class Column(NamedTuple):
    """A figure in a table."""

    head: str
    key: str
    form: str


_RATE = (Column("conn/s", "rate", ",.0f"), Column("CPU µs", "cpu", ",.1f"))
_BULK = (Column("GB/s", "rate", ".2f"), Column("CPU s/GB", "cpu", ".3f"))
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "rate": _RATE,
    "bulk, 1 stream": _BULK,
    "bulk, 8 streams": _BULK,
    "latency": (Column("p50 µs", "p50", ",.1f"), Column("p99 µs", "p99", ",.1f")),
    "idle": (Column("KiB", "kib", ",.2f"), Column("pipe ends", "pipes", ".2f")),
}
_REFERENCE = {"bulk, 1 stream": "haproxy tuned", "bulk, 8 streams": "haproxy tuned"}
"""Beside whom a part is put; else HAProxy as shipped"""


def show(report: Report, name: str, figures: Figures) -> None:
    """The tables of a measure: every figure, its ratio to no relay and to HAProxy, the load's core."""
    for part in PARTS[name]:
        columns = _COLUMNS[part]
        beside = {"direct": "direct", _REFERENCE.get(part, "haproxy"): _REFERENCE.get(part, "haproxy")}
        heads = [column.head for column in columns]
        heads += [f"{column.head} / {other}" for other in beside for column in columns]
        rows = []
        for contender in ALL:
            row = figures.get(contender.name, {}).get(part)
            if not row:
                continue
            cells = [format(row[column.key], column.form) for column in columns]
            for other in beside:
                against = figures.get(other, {}).get(part) or {}
                cells += [_ratio(row[column.key], against.get(column.key)) for column in columns]
            cells.append(f"{row['busy']:.0%}" if "busy" in row else "-")
            rows.append([contender.name, *cells])
        report.table(part, [*heads, "load busy"], rows)


def _ratio(figure: float, against: float | None) -> str:
    return f"{figure / against:.2f}" if against else "-"


# --- the bars


def judge(report: Report, figures: Figures) -> None:
    """The bars, as far as both sides were measured."""
    for bar in BARS:
        ours = figures.get(bar.who, {}).get(bar.part, {}).get(bar.key)
        theirs = [
            row[bar.part][bar.key]
            for name, row in figures.items()
            if bar.part in row and bar.key in row[bar.part] and _is(name, bar.against)
        ]
        if ours is not None and theirs:
            report.ratio(
                f"{bar.who}: {bar.what} / {bar.against}", ours / max(theirs), bar.bound, least=bar.least
            )
    for who in ("urelay forward", "urelay transparent"):
        idle = figures.get(who, {}).get("idle")
        if idle:
            report.bar(f"{who}: resident an idle connection", idle["kib"], 2.0, "KiB")
            report.bar(f"{who}: pipe ends held by an idle connection", idle["pipes"], 0.0, "")


class Bar(NamedTuple):
    """A figure of ours beside the same of another."""

    who: str
    what: str
    part: str
    key: str
    against: str
    bound: float
    least: bool = False
    """Our figure is at least so much of the other, not at most"""


_BEST = "the best peer"


def _bars() -> Iterator[Bar]:
    for who in ("urelay forward", "urelay transparent"):
        yield Bar(who, "CPU a connection", "rate", "cpu", "haproxy", 1.15)
        yield Bar(who, "CPU a connection", "rate", "cpu", "sing-box direct", 0.65)
    yield Bar(
        "urelay transparent via socks5", "CPU a connection", "rate", "cpu", "sing-box socks via socks5", 1.0
    )
    for who in ("urelay forward", "urelay transparent"):
        for part in PARTS["bulk"]:
            yield Bar(who, f"{part}, CPU a GB", part, "cpu", "haproxy tuned", 1.2)
            yield Bar(who, f"{part}, GB/s", part, "rate", _BEST, 0.95, least=True)
        yield Bar(who, "latency p99", "latency", "p99", "haproxy", 1.05)


BARS = tuple(_bars())


def _is(name: str, against: str) -> bool:
    if against == _BEST:
        return name != "direct" and not name.startswith("urelay")
    return name == against


# --- the command


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench peers", description=__doc__)
    parser.add_argument("--install", action="store_true", help="install the peers on Debian first (root)")
    parser.add_argument(
        "--only", type=_list, default=[], metavar="NAMES", help="these; `urelay` is all of urelay"
    )
    parser.add_argument("--measure", type=_measures, default=list(PARTS), metavar=",".join(PARTS))
    parser.add_argument("--rounds", type=int, metavar="N", help="the default is 5")
    parser.add_argument("--quick", action="store_true", help="3 short rounds: for a look, not for the record")
    parser.add_argument("--held", type=int, default=9000, metavar="N", help="idle connections (9000)")
    parser.add_argument("--json", type=Path, default=WORK / "peers.json", metavar="FILE")
    return parser.parse_args(arguments)


def _list(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


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
