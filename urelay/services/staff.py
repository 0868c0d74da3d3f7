"""All workers of a supervisor, of whatever generation: forked, heard, waited for and buried.

Whoever is asked for an answer either gives it, ends, or is killed for giving none, so nothing here
waits for ever. While somebody is waited for, whatever else was to be watched is heard too.

Nobody is forked while there is another thread: a lock that it held would stay locked in the worker.
"""

from __future__ import annotations

import functools
import gc
import logging
import mmap
import os
import selectors
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from urelay.engine.stats import Stats, total
from urelay.errors import StartError
from urelay.services.channel import Channel, Word
from urelay.services.crew import Crew, Member
from urelay.services.fork import fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from _typeshed import FileDescriptorLike

Life: TypeAlias = "Callable[[Crew, int, Channel], None]"
"""What the worker with a number in a crew does, in its own process"""

_ANSWER_S = 10.0
"""How long a worker may take to answer: its longest turn is some milliseconds"""
_REPORT_S = 2.0
_REPLACE_EVERY_S = 1.0
_LONGEST_TURN_S = 3600.0

_log = logging.getLogger(__name__)


class Staff:
    """Must be closed, when nobody is left."""

    def __init__(self, size: int, life: Life, deaf_to: Iterable[signal.Signals]) -> None:
        """`size` workers to a crew; each ignores the signals `deaf_to`."""
        self._size = size
        self._life = life
        self._deaf_to = tuple(deaf_to)
        self._members: list[Member] = []
        """Every worker that runs, the oldest generation first"""
        # Shared with every process that is forked from this one: an anonymous map is.
        self.counts = memoryview(mmap.mmap(-1, 8 * size)).cast("Q")
        """How many connections each number has accepted, whoever had it"""
        self._past = Stats()
        """The counters of workers that are gone"""
        self._hired_at = [-_REPLACE_EVERY_S] * size
        self._selector = selectors.DefaultSelector()

    def __iter__(self) -> Iterator[Member]:
        """Those that run, the oldest generation first; fit to be walked while some end."""
        return iter(tuple(self._members))

    def close(self) -> None:
        """Close what is waited with."""
        self._selector.close()

    # --- waiting

    def watch(self, sock: FileDescriptorLike, ready: Callable[[], object]) -> None:
        """Call `ready` whenever this can be read, in a turn."""
        self._selector.register(sock, selectors.EVENT_READ, ready)

    def unwatch(self, sock: FileDescriptorLike) -> None:
        """Call it no more."""
        self._selector.unregister(sock)

    def turn(self, seconds: float) -> None:
        """Wait so long at most for something to hear, and take note of what came."""
        for key, _ in self._selector.select(min(seconds, _LONGEST_TURN_S)):
            key.data()

    def wait(self, over: Callable[[], bool], seconds: float = _ANSWER_S) -> None:
        """Return when it is over, or the time is."""
        deadline = time.monotonic() + seconds
        while not over() and (left := deadline - time.monotonic()) > 0:
            self.turn(left)

    def insist(self, members: Iterable[Member], word: Word) -> None:
        """Return when each of these has said it, or has ended; who does neither is killed."""
        asked = list(members)

        def silent() -> list[Member]:
            return [one for one in asked if one.alive and one.said is not word]

        self.wait(lambda: not silent())
        for one in silent():
            _log.error("%s hangs: it is killed", one)
            one.kill()
        self.wait(lambda: not silent())

    # --- a crew

    def muster(self, crew: Crew) -> None:
        """Fork a whole crew and wait until it is ready; raises StartError, and then it is gone again."""
        # What exists now is shared by all as long as nobody writes to it, and the collector would.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        try:
            for number in range(self._size):
                self._hire(crew, number)
        except OSError as error:
            self.dismiss(crew.members.values())
            raise StartError(f"cannot start a worker: {(error.strerror or str(error)).lower()}") from None
        self.insist(crew.members.values(), Word.READY)
        if len(crew.members) < self._size:
            self.dismiss(crew.members.values())
            raise StartError("a worker ended before it was ready")

    def send_out(self, crew: Crew) -> None:
        """Let a mustered crew accept clients."""
        members = list(crew.members.values())
        for member in members:
            member.go()
        self.insist(members, Word.ACCEPTING)

    def until_next_hire(self, crew: Crew) -> float:
        """In how many seconds `fill_up` may have something to do; infinite while nobody is missing."""
        waiting = [self._hired_at[number] for number in self._vacant(crew)]
        return max(0.0, min(waiting, default=float("inf")) + _REPLACE_EVERY_S - time.monotonic())

    def fill_up(self, crew: Crew) -> None:
        """Replace those of a crew that have ended, each number once a second at most."""
        for number in self._vacant(crew):
            if time.monotonic() < self._hired_at[number] + _REPLACE_EVERY_S:
                continue
            try:
                self._hire(crew, number)
            except OSError as error:
                self._hired_at[number] = time.monotonic()
                why = (error.strerror or str(error)).lower()
                _log.error("cannot replace worker %d: %s", number + 1, why)
            else:
                _log.info("%s takes its place", crew.members[number])

    def dismiss(self, members: Iterable[Member]) -> None:
        """End workers at once, those that are left."""
        left = list(members)
        for member in left:
            member.kill()
        self.wait(lambda: not any(member.alive for member in left))

    # --- what they count

    def stats(self) -> Stats:
        """The numbers of all workers there are and were; who does not answer counts with its last."""
        asked = list(self)
        for member in asked:
            member.report()
        self.wait(lambda: all(one.reported or not one.alive for one in asked), _REPORT_S)
        stats = total((self._past, *(member.stats for member in self._members)))
        # These are exact even for a worker that was killed.
        return replace(stats, accepted=sum(self.counts))

    # --- one worker

    def _vacant(self, crew: Crew) -> list[int]:
        return [number for number in range(self._size) if number not in crew.members]

    def _hire(self, crew: Crew, number: int) -> None:
        """Fork a worker; raises OSError."""
        ours, theirs = Channel.pair()
        try:
            pid = fork(lambda: self._begin(crew, number, ours, theirs), self._deaf_to)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._hired_at[number] = time.monotonic()
        member = Member(crew, number, pid, ours)
        self._members.append(member)
        self.watch(ours, functools.partial(self._listen_to, member))

    def _begin(self, crew: Crew, number: int, ours: Channel, theirs: Channel) -> None:
        """The first thing a worker does, in its own process."""
        # What belongs to others: a worker must not keep their channels open.
        self.close()
        ours.close()
        for member in self._members:
            member.channel.close()
        self._life(crew, number, theirs)

    def _listen_to(self, member: Member) -> None:
        if not member.alive:
            return  # buried in the same turn
        member.listen()
        if member.channel.gone:
            # Its death is told by a signal; until then there is nothing to hear.
            self.unwatch(member.channel)

    def bury_the_dead(self) -> None:
        """Wait for those that have ended; to be called when a signal says that one has."""
        for member in self:
            pid, status = os.waitpid(member.pid, os.WNOHANG)
            if pid:
                self._bury(member, os.waitstatus_to_exitcode(status))

    def _bury(self, member: Member, status: int) -> None:
        member.alive = False
        if not member.channel.gone:
            member.listen()  # its last words
            self.unwatch(member.channel)
        member.channel.close()
        self._members.remove(member)
        del member.crew.members[member.number]
        self._past = total((self._past, member.stats.settled()))
        if not member.condemned and (status or not member.finishing):
            how = f"ended with status {status}"
            if status < 0:
                how = f"was killed by {signal.Signals(-status).name}"
            _log.error("%s %s", member, how)
