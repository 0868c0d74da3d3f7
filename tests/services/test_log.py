"""One line a record, that nobody can forge; ten a second a cause; times unless the journal has them."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from urelay.services import log
from urelay.services.sink import Sink, open_to_append

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z "


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Said:
    """A logger with a handler of its own, and what came of it."""

    def __init__(self, path: Path, *, stamped: bool) -> None:
        self.path = path
        self.clock = Clock()
        self.sink = Sink(open_to_append(str(path)), str(path))
        self.logger = logging.Logger("urelay.test", logging.INFO)
        self.logger.addHandler(log.LineHandler(self.sink, stamped=stamped, clock=self.clock))

    def lines(self) -> list[str]:
        """Ends the log; every line of it."""
        self.sink.close()
        return self.path.read_text("ascii").splitlines()


@pytest.fixture
def said(tmp_path: Path) -> Said:
    """A log without times."""
    return Said(tmp_path / "log", stamped=False)


def test_a_line_says_its_level_above_information(said: Said) -> None:
    said.logger.info("reloaded %s", "rules/site.urr")
    said.logger.warning("access log: %d lines dropped", 3)
    said.logger.error("no")
    said.logger.debug("never shown")
    assert said.lines() == [
        "urelay: reloaded rules/site.urr",
        "urelay: warning: access log: 3 lines dropped",
        "urelay: error: no",
    ]


@pytest.mark.parametrize(
    "name", ["a\nurelay: error: forged", "\x1b[2J", "\u202egnp.exe", "é", "\x85", "\ud800"]
)
def test_a_hostile_name_stays_inside_its_line(said: Said, name: str) -> None:
    said.logger.warning("cannot dial %s", name)
    [line] = said.lines()
    assert line == f"urelay: warning: cannot dial {name.encode('unicode_escape').decode('ascii')}"


def test_a_cause_says_ten_lines_a_second_and_then_how_many_were_held_back(said: Said) -> None:
    for number in range(500):
        said.logger.warning("out of descriptors, client %d", number)
        said.logger.info("another cause") if number < 3 else None
    said.clock.now += 1.0
    said.logger.warning("out of descriptors, client %d", 500)
    lines = said.lines()
    assert lines.count("urelay: another cause") == 3
    assert [line for line in lines if "descriptors" in line] == [
        *(f"urelay: warning: out of descriptors, client {number}" for number in range(10)),
        "urelay: warning: out of descriptors, client 500 (490 more like this were held back)",
    ]


def test_answers_to_the_operator_are_never_held_back(said: Said) -> None:
    said.logger.name = "urelay.services.daemon"
    for number in range(30):
        said.logger.info("reloaded, round %d", number)
    assert said.lines() == [f"urelay: reloaded, round {number}" for number in range(30)]


def test_messages_put_together_from_what_clients_send_cost_bounded_memory(said: Said) -> None:
    handler = said.logger.handlers[0]
    for number in range(5000):
        said.logger.warning(f"client {number}")  # noqa: G004  the mistake the bound is for
    said.lines()
    assert isinstance(handler, log.LineHandler)
    assert len(handler._causes) <= 256


def test_a_traceback_follows_its_line(said: Said) -> None:
    try:
        raise ValueError("bad\x1b")
    except ValueError:
        said.logger.exception("unexpected")
    lines = said.lines()
    assert lines[0] == "urelay: error: unexpected"
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "ValueError: bad\\x1b"


def test_times_stand_before_the_line(tmp_path: Path) -> None:
    said = Said(tmp_path / "log", stamped=True)
    said.logger.info("here")
    [line] = said.lines()
    assert re.fullmatch(STAMP + "urelay: here", line)


def test_the_journal_adds_its_own_times(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not log.goes_to_journal()
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    assert log.goes_to_journal()
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
    assert not log.goes_to_journal()


def test_the_modules_of_urelay_and_asyncio_are_heard_while_it_lasts(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = Sink(open_to_append(str(path)), str(path))
    with log.logging_to(sink):
        logging.getLogger("urelay.engine.relay").info("one")
        logging.getLogger("asyncio").warning("two")
        logging.getLogger("somebody").warning("else")
    logging.getLogger("urelay.engine.relay").warning("too late")
    sink.close()
    assert [re.sub("^" + STAMP, "", line) for line in path.read_text().splitlines()] == [
        "urelay: one",
        "urelay: warning: two",
    ]
