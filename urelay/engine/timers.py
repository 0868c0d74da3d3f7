"""One coarse wheel for every deadline of the relay.

A flow moves bytes far more often than it times out, so bytes never touch a timer: they leave the
time of their batch in the flow, and the flow looks at it when its turn on the wheel comes, and
takes another turn if it was too early. So each connection has exactly one place on the wheel, which
costs a set entry, and a relay without connections has no timer at all.

Asking for a later turn than the one it has moves nobody: the old turn comes, finds that it is too
early, and sends on.

Who is *young* has not even a place: every connection wants its first turn equally long after it
began, so they stand in a queue in the order of their beginnings, and most leave it before they
reach its head. Entering and leaving are one dictionary operation each, done where they happen.

Slots are sets, not lists, because most connections end long before their turn: leaving must not
wait for it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

log = logging.getLogger(__name__)


class Timed(Protocol):
    """What may stand on the wheel. `slot` and `due` belong to the wheel; they start as 0."""

    slot: int
    due: float

    def on_timer(self, now: float) -> None:
        """The turn asked for has come, at most two ticks late; `now` is the loop's time."""

    def on_crash(self) -> None:
        """`on_timer` raised: let go of everything."""


class Wheel:
    """Turns, a tick apart. Must be closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick_s: float) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._slots: dict[int, set[Timed]] = {}
        self.young: dict[Timed, None] = {}
        """Who waits for a first turn at `due`, in that order. To be entered by hand; then `wind`"""
        self.asleep = True
        """Whether nobody keeps the wheel turning: call `wind` after entering somebody young"""
        self._count = 0
        self._done = self._tick(loop.time())
        self._handle: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return self._count + len(self.young)

    def set(self, who: Timed, when: float) -> None:
        """Give `who` a turn at the loop time `when`, instead of the one it had."""
        who.due = when
        self.young.pop(who, None)
        if who.slot:
            if who.slot * self._tick_s <= when:
                return
            self.cancel(who)
        if self.asleep:
            self.wind()
        tick = max(math.ceil(when / self._tick_s), self._done + 1)
        who.slot = tick
        slot = self._slots.get(tick)
        if slot is None:
            self._slots[tick] = {who}
        else:
            slot.add(who)
        self._count += 1

    def wind(self) -> None:
        """Turn from now on, as long as somebody waits."""
        # Nothing was due while the wheel stood still.
        self._done = self._tick(self._loop.time())
        self.asleep = False
        self._arm()

    def cancel(self, who: Timed) -> None:
        """Take `who` off the wheel, if it is there."""
        self.young.pop(who, None)
        who.due = 0.0
        if who.slot:
            slot = self._slots.get(who.slot)
            if slot is not None:
                slot.discard(who)
                if not slot:
                    del self._slots[who.slot]
            who.slot = 0
            self._count -= 1

    def close(self) -> None:
        """Give no more turns."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._slots.clear()
        self.young.clear()

    def _tick(self, when: float) -> int:
        return int(when / self._tick_s)

    def _arm(self) -> None:
        self._handle = self._loop.call_at((self._done + 1) * self._tick_s, self._turn)

    def _turn(self) -> None:
        now = self._loop.time()
        # The loop may call a clock's resolution too early: that is this tick all the same.
        for tick in range(self._done + 1, max(self._tick(now), self._done + 1) + 1):
            self._done = tick
            for who in self._slots.pop(tick, ()):
                # An earlier one of this slot may have taken it off, or moved it.
                if who.slot != tick:
                    continue
                who.slot = 0
                self._count -= 1
                if math.ceil(who.due / self._tick_s) > tick:
                    self.set(who, who.due)
                else:
                    _give(who, now)
        while self.young:
            first = next(iter(self.young))
            if first.due > now:
                break
            del self.young[first]
            _give(first, now)
        # Kept until here, so that a turn asked for meanwhile does not wind the wheel on.
        self._handle = None
        if self._count or self.young:
            self._arm()
        else:
            self.asleep = True


def _give(who: Timed, now: float) -> None:
    try:
        who.on_timer(now)
    except Exception:
        log.exception("a timer failed for a reason nobody foresaw")
        who.on_crash()
