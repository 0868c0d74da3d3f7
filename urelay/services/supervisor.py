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
import gc
import logging
import mmap
import os
import selectors
import signal
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from urelay.engine.poller import RelayLoop
from urelay.engine.stats import Stats, total
from urelay.errors import StartError
from urelay.services.access_log import SharedLog
from urelay.services.answers import Answers
from urelay.services.channel import Channel, Word
from urelay.services.crew import Crew, Member
from urelay.services.fork import fork
from urelay.services.log import LineHandler, logging_to
from urelay.services.notify import Notifier
from urelay.services.preparing import Prepared, Preparing
from urelay.services.sink import DirectSink, Sink
from urelay.services.worker import Worker, interleaved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from urelay.engine.resolve import Resolver
    from urelay.services.daemon import Options
    from urelay.services.generation import Generation
    from urelay.services.holdings import Holdings

_STANDARD_ERROR = 2
_ANSWER_S = 10.0
"""How long a worker may take to answer: its longest turn is some milliseconds"""
_REPORT_S = 2.0
_REPLACE_EVERY_S = 1.0
_OLD_CREWS = 8
"""Generations that were replaced and may keep their connections for as long as these last"""
_LONGEST_TURN_S = 3600.0

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_SIGNALS = (*_STOPPING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
_log = logging.getLogger(__name__)


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
        self._members: list[Member] = []
        """Every worker that runs, the oldest generation first"""
        # Shared with every process that is forked from this one: an anonymous map is.
        self._counts = memoryview(mmap.mmap(-1, 8 * options.workers)).cast("Q")
        self._past = Stats()
        """The counters of workers that are gone"""
        self._hired_at = [-_REPLACE_EVERY_S] * options.workers
        self._selector = selectors.DefaultSelector()
        self._news, self._wake = socket.socketpair()
        for sock in (self._news, self._wake):
            sock.setblocking(False)
        self._selector.register(self._news, selectors.EVENT_READ)
        holdings.slots.follow(
            lambda sock, ready: self._selector.register(sock, selectors.EVENT_READ, ready),
            self._selector.unregister,
        )
        # Told at once, not on a thread: this process relays nothing, and must have no other one.
        captures = holdings.captures
        captures.follow(
            lambda capture: self._selector.register(
                capture.monitor, selectors.EVENT_READ, functools.partial(captures.changed, capture)
            ),
            lambda capture: self._selector.unregister(capture.monitor),
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
        try:
            self._muster(crew)
            self._answers.findings(crew.generation.warnings)
            self._send_out(crew)
            self._answers.serving(
                crew.generation, crew.opened, self._holdings.captures.ways(), self._options.workers
            )
            while not self._stops:
                self._turn(self._until_next_hire())
                self._tend()
            self._stop()
        finally:
            self._dismiss(self._members)

    def close(self) -> None:
        """Close what the supervisor waits with."""
        self._selector.close()
        self._news.close()
        self._wake.close()

    # --- waiting

    def _turn(self, seconds: float) -> None:
        """Wait so long at most for a signal or a worker's word, and take note of what came."""
        for key, _ in self._selector.select(min(seconds, _LONGEST_TURN_S)):
            if key.data is None:
                self._take_signals()
            elif callable(key.data):
                key.data()
            elif key.data.alive:
                self._listen_to(key.data)

    def _wait(self, over: Callable[[], bool], seconds: float) -> None:
        """Return when it is over, or the time is."""
        deadline = time.monotonic() + seconds
        while not over() and (left := deadline - time.monotonic()) > 0:
            self._turn(left)

    def _insist(self, members: Iterable[Member], word: Word) -> None:
        """Return when each of these has said it, or has ended; who does neither is killed."""
        asked = list(members)

        def silent() -> list[Member]:
            return [one for one in asked if one.alive and one.said is not word]

        self._wait(lambda: not silent(), _ANSWER_S)
        for one in silent():
            _log.error("%s hangs: it is killed", one)
            one.kill()
        self._wait(lambda: not silent(), _ANSWER_S)

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
        self._bury_the_dead()

    def _listen_to(self, member: Member) -> None:
        member.listen()
        if member.channel.gone:
            # Its death is told by a signal; until then there is nothing to hear.
            self._selector.unregister(member.channel)

    # --- workers

    def _hire(self, crew: Crew, number: int) -> None:
        """Fork a worker; raises OSError."""
        ours, theirs = Channel.pair()
        try:
            pid = fork(lambda: self._work(crew, number, ours, theirs), _SIGNALS)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._hired_at[number] = time.monotonic()
        member = Member(crew, number, pid, ours)
        self._members.append(member)
        self._selector.register(ours, selectors.EVENT_READ, member)

    def _work(self, crew: Crew, number: int, ours: Channel, theirs: Channel) -> None:
        """What a worker does, in its own process."""
        # What belongs to others: a worker must not keep their channels or sockets open.
        self.close()
        self._holdings.abandon()
        ours.close()
        for member in self._members:
            member.channel.close()
        if self._crew is not crew:
            self._crew.close()
        error_sink = Sink(_STANDARD_ERROR, in_pieces=True)
        self._handler.redirect(error_sink)
        try:
            ids = interleaved(self._counts, number)
            limits = self._options.limits(number)
            sink = self._log.sink()
            worker = Worker(theirs)
            with asyncio.Runner(loop_factory=RelayLoop) as runner:
                runner.run(worker.run(crew.generation, crew.opened, self._resolver, limits, sink, ids))
        finally:
            error_sink.close()

    def _muster(self, crew: Crew) -> None:
        """Fork a whole crew and wait until it is ready; raises StartError, and then it is gone again."""
        # What exists now is shared by all as long as nobody writes to it, and the collector would.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        try:
            for number in range(self._options.workers):
                self._hire(crew, number)
        except OSError as error:
            self._dismiss(crew.members.values())
            raise StartError(f"cannot start a worker: {(error.strerror or str(error)).lower()}") from None
        self._insist(crew.members.values(), Word.READY)
        if len(crew.members) < self._options.workers:
            self._dismiss(crew.members.values())
            raise StartError("a worker ended before it was ready")

    def _send_out(self, crew: Crew) -> None:
        """Let a mustered crew accept clients: it is the one that does, from now on."""
        self._crew = crew
        members = list(crew.members.values())
        for member in members:
            member.go()
        self._insist(members, Word.ACCEPTING)

    def _bury_the_dead(self) -> None:
        for member in list(self._members):
            pid, status = os.waitpid(member.pid, os.WNOHANG)
            if pid:
                self._bury(member, os.waitstatus_to_exitcode(status))

    def _bury(self, member: Member, status: int) -> None:
        member.alive = False
        if not member.channel.gone:
            member.listen()  # its last words
            self._selector.unregister(member.channel)
        member.channel.close()
        self._members.remove(member)
        del member.crew.members[member.number]
        self._past = total((self._past, member.stats.settled()))
        if not member.condemned and (status or not member.finishing):
            how = f"ended with status {status}"
            if status < 0:
                how = f"was killed by {signal.Signals(-status).name}"
            _log.error("%s %s", member, how)

    def _dismiss(self, members: Iterable[Member]) -> None:
        """End workers at once, those that are left."""
        left = list(members)
        for member in left:
            member.kill()
        self._wait(lambda: not any(member.alive for member in left), _ANSWER_S)

    # --- what there is to do

    def _tend(self) -> None:
        if self._preparing is not None and self._preparing.over:
            self._end_reload(self._preparing)
        if self._reload_asked and self._preparing is None:
            self._begin_reload()
        if self._status_asked:
            self._tell_status()
        for number in self._vacant():
            if time.monotonic() >= self._hired_at[number] + _REPLACE_EVERY_S:
                self._replace(number)
        for member in self._crew.members.values():
            if member.said is Word.READY and not member.sent:
                member.go()

    def _vacant(self) -> list[int]:
        """The numbers of workers that are missing and may be forked: not while there is a thread."""
        if self._preparing is not None:
            return []
        return [number for number in range(self._options.workers) if number not in self._crew.members]

    def _until_next_hire(self) -> float:
        vacant = self._vacant()
        if not vacant:
            return _LONGEST_TURN_S
        next_at = min(self._hired_at[number] for number in vacant) + _REPLACE_EVERY_S
        return max(0.0, next_at - time.monotonic())

    def _replace(self, number: int) -> None:
        try:
            self._hire(self._crew, number)
        except OSError as error:
            self._hired_at[number] = time.monotonic()
            _log.error("cannot replace worker %d: %s", number + 1, (error.strerror or str(error)).lower())
        else:
            _log.info("%s takes its place", self._crew.members[number])

    def _tell_status(self) -> None:
        self._status_asked = False
        asked = list(self._members)
        for member in asked:
            member.report()
        self._wait(lambda: all(one.reported or not one.alive for one in asked), _REPORT_S)
        stats = total((self._past, *(member.stats for member in self._members)))
        # These are exact even for a worker that was killed.
        self._answers.status(replace(stats, accepted=sum(self._counts)))

    def _reopen_logs(self) -> None:
        self._log.reopen()
        for member in self._members:
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
            self._muster(fresh)
        except BaseException:
            self._holdings.back_to(old.generation, old.opened)
            fresh.close()
            raise
        leaving = list(old.members.values())
        for member in leaving:
            member.finish(None)
        self._insist(leaving, Word.CLOSED)
        old.close()
        self._send_out(fresh)
        crews = list(dict.fromkeys(member.crew for member in self._members if member.crew is not fresh))
        for crew in crews[:-_OLD_CREWS]:
            for member in crew.members.values():
                member.finish(self._options.drain_s)

    # --- end

    def _stop(self) -> None:
        """Accept nobody any more, and wait for those who are connected."""
        everyone = list(self._members)
        for member in everyone:
            member.finish(self._options.drain_s)
        self._insist(everyone, Word.CLOSED)
        self._crew.close()
        active = sum(member.stats.active for member in self._members)
        self._answers.stopping(active, self._options.drain_s)

        def over() -> bool:
            if self._status_asked:
                self._tell_status()
            return not self._members or self._stops > 1

        self._wait(over, self._options.drain_s + _ANSWER_S)
        if self._members:
            if self._stops > 1:
                self._answers.hurrying()
            for member in self._members:
                member.finish(0)
            self._wait(lambda: not self._members, _ANSWER_S)
