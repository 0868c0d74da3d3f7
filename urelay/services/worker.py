"""One of several processes that relay: forked by the supervisor, which alone gives it orders.

A worker runs one generation for all its life. It makes everything it needs, says that it is ready,
accepts clients when told to, stops accepting when told to, and ends with its last connection, in the
time it is given. When the supervisor is gone, nobody can tell it anything any more: it ends at once.

Its numbers for connections interleave with those of the other workers: worker k of n (from 0) counts
k + 1, k + 1 + n, k + 1 + 2n, … How far each has come stands in memory that all processes share, so
whoever takes a worker's place goes on where it stopped, however it ended. INVARIANT at any moment
one process at most accepts for each k.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import asdict
from typing import TYPE_CHECKING

from urelay.services.channel import Channel, Order, Word
from urelay.services.running import Running

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from urelay.engine.limits import Limits
    from urelay.engine.resolve import Resolver
    from urelay.services.generation import Generation
    from urelay.services.listeners import Opened
    from urelay.services.sink import Sink


class Worker:
    """Lives in one event loop, once."""

    _running: Running

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._opened: Sequence[Opened] = ()
        self._finish_asked = asyncio.Event()

    async def run(
        self,
        generation: Generation,
        opened: Sequence[Opened],
        resolver: Resolver,
        limits: Limits,
        access_sink: Sink | None,
        ids: Iterator[int],
    ) -> None:
        """Relay until the supervisor says that it is over, or is gone."""
        self._opened = opened
        self._running = running = Running(generation, resolver, limits, access_sink, ids)
        loop = asyncio.get_running_loop()
        try:
            loop.add_reader(self._channel, self._obey)
            # As in a single process: what start-up made stays.
            gc.collect()
            gc.freeze()
            self._say(Word.READY)
            await self._finish_asked.wait()
            await running.finish()
        finally:
            loop.remove_reader(self._channel)
            running.close()
        self._say(Word.REPORT)

    def _say(self, word: Word) -> None:
        self._channel.send(word, asdict(self._running.snapshot()))

    def _obey(self) -> None:
        for order, value in self._channel.receive():
            match order:
                case Order.GO:
                    self._running.listen(self._opened)
                    self._say(Word.ACCEPTING)
                case Order.FINISH:
                    self._finish(value if isinstance(value, int | float) else None)
                    self._say(Word.CLOSED)
                case Order.REOPEN:
                    self._running.reopen_log()
                case Order.REPORT:
                    self._say(Word.REPORT)
        if self._channel.gone:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._finish(0)

    def _finish(self, seconds: float | None) -> None:
        self._running.stop_listening()
        if seconds is not None:
            self._running.hasten(seconds)
        self._finish_asked.set()


def interleaved(counts: memoryview[int], worker: int) -> Iterator[int]:
    """The numbers of one worker's connections; `counts` has how many each worker has given so far."""
    step = len(counts)
    while True:
        given = counts[worker]
        counts[worker] = given + 1
        yield given * step + worker + 1
