"""`urelay serve --workers N`: one process that opens the listeners, and N that relay.

The process that was started judges the policy, opens every listener once and forks the workers, so
they share the compiled table and accept from the same sockets. Nothing is ever bound a second time,
and the supervisor keeps every socket open: whatever happens to workers, no waiting client is lost.
It relays nothing itself, and runs neither asyncio nor, whenever it forks, another thread.

The workers of one generation of the policy are a *crew*. Signals mean what they mean to a single
process (urelay.services.daemon); a reload goes like this:

    1. prepare the generation on a thread; open what listens anew          may fail: nothing changed
    2. fork a fresh crew, which makes everything ready and waits           may fail: nothing changed
    3. tell the old crew to accept nobody; wait until all its sockets are closed
    4. let the fresh crew accept; when all do, the reload is announced

Between 3 and 4, some milliseconds, clients wait in the backlog: there is no moment at which two
policies decide about new connections. The old crew ends with its connections, which outlive a reload
here as they do in a single process; only when many old crews are left, the oldest is given no more
time than a stop would give it.

A client that waits wakes one of the idle workers, and not all of them; whoever has accepted waits
behind the others (urelay.engine.acceptor). So each has its share, whether they are busy or idle.

A worker that ends unasked is replaced, at most once a second. One that does not answer for seconds
hangs, and is killed. Workers ignore the signals that the supervisor obeys: one that is sent to all of
them, by a terminal or a service manager, counts once.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from typing import TYPE_CHECKING

from urelay.engine.poller import RelayLoop
from urelay.services.access_log import SharedLog
from urelay.services.answers import Answers
from urelay.services.channel import Channel, Word
from urelay.services.crew import Crew
from urelay.services.log import LineHandler, logging_to
from urelay.services.notify import Notifier
from urelay.services.preparing import Prepared, Preparing
from urelay.services.sink import DirectSink, Sink
from urelay.services.staff import Staff
from urelay.services.worker import Worker, interleaved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from urelay.engine.resolve import Resolver
    from urelay.services.daemon import Options
    from urelay.services.generation import Generation
    from urelay.services.holdings import Holdings

_STANDARD_ERROR = 2
_LAST_ANSWERS_S = 10.0
"""How long after their time workers may take to end"""
_OLD_CREWS = 8
"""Generations that were replaced and may keep their connections for as long as these last"""

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOPPING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)


def supervise(
    path: str,
    options: Options,
    holdings: Holdings,
    resolver: Resolver,
    generation: Generation,
) -> None:
    """Relay by a generation of the policy at `path`, with `options.workers` workers, until told to stop.

    Raises StartError when it cannot start; then nothing is left open, and no worker.
    """
    with contextlib.ExitStack() as at_exit:
        sink = DirectSink()
        handler = at_exit.enter_context(logging_to(sink))
        log = SharedLog(options.access_log)
        at_exit.callback(log.close)
        at_exit.callback(holdings.close)
        crew = Crew(generation, holdings.first(generation))
        at_exit.callback(crew.close)
        supervisor = Supervisor(path, options, holdings, resolver, log, sink, handler)
        at_exit.callback(supervisor.close)
        with supervisor.signals():
            supervisor.run(crew)


class Supervisor:
    """Forks workers, tells them what to do, and replaces those that die."""

    _crew: Crew
    """The one that accepts clients, or will first"""

    def __init__(
        self,
        path: str,
        options: Options,
        holdings: Holdings,
        resolver: Resolver,
        log: SharedLog,
        sink: DirectSink,
        handler: LineHandler,
    ) -> None:
        self._path = path
        self._options = options
        self._holdings = holdings
        self._resolver = resolver
        self._log = log
        self._handler = handler
        self._answers = Answers(path, sink.write, Notifier(os.environ.get("NOTIFY_SOCKET")))
        self._staff = Staff(options.workers, self._live, _SIGNALS)
        self._news, self._wake = socket.socketpair()
        for sock in (self._news, self._wake):
            sock.setblocking(False)
        self._staff.watch(self._news, self._take_signals)
        holdings.slots.follow(self._staff.watch, self._staff.unwatch)
        # Told at once, not on a thread: this process relays nothing, and must have no other one.
        captures = holdings.captures
        captures.follow(
            lambda capture: self._staff.watch(capture.monitor, functools.partial(captures.changed, capture)),
            lambda capture: self._staff.unwatch(capture.monitor),
        )
        self._preparing: Preparing | None = None
        self._reload_asked = self._status_asked = False
        self._stops = 0
        """How often it was asked to stop"""

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Hear the signals that are answered here; as they were before, afterwards."""
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, crew: Crew) -> None:
        """Relay with a first crew until told to stop; raises StartError when it cannot be mustered."""
        self._crew = crew
        staff, captures = self._staff, self._holdings.captures
        try:
            staff.muster(crew)
            self._answers.findings(crew.generation.warnings)
            staff.send_out(crew)
            self._answers.serving(crew.generation, crew.opened, captures.ways(), self._options.workers)
            while not self._stops:
                staff.turn(float("inf") if self._preparing is not None else staff.until_next_hire(self._crew))
                self._tend()
            self._stop()
        finally:
            staff.dismiss(staff)

    def close(self) -> None:
        """Close what the supervisor waits with."""
        self._staff.close()
        self._news.close()
        self._wake.close()

    # --- in a worker

    def _live(self, crew: Crew, number: int, channel: Channel) -> None:
        """What a worker does, in its own process."""
        # What belongs to others: a worker must not keep their sockets open.
        self._news.close()
        self._wake.close()
        self._holdings.abandon()
        if self._crew is not crew:
            self._crew.close()
        error_sink = Sink(_STANDARD_ERROR, in_pieces=True)
        self._handler.redirect(error_sink)
        try:
            ids = interleaved(self._staff.counts, number)
            limits = self._options.limits(number)
            sink = self._log.sink()
            worker = Worker(channel)
            with asyncio.Runner(loop_factory=RelayLoop) as runner:
                runner.run(worker.run(crew.generation, crew.opened, self._resolver, limits, sink, ids))
        finally:
            error_sink.close()

    # --- what there is to do

    def _take_signals(self) -> None:
        with contextlib.suppress(BlockingIOError):
            for number in self._news.recv(4096):
                if number in _STOPPING:
                    self._stops += 1
                elif number == signal.SIGHUP:
                    self._reload_asked = True
                elif number == signal.SIGUSR1:
                    self._reopen_logs()
                elif number == signal.SIGUSR2:
                    self._status_asked = True
        self._staff.bury_the_dead()

    def _tend(self) -> None:
        if self._preparing is not None and self._preparing.over:
            self._end_reload(self._preparing)
        if self._reload_asked and self._preparing is None:
            self._begin_reload()
        if self._status_asked:
            self._tell_status()
        if self._preparing is None:  # else there is a thread, and nobody may be forked
            self._staff.fill_up(self._crew)
        for member in self._crew.members.values():
            if member.said is Word.READY and not member.sent:
                member.go()

    def _tell_status(self) -> None:
        self._status_asked = False
        self._answers.status(self._staff.stats())

    def _reopen_logs(self) -> None:
        self._log.reopen()
        for member in self._staff:
            member.reopen()

    # --- reload

    def _begin_reload(self) -> None:
        self._reload_asked = False
        self._answers.reloading()
        self._reopen_logs()
        self._preparing = Preparing(self._path, {one.key for one in self._crew.opened}, self._awake)

    def _awake(self) -> None:
        """End the wait, from another thread."""
        with contextlib.suppress(OSError):  # full of signals, so awake anyway
            self._wake.send(b"\0")

    def _end_reload(self, preparing: Preparing) -> None:
        self._preparing = None
        try:
            prepared = preparing.outcome()
            self._change_over(prepared)
        except Exception as error:
            # A reload must not end the relay, whatever is wrong with it.
            self._answers.not_reloaded(error, self._crew.generation)
        else:
            self._answers.findings(prepared.generation.warnings)
            self._answers.reloaded(prepared.generation)
        self._answers.ready(self._crew.generation)

    def _change_over(self, prepared: Prepared) -> None:
        """Let a fresh crew with another generation take over; on StartError nothing has changed."""
        old = self._crew
        fresh = Crew(prepared.generation, self._holdings.next(prepared, old.opened))
        try:
            self._staff.muster(fresh)
        except BaseException:
            self._holdings.back_to(old.generation, old.opened)
            fresh.close()
            raise
        leaving = list(old.members.values())
        for member in leaving:
            member.finish(None)
        self._staff.insist(leaving, Word.CLOSED)
        old.close()
        self._crew = fresh
        self._staff.send_out(fresh)
        crews = list(dict.fromkeys(member.crew for member in self._staff if member.crew is not fresh))
        for crew in crews[:-_OLD_CREWS]:
            for member in crew.members.values():
                member.finish(self._options.drain_s)

    # --- end

    def _stop(self) -> None:
        """Accept nobody any more, and wait for those who are connected."""
        staff = self._staff
        everyone = list(staff)
        for member in everyone:
            member.finish(self._options.drain_s)
        staff.insist(everyone, Word.CLOSED)
        self._crew.close()
        active = sum(member.stats.active for member in staff)
        self._answers.stopping(active, self._options.drain_s)

        def over() -> bool:
            if self._status_asked:
                self._tell_status()
            return not list(staff) or self._stops > 1

        staff.wait(over, self._options.drain_s + _LAST_ANSWERS_S)
        if list(staff):
            if self._stops > 1:
                self._answers.hurrying()
            for member in staff:
                member.finish(0)
            staff.wait(lambda: not list(staff), _LAST_ANSWERS_S)
