"""What was found, as a reader wants it: tables with ratios, then the bars.

A ratio is taken within each round, and the median of those is what counts. A shared machine is a third slower
in one round than in the next: both contenders of a round see the same machine, but the medians of each alone
may be of a fast round and of a slow one. HAProxy is the one to be compared with: as it is shipped for
connections, latency and memory, tuned for bulk.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from tests.bench.contenders import ALL
from tests.bench.measure import Report
from tests.bench.rounds import PARTS, Found, medians


class Column(NamedTuple):
    """A figure in a table."""

    head: str
    key: str
    form: str
    compared: bool = True
    """Whether its ratio to others means anything"""


_BUSY = Column("load busy", "busy", ".0%", compared=False)
_RATE = (Column("conn/s", "rate", ",.0f"), Column("CPU µs", "cpu", ",.1f"), _BUSY)
_BULK = (Column("GB/s", "rate", ".2f"), Column("CPU s/GB", "cpu", ".3f"), _BUSY)
_COLUMNS: dict[str, tuple[Column, ...]] = {
    "rate": _RATE,
    "bulk, 1 stream": _BULK,
    "bulk, 8 streams": _BULK,
    "latency": (Column("p50 µs", "p50", ",.1f"), Column("p99 µs", "p99", ",.1f")),
    "idle": (
        Column("KiB", "kib", ",.2f"),
        Column("pipe ends", "pipes", ".2f", compared=False),
        Column("held", "held", ",.0f", compared=False),
    ),
}
_REFERENCE = {"bulk, 1 stream": "haproxy tuned", "bulk, 8 streams": "haproxy tuned"}
"""Beside whom a part is put; else HAProxy as shipped"""


def show(report: Report, name: str, found: Found) -> None:
    """The tables of a measure: the median of every figure, then its ratio to no relay and to HAProxy."""
    figures = medians(found)
    for part in PARTS[name]:
        columns = _COLUMNS[part]
        ratios = [
            (column, other)
            for other in ("direct", _REFERENCE.get(part, "haproxy"))
            for column in columns
            if column.compared and figures.get(other, {}).get(part, {}).get(column.key)
        ]
        heads = [column.head for column in columns]
        heads += [f"{column.head} / {other}" for column, other in ratios]
        rows = []
        for contender in ALL:
            row = figures.get(contender.name, {}).get(part)
            if row:
                cells = [format(row[column.key], column.form) for column in columns]
                for column, other in ratios:
                    cells.append(format(_ratio(found, part, column.key, contender.name, other), ".2f"))
                rows.append([contender.name, *cells])
        report.table(part, heads, rows)


def _ratio(found: Found, part: str, key: str, name: str, other: str) -> float:
    """The median of the rounds in which both took part."""
    rounds = zip(found[name][part], found[other][part], strict=False)  # who fails later has fewer
    return statistics.median(one[key] / against[key] for one, against in rounds if against[key])


def judge(report: Report, found: Found) -> None:
    """The bars, as far as both sides were measured."""
    figures = medians(found)
    for bar in BARS:
        others = [
            name
            for name, row in figures.items()
            if row.get(bar.part, {}).get(bar.key) and _is(name, bar.against)
        ]
        if others and bar.key in figures.get(bar.who, {}).get(bar.part, {}):
            ratios = [_ratio(found, bar.part, bar.key, bar.who, other) for other in others]
            report.ratio(f"{bar.who}: {bar.what} / {bar.against}", min(ratios), bar.bound, least=bar.least)
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
