"""The counters of several relays add up, and what is gone keeps its counts alone."""

from __future__ import annotations

from dataclasses import fields

from urelay.engine.stats import Stats, total

ONE = Stats(
    accepted=5, active=2, handshaking=1, dialing=1, ended={"eof": 2, "denied": 1}, bytes_up=10, bytes_down=20,
    pipes_open=4, pipes_in_use=1, accept_pauses=1, wakeups=9,
)  # fmt: skip
OTHER = Stats(accepted=3, ended={"eof": 1, "reset": 2}, bytes_up=1, bytes_down=2, wakeups=1)


def test_every_number_is_summed() -> None:
    both = total((ONE, OTHER))
    assert both.ended == {"eof": 3, "denied": 1, "reset": 2}
    for one in fields(Stats):
        if one.name != "ended":
            assert getattr(both, one.name) == getattr(ONE, one.name) + getattr(OTHER, one.name), one.name


def test_nothing_sums_to_nothing() -> None:
    assert total(()) == Stats()


def test_what_is_gone_has_counts_and_nothing_going_on() -> None:
    gone = ONE.settled()
    assert (gone.active, gone.handshaking, gone.dialing, gone.pipes_open, gone.pipes_in_use) == (0,) * 5
    assert (gone.accepted, gone.ended, gone.bytes_up, gone.wakeups) == (5, ONE.ended, 10, 9)


def test_they_are_told_in_one_line() -> None:
    assert ONE.text() == (
        "2 connections (1 handshaking, 1 dialing); 5 accepted; 3 ended (1 denied, 2 eof);"
        " 10 bytes up, 20 down; 1 of 4 pipes in use; accepting paused 1 time"
    )
    assert Stats(active=1).text().startswith("1 connection (0 handshaking, 0 dialing); 0 accepted; 0 ended;")
