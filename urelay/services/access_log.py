"""The access log: one JSON object a line when a connection ends.

    {"ts":"2026-01-31T09:15:02.417Z","id":7,"policy":"1a2b…","listener":"lan","source":"192.168.7.9:40112",
     "destination":"10.1.2.3","name":null,"port":22,"outcome":"via","route":"rules/site.urr:47",
     "upstream":"wg","dialed":"10.66.0.9:22","bytes_up":311,"bytes_down":9120,"duration_ms":5210,
     "end":"eof","error":null}

The keys are always all there, in this order, null where there is nothing to say; a `tag` follows
where the route has one, a `wall` where one decided (there is no `route` then), and `log full` adds
`table`, `rewrites` and `tries`. An `upstream` that is a group is followed by the members that were
used, `out/corp`, once one of them got through. Lines are ASCII: whatever a client called itself or
its destination is escaped. Lines gather for a moment and go to the sink together, so a busy relay
makes few system calls and an idle one none.
"""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING, Final

from urelay.errors import StartError
from urelay.net.address import printable
from urelay.services.log_line import lines
from urelay.services.sink import Sink, open_to_append

if TYPE_CHECKING:
    import asyncio

    from urelay.engine.record import Record

FLUSH_S: Final = 0.05
"""How long a line may wait for others"""
REPORT_S: Final = 10.0
"""How often lost lines are told, while there are lines at all"""

_AT_ONCE = 64
"""Records that are put into lines in one go: a quarter of a millisecond in which nothing else is done"""
_STANDARD_OUTPUT = 1
_log = logging.getLogger(__name__)


class AccessLog:
    """Writes Records to a sink. Belongs to the event loop's thread."""

    def __init__(self, sink: Sink, loop: asyncio.AbstractEventLoop) -> None:
        self._sink = sink
        self._loop = loop
        self._records: list[Record] = []
        """Not put into lines yet"""
        self._lines: list[str] = []
        self._flush_timer: asyncio.TimerHandle | None = None
        self._report_timer: asyncio.TimerHandle | None = None

    def write(self, record: Record) -> None:
        """Log a connection that has ended, unless its route says `log off`."""
        records = self._records
        records.append(record)
        if self._flush_timer is None:
            self._flush_timer = self._loop.call_later(FLUSH_S, self.flush)
        elif len(records) >= _AT_ONCE:
            self._put_into_lines()

    def _put_into_lines(self) -> None:
        self._lines.append(lines(self._records))
        self._records.clear()

    def flush(self) -> None:
        """Hand what has gathered to the sink."""
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        if self._records:
            self._put_into_lines()
        text = "".join(self._lines)
        self._lines.clear()
        if text:
            self._sink.write(text.encode("ascii"))
            if self._report_timer is None:
                self._report_timer = self._loop.call_later(REPORT_S, self._report)

    def reopen(self) -> None:
        """Go on in a new file of the same name: the old one may have been moved away."""
        self.flush()
        self._sink.reopen()

    def close(self) -> None:
        """Write all there is; what cannot be written within seconds is lost, and said to be."""
        self.flush()
        self._sink.close()
        self._report()
        if self._report_timer is not None:
            self._report_timer.cancel()

    def _report(self) -> None:
        self._report_timer = None
        dropped, trouble = self._sink.take_dropped(), self._sink.take_trouble()
        if dropped:
            _log.warning("access log: %d lines lost (%s)", dropped, trouble or "it is not read fast enough")
        elif trouble:
            _log.warning("access log: %s", trouble)


class SharedLog:
    """The access log of several processes: each makes a sink of its own from what is open here."""

    def __init__(self, path: str | None) -> None:
        """A path or `-`, and None where there is no access log; raises StartError."""
        self._path = path
        self._descriptor = None if path is None else _open(path)

    def sink(self) -> Sink | None:
        """A sink that takes over the descriptor; to be called after the fork."""
        if self._path is None or self._descriptor is None:
            return None
        # A file takes every write whole, at its end.
        in_pieces = not stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        return Sink(self._descriptor, None if self._path == "-" else self._path, in_pieces=in_pieces)

    def reopen(self) -> None:
        """Let whoever is forked from now on write to a new file; the old one stays if that fails."""
        if self._path is None:
            return
        try:
            fresh = _open(self._path)
        except StartError as error:
            _log.warning("%s", error)
        else:
            self.close()
            self._descriptor = fresh

    def close(self) -> None:
        """Close it in this process."""
        if self._path != "-" and self._descriptor is not None:
            os.close(self._descriptor)


def open_sink(path: str) -> Sink:
    """The sink that `--access-log` names: a file to append to, or `-`; raises StartError."""
    return Sink(_open(path), None if path == "-" else path)


def _open(path: str) -> int:
    if path == "-":
        return _STANDARD_OUTPUT
    try:
        return open_to_append(path)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    except ValueError:
        reason = "a path holds no NUL"
    raise StartError(f"cannot write the access log `{printable(path)}`: {reason}")
