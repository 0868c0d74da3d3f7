"""Bytes both ways between two sockets: the hot path.

Theory of operation
-------------------
A *flow* is two *directions*, each with a source, a destination and what is held in between. The
sockets are registered edge-triggered: an event on a socket wakes the direction that reads it, and the
one that writes it if that holds something. They are never re-armed, but for one thing: whether a client
has room is asked of the kernel only when there is a second burst for it, or the first does not fit.

INVARIANT: nothing is read while something is held. So EAGAIN on reading always means that the
source is empty, a stalled reader costs one burst and no more, and an end of file or an error is
seen only when everything before it has been delivered: a half-close may be forwarded on the spot.

Small bursts are copied (`read`, `write`). A read that brings as much as it may turns the direction to
splicing through a pipe, a short splice turns it back. A burst starts at 64 KiB and grows to the pipe's
size only once the peer is proven to read, so readers that never do hold little. What a copy could not
deliver is put into a pipe too, where it costs kernel pages only while it is there.

After a *short* read the source is empty, so the next read is left out, unless something is queued
behind the data that the same edge announced: an end of file, an error, urgent data. Then the
direction is `eager` and reads until it is told to stop. Copying gives the others their turn after
every burst, splicing after a few. When a splicing direction has emptied its source, the poller waits
a moment before it looks again (`gather`): larger pieces are cheaper for everybody.

How things end
--------------
- *end of file* is forwarded as a half-close; both ended means close.
- *reset* is kept apart. The first error of each socket is recorded (`errno`, of the source), for the
  kernel reports it once: afterwards reading yields 0, which then is not an end of file, and a write
  or SO_ERROR may have taken it. What the broken socket had sent is delivered first; the survivor is
  reset when its peer has acknowledged all of it (SIOCOUTQ) or at a deadline, because a reset
  discards what is still queued. A unix socket knows no reset: it is closed.
- *timeout* resets both sides: nobody shall take it for the end of the data.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import TYPE_CHECKING

from urelay.engine.pipes import Pipe, PipePool
from urelay.engine.record import End
from urelay.engine.tcp import Bridged, be_prompt, unacknowledged

if TYPE_CHECKING:
    import asyncio
    from socket import SocketType

    from urelay.engine.flow import Flow
    from urelay.engine.limits import Limits
    from urelay.engine.poller import Poller
    from urelay.engine.timers import Wheel

COPY_BYTES = 1 << 16
"""Read at a time where bytes are copied; so much at once is the beginning of more"""
FIRST_BURST = 1 << 16
"""Spliced at a time until the peer has proven to read"""
PROOF_BYTES = 1 << 19
"""What a peer has acknowledged when it is proven to read: more than any kernel takes unread by default"""
_SMALL_BURST = 1 << 14
"""A splice that brings less is dearer than a copy"""
_COPY_ONLY = -1
_PIPED_REST = 1 << 12
"""What a copy left over is held in a pipe from here on"""
_TURN_BURSTS = 16
_TURN_BYTES = 1 << 21
"""A direction moves this much at most before the others get their turn: about half a millisecond"""

PROMPTNESS, ROOM = 1, 2
"""What a destination may lack: sending small bursts at once, telling when it has room"""
OPEN, ENDED, OVER = range(3)
"""What a direction is: reading, at its source's end, or part of a flow that is over"""

_IN = select.EPOLLIN
_OUT = select.EPOLLOUT
_PLAIN = frozenset((_IN, _IN | _OUT))
"""What a socket tells that has bytes, and perhaps room: most of all events"""
BEHIND = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
_DEAD = select.EPOLLHUP | select.EPOLLERR
_RARE = select.EPOLLPRI | select.EPOLLERR
_EOF = End.EOF
_read = os.read
_write = os.write
_SPLICE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK

_LONGEST_CHECK_S = 60.0
"""Between two looks at a flow whose timeouts are all off"""
_FIRST_LOOK_S = 0.002
_LAST_LOOK_S = 0.25
"""Between two looks whether a reset may be sent: at first, and at most"""


class Pump:
    """What all flows share. Must be closed, after its flows."""

    __slots__ = (
        "_delay_s",
        "_look",
        "_loop",
        "_resetting",
        "check_s",
        "first_look_s",
        "limits",
        "pipes",
        "poller",
        "wheel",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, poller: Poller, wheel: Wheel, limits: Limits) -> None:
        self.poller = poller
        self.wheel = wheel
        self.limits = limits
        timeouts = (limits.half_closed_s, limits.stalled_s, limits.unheard_s)
        self.check_s = min(each or _LONGEST_CHECK_S for each in timeouts)
        """At most this long between two looks at a flow, so that a half-close, a reader that stalls or a
        peer that is gone is noticed in time without a timer of its own"""
        self.first_look_s = min(self.check_s, limits.keepalive_from_s)
        self.pipes = PipePool(limits.max_pipes)
        self._loop = loop
        self._resetting: list[Direction] = []
        self._look: asyncio.TimerHandle | None = None
        self._delay_s = 0.0

    def close(self) -> None:
        """Close the pooled pipes."""
        if self._look is not None:
            self._look.cancel()
        self._resetting.clear()
        self.pipes.close()

    def watch_reset(self, direction: Direction) -> None:
        """Look now and then whether the reset that `direction` owes its destination may be sent.

        The kernel has no event for "everything is acknowledged", so this asks, at intervals that
        double up to a quarter of a second; one timer serves all.
        """
        self._resetting.append(direction)
        self._delay_s = _FIRST_LOOK_S
        if self._look is not None:
            self._look.cancel()
        self._look = self._loop.call_later(self._delay_s, self._look_at_resets)

    def _look_at_resets(self) -> None:
        self._look = None
        now = self._loop.time()
        watched, self._resetting = self._resetting, []
        self._resetting += [each for each in watched if not each.reset_if_due(now)]
        if self._resetting and self._look is None:
            self._delay_s = min(self._delay_s * 2, _LAST_LOOK_S)
            self._look = self._loop.call_later(self._delay_s, self._look_at_resets)


class Direction:
    """Bytes one way. It stands for its source in the poller."""

    __slots__ = (
        "back", "burst", "count", "eager", "errno", "fd", "flow", "held", "lacks", "last", "pipe", "pump",
        "rest", "src", "state",
    )  # fmt: skip

    # Set by Flow, for both directions at once: an __init__ of each costs as much again.
    back: Direction
    """The other way"""
    flow: Flow
    pump: Pump
    src: SocketType
    fd: int
    """Of `src`: good until the flow is over"""
    state: int
    """OPEN, ENDED or OVER"""
    count: int
    """Bytes the destination's kernel has taken"""
    held: int
    """Bytes read and not delivered: in `pipe` if there is one, else in `rest`"""
    pipe: Pipe | None
    rest: bytes | memoryview
    burst: int
    """What one splice asks for; 0: copying until a burst is large; _COPY_ONLY: copying for ever"""
    eager: int
    """The events that told of something behind the data, if any did: then it is read to its end"""
    errno: int
    """The first error of `src`"""
    last: float
    """Loop time of the last progress"""
    lacks: int
    """What `dst` has not been told to do, and is for more than one small burst: PROMPTNESS, ROOM"""

    @property
    def dst(self) -> SocketType:
        """Where the bytes go: the other way's source."""
        return self.back.src

    def on_event(self, events: int) -> None:
        """`src` is ready for something."""
        if self.back.held and events & _OUT:
            self.back.resume()
            if self.state == OVER:
                return
        if events not in _PLAIN:
            if events & BEHIND:
                self.eager = events
                if events & _RARE or self.state:
                    self._meet_trouble(events)
                    return
            elif not events & _IN:
                return
        # What is held waits for the destination, which will tell; more may arrive a thousand times.
        if self.state or self.held:
            return
        if self.burst > 0:
            self._stream()
            return
        # The most common case, here and not in a method of its own: one small burst, copied, and the
        # source is empty. By descriptor: recv_into and send unpack their arguments and a buffer anew each
        # time, and cost 400 instructions more.
        try:
            data = _read(self.fd, COPY_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._source_broke(error.errno or errno.EIO)
            return
        if not data:
            self._source_ended()
            return
        self.last = self.pump.poller.now
        if self.lacks and self.count:
            self._prepare_destination()
        try:
            sent = _write(self.back.fd, data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._sink_broke(error.errno or errno.EIO)
            return
        self.count += sent
        size = len(data)
        if sent < size:
            self._hold(data[sent:])
        elif size == COPY_BYTES:
            if not self.burst:
                self.burst = FIRST_BURST
                self._prepare_destination()
            self.pump.poller.again(self)
        elif self.eager:
            self.pump.poller.again(self)

    def begin_with(self, early: bytes) -> None:
        """Deliver first what was read of the source already."""
        self.rest = early
        self.held = len(early)

    def on_crash(self) -> None:
        """End the flow, whatever state it is in."""
        if self.state != OVER:
            self.flow.on_crash()

    def resume(self) -> None:
        """Deliver what is held; then go on as if there were something to read."""
        if not self.held or self._flush():
            if self.state != OVER:
                self.on_event(_IN)

    def _meet_trouble(self, events: int) -> None:
        """Urgent data, an error, or more of the end of a source that has ended."""
        if events & _RARE:
            self._prepare(events)
        if not (self.held or self.state):
            self.on_event(_IN)
        if events & _DEAD and self.state == ENDED and not self.errno:
            self._has_died(events)

    def _stream(self) -> None:
        """Read and deliver through a pipe until either side stops it, or the turn is over."""
        pump = self.pump
        moved = 0
        for _ in range(_TURN_BURSTS):
            size = self._splice()
            if not size:
                if moved and not self.held:
                    pump.poller.gather()
                return
            moved += size
            if moved >= _TURN_BYTES or self.burst <= 0:
                break
        pump.poller.again(self)

    def reset_if_due(self, now: float) -> bool:
        """Reset the destination if what went before is delivered or has had its time; True if over."""
        if self.state == OVER:
            return True
        delivered = self.state == ENDED and unacknowledged(self.dst) == 0
        if delivered or now >= self.flow.reset_by:
            self.flow.finish_broken(self)
            return True
        return False

    def let_go(self) -> None:
        """Give up what is held: there is nobody to deliver it to."""
        if self.pipe is not None:
            if self.held:
                self.pump.pipes.drop(self.pipe)
            else:
                self.pump.pipes.give(self.pipe)
            self.pipe = None
        self.held = 0
        self.rest = b""

    def _splice(self) -> int:
        """One burst through a pipe.

        Returns its size if there may be more, 0 if not, and -1 if that must be found out by copying.
        """
        pipe = self.pipe
        if pipe is None:
            pipe = self.pipe = self.pump.pipes.take()
            if pipe is None:
                self.burst = 0
                return -1
        try:
            size = os.splice(self.fd, pipe.writer, self.burst, flags=_SPLICE)
        except BlockingIOError:
            self._return_pipe()
            return 0
        except OSError as error:
            self._return_pipe()
            if error.errno == errno.EINVAL:
                self._stop_splicing()
                return -1
            self._source_broke(error.errno or errno.EIO)
            return 0
        if not size:
            # Said at the end, and in front of urgent data with an end somewhere behind it: a read can tell.
            self._return_pipe()
            self.burst = 0
            self._keep_urgent_data_in_place()
            return -1
        self.held = size
        if not self._flush():
            return 0
        if size < _SMALL_BURST:
            self.burst = 0
            self._return_pipe()
        elif size == self.burst < pipe.size and self._reader_is_proven():
            self.burst = min(2 * size, pipe.size)
        return size

    def _flush(self) -> bool:
        """Deliver what is held; True if all of it went."""
        try:
            if self.pipe is None:
                sent = self.dst.send(self.rest)
                self._delivered(sent)
                self.rest = memoryview(self.rest)[sent:] if self.held else b""
                return not self.held
            while self.held:
                # Until it is empty or refuses: a short splice promises no later event.
                sent = os.splice(self.pipe.reader, self.back.fd, self.held, flags=_SPLICE)
                if not sent:
                    return self._flush_by_copy()
                self._delivered(sent)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EINVAL and self.pipe is not None:
                return self._flush_by_copy()
            self._sink_broke(error.errno or errno.EIO)
            return False
        if self.burst <= 0:
            self._return_pipe()
        return True

    def _flush_by_copy(self) -> bool:
        """The destination cannot be spliced to: what is in the pipe goes first, then copies."""
        pipe = self.pipe
        assert pipe is not None
        self.rest = os.read(pipe.reader, self.held)
        self.pipe = None
        self.pump.pipes.give(pipe)
        self._stop_splicing()
        return self._flush()

    def _prepare_destination(self) -> None:
        """Have it do what it lacks.

        Nagle's rule holds back none but the second and later bursts, and a kernel has room for the first: so
        a connection that says one thing each way need not pay these system calls.
        """
        lacks, self.lacks = self.lacks, 0
        if lacks & PROMPTNESS:
            be_prompt(self.dst)
        if lacks & ROOM:
            self.pump.poller.tell_of_room(self.dst)

    def _keep_urgent_data_in_place(self) -> None:
        self.src.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

    def _stop_splicing(self) -> None:
        self.burst = _COPY_ONLY

    def _return_pipe(self) -> None:
        if self.pipe is not None:
            self.pump.pipes.give(self.pipe)
            self.pipe = None

    def _delivered(self, size: int) -> None:
        self.held -= size
        self.count += size
        self.last = self.pump.poller.now

    def _hold(self, rest: bytes) -> None:
        """Keep what a copy could not deliver."""
        self.held = len(rest)
        self._prepare_destination()
        pipe = self.pump.pipes.take() if len(rest) >= _PIPED_REST else None
        if pipe is not None:
            # An empty pipe of 64 KiB or more takes a whole burst; else it goes, bytes and all.
            if os.write(pipe.writer, rest) == len(rest):
                self.pipe = pipe
                return
            self.pump.pipes.drop(pipe)
        self.rest = rest

    def _reader_is_proven(self) -> bool:
        return self.burst > FIRST_BURST or self.count - unacknowledged(self.dst) >= PROOF_BYTES

    def _prepare(self, events: int) -> None:
        """Urgent data or an error was announced, and has not been looked for."""
        if events & select.EPOLLPRI:
            # A splice would stop in front of it for ever.
            self._keep_urgent_data_in_place()
            self._stop_splicing()
            if not self.held:
                self._return_pipe()
        if self.state == OPEN and self.held and events & select.EPOLLERR:
            # It broke behind data that cannot be delivered yet; the error stays where it is.
            self.flow.expect_reset(self)

    def _has_died(self, events: int) -> None:
        """It had said its last word, and now takes none either."""
        if self.src.family == socket.AF_UNIX and not events & select.EPOLLERR:
            self.flow.finish(_EOF)
        else:
            self._source_broke(self.src.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _source_ended(self) -> None:
        """The source yields no more; nothing is held."""
        if self.errno:
            self._source_broke(self.errno)
            return
        self.state = ENDED
        if self.back.state:
            self.flow.finish(_EOF)
            return
        try:
            self.back.src.shutdown(socket.SHUT_WR)
        except OSError:
            # The destination is broken, and the event that says so is on its way.
            self.back.eager = select.EPOLLRDHUP
        if self.eager & _DEAD:
            self._has_died(self.eager)

    def _source_broke(self, number: int) -> None:
        """The source failed, and all it had sent before has been passed on."""
        self.errno = self.errno or number or errno.ECONNRESET
        self.state = self.back.state = ENDED
        self.back.let_go()
        self.flow.reset_when_delivered(self)

    def _sink_broke(self, number: int) -> None:
        """The destination failed. What it had sent before may still be read, so the other way goes on."""
        back = self.back
        back.errno = back.errno or number
        self.let_go()
        self.state = ENDED
        if back.state:
            self.flow.reset_when_delivered(back)
        else:
            self.flow.expect_reset(back)
            back.eager = select.EPOLLERR
            back.resume()


class BridgedDirection(Direction):
    """One whose sockets may be Bridged: such a one ends as if all were well, and knows when it is not."""

    __slots__ = ()

    def _source_ended(self) -> None:
        if isinstance(self.src, Bridged):
            self.errno = self.errno or self.src.failure()
        super()._source_ended()
