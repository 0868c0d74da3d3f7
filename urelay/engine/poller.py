"""One edge-triggered epoll that relayed bytes and asyncio share.

asyncio keeps timers, signals, handshakes with proxies and DNS; every relayed byte passes through
here, up to 40 events a wake-up, with no handle, future or callback object for an event: a
dictionary maps a descriptor to the object that stands for it, and its `on_event` is called.

The poller *is* the selector of its event loop (`RelayLoop`): the loop's wait is this epoll's, and
what happens to relayed sockets is handled before the loop is told anything. asyncio's own
descriptors are in a selector of the standard library, whose one descriptor this epoll watches. So a
message costs one wait, one read and one write; had asyncio watched this epoll instead, it would be
two waits and a callback.

What makes a batch safe is the order inside it:

1. Events are handled. A socket that ends is *retired*: its handler is forgotten at once, so a later
   event of the same batch finds nobody, and its descriptor stays open until step 3, so the kernel
   cannot give the number to somebody else while such an event is still to come.
2. Those who gave up their turn (`again`) get the next one.
3. Retired descriptors are closed.
4. Those who asked to come last do: listeners accept here, so a new connection can only get a
   number whose stale events are gone; then whoever was accepted, or has said where it wants to go,
   connects.

Edge-triggered means told once: whoever is told that a socket is readable must read until it is
empty, or ask for another turn with `again`.

A relay that is busy relaying has nothing for asyncio to do. So the wait comes back to the loop only
when there is something: one of asyncio's descriptors is ready, a callback or a timer was asked for,
or the time is up. Going round the whole loop for each wake-up would cost more than what it is about.
"""

from __future__ import annotations

import asyncio
import logging
import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVarTuple

if TYPE_CHECKING:
    from contextvars import Context
    from socket import SocketType

_Ts = TypeVarTuple("_Ts")

log = logging.getLogger(__name__)

EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
"""How a relayed socket is registered; it is never re-armed"""
EDGE_IN = EDGE & ~select.EPOLLOUT
"""How one is registered of which nobody needs to hear yet that there is room"""

_GATHER_S = 100e-6
"""How long bulk data gathers before a wait; the kernel adds half as much"""
_BATCH = 40
"""Events a wait: as many as the interpreter finds room for without asking the C library"""
_LONGEST_S = 3600.0
"""A wait, when asyncio names no end"""


class Handler(Protocol):
    """What stands for a descriptor."""

    def on_event(self, events: int) -> None:
        """The kernel reported these epoll events."""

    def on_crash(self) -> None:
        """`on_event`, `resume` or `come_last` raised: let go of everything."""


class Resumable(Protocol):
    """What may ask for another turn."""

    def resume(self) -> None:
        """The turn asked for by `again`."""

    def on_crash(self) -> None:
        """`resume` raised."""


class Last(Protocol):
    """What may ask to come last in a batch."""

    def come_last(self) -> None:
        """Every event of this batch is handled and every retired descriptor closed."""

    def on_crash(self) -> None:
        """`come_last` raised."""


class Poller(selectors.BaseSelector):
    """The epoll and who stands behind each of its descriptors. Must be closed; its loop does so."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        """The loop's time when its wait ended last: the clock of everything that happens before the next"""
        self.batches = 0
        """Wake-ups for relayed sockets so far: a relay that spins shows here"""
        self._epoll = select.epoll()
        self.handlers: dict[int, Handler] = {}
        """Who stands for each watched descriptor"""
        self._again: deque[Resumable] = deque()
        self._last: list[Last] = []
        self._retired: list[SocketType] = []
        self._shared: set[int] = set()
        """Sockets of which another process may hold a descriptor too"""
        self._in_batch = False
        self._owes = False
        """Whether anything was put off to the end of the batch"""
        self._gathers = False
        """Whether the next wait may begin a little later"""
        self._is_wanted = False
        """Whether asyncio has something to do that it had not when the wait began"""
        self._asyncio_is_ready = False
        self._asyncio = selectors.EpollSelector()
        self._epoll.register(self._asyncio.fileno(), select.EPOLLIN)
        self.handlers[self._asyncio.fileno()] = self

    def __len__(self) -> int:
        # Without the one that is asyncio's.
        return len(self.handlers) - 1

    def add(self, sock: SocketType, handler: Handler, events: int = EDGE) -> None:
        """Watch `sock`. What it is ready for already is reported too. Raises OSError (ENOSPC, ENOMEM)."""
        fd = sock.fileno()
        self._epoll.register(fd, events)
        self.handlers[fd] = handler

    def tell_of_room(self, sock: SocketType) -> None:
        """Watch as EDGE does from now on, if it is watched: what it is ready for is reported again."""
        fd = sock.fileno()
        if fd in self.handlers:
            self._epoll.modify(fd, EDGE)

    def assign(self, sock: SocketType, handler: Handler) -> None:
        """Let another handler stand for a watched socket; it must look for itself what is ready."""
        self.handlers[sock.fileno()] = handler

    def remove(self, sock: SocketType) -> None:
        """Watch `sock` no longer, and leave it open."""
        if self.handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def share(self, sock: SocketType) -> None:
        """Another process may have `sock` too, so closing it will not make the kernel forget it."""
        self._shared.add(sock.fileno())

    def retire(self, sock: SocketType) -> None:
        """Forget and close it: at the end of the batch, or now if there is none."""
        fd = sock.fileno()
        watched = self.handlers.pop(fd, None) is not None
        if self._shared:
            self._forget_shared(fd, watched)
        if self._in_batch:
            self._retired.append(sock)
            self._owes = True
        else:
            sock.close()

    def retire_both(self, one: SocketType, other: SocketType) -> None:
        """`retire`, for two that end together."""
        if self._shared or not self._in_batch:
            self.retire(one)
            self.retire(other)
        else:
            forget = self.handlers.pop
            forget(one.fileno(), None)
            forget(other.fileno(), None)
            self._retired += (one, other)
            self._owes = True

    def _forget_shared(self, fd: int, watched: bool) -> None:
        # epoll forgets a socket with its last descriptor, and would report this one under a number
        # that is somebody else's by then.
        if fd in self._shared:
            self._shared.discard(fd)
            if watched:
                self._epoll.unregister(fd)

    def again(self, who: Resumable) -> None:
        """Give `who` another turn, after everybody who is ready now."""
        self._again.append(who)
        self._owes = True

    def last(self, who: Last) -> None:
        """Call `who.come_last()` at the end of this batch, or of the next if there is none."""
        self._last.append(who)
        self._owes = True

    def gather(self) -> None:
        """Let data gather before the next wait, as network cards do: a stream comes in small pieces.

        Each piece would wake the relay, and each that it sends on would wake somebody else, who has less
        time to send for it. The price is that everybody's next message may wait as long.
        """
        self._gathers = self._owes = True

    # --- what the event loop needs

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Handle what happens in the next `timeout` seconds, or until there is something for asyncio."""
        poll, clock, handlers = self._epoll.poll, time.monotonic, self.handlers
        wait = _LONGEST_S if timeout is None else max(timeout, 0.0)
        until = clock() + wait
        self._asyncio_is_ready = self._is_wanted = False
        self._in_batch = True
        if self._again or self._last:
            wait = 0.0
        batches = 0
        while True:
            events = poll(wait, _BATCH)
            self.now = now = clock()
            batches += 1
            for fd, mask in events:
                try:
                    handler = handlers[fd]
                except KeyError:
                    # Retired by an event before this one: nobody waits for it any more.
                    continue
                try:
                    handler.on_event(mask)
                except Exception:
                    _crashed(handler)
            wait = until - now
            if self._owes:
                self._settle()
                if self._is_wanted:
                    break
                if self._owes:
                    # Somebody gave up a turn, and is to have another.
                    if wait <= 0:
                        break
                    wait = 0.0
                    continue
            if wait <= 0:
                break
        self.batches += batches - (len(events) == self._asyncio_is_ready)
        self._in_batch = False
        return self._asyncio.select(0) if self._asyncio_is_ready else []

    def want(self) -> None:
        """Come back to the event loop at the end of this batch: it has something to do."""
        self._is_wanted = self._owes = True

    def _settle(self) -> None:
        """What was put off to the end of the batch."""
        if self._again:
            self._take_turns()
        self._close_retired()
        if self._last:
            # Twice, because those who are accepted connect when all of them are.
            self._let_the_last_come()
            self._let_the_last_come()
            self._close_retired()
        if self._gathers:
            self._gathers = False
            # Not while somebody waits: asyncio, or who gave up a turn and has more to move.
            if not (self._is_wanted or self._again or self._last):
                time.sleep(_GATHER_S)
        self._owes = bool(self._again or self._last)

    def _close_retired(self) -> None:
        for sock in self._retired:
            sock.close()
        self._retired.clear()

    def _take_turns(self) -> None:
        again = self._again
        for _ in range(len(again)):
            who = again.popleft()
            try:
                who.resume()
            except Exception:
                _crashed(who)

    def _let_the_last_come(self) -> None:
        coming, self._last = self._last, []
        for last in coming:
            try:
                last.come_last()
            except Exception:
                _crashed(last)

    def on_event(self, events: int) -> None:
        """One of asyncio's descriptors is ready."""
        self._asyncio_is_ready = True
        self.want()

    def on_crash(self) -> None:
        """That cannot fail."""

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a descriptor of asyncio's."""
        return self._asyncio.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Watch a descriptor of asyncio's no longer."""
        return self._asyncio.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Watch a descriptor of asyncio's for something else."""
        return self._asyncio.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """The descriptors of asyncio's."""
        return self._asyncio.get_map()

    def close(self) -> None:
        """Stop watching everything. Open sockets are their owners' to close."""
        self._epoll.close()
        self._asyncio.close()
        self.handlers.clear()
        self._again.clear()
        self._last.clear()


class RelayLoop(asyncio.SelectorEventLoop):
    """An event loop that a relay can live in. Whatever asks something of it ends the poller's wait."""

    def __init__(self) -> None:
        self.poller = Poller()
        super().__init__(self.poller)

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As every loop's."""
        self.poller.want()
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """As every loop's; `call_later` comes here too."""
        self.poller.want()
        return super().call_at(when, callback, *args, context=context)

    def stop(self) -> None:
        """As every loop's."""
        self.poller.want()
        super().stop()


def running_poller() -> Poller:
    """The poller of the loop that runs. Raises RuntimeError in a loop that is no RelayLoop."""
    loop = asyncio.get_running_loop()
    if not isinstance(loop, RelayLoop):
        raise RuntimeError("a relay lives in a RelayLoop")
    return loop.poller


def _crashed(who: Any) -> None:
    """A fault of ours costs the one connection it happened in, and says so."""
    log.exception("a connection failed for a reason nobody foresaw")
    who.on_crash()
