"""The rounds: in each, every contender has some short turns, in another order each time.

So whatever else the machine does falls on all of them, and what one contender did in a round is worth
comparing with what another did in the same. A round's figure is the mean of its turns: a shared machine is
slower for seconds on end, and a median of single turns would be of the slow ones for one contender and of the
fast ones for the next. Relay CPU is what the contender's control group was charged while the job ran.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from tests.bench.contenders import Contender
from tests.bench.recipes import Missing
from tests.bench.stage import Failed, Running, Stage, one_line

Row = dict[str, float]
"""What one round found out about one contender"""

_IDLE_ROUNDS = 5
"""What a connection takes of memory is the same in every round, and takes longest to find out"""

_FEW_HELD = 1000
"""Who can hold no more connections makes processes for them"""

_LATENCY_TURNS = 3
"""So many times as of the others: one ping in a hundred meets the timer's tick, so the p99 varies most"""

Found = Mapping[str, Mapping[str, Sequence[Row]]]
"""A contender's rows, a row a round, by part"""

Figures = dict[str, dict[str, Row]]
"""The medians of a contender's rows, by part"""


class Scale(NamedTuple):
    """How much is done."""

    rounds: int
    turns: int
    """Of each contender, in each round"""
    seconds: float
    pings: int
    flight: int = 64
    held: int = 9000


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
    """The rows of each contender, by part. Whoever fails is named in `lacking` and out of that part.

    Idle memory comes last, since it starts everybody anew, and in no more than five rounds of one turn.
    """
    found: dict[str, dict[str, list[Row]]] = {one.contender.name: {} for one in running}
    parts = [part for name in names for part in PARTS[name]]
    alive = list(running)
    for group in ([part for part in parts if part != "idle"], [part for part in parts if part == "idle"]):
        rounds, turns = (_IDLE_ROUNDS, 1) if "idle" in group else (scale.rounds, scale.turns)
        for number in range(min(rounds, scale.rounds)):
            if number and "idle" not in group:
                _start_anew(alive, lacking)
            for part in group:
                many = turns * _LATENCY_TURNS if part == "latency" else turns
                for name, rows in _round(stage, alive, part, many, scale, lacking).items():
                    found[name].setdefault(part, []).append(_means(rows))
    for name, by_part in found.items():
        for part in parts:
            if f"{name}, {part}" in lacking:
                by_part.pop(part, None)
    return found


_shuffle = random.Random(0).shuffle


def _start_anew(alive: list[Running], lacking: dict[str, str]) -> None:
    """Everybody in a new process: where its memory lies is luck, which may be good or bad for a whole run.

    But not those that make processes for connections, and take long to end them all.
    """
    for one in [*alive]:
        if one.contender.held_most <= _FEW_HELD:
            continue
        try:
            one.restart()
        except Failed as error:
            lacking[one.contender.name] = one_line(error)
            alive.remove(one)


def _round(
    stage: Stage, alive: list[Running], part: str, turns: int, scale: Scale, lacking: dict[str, str]
) -> dict[str, list[Row]]:
    """What each turn of a round found; whoever cannot be started again leaves `alive`."""
    rows: dict[str, list[Row]] = {}
    for _ in range(turns):
        _shuffle(alive)
        for one in [*alive]:
            name = one.contender.name
            if f"{name}, {part}" in lacking:
                continue
            try:
                rows.setdefault(name, []).append(_TAKE[part](stage, one, scale))
            except Failed as error:
                lacking[f"{name}, {part}"] = one_line(error)
                try:
                    one.restart()
                except Failed:
                    alive.remove(one)
    return rows


def _means(rows: Sequence[Row]) -> Row:
    return {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}


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
    """In a process that has just started: one that has carried load keeps what it once needed.

    Who cannot hold as many as it should (some need ten descriptors a connection) is asked for half, and
    so on.
    """
    if one.processes is None:
        return {}
    one.carries = min(scale.held, one.carries)
    while True:
        one.restart()
        resident, pipes = one.processes.resident(), one.processes.pipes()
        try:
            one.ask("hold", count=one.carries, flight=scale.flight)
            break
        except Failed:
            if one.carries < 500:
                raise
            one.carries //= 2
    count = one.carries
    kib = (one.processes.resident() - resident) / 1024
    row = {"kib": kib / count, "pipes": (one.processes.pipes() - pipes) / count, "held": count}
    one.ask("drop")
    return row


PARTS: dict[str, tuple[str, ...]] = {
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


def medians(found: Found) -> Figures:
    """The median of every figure."""
    return {
        name: {
            part: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
            for part, rows in parts.items()
        }
        for name, parts in found.items()
    }
