"""How the benchmarks measure and report: interleaved rounds, medians, and a bar with each figure."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


def nanoseconds(subjects: Mapping[str, Callable[[], int]], rounds: int = 7) -> dict[str, float]:
    """The median CPU time one call of each subject takes, in ns.

    A subject makes many calls and returns how many. The subjects take turns, so that whatever else
    the machine does falls on all of them; CPU time, so that waiting for a core is not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in subjects}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, subject in subjects.items():
                start = time.process_time()
                calls = subject()
                times[name].append((time.process_time() - start) / calls * 1e9)
    finally:
        gc.enable()
    return {name: statistics.median(found) for name, found in times.items()}


@dataclass
class Report:
    """Rows as they come, then whether every bar was met."""

    missed: list[str] = field(default_factory=list)

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
        met = figure <= most
        if not met:
            self.missed.append(what)
        print(f"{'pass' if met else 'FAIL'}  {what}: {figure:,.2f} {unit} (bar {most:,.2f})")

    def skipped(self, what: str, why: str) -> None:
        """Print by name what was not measured."""
        print(f"skip  {what}: {why}")

    def status(self) -> int:
        """0 when every bar was met, else 1."""
        return 1 if self.missed else 0
