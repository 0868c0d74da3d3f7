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
    from collections.abc import Iterable

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
        self._loop: asyncio.AbstractEventLoop | None = None
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

    def follow(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on let the loop notice addresses that come and go."""
        self._loop = loop
        for capture in self._captures.values():
            self._watch(capture)

    def close(self) -> None:
        """Take every capture away. The loop may be closed by now."""
        self._loop = None
        for place in list(self._captures):
            self._end(place)

    def described(self, one: Opened) -> str:
        """How the connections come to a listener: `, capturing by sk_lookup`, or nothing."""
        capture = self._captures.get(_place(one)) if one.listener.captures else None
        return "" if capture is None else f", capturing by {capture.way}"

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
        if self._loop is not None:
            self._loop.remove_reader(capture.monitor)
        capture.close()

    def _watch(self, capture: Capture) -> None:
        if self._loop is not None:
            self._loop.add_reader(capture.monitor, self._changed, capture, self._loop)

    def _changed(self, capture: Capture, loop: asyncio.AbstractEventLoop) -> None:
        capture.drain()
        if capture not in self._pending:
            self._pending[capture] = loop.call_later(_SETTLE_S, self._refresh, capture)

    def _refresh(self, capture: Capture) -> None:
        del self._pending[capture]
        # It may take a program or two: not on the loop's thread.
        threading.Thread(target=_refresh, args=(capture,), name="addresses", daemon=True).start()


def _refresh(capture: Capture) -> None:
    try:
        capture.refresh()
    except (StartError, OSError) as error:
        _log.warning("addresses that came or went may be captured, or not: %s", error)


def _place(one: Opened) -> Place:
    """The identity of the namespace a listener is in; None for our own, however it is called."""
    here = os.stat("/proc/self/ns/net")
    return None if one.key.namespace == (here.st_dev, here.st_ino) else one.key.namespace
