"""How the benchmarks measure and report: interleaved rounds, CPU time, and a bar with each figure.

The machine may be shared, and then the same code takes half as long again for seconds on end. So all
subjects take turns in many short rounds. A bar against another subject is about medians; one in seconds
is about the least of the rounds, which comes nearest to an undisturbed machine. Both are printed, with
the processor and the load.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Figure(NamedTuple):
    """What some rounds took."""

    least: float
    median: float

    @classmethod
    def of(cls, times: Sequence[float]) -> Figure:
        """Of one time a round."""
        return cls(min(times), statistics.median(times))


def nanoseconds(
    subjects: Mapping[str, Callable[[Sequence[T]], None]],
    items: Sequence[T],
    rounds: int = 80,
    each: int = 4000,
) -> dict[str, Figure]:
    """The CPU time each subject takes for one item, in ns.

    A subject is given `each` items a round. The subjects take turns, so that whatever else the
    machine does falls on all of them; their order is another one each round, and nobody gets the items of
    the one before, since what a neighbour leaves in the cache is help or harm. CPU time, so that
    waiting for a core is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    shuffle = random.Random(0).shuffle
    at = 0
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            shuffle(names)
            for name in names:
                some = items[at : at + each]
                at = (at + each) % (len(items) - each)
                start = time.process_time()
                subjects[name](some)
                times[name].append((time.process_time() - start) / each * 1e9)
    finally:
        gc.enable()
    return {name: Figure.of(found) for name, found in times.items()}


class ProcessTimes(NamedTuple):
    """What a whole process takes, in seconds."""

    cpu: Figure
    wall: Figure


def process_times(command: Sequence[str], cwd: Path, rounds: int = 15) -> ProcessTimes:
    """Run a command that must succeed again and again, with its bytecode cached as an installation's is.

    Raises CalledProcessError, also for a command that only fails once.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    cpu, wall = [], []
    for number in range(rounds + 1):
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, check=True)
        took, after = time.perf_counter() - start, os.times()
        if number:  # the first run writes the bytecode
            wall.append(took)
            cpu.append(
                after.children_user - before.children_user + after.children_system - before.children_system
            )
    return ProcessTimes(Figure.of(cpu), Figure.of(wall))


def machine() -> str:
    """The processor, the interpreter and the load, for whoever judges the figures."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    load = " ".join(f"{one:.2f}" for one in os.getloadavg())
    name = model[1] if model else platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load}"


@dataclass
class Report:
    """Rows as they come, then whether every bar was met."""

    missed: list[str] = field(default_factory=list)
    bars: list[str] = field(default_factory=list)
    """Every bar as it was printed"""

    def table(self, title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows of figures under their heads; the first column is text."""
        cells = [[title, *heads], *([*row] for row in rows)]
        widths = [max(len(row[at]) for row in cells) for at in range(len(cells[0]))]
        for row in cells:
            numbers = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
            print("  ".join([row[0].ljust(widths[0]), *numbers]))
        print()

    def bar(self, what: str, figure: float, most: float, unit: str) -> None:
        """Print a figure that must not be above `most`."""
        self._judge(what, figure <= most, f"{figure:,.2f} {unit} (bar {most:,.2f})")

    def ratio(self, what: str, ratio: float, bound: float, *, least: bool = False) -> None:
        """Print a ratio that must not be above `bound`, or not below it when that is the `least`."""
        met = ratio >= bound if least else ratio <= bound
        self._judge(what, met, f"{ratio:.2f} ({'at least' if least else 'at most'} {bound:.2f})")

    def _judge(self, what: str, met: bool, figure: str) -> None:
        if not met:
            self.missed.append(what)
        self.bars.append(f"{'pass' if met else 'FAIL'}  {what}: {figure}")
        print(self.bars[-1])

    def skipped(self, what: str, why: str) -> None:
        """Print by name what was not measured."""
        print(f"skip  {what}: {why}")

    def status(self) -> int:
        """0 when every bar was met, else 1."""
        return 1 if self.missed else 0
