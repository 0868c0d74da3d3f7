"""The workers of one generation, as the supervisor sees them."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from urelay.engine.stats import Stats
from urelay.services.channel import Channel, Order, Word

if TYPE_CHECKING:
    from collections.abc import Sequence

    from urelay.services.generation import Generation
    from urelay.services.listeners import Opened


class Crew:
    """A generation, the sockets it listens on, and those of its workers that run."""

    def __init__(self, generation: Generation, opened: Sequence[Opened]) -> None:
        self.generation = generation
        self.opened = opened
        self.members: dict[int, Member] = {}
        """By the worker's number, from 0"""

    def close(self) -> None:
        """Close the sockets in this process; workers have their own descriptors of them."""
        for one in self.opened:
            one.sock.close()


class Member:
    """One worker."""

    def __init__(self, crew: Crew, number: int, pid: int, channel: Channel) -> None:
        self.crew = crew
        self.number = number
        self.pid = pid
        self.channel = channel
        self.alive = True
        """Until it was waited for: only then may the kernel give its process number to another"""
        self.said: Word | None = None
        """How far it is: ready, accepting or closed"""
        self.sent = False
        """Whether it was told to accept"""
        self.finishing = False
        """Whether it was told to finish"""
        self.condemned = False
        """Whether it was killed by us"""
        self.reported = False
        """Whether it has answered the last question for its counters"""
        self.stats = Stats()
        """What it last told of them"""
        crew.members[number] = self

    def __str__(self) -> str:
        return f"worker {self.number + 1} (process {self.pid})"

    def go(self) -> None:
        """Let it accept clients."""
        self.sent = True
        self.channel.send(Order.GO)

    def finish(self, seconds: float | None) -> None:
        """Let it accept nobody any more, and end in so many seconds (None: with its last connection)."""
        self.finishing = True
        self.channel.send(Order.FINISH, seconds)

    def report(self) -> None:
        """Ask for its counters."""
        self.reported = False
        self.channel.send(Order.REPORT)

    def reopen(self) -> None:
        """Let it open the access log's file again."""
        self.channel.send(Order.REOPEN)

    def listen(self) -> None:
        """Take note of what it said."""
        for word, stats in self.channel.receive():
            if isinstance(stats, dict):
                self.stats = Stats(**stats)
            if word == Word.REPORT:
                self.reported = True
            else:
                self.said = Word(word)

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self.condemned = True
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
