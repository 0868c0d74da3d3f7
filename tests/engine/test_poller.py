"""Nobody is told what was meant for somebody else, every turn comes, and a fault costs one connection."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable

import pytest

from tests.engine.rig import no_descriptor_left
from urelay.engine import poller as poller_module
from urelay.engine.poller import Poller, RelayLoop, running_poller


class Told:
    """A handler that notes what it is told, and does what the test wants."""

    def __init__(self, act: Callable[[Told, int], None] | None = None) -> None:
        self.events: list[int] = []
        self.turns = 0
        self.crashes = 0
        self._act = act

    def on_event(self, events: int) -> None:
        self.events.append(events)
        if self._act is not None:
            self._act(self, events)

    def resume(self) -> None:
        self.turns += 1

    def come_last(self) -> None:
        self.turns += 100

    def on_crash(self) -> None:
        self.crashes += 1


def run(scene: Callable[[Poller], Awaitable[None]]) -> None:
    async def play() -> None:
        await scene(running_poller())

    with no_descriptor_left(), asyncio.Runner(loop_factory=RelayLoop) as runner:
        runner.run(play())


async def turn() -> None:
    """Let the loop go round twice: once to see that the epoll is ready, once to be sure."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_an_edge_is_told_once() -> None:
    async def scene(poller: Poller) -> None:
        near, far = socket.socketpair()
        with near, far:
            told = Told()
            poller.add(near, told)
            far.send(b"x")
            await turn()
            assert len(told.events) == 1
            assert told.events[0] & select.EPOLLIN
            await turn()
            assert len(told.events) == 1
            poller.remove(near)
            far.send(b"y")
            await turn()
            assert len(told.events) == 1

    run(scene)


def test_a_socket_retired_in_a_batch_hears_no_more_and_keeps_its_number_until_the_end() -> None:
    async def scene(poller: Poller) -> None:
        pairs = [socket.socketpair() for _ in range(2)]
        seen: list[bool] = []

        def retire_the_other(told: Told, events: int) -> None:
            other = pairs[1 if told is handlers[0] else 0][0]
            poller.retire(other)
            seen.append(other.fileno() != -1)

        handlers = [Told(retire_the_other), Told(retire_the_other)]
        for (near, far), handler in zip(pairs, handlers, strict=True):
            poller.add(near, handler)
            far.send(b"x")
        await turn()
        assert sum(len(handler.events) for handler in handlers) == 1
        assert seen == [True]
        assert sorted(near.fileno() == -1 for near, _ in pairs) == [False, True]
        assert len(poller) == 1
        for near, far in pairs:
            near.close()
            far.close()

    run(scene)


def test_another_turn_comes_after_everybody_elses_and_without_any_event() -> None:
    async def scene(poller: Poller) -> None:
        told = Told()
        poller.again(told)
        assert told.turns == 0
        await turn()
        assert told.turns == 1
        near, far = socket.socketpair()
        with near, far:
            poller.add(near, Told(lambda _told, _events: poller.again(told)))
            await turn()
            assert told.turns == 2
            poller.remove(near)

    run(scene)


def test_who_comes_last_comes_after_retired_sockets_are_closed() -> None:
    async def scene(poller: Poller) -> None:
        near, far = socket.socketpair()
        closed: list[bool] = []

        class Last(Told):
            def come_last(self) -> None:
                closed.append(near.fileno() == -1)

        def act(told: Told, events: int) -> None:
            poller.last(Last())
            poller.retire(near)

        poller.add(near, Told(act))
        await turn()
        assert closed == [True]
        far.close()

    run(scene)


def test_those_who_are_accepted_come_when_all_of_them_are() -> None:
    order: list[str] = []

    class Accepted(Told):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def come_last(self) -> None:
            order.append(f"{self.name} connects")

    class Listener(Told):
        def __init__(self, poller: Poller, name: str) -> None:
            super().__init__()
            self.poller, self.name = poller, name

        def come_last(self) -> None:
            order.append(f"{self.name} accepts")
            self.poller.last(Accepted(self.name))

    async def scene(poller: Poller) -> None:
        near, far = socket.socketpair()
        with near, far:

            def wake_listeners(told: Told, events: int) -> None:
                for name in "ab":
                    poller.last(Listener(poller, name))

            poller.add(near, Told(wake_listeners))
            await turn()
            poller.remove(near)
        assert order == ["a accepts", "b accepts", "a connects", "b connects"]

    run(scene)


def test_who_asks_outside_a_batch_need_not_wait_for_one() -> None:
    async def scene(poller: Poller) -> None:
        loop = asyncio.get_running_loop()
        came = loop.create_future()

        class Last(Told):
            def come_last(self) -> None:
                came.set_result(loop.time())

        start = loop.time()
        poller.last(Last())
        async with asyncio.timeout(10):
            assert await came - start < 5

    run(scene)


def test_a_fault_costs_the_one_it_happened_in(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(poller: Poller) -> None:
        def fail(told: Told, events: int) -> None:
            raise RuntimeError("a bug")

        pairs = [socket.socketpair() for _ in range(3)]
        handlers = [Told(), Told(fail), Told()]
        for (near, _far), handler in zip(pairs, handlers, strict=True):
            poller.add(near, handler)
        await turn()
        assert [len(each.events) for each in handlers] == [1, 1, 1]
        assert [each.crashes for each in handlers] == [0, 1, 0]
        for near, far in pairs:
            poller.remove(near)
            near.close()
            far.close()

    run(scene)
    assert "nobody foresaw" in caplog.text


def test_the_clock_is_that_of_the_batch() -> None:
    async def scene(poller: Poller) -> None:
        loop = asyncio.get_running_loop()
        earlier = poller.now
        near, far = socket.socketpair()
        with near, far:
            times: list[tuple[float, float]] = []
            poller.add(near, Told(lambda _told, _events: times.append((poller.now, loop.time()))))
            await turn()
            assert earlier <= times[0][0] <= times[0][1]
            poller.remove(near)

    run(scene)


def test_asyncio_is_left_alone_while_only_relayed_sockets_are_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred messages, one after the other, within one wait of the loop's."""
    waits = 0
    select_once = Poller.select

    def counted(poller: Poller, timeout: float | None = None) -> object:
        nonlocal waits
        waits += 1
        return select_once(poller, timeout)

    monkeypatch.setattr(Poller, "select", counted)

    async def scene(poller: Poller) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        done = loop.create_future()
        left = 100

        def bounce(_told: Told, events: int) -> None:
            nonlocal left
            if not events & select.EPOLLIN:
                return
            near.recv(1)
            if left := left - 1:
                far.send(b"x")
            else:
                done.set_result(None)

        with near, far:
            poller.add(near, Told(bounce))
            far.send(b"x")
            before = waits
            await done
            assert waits - before <= 3
            poller.remove(near)

    run(scene)


def test_what_a_handler_asks_of_asyncio_comes_at_once() -> None:
    async def scene(poller: Poller) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        soon, later = loop.create_future(), loop.create_future()

        def ask(_told: Told, _events: int) -> None:
            loop.call_soon(soon.set_result, None)
            loop.call_later(0.01, later.set_result, None)

        with near, far:
            async with asyncio.timeout(20):
                poller.add(near, Told(ask))
                await soon
                await later
            poller.remove(near)

    run(scene)


@pytest.mark.parametrize("waits", ["nobody", "asyncio", "a turn"])
def test_a_batch_that_asks_for_it_is_followed_by_one_pause_unless_somebody_waits(
    waits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = []

    async def scene(poller: Poller) -> None:
        loop = asyncio.get_running_loop()
        heard = asyncio.Event()

        def act(told: Told, events: int) -> None:
            poller.gather()
            if waits == "asyncio":
                loop.call_soon(heard.set)
            elif waits == "a turn" and len(told.events) == 1:
                poller.again(Turns(heard))

        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            loop.call_soon(heard.set)

        monkeypatch.setattr(poller_module.time, "sleep", sleep)
        pairs = [socket.socketpair() for _ in range(2)]
        handlers = [Told(act), Told(act)]
        for (near, far), handler in zip(pairs, handlers, strict=True):
            far.send(b"x")
            poller.add(near, handler, select.EPOLLIN | select.EPOLLET)
        await heard.wait()
        await turn()
        monkeypatch.undo()
        assert [len(each.events) for each in handlers] == [1, 1]
        for near, far in pairs:
            poller.remove(near)
            near.close()
            far.close()

    class Turns:
        """It takes three turns, and none of them is waited for."""

        def __init__(self, heard: asyncio.Event) -> None:
            self.left = 3
            self._heard = heard

        def resume(self) -> None:
            self.left -= 1
            if self.left:
                running_poller().again(self)
            else:
                asyncio.get_running_loop().call_soon(self._heard.set)

        def on_crash(self) -> None:
            raise AssertionError("it failed")

    run(scene)
    assert pauses == ([poller_module._GATHER_S] if waits == "nobody" else [])
