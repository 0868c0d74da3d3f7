"""Keeps the namespaces captured that a policy's listeners ask for, over reloads and new addresses.

`apply` is told the listeners of a generation before it takes over: new captures begin, those whose
listener got another socket are pointed at it, and those nobody asks for any more end. What fails on
the way is undone, so a reload that fails has changed nothing.

At the end a capture stays until the last connection is over: a connection that was captured lives by
the routes that brought it. A reload that asks for no capture any more ends it at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from typing import TYPE_CHECKING, TypeAlias

from urelay.errors import StartError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from urelay.namespaces.capture import Capture
    from urelay.services.listeners import Opened

Place: TypeAlias = "tuple[int, int] | None"
"""The identity of a namespace; None: our own"""

_SETTLE_S = 0.1
"""How long addresses may go on changing before they are read: an interface brings several"""
_log = logging.getLogger(__name__)


class Captures:
    """The captured namespaces, by their identity (None: our own)."""

    def __init__(self) -> None:
        self._captures: dict[Place, Capture] = {}
        self._listeners: dict[Place, Opened] = {}
        """Whose socket each brings its connections to"""
        self._watch: Callable[[Capture], object] = _watch_nothing
        self._unwatch: Callable[[Capture], object] = _watch_nothing
        self._pending: dict[Capture, asyncio.TimerHandle] = {}

    def apply(self, opened: Iterable[Opened]) -> None:
        """Capture for these listeners, as far as they ask for it, and for no others.

        Those of the last call must still be open. Raises StartError; then everything is as it was.
        """
        wanted = {_place(one): one for one in opened if one.listener.captures}
        if wanted:
            # Costs half of what it takes to start, so only those pay who capture.
            from urelay.namespaces.capture import Capture
        begun: list[Place] = []
        moved: list[Place] = []
        for place, one in wanted.items():
            try:
                if place not in self._captures:
                    netns = None if place is None else one.listener.netns
                    self._captures[place] = Capture(netns, one.sock, born=place is not None)
                    begun.append(place)
                elif not os.path.sameopenfile(one.sock.fileno(), self._listeners[place].sock.fileno()):
                    self._captures[place].point_at(one.sock)
                    moved.append(place)
            except StartError as error:
                self._undo(begun, moved)
                where = f"{one.listener.origin}: listener `{one.listener.name}`"
                raise StartError(*(f"{where}: {problem}" for problem in error.problems)) from None
        for place in self._captures.keys() - wanted.keys():
            self._end(place)
        self._listeners = wanted
        for place in begun:
            self._watch(self._captures[place])

    def follow(self, watch: Callable[[Capture], object], unwatch: Callable[[Capture], object]) -> None:
        """From now on addresses that come and go are noticed.

        `watch` is called with every capture there is and will be: when its monitor can be read,
        `changed` is to be called. `unwatch` is called before one ends.
        """
        self._watch, self._unwatch = watch, unwatch
        for capture in self._captures.values():
            watch(capture)

    def changed(self, capture: Capture, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """An address came or went: read them anew, at once or, with a loop, beside it in a moment."""
        capture.drain()
        if loop is None:
            _refresh(capture)
        elif capture not in self._pending:
            self._pending[capture] = loop.call_later(_SETTLE_S, self._refresh, capture)

    def ways(self) -> dict[str, str]:
        """How connections are captured, by the name of the listener they are brought to."""
        return {one.listener.name: self._captures[place].way for place, one in self._listeners.items()}

    def close(self) -> None:
        """Take every capture away. The loop that watched is over."""
        self._unwatch = _watch_nothing
        for place in list(self._captures):
            self._end(place)

    def abandon(self) -> None:
        """Let go of every capture in a process that was forked, and leave all to the one that forked it."""
        while self._captures:
            self._captures.popitem()[1].abandon()

    def _undo(self, begun: Iterable[Place], moved: Iterable[Place]) -> None:
        for place in begun:
            self._captures.pop(place).close()
        for place in moved:
            with contextlib.suppress(StartError):
                self._captures[place].point_at(self._listeners[place].sock)

    def _end(self, place: Place) -> None:
        capture = self._captures.pop(place)
        timer = self._pending.pop(capture, None)
        if timer is not None:
            timer.cancel()
        self._unwatch(capture)
        capture.close()

    def _refresh(self, capture: Capture) -> None:
        del self._pending[capture]
        # It may take a program or two: not on the loop's thread.
        threading.Thread(target=_refresh, args=(capture,), name="addresses", daemon=True).start()


def _watch_nothing(capture: Capture) -> None:
    """What is done about addresses before `follow` and at the end."""


def _refresh(capture: Capture) -> None:
    try:
        capture.refresh()
    except (StartError, OSError) as error:
        _log.warning("addresses that came or went may be captured, or not: %s", error)


def _place(one: Opened) -> Place:
    """The identity of the namespace a listener is in; None for our own, however it is called."""
    here = os.stat("/proc/self/ns/net")
    return None if one.key.namespace == (here.st_dev, here.st_ino) else one.key.namespace
