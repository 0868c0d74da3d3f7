"""The relay's own log: what happens to the relay, on standard error (connections: access_log).

Everything goes through the standard `logging`: modules say `logging.getLogger(__name__)` and never
know where it ends. Here a handler makes one line of each record, `urelay: warning: …`, escapes what
a hostile name could put into it, and hands it to a sink that cannot block the event loop.

A *cause* is a logger and a message before its arguments are filled in. Each may say ten lines a
second; how many were held back is told when that cause is heard again. What `urelay.services` says
is exempt: it answers the operator (a start, a reload, a stop), whom nothing sent by a client can
make it do.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    class Lines(Protocol):
        """Where lines go: a sink of any kind."""

        def write(self, data: bytes) -> None:
            """Take whole lines; returns at once."""


LINES_A_SECOND = 10
_CAUSES_KEPT = 256
_LOGGERS = ("urelay", "asyncio")
_ANSWERS = "urelay.services."


class _Cause:
    """How often one cause was heard in the second that began at `since`."""

    __slots__ = ("held_back", "said", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.said = 0
        self.held_back = 0


class LineHandler(logging.Handler):
    """Makes one line of each record; a traceback follows on lines of its own."""

    def __init__(self, sink: Lines, *, stamped: bool, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._sink = sink
        self._stamped = stamped
        self._clock = clock
        self._causes: dict[tuple[str, str], _Cause] = {}

    def redirect(self, sink: Lines) -> None:
        """Hand what is logged from now on to another sink."""
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it when its cause has said enough this second."""
        try:
            admitted, held_back = self._admit((record.name, str(record.msg)))
            if admitted:
                self._sink.write(self._text(record, held_back).encode("ascii"))
        except Exception:
            self.handleError(record)

    def _admit(self, key: tuple[str, str]) -> tuple[bool, int]:
        """Whether this one may be said, and how many like it could not be before."""
        if key[0].startswith(_ANSWERS):
            return True, 0
        now = self._clock()
        cause = self._causes.get(key)
        if cause is None:
            if len(self._causes) >= _CAUSES_KEPT:
                # The oldest goes: messages are constants of the code, so this never happens unless
                # one was put together from what a client sent.
                del self._causes[next(iter(self._causes))]
            cause = self._causes[key] = _Cause(now)
        held_back = 0
        if now - cause.since >= 1.0:
            held_back, cause.held_back = cause.held_back, 0
            cause.since, cause.said = now, 0
        if cause.said >= LINES_A_SECOND:
            cause.held_back += 1
            return False, 0
        cause.said += 1
        return True, held_back

    def _text(self, record: logging.LogRecord, held_back: int) -> str:
        stamp = _stamp(record.created) if self._stamped else ""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        more = f" ({held_back} more like this were held back)" if held_back else ""
        lines = [f"{stamp}urelay: {level}{_plain(record.getMessage())}{more}"]
        if record.exc_info:
            traceback = logging.Formatter().formatException(record.exc_info)
            lines += [_plain(line) for line in traceback.split("\n")]
        return "\n".join(lines) + "\n"


@contextmanager
def logging_to(sink: Lines) -> Iterator[LineHandler]:
    """Send what `urelay` and `asyncio` log to a sink, with times unless the journal adds its own."""
    handler = LineHandler(sink, stamped=not goes_to_journal())
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
    loggers[0].setLevel(logging.INFO)
    try:
        yield handler
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def goes_to_journal() -> bool:
    """Whether standard error is the journal's: systemd.exec(5), JOURNAL_STREAM."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _stamp(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z "


def _plain(text: str) -> str:
    """One line of printable ASCII: nobody forges a second one, or speaks to the terminal."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text)
