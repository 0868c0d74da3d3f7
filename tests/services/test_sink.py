"""A sink never makes its user wait: it writes in order, drops whole lines when it must, and counts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from urelay.services.sink import DirectSink, Sink, open_to_append


def eventually(condition: Callable[[], bool]) -> None:
    """Waits for another thread's work, twenty seconds at most."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_lines_arrive_in_order_and_closing_writes_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    sink = Sink(open_to_append(str(path)), str(path))
    lines = [b"%d\n" % number for number in range(2000)]
    for line in lines:
        sink.write(line)
    assert sink.close()
    assert path.read_bytes() == b"before\n" + b"".join(lines)
    assert sink.take_dropped() == 0


def test_a_reader_that_sleeps_costs_lines_but_no_time() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing, limit=100_000)
    line = b"x" * 999 + b"\n"
    started = time.monotonic()
    for _ in range(1000):
        sink.write(line)
    assert time.monotonic() - started < 5
    received = b""
    dropped = sink.take_dropped()
    # The pipe holds 64 KiB, the sink 100 KB; all else was dropped, in whole lines.
    assert 800 <= dropped <= 950
    while len(received) < (1000 - dropped) * len(line):
        received += os.read(reading, 65536)
    assert received == line * (1000 - dropped)
    assert sink.close()
    assert sink.take_dropped() == 0
    os.close(reading)
    os.close(writing)


def test_a_reader_that_never_wakes_does_not_keep_us_from_ending() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing)
    sink.write(b"x" * 200_000 + b"\n")
    started = time.monotonic()
    assert not sink.close(timeout_s=0.1)
    assert time.monotonic() - started < 5
    os.close(reading)  # lets the thread go: its write fails
    sink._thread.join(20)
    assert not sink._thread.is_alive()
    assert sink.take_trouble() == "broken pipe"
    os.close(writing)


def test_a_pipe_made_non_blocking_by_somebody_else_loses_nothing() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    sink = Sink(writing)
    data = os.urandom(300_000) + b"\n"
    sink.write(data)
    received = b""
    while len(received) < len(data):
        received += os.read(reading, 65536)
    assert received == data
    assert sink.close()
    os.close(reading)
    os.close(writing)


def test_a_moved_file_is_opened_again_behind_what_was_said(tmp_path: Path) -> None:
    path, moved = tmp_path / "log", tmp_path / "log.1"
    sink = Sink(open_to_append(str(path)), str(path))
    sink.write(b"one\n")
    eventually(lambda: path.read_bytes() == b"one\n")
    path.rename(moved)
    sink.write(b"two\n")
    sink.reopen()
    sink.write(b"three\n")
    assert sink.close()
    assert moved.read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_when_it_cannot_be_opened_again_the_old_file_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sink = Sink(open_to_append(str(folder / "log")), str(folder / "log"))
    folder.rename(tmp_path / "elsewhere")
    sink.reopen()
    sink.write(b"still here\n")
    assert sink.close()
    assert (tmp_path / "elsewhere/log").read_bytes() == b"still here\n"
    assert sink.take_trouble() == "no such file or directory"
    assert sink.take_trouble() is None


def test_a_full_disk_is_told_and_counted() -> None:
    sink = Sink(open_to_append("/dev/full"), "/dev/full")
    sink.write(b"one\ntwo\n")
    sink.close()
    assert sink.take_trouble() == "no space left on device"
    assert sink.take_dropped() == 2


def test_a_fifo_that_nobody_reads_is_an_error_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device or address"):
        Sink(open_to_append(str(tmp_path / "fifo")), str(tmp_path / "fifo"))


def test_a_pipe_of_several_writers_gets_whole_lines_only() -> None:
    reading, writing = os.pipe()
    sinks = [Sink(writing, in_pieces=True) for _ in range(2)]
    lines = [b"%d %s\n" % (number, letter * 700) for number in range(60) for letter in (b"a", b"b")]
    for sink, mine in zip(sinks, (lines[::2], lines[1::2]), strict=True):
        # Longer than a pipe takes at once: each goes in many parts.
        sink.write(b"".join(mine))
    received = b""
    while len(received) < len(b"".join(lines)):
        received += os.read(reading, 65536)
    assert sorted(received.splitlines(keepends=True)) == sorted(lines)
    for sink in sinks:
        assert sink.close()
    os.close(reading)
    os.close(writing)


def test_a_line_too_long_for_one_part_goes_in_several() -> None:
    reading, writing = os.pipe()
    sink = Sink(writing, in_pieces=True)
    text = b"short\n" + b"x" * 10_000 + b"\nshort\n"
    sink.write(text)
    assert sink.close()
    assert os.read(reading, 65536) == text
    os.close(reading)
    os.close(writing)


def test_without_a_thread_lines_are_written_at_once_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr("urelay.services.sink._STANDARD_ERROR", writing)
    sink = DirectSink()
    sink.write(b"one\ntwo\n")
    assert os.read(reading, 65536) == b"one\ntwo\n"
    line = b"x" * 999 + b"\n"
    for _ in range(200):
        sink.write(line)  # a pipe holds 64 KiB, and nobody reads
    received = os.read(reading, 1 << 20)
    assert 10 <= received.count(b"\n") < 200
    assert received == line * received.count(b"\n")
    os.close(reading)
    os.close(writing)
    sink.write(b"to nobody\n")
