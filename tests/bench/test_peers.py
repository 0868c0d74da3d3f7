"""The comparison with the peers measures what it says: the load, every way through urelay, CPU, bars."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench import contenders
from tests.bench.bars import judge, show
from tests.bench.contenders import ALL, Contender
from tests.bench.cpu import Family, Group, Processes
from tests.bench.measure import Report
from tests.bench.recipes import Missing, Recipe, Site
from tests.bench.rounds import PARTS, Found, Scale, measure, medians, start_all
from tests.bench.stage import Failed, Stage

BRIEF = Scale(rounds=1, turns=1, seconds=0.05, pings=50, flight=4, held=20)

_URELAY = [one for one in ALL if one.package == "urelay"]

_SHORT = ("urelay forward", "urelay transparent via socks5")
"""Most of the time goes into starting urelay; these two try the most of the rig"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every way through urelay with `--long`, else those of `_SHORT`."""
    if "contender" in metafunc.fixturenames:
        every = metafunc.config.getoption("--long")
        wanted = [one for one in _URELAY if every or one.name in _SHORT]
        metafunc.parametrize("contender", wanted, ids=lambda one: one.name)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with Stage() as made:
        yield made


@pytest.mark.netns
def test_a_congestion_control_that_is_not_allowed_is_refused_by_name() -> None:
    with (
        pytest.raises(Failed, match="the congestion control nonsense is not allowed here"),
        Stage(("nonsense",)),
    ):
        raise AssertionError("it was allowed")


@pytest.mark.netns
def test_without_a_relay_every_part_has_plausible_figures(stage: Stage) -> None:
    lacking: dict[str, str] = {}
    running = start_all(stage, [Contender("direct", None)], lacking)
    figures = medians(measure(stage, running, list(PARTS), BRIEF, lacking))["direct"]
    assert not lacking
    assert figures["rate"]["rate"] > 10
    assert figures["rate"]["cpu"] == 0
    assert figures["bulk, 1 stream"]["rate"] > 0
    assert 0 < figures["latency"]["p50"] <= figures["latency"]["p99"]


@pytest.mark.netns
def test_bytes_come_back_by_every_way_through_urelay(
    stage: Stage, contender: Contender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contenders, "ROUTES", 30)
    lacking: dict[str, str] = {}
    running = start_all(stage, [contender], lacking)
    figures = medians(measure(stage, running, ["rate", "bulk", "latency"], BRIEF, lacking))[contender.name]
    assert not lacking
    assert figures["rate"]["cpu"] > 1
    assert figures["bulk, 8 streams"]["cpu"] > 0
    assert figures["latency"]["p50"] > 0
    assert running[0].ask("hold", count=BRIEF.held, flight=4) == {"held": BRIEF.held}


@pytest.mark.netns
def test_who_cannot_start_or_breaks_is_named_with_the_reason(stage: Stage) -> None:
    def absent(site: Site) -> Recipe:
        raise Missing("`nothing` is not installed")

    def ends(site: Site) -> Recipe:
        return Recipe(["sh", "-c", "echo no licence; exit 3"], ("127.0.0.1", 9))

    lacking: dict[str, str] = {}
    wanted = [Contender("absent", absent), Contender("ends", ends)]
    assert start_all(stage, wanted, lacking) == []
    assert lacking["absent"] == "`nothing` is not installed"
    assert "no licence" in lacking["ends"]


def _burn(seconds: float) -> str:
    return f"import time\nwhile time.process_time() < {seconds}: pass"


def _spent(processes: Processes, least_s: float) -> bool:
    return processes.nanoseconds() >= least_s * 1e9


def test_the_clocks_of_a_family_count_children_that_ended() -> None:
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {_burn(0.2)!r}]); print(1); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1) as parent:
        family = Family(parent.pid)
        assert parent.stdout is not None
        parent.stdout.readline()
        assert _spent(family, 0.15)
        assert family.pids() == [parent.pid]
        assert family.resident() > 1 << 20
        assert family.pipes() == 2
        parent.communicate(b"\n")
    assert family.pids() == []


@pytest.mark.netns
def test_a_control_group_counts_what_ran_in_it(tmp_path: Path) -> None:
    group = Group.make()
    if group is None:
        pytest.skip("no control group can be made here")
    subprocess.run(group.command([sys.executable, "-c", _burn(0.2)]), check=True)
    assert _spent(group, 0.15)
    left = subprocess.Popen(group.command(["sleep", "60"]))
    deadline = time.monotonic() + 20
    while left.pid not in group.pids() and time.monotonic() < deadline:
        time.sleep(0.005)
    group.close()
    assert left.wait() == -9
    assert not Path(group.name).exists()


def _rounds(cpu: float) -> Found:
    """Three rounds, in which the machine is fast, slow and fast again; ours did not come to a fourth."""
    machine = (1.0, 1.5, 1.0, 3.0)
    return {
        "direct": {"rate": [{"rate": 1000 / slow, "cpu": 0, "busy": 0.9} for slow in machine]},
        "urelay forward": {
            "rate": [{"rate": 500 / slow, "cpu": cpu * slow, "busy": 0.5} for slow in machine[:3]]
        },
        "haproxy": {"rate": [{"rate": 500 / slow, "cpu": 100 * slow, "busy": 0.5} for slow in machine]},
    }


@pytest.mark.parametrize(("cpu", "status", "word"), [(115, 0, "pass"), (116, 1, "FAIL")])
def test_a_bar_is_a_ratio_within_the_rounds(
    cpu: float, status: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report()
    judge(report, _rounds(cpu))
    line = f"{word}  urelay forward: CPU a connection / haproxy: {cpu / 100:.2f} (at most 1.15)"
    assert report.bars == [line]
    assert report.status() == status
    assert capsys.readouterr().out == line + "\n"


def test_a_table_has_each_figure_and_its_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    show(Report(), "rate", _rounds(80))
    heads, *rows = capsys.readouterr().out.splitlines()
    assert heads.split("  ")[-1].strip() == "CPU µs / haproxy"
    assert rows[1].split() == ["urelay", "forward", "500", "80.0", "50%", "0.50", "1.00", "0.80"]
