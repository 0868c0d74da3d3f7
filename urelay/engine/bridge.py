"""A TLS connection that the pump can treat as a socket: a socket pair, and TLS at its far end.

The pump moves bytes between descriptors and must not know what TLS is; nor must the code that asks a
proxy, or a second TLS inside the first. So a way with TLS on it hands out the *near* end of a socket
pair. The *far* end is here, next to the *raw* TCP connection and OpenSSL with its two memory buffers:

    client <-> pump <-> near | far <-> TLS <-> raw <-> server

The alternative, TLS inside the pump's directions, would save two copies and two descriptors a connection
and cost the pump its one idea. Encrypting costs more than the copies do.

What must survive the bridge
----------------------------
- *Backpressure.* Nothing is read from an end while something is held for the other: a burst of 64 KiB
  each way at most, and what the kernel keeps.
- *A half-close.* The end of what the client says becomes close_notify and then a TCP half-close;
  close_notify from the server becomes a half-close of the far end. The other way stays open.
- *A truncation.* An end of the TCP connection without close_notify is no end of the data (RFC 8446, 6.1),
  and anybody on the path can make one. It arrives at the pump as a reset.
- *A silence.* What asks the near end whether its peer still answers is told about the server: the near
  end says what it stands for.
- *A reset.* A unix socket knows none, so the near end is a class of its own: where the kernel would
  report an end of file after a failure, it knows of the failure; and told to reset, it tells the bridge,
  which passes on what it still has, then resets the server, without close_notify.

Bytes are read into buffers that all bridges of a thread share, and nothing stays in those between two
events: what an end did not take is copied out. A bridge moves a few bursts an event, since the loop's own
steps cost about as much as a burst; larger ones would cost less still, but OpenSSL's memory buffers keep
the size they once had. So a bridge at rest holds the state of its TLS, and no bytes.

A bridge has no task and no owner: it lives as long as its near end, and then for as long as the
server takes what it is owed, half a minute at most without progress.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from urelay.engine.tcp import Bridged, reset_on_close, unacknowledged, unheard_for

if TYPE_CHECKING:
    from socket import SocketType

log = logging.getLogger(__name__)

_BURST = 1 << 16
_TURN_BURSTS = 3
"""Moved one way at most before the pump gets its turn: what the kernel keeps between two unix sockets"""
_MOST_FOR_RAW = 4 * _BURST
"""Held for a server that does not read: no more is read from it, which might only ask for answers of TLS"""
_OWED_S = 30.0
"""How long what is left may take, once the near end is closed; begun again whenever some of it goes"""
_LOOK_S = 0.02
"""Between two looks whether the server has acknowledged what comes before a reset"""
_GONE_S = 3.0
"""A server whose kernel has answered nothing for so long is reset without waiting for that"""

_NOTHING = memoryview(b"")


class _Shared(threading.local):
    """The buffers of the bridges of one thread."""

    def __init__(self) -> None:
        self.read = memoryview(bytearray(_BURST))
        self.clear = memoryview(bytearray(2 * _BURST))


_shared = _Shared()


class _Near(Bridged):
    """The end that is handed out: a unix socket that can fail and be reset like a TCP one."""

    __slots__ = ("_bridge",)

    def attach(self, bridge: Bridge) -> None:
        """Let it stand for the server behind `bridge`."""
        self._bridge = bridge

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As a socket's; raises what happened to the server instead of reporting an end of file."""
        data = super().recv(size, flags)
        if not data and self.failure():
            raise OSError(self.failure(), "the TLS connection broke")
        return data

    def stands_for(self) -> SocketType:
        """The TCP connection to the server."""
        return self._bridge.raw

    def failure(self) -> int:
        """What happened to the server, if it did not say its last word."""
        return self._bridge.failure

    def break_off(self) -> None:
        """Closing it shall reset the server."""
        self._bridge.breaks_off = True

    def close(self) -> None:
        """Close it, and let the bridge come to its end."""
        if self.fileno() != -1:
            super().close()
            self._bridge.near_closed()


def bridge(
    raw: socket.socket, tls: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
) -> socket.socket:
    """The near end of a bridge over `raw`, non-blocking, after the handshake; inside an event loop.

    `raw` belongs to it from then on. Raises OSError: no descriptors left.
    """
    pair, far = socket.socketpair()
    near = _Near(fileno=pair.detach())
    near.setblocking(False)
    far.setblocking(False)
    near.attach(Bridge(raw, far, tls, incoming, outgoing))
    return near


class Bridge:
    """TLS between a socket pair and a TCP connection."""

    def __init__(
        self,
        raw: socket.socket,
        far: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        """Both sockets become its own. Its near end must say when it is closed."""
        self.breaks_off = False
        self.raw = raw
        self._loop = asyncio.get_running_loop()
        self._far = far
        self._tls, self._incoming, self._outgoing = tls, incoming, outgoing
        self._read, self._clear = _shared.read, _shared.clear
        self._for_raw = _NOTHING
        """Encrypted, and not taken yet by the server; what `outgoing` holds comes after it"""
        self._for_far = _NOTHING
        """Decrypted, and not taken yet by the near end"""
        self._up_ended = False
        """The far end has said its last word"""
        self._half_closed = False
        """And so the server was told"""
        self._down_ended = False
        """The server has, or is gone"""
        self.failure = 0
        """The error that ended the connection to the server, if it did not say its last word"""
        self._near_open = True
        self._deadline: asyncio.TimerHandle | None = None
        self._watched: dict[tuple[int, bool], bool] = {}
        # Whatever came with the end of the handshake.
        self._decrypt()
        self._arm()

    def near_closed(self) -> None:
        """Nobody wants to hear from the server any more; what was said to it is delivered."""
        self._near_open = False
        self._down_ended = True
        self._for_far = _NOTHING
        if not self._loop.is_closed():
            self._give_time()
            self._arm()

    # --- readiness

    def _arm(self) -> None:
        """Watch what can be acted on, and end it when there is nothing left to do."""
        if not self._near_open and (self.raw.fileno() == -1 or (self._up_ended and not self._for_raw)):
            self._finish()
            return
        self._watch(self._far, self._up, reading=True, wanted=not self._up_ended and not self._for_raw)
        self._watch(self.raw, self._flush, reading=False, wanted=bool(self._for_raw))
        owed = len(self._for_raw) + self._outgoing.pending
        hears = not self._down_ended and not self._for_far and owed < _MOST_FOR_RAW
        self._watch(self.raw, self._down, reading=True, wanted=hears)
        self._watch(self._far, self._deliver, reading=False, wanted=bool(self._for_far))

    def _watch(self, sock: socket.socket, act: Callable[[], None], *, reading: bool, wanted: bool) -> None:
        number = sock.fileno()
        if number == -1 or wanted is self._watched.get((number, reading), False):
            return
        self._watched[number, reading] = wanted
        loop = self._loop
        if wanted:
            (loop.add_reader if reading else loop.add_writer)(number, self._step, act)
        else:
            (loop.remove_reader if reading else loop.remove_writer)(number)

    def _step(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:
            log.exception("a TLS connection failed for a reason nobody foresaw")
            self._server_broke(errno.EIO)
        self._arm()

    # --- from the client to the server

    def _up(self) -> None:
        for _ in range(_TURN_BURSTS):
            try:
                size = self._far.recv_into(self._read)
            except BlockingIOError:
                return
            except OSError:
                # The near end was closed with something unread.
                size = 0
            if size:
                self._tls.write(self._read[:size])
            else:
                self._up_ended = True
                if not self.breaks_off:
                    self._say_goodbye()
            self._flush()
            if size < _BURST or self._for_raw or self._up_ended:
                return

    def _say_goodbye(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            # It is said, and the server's own is still to come: or it came to nothing, and so be it.
            return

    def _flush(self) -> None:
        """Send what is encrypted, and the end after it."""
        try:
            while self._for_raw or self._outgoing.pending:
                if not self._for_raw:
                    self._for_raw = memoryview(self._outgoing.read())
                sent = self.raw.send(self._for_raw)
                self._for_raw = self._for_raw[sent:] or _NOTHING
                if not self._near_open:
                    self._give_time()
        except BlockingIOError:
            return
        except OSError as error:
            self._server_broke(error.errno or errno.EIO)
            return
        if self._up_ended and not (self.breaks_off or self._half_closed):
            self._half_closed = True
            with contextlib.suppress(OSError):  # the server was faster, and closed
                self.raw.shutdown(socket.SHUT_WR)

    # --- from the server to the client

    def _down(self) -> None:
        for _ in range(_TURN_BURSTS):
            try:
                size = self.raw.recv_into(self._read)
            except BlockingIOError:
                return
            except OSError as error:
                self._server_broke(error.errno or errno.EIO)
                return
            if size:
                self._incoming.write(self._read[:size])
            else:
                self._incoming.write_eof()
            self._decrypt()
            if size < _BURST or self._for_far or self._for_raw or self._down_ended:
                return

    def _decrypt(self) -> None:
        """All that can be: so no more than one burst is ever kept, in whatever form."""
        clear, filled = self._clear, 0
        try:
            # A count, and not bytes as its declaration has it, when there is a buffer.
            while size := cast("int", self._tls.read(len(clear) - filled, clear[filled:])):
                filled += size
                if filled == len(clear):
                    self._deliver(clear)
                    filled = 0
            self._down_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._down_ended = True
        except ssl.SSLError:
            # An end without close_notify, or what no honest server sends.
            self.failure = errno.ECONNRESET
            self._down_ended = True
        self._deliver(clear[:filled])
        if self.raw.fileno() != -1 and self._outgoing.pending:
            # Answers of the protocol's own, such as new keys.
            self._flush()

    def _deliver(self, fresh: memoryview = _NOTHING) -> None:
        """Give the near end what is held for it, then `fresh`, which is in a shared buffer."""
        if not self._near_open:
            return
        held = self._for_far
        data = memoryview(b"".join((held, fresh))) if held and fresh else held or fresh
        try:
            sent = self._far.send(data) if data else 0
            if self._down_ended and sent == len(data):
                self._far.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            sent = 0
        except OSError:
            # The near end is gone, and its close says the rest.
            sent = len(data)
        rest = data[sent:]
        self._for_far = memoryview(bytes(rest)) if rest and data is fresh else rest or _NOTHING

    def _server_broke(self, number: int) -> None:
        """The TCP connection failed: what came before is delivered, then the failure."""
        self.failure = self.failure or number
        self._down_ended = self._up_ended = True
        self._for_raw = _NOTHING
        self._close(self.raw)
        self._deliver()
        if self._near_open and not self._for_far:
            # Nobody reads what the client says any more; it hears of it when it tries.
            self._far.shutdown(socket.SHUT_RDWR)

    # --- the end

    def _give_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(_OWED_S, self._run_out_of_time)

    def _run_out_of_time(self) -> None:
        self.breaks_off = True
        self._for_raw = _NOTHING
        self._end_now()

    def _finish(self) -> None:
        """Close, or reset once the server has everything that comes before it."""
        raw = self.raw
        if self.breaks_off and raw.fileno() != -1 and unacknowledged(raw) and unheard_for(raw) < _GONE_S:
            self._watch(self.raw, self._down, reading=True, wanted=False)
            self._loop.call_later(_LOOK_S, self._arm)
            return
        self._end_now()

    def _end_now(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.raw.fileno() != -1 and (self.breaks_off or self.failure):
            reset_on_close(self.raw)
        self._close(self.raw)
        self._close(self._far)

    def _close(self, sock: socket.socket) -> None:
        number = sock.fileno()
        if number == -1:
            return
        for reading in (True, False):
            if self._watched.pop((number, reading), False):
                (self._loop.remove_reader if reading else self._loop.remove_writer)(number)
        sock.close()
