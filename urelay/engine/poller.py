"""One edge-triggered epoll, owned by the relay, that asyncio watches as a single descriptor.

asyncio keeps timers, signals, handshakes with proxies and DNS; every relayed byte passes through
here, up to 512 events a wake-up, with no handle, future or callback object for an event: a
dictionary maps a descriptor to the object that stands for it, and its `on_event` is called.

What makes this safe is the order inside one batch:

1. Events are handled. A socket that ends is *retired*: its handler is forgotten at once, so a later
   event of the same batch finds nobody, and its descriptor stays open until step 3, so the kernel
   cannot give the number to somebody else while such an event is still to come.
2. Those who gave up their turn (`again`) get the next one.
3. Retired descriptors are closed.
4. Those who asked to come last do: listeners accept here, so a new connection can only get a
   number whose stale events are gone.

Edge-triggered means told once: whoever is told that a socket is readable must read until it is
empty, or ask for another turn with `again`.
"""

from __future__ import annotations

import logging
import select
from collections import deque
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from socket import SocketType

log = logging.getLogger(__name__)

EDGE = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
"""How a relayed socket is registered, once, and never re-armed"""

_BATCH = 512


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


class Poller:
    """The epoll and who stands behind each of its descriptors. Must be closed."""

    __slots__ = (
        "_again",
        "_epoll",
        "_handlers",
        "_in_batch",
        "_last",
        "_loop",
        "_on_time",
        "_retired",
        "_shared",
        "_woken",
        "batches",
        "now",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.now = loop.time()
        """The loop's time, taken once a batch: the clock of everything that happens in it"""
        self.batches = 0
        """Wake-ups so far: a relay that spins shows here"""
        self._loop = loop
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._again: deque[Resumable] = deque()
        self._last: list[Last] = []
        self._retired: list[SocketType] = []
        self._shared: set[int] = set()
        """Sockets of which another process may hold a descriptor too"""
        self._in_batch = False
        self._on_time = False
        """Whether `now` was taken a moment ago"""
        self._woken = False
        loop.add_reader(self._epoll.fileno(), self._drain)

    def __len__(self) -> int:
        return len(self._handlers)

    def add(self, sock: SocketType, handler: Handler, events: int = EDGE) -> None:
        """Watch `sock`. What it is ready for already is reported too. Raises OSError (ENOSPC, ENOMEM)."""
        fd = sock.fileno()
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def assign(self, sock: SocketType, handler: Handler) -> None:
        """Let another handler stand for a watched socket; it must look for itself what is ready."""
        self._handlers[sock.fileno()] = handler

    def remove(self, sock: SocketType) -> None:
        """Watch `sock` no longer, and leave it open."""
        if self._handlers.pop(sock.fileno(), None) is not None:
            self._epoll.unregister(sock.fileno())

    def share(self, sock: SocketType) -> None:
        """Another process may have `sock` too, so closing it will not make the kernel forget it."""
        self._shared.add(sock.fileno())

    def retire(self, sock: SocketType) -> None:
        """Forget and close `sock`: at the end of the batch, or now if there is none."""
        watched = self._handlers.pop(sock.fileno(), None) is not None
        if self._shared:
            self._forget_shared(sock.fileno(), watched)
        if self._in_batch:
            self._retired.append(sock)
        else:
            sock.close()

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
        if not self._in_batch:
            self._wake()

    def last(self, who: Last) -> None:
        """Call `who.come_last()` at the end of this batch. Only from within `on_event`."""
        self._last.append(who)

    def touch(self) -> float:
        """Bring `now` up to date, if this is not a batch, and return it."""
        if not self._on_time:
            self.now = self._loop.time()
        return self.now

    def close(self) -> None:
        """Stop watching everything. Open sockets are their owners' to close."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._handlers.clear()
        self._again.clear()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            self._loop.call_soon(self._drain_again)

    def _drain_again(self) -> None:
        self._woken = False
        if not self._epoll.closed:
            self._drain()

    def _drain(self) -> None:
        self.now = self._loop.time()
        self.batches += 1
        self._in_batch = self._on_time = True
        handlers = self._handlers
        for fd, events in self._epoll.poll(0, _BATCH):
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler.on_event(events)
                except Exception:
                    _crashed(handler)
        again = self._again
        for _ in range(len(again)):
            who = again.popleft()
            try:
                who.resume()
            except Exception:
                _crashed(who)
        self._in_batch = False
        if self._retired:
            for sock in self._retired:
                sock.close()
            self._retired.clear()
        if self._last:
            coming, self._last = self._last, []
            for last in coming:
                try:
                    last.come_last()
                except Exception:
                    _crashed(last)
        self._on_time = False
        if again:
            self._wake()


def _crashed(who: Handler | Resumable | Last) -> None:
    """A fault of ours costs the one connection it happened in, and says so."""
    log.exception("a connection failed for a reason nobody foresaw")
    who.on_crash()
