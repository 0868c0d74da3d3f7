"""Two directions as one flow: how it starts, what ends it, and what its timer looks at.

The pump moves bytes; whatever happens once in the life of a flow, or once a minute, is here. A flow
ends once, in `finish`: both sockets are retired (reset, if that is what is owed), pipes are let go,
the circle of references is cut, so that nothing waits for the garbage collector,
and `ended` is told. A flow is a base class because a connection *becomes* one: one object from accept
to the end, with one place on the wheel.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from select import EPOLLIN
from typing import TYPE_CHECKING

from urelay.engine.poller import EDGE, EDGE_IN
from urelay.engine.pump import BEHIND, OPEN, OVER, PROMPTNESS, ROOM, BridgedDirection, Direction, Pump
from urelay.engine.record import End
from urelay.engine.tcp import Bridged, keep_alive, reset_on_close, unacknowledged, unheard_for

if TYPE_CHECKING:
    from socket import SocketType

_BROKEN = {
    errno.ECONNRESET: (End.RESET, "reset by the {side}"),
    errno.EPIPE: (End.RESET, "reset by the {side}"),
    errno.ETIMEDOUT: (End.TIMEOUT, "the {side} stopped answering"),
}


class Flow:
    """Two directions and what they have in common. `slot` and `due` are the wheel's, and start as 0."""

    __slots__ = (
        "_idle_s", "_kept_alive", "_opened", "_pump", "down", "due", "reset_by", "slot", "up",
    )  # fmt: skip

    up: Direction
    """From the client; None when the flow is over"""
    down: Direction
    """To the client; None when the flow is over"""
    slot: int
    due: float

    def open(
        self,
        pump: Pump,
        client: SocketType,
        upstream: SocketType,
        idle_s: float,
        client_told: int | None = None,
        upstream_told: int | None = None,
        early_up: bytes = b"",
        early_down: bytes = b"",
        delayed: bool = False,
    ) -> None:
        """Begin to move bytes between two non-blocking sockets.

        A socket that the poller watches already comes with the events it has `told` so far. What was
        read of them already comes first: `early_up` is what the client sent behind its request,
        `early_down` what came behind a proxy's answer. `delayed`: TCP_NODELAY is not set on the upstream
        yet; the listener's clients inherit it. When the kernel will not watch another socket
        the flow ends at once.
        """
        kind = BridgedDirection if isinstance(upstream, Bridged) else Direction
        up, down = self._begin(pump, client, upstream, idle_s, kind)
        up.lacks = PROMPTNESS if delayed else 0
        down.lacks = 0
        if early_up:
            up.begin_with(early_up)
        if early_down:
            down.begin_with(early_down)
        try:
            self._listen(down, upstream_told)
            self._listen(up, client_told)
        except OSError as error:
            self.reset_both(End.ERROR, os.strerror(error.errno or errno.EIO).lower())

    def open_connected(self, pump: Pump, client: SocketType, upstream: SocketType, idle_s: float) -> None:
        """`open` as it nearly always is: the upstream is a plain socket, is watched and has told only that it
        connected; the client is new to the poller; and nothing was read of either.

        Most clients speak first, and what they say is there by now: read at once, it costs no event. So the
        client is watched without EPOLLOUT, which it could tell of right away, until there is need.
        """
        poller = pump.poller
        up, down = self._begin(pump, client, upstream, idle_s, Direction)
        poller.handlers[down.fd] = down
        up.on_event(EPOLLIN)
        if up.state != OVER:
            try:
                poller.add(client, up, EDGE_IN if down.lacks else EDGE)
            except OSError as error:
                self.reset_both(End.ERROR, os.strerror(error.errno or errno.EIO).lower())

    def _begin(
        self, pump: Pump, client: SocketType, upstream: SocketType, idle_s: float, kind: type[Direction]
    ) -> tuple[Direction, Direction]:
        self._pump = pump
        self._idle_s = idle_s
        self._kept_alive = False
        self.reset_by = 0.0
        self.up = up = kind()
        self.down = down = kind()
        up.back = down
        down.back = up
        up.flow = down.flow = self
        up.pump = down.pump = pump
        up.src = client
        up.fd = client.fileno()
        down.src = upstream
        down.fd = upstream.fileno()
        up.state = down.state = OPEN
        up.count = down.count = up.held = down.held = up.burst = down.burst = 0
        up.eager = down.eager = up.errno = down.errno = 0
        up.pipe = down.pipe = None
        up.lacks = PROMPTNESS
        down.lacks = ROOM
        up.last = down.last = self._opened = now = pump.poller.now
        # Who is young has a turn that comes in time for all but short timeouts.
        if self.slot or not self.due or idle_s < pump.first_look_s:
            look_s = pump.first_look_s
            pump.wheel.set(self, now + (idle_s if 0 < idle_s < look_s else look_s))
        return up, down

    def _listen(self, direction: Direction, told: int | None) -> None:
        poller = self._pump.poller
        if told is None:
            poller.add(direction.src, direction)
        else:
            poller.assign(direction.src, direction)
            if told & (select.EPOLLIN | BEHIND):
                # That edge went to somebody else, and comes no more: look what is there.
                direction.eager = told & BEHIND
                poller.again(direction)
        if direction.held:
            poller.again(direction)

    def ended(self, end: End, error: str | None, bytes_up: int = 0, bytes_down: int = 0) -> None:
        """Both sockets are closed, or will be when this batch ends: to be overridden."""
        raise NotImplementedError

    def on_timer(self, now: float) -> None:
        """Time to see whether anything moved; ends the flow, or sets the next such time."""
        limits = self._pump.limits
        if not self._kept_alive and now - self._opened >= limits.keepalive_from_s:
            self._keep_alive()
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
                        self.reset_both(End.TIMEOUT, f"the {taker} took no byte for {stalled_s:g} s")
                        return
                    wait_s = min(wait_s, left)
            if self._kept_alive and limits.unheard_s:
                silent_s = unheard_for(direction.dst)
                if silent_s >= limits.unheard_s:
                    self.reset_both(End.TIMEOUT, f"the {self._side(direction.dst)} stopped answering")
                    return
                wait_s = min(wait_s, limits.unheard_s - silent_s)
        half = self.up.state or self.down.state
        quiet_s = limits.half_closed_s if half else self._idle_s
        # What is held waits for a reader, whose patience is measured above.
        if quiet_s and not holds:
            left = max(self.up.last, self.down.last) + quiet_s - now
            if left <= 0:
                self.reset_both(End.TIMEOUT, f"no byte for {quiet_s:g} s" + (", half closed" if half else ""))
                return
            wait_s = min(wait_s, left)
        self._pump.wheel.set(self, now + wait_s)

    def on_crash(self) -> None:
        """End the flow, whatever state it is in."""
        if getattr(self, "up", None) is not None:
            self.reset_both(End.ERROR, "internal error")

    def reset_both(self, end: End, error: str | None) -> None:
        """Reset both sides."""
        self.finish(end, error, reset=(self.up.src, self.down.src))

    def expect_reset(self, direction: Direction) -> None:
        """The source of `direction` is broken: what it has sent has this long to be delivered."""
        if not self.reset_by:
            self.reset_by = self._pump.poller.now + self._pump.limits.reset_drain_s
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
        """Close both sockets, those in `reset` with a reset, and tell `ended`. Once."""
        up, down = self.up, self.down
        up.state = down.state = OVER
        if up.held or up.pipe is not None:
            up.let_go()
        if down.held or down.pipe is not None:
            down.let_go()
        for sock in reset:
            reset_on_close(sock)
        pump = self._pump
        pump.poller.retire_both(up.src, down.src)
        if self.slot:
            pump.wheel.cancel(self)
        else:
            pump.wheel.young.pop(self, None)
        # What is left of the references between the three holds no circle. (To delete them is dearer.)
        up.back = self.up = self.down = None  # type: ignore[assignment]
        self.ended(end, error, up.count, down.count)

    def _side(self, sock: SocketType) -> str:
        return "client" if sock is self.up.src else "server"

    def _keep_alive(self) -> None:
        self._kept_alive = True
        limits = self._pump.limits
        keep_alive(self.up.src, limits.probe_after_s, limits.probe_every_s)
        keep_alive(self.down.src, limits.probe_after_s, limits.probe_every_s)
