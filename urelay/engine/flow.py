"""Two directions as one flow: how it starts, what ends it, and what its timer looks at.

The pump moves bytes; whatever happens once in the life of a flow, or once a minute, is here. A flow
ends once, in `finish`: both sockets are retired (reset, if that is what is owed), pipes are let go,
the owner is told, and the references between flow and directions are cut, so that nothing waits for
the garbage collector.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Protocol

from urelay.engine.pump import BEHIND, KEEPALIVE_FROM_S, OVER, Direction, Pump
from urelay.engine.record import End
from urelay.engine.tcp import keep_alive, reset_on_close, unacknowledged

if TYPE_CHECKING:
    from socket import SocketType

_BROKEN = {
    errno.ECONNRESET: (End.RESET, "reset by the {side}"),
    errno.EPIPE: (End.RESET, "reset by the {side}"),
    errno.ETIMEDOUT: (End.TIMEOUT, "the {side} stopped answering"),
}


class Owner(Protocol):
    """Who is told when a flow is over."""

    def flow_ended(self, bytes_up: int, bytes_down: int, end: End, error: str | None) -> None:
        """Both sockets are closed, or will be when this batch ends."""


class Flow:
    """Two directions and what they have in common."""

    __slots__ = (
        "_idle_s",
        "_kept_alive",
        "_owner",
        "_pump",
        "_started",
        "down",
        "due",
        "reset_by",
        "slot",
        "up",
    )

    up: Direction
    """From the client; unset when the flow is over"""
    down: Direction
    """To the client; unset when the flow is over"""

    def __init__(self, pump: Pump, client: SocketType, upstream: SocketType, owner: Owner, idle_s: float,
                 early_up: bytes = b"", early_down: bytes = b"") -> None:  # fmt: skip
        """The sockets must be non-blocking. What was read of them already comes first: `early_up` is what
        the client sent behind its request, `early_down` what came behind a proxy's answer.
        """
        now = pump.poller.touch()
        self.slot = 0
        self.due = 0.0
        self.up = up = Direction(pump, client, upstream, early_up, now)
        self.down = down = Direction(pump, upstream, client, early_down, now)
        up.back, down.back = down, up
        up.flow = down.flow = self
        self.reset_by = 0.0
        self._pump = pump
        self._owner = owner
        self._idle_s = idle_s
        self._started = now
        self._kept_alive = False

    def start(self, client_told: int | None = None, upstream_told: int | None = None) -> None:
        """Begin to move bytes. Raises OSError when the kernel will not watch another socket.

        A socket that the poller watches already comes with the events it has `told` so far.
        """
        pump = self._pump
        for direction, told in ((self.up, client_told), (self.down, upstream_told)):
            if told is None:
                pump.poller.add(direction.src, direction)
            else:
                pump.poller.assign(direction.src, direction)
                if told & (select.EPOLLIN | BEHIND):
                    # That edge went to somebody else, and comes no more: look what is there.
                    direction.eager = bool(told & BEHIND)
                    pump.poller.again(direction)
            if direction.held:
                pump.poller.again(direction)
        look_s = pump.first_look_s
        pump.wheel.set(self, self._started + (self._idle_s if 0 < self._idle_s < look_s else look_s))

    def on_timer(self, now: float) -> None:
        """Time to see whether anything moved; ends the flow, or sets the next such time."""
        if not self._kept_alive and now - self._started >= KEEPALIVE_FROM_S:
            self._keep_alive()
        limits = self._pump.limits
        stalled_s = limits.stalled_s
        wait_s = min(self._pump.check_s, self._idle_s or self._pump.check_s)
        holds = False
        for direction in (self.up, self.down):
            if direction.held:
                holds = True
                if stalled_s:
                    left = direction.last + stalled_s - now
                    if left <= 0:
                        taker = self._side(direction.dst)
                        self.abort(End.TIMEOUT, f"the {taker} took no byte for {stalled_s:g} s")
                        return
                    wait_s = min(wait_s, left)
        half = self.up.state or self.down.state
        quiet_s = limits.half_closed_s if half else self._idle_s
        # What is held waits for a reader, whose patience is measured above.
        if quiet_s and not holds:
            left = max(self.up.last, self.down.last) + quiet_s - now
            if left <= 0:
                self.abort(End.TIMEOUT, f"no byte for {quiet_s:g} s" + (", half closed" if half else ""))
                return
            wait_s = min(wait_s, left)
        self._pump.wheel.set(self, now + wait_s)

    def on_crash(self) -> None:
        """End the flow, whatever state it is in."""
        if hasattr(self, "up"):
            self.abort(End.ERROR, "internal error")

    def abort(self, end: End, error: str | None) -> None:
        """Reset both sides."""
        self.finish(end, error, reset=(self.up.src, self.down.src))

    def expect_reset(self, direction: Direction) -> None:
        """The source of `direction` is broken: what it has sent has this long to be delivered."""
        if not self.reset_by:
            self.reset_by = self._pump.poller.touch() + self._pump.limits.reset_drain_s
            self._pump.watch_reset(direction)

    def reset_when_delivered(self, direction: Direction) -> None:
        """The source of `direction` is broken and has been read to its end: the survivor is next."""
        if direction.back.errno or direction.dst.family == socket.AF_UNIX:
            self.finish_broken(direction)
        elif unacknowledged(direction.dst) == 0:
            self.finish_broken(direction)
        else:
            self.expect_reset(direction)

    def finish_broken(self, direction: Direction) -> None:
        """End the flow as the source of `direction` ended it."""
        # Nothing is recorded yet if it broke behind bytes that were never delivered.
        number = direction.errno or direction.src.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        failed = (End.ERROR, "the {side} failed: " + os.strerror(number).lower())
        end, text = _BROKEN.get(number or errno.ECONNRESET, failed)
        self.finish(end, text.format(side=self._side(direction.src)), reset=(direction.dst,))

    def finish(self, end: End, error: str | None = None, reset: tuple[SocketType, ...] = ()) -> None:
        """Close both sockets, those in `reset` with a reset, and tell the owner. Once."""
        up, down = self.up, self.down
        up.state = down.state = OVER
        up.let_go()
        down.let_go()
        for sock in reset:
            reset_on_close(sock)
        pump = self._pump
        pump.poller.retire(up.src)
        pump.poller.retire(down.src)
        pump.wheel.cancel(self)
        del up.back, up.flow, down.back, down.flow, self.up, self.down
        self._owner.flow_ended(up.count, down.count, end, error)

    def _side(self, sock: SocketType) -> str:
        return "client" if sock is self.up.src else "server"

    def _keep_alive(self) -> None:
        self._kept_alive = True
        keep_alive(self.up.src)
        keep_alive(self.down.src)
