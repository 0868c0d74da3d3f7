"""Every turn comes, never early, at most two ticks late; leaving and moving cost nothing later."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from urelay.engine.timers import Wheel


class Waiting:
    def __init__(self, act: Callable[[float], None] | None = None) -> None:
        self.slot = 0
        self.came: list[float] = []
        self.crashed = False
        self._act = act

    def on_timer(self, now: float) -> None:
        self.came.append(now)
        if self._act is not None:
            self._act(now)

    def on_crash(self) -> None:
        self.crashed = True


def run(scene: Callable[[Wheel, asyncio.AbstractEventLoop], Awaitable[None]], tick_s: float = 0.02) -> None:
    async def play() -> None:
        loop = asyncio.get_running_loop()
        wheel = Wheel(loop, tick_s)
        try:
            await scene(wheel, loop)
        finally:
            wheel.close()

    asyncio.run(play())


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for it, in the loop whose timers are under test."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def test_turns_come_in_time() -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        rng = random.Random(3)
        waiting = {Waiting(): loop.time() + rng.random() / 3 for _ in range(200)}
        for who, when in waiting.items():
            wheel.set(who, when)
        assert len(wheel) == 200
        await eventually(lambda: len(wheel) == 0)
        for who, when in waiting.items():
            assert len(who.came) == 1
            assert when - 0.001 <= who.came[0]

    run(scene)


def test_a_turn_that_is_put_off_again_and_again_comes_at_the_last_of_these_times() -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        late, early = Waiting(), Waiting()
        begin = loop.time()
        for step in range(1, 9):
            wheel.set(late, begin + 0.03 * step)
        wheel.set(early, begin + 5)
        wheel.set(early, begin + 0.05)
        assert len(wheel) == 2
        await eventually(lambda: len(wheel) == 0)
        assert (len(late.came), len(early.came)) == (1, 1)
        assert begin + 0.05 <= early.came[0] < begin + 5
        assert begin + 0.24 <= late.came[0]

    run(scene)


def test_a_time_that_has_passed_comes_with_the_next_tick() -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        who = Waiting()
        wheel.set(who, loop.time() - 5)
        await eventually(lambda: bool(who.came))
        assert len(who.came) == 1

    run(scene)


def test_the_last_word_counts() -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        moved, cancelled = Waiting(), Waiting()
        wheel.set(moved, loop.time() + 100)
        wheel.set(moved, loop.time() + 0.05)
        wheel.set(cancelled, loop.time() + 0.05)
        wheel.cancel(cancelled)
        wheel.cancel(cancelled)
        assert len(wheel) == 1
        await eventually(lambda: len(wheel) == 0)
        assert (len(moved.came), cancelled.came) == (1, [])

    run(scene)


def test_a_turn_may_ask_for_another_and_take_others_off() -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        victim = Waiting()

        def act(now: float) -> None:
            wheel.cancel(victim)
            if len(again.came) < 3:
                wheel.set(again, now + 0.03)

        again = Waiting(act)
        wheel.set(again, loop.time() + 0.03)
        wheel.set(victim, loop.time() + 0.2)
        await eventually(lambda: len(wheel) == 0)
        assert (len(again.came), victim.came) == (3, [])
        assert all(
            later - earlier >= 0.03 for earlier, later in zip(again.came, again.came[1:], strict=False)
        )

    run(scene)


def test_a_fault_costs_the_one_it_happened_in(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        def fail(now: float) -> None:
            raise RuntimeError("a bug")

        bad, good = Waiting(fail), Waiting()
        for who in (bad, good):
            wheel.set(who, loop.time() + 0.03)
        await eventually(lambda: len(wheel) == 0)
        assert bad.crashed
        assert len(good.came) == 1

    run(scene)
    assert "nobody foresaw" in caplog.text


def test_an_empty_wheel_does_not_turn() -> None:
    async def scene(wheel: Wheel, loop: asyncio.AbstractEventLoop) -> None:
        who = Waiting()
        wheel.set(who, loop.time() + 0.01)
        await eventually(lambda: bool(who.came))
        assert wheel._handle is None
        wheel.set(who, loop.time() + 0.03)
        await eventually(lambda: len(who.came) == 2)

    run(scene)
