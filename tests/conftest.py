"""What every test can count on: what this machine lacks is skipped by name, and written down.

`netns` tests need network namespaces, `peer("sshd")` tests need that program, `long` tests need
`--long`, `origin("socketbox")` tests need that program of the family urelay comes from, in the folder
that URELAY_ORIGIN_DIR names. Whoever must know that nothing important was skipped reads
tests/.work/skipped.txt, which every run writes anew: `ran netns N`, then `skipped MARKERS NODE REASON`,
tab-separated. What needs the family counts as that alone.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

WORK = Path(__file__).parent / ".work"
FOR_SIZE = "full size: run with --long"
"""Why a test was skipped that this machine could run; .ci/run knows these words"""
SBIN = ("/usr/sbin", "/sbin", "/usr/local/sbin")


class Tally:
    """Which tests were skipped, and how many namespace tests ran."""

    def __init__(self) -> None:
        self.netns_ran = 0
        self.skipped: list[tuple[str, str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Counts a test once it is decided whether it runs."""
        marks = [mark for mark in ("netns", "peer", "long") if mark in report.keywords]
        if "origin" in report.keywords:
            marks = ["origin"]
        if report.skipped and not hasattr(report, "wasxfail"):
            self.skipped.append((",".join(marks) or "-", report.nodeid, _reason(report)))
        elif report.when == "call" and "netns" in marks:
            self.netns_ran += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole module that skips itself counts as one."""
        if report.skipped:
            self.skipped.append(("module", report.nodeid, _reason(report)))

    def pytest_sessionfinish(self) -> None:
        """Writes the record that tests/run and .ci/run read."""
        WORK.mkdir(exist_ok=True)
        lines = [f"ran netns {self.netns_ran}"]
        lines += ["\t".join(("skipped", *row)).replace("\n", " ") for row in self.skipped]
        (WORK / "skipped.txt").write_text("\n".join(lines) + "\n")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long` runs the full-size forms too."""
    parser.addoption("--long", action="store_true", help="run the tests marked `long` too")


def pytest_configure(config: pytest.Config) -> None:
    """Starts the tally; programs of the system's administrator are found like all others."""
    os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *SBIN])
    config.pluginmanager.register(Tally())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips, each with its reason, the tests this machine cannot run."""
    for item in items:
        if item.get_closest_marker("long") and not config.getoption("--long"):
            # Its only reason, whatever else is missing here: see .ci/run.
            item.add_marker(pytest.mark.skip(reason=FOR_SIZE))
            continue
        if item.get_closest_marker("netns") and (lack := _no_namespaces()):
            item.add_marker(pytest.mark.skip(reason=lack))
        for marker in item.iter_markers("peer"):
            if shutil.which(marker.args[0]) is None:
                item.add_marker(pytest.mark.skip(reason=f"needs the program `{marker.args[0]}`"))
        for marker in item.iter_markers("origin"):
            if not origin(marker.args[0]).exists():
                item.add_marker(pytest.mark.skip(reason=f"needs `{marker.args[0]}` in URELAY_ORIGIN_DIR"))


def origin(name: str) -> Path:
    """Where a program of the family is, or would be."""
    return Path(os.environ.get("URELAY_ORIGIN_DIR") or "/nonexistent") / name


@functools.cache
def _no_namespaces() -> str | None:
    """Why no network namespace can be made here; None when one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "unshare"):
        if shutil.which(program) is None:
            return f"network namespaces need the program `{program}`"
    probe = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True)
    return None if probe.returncode == 0 else f"no network namespaces here: {probe.stderr.strip()}"


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)
