"""What the kernel is told and asked of a TCP socket, beside its bytes.

A unix socket is let be, unless it stands for a TCP connection: then that one is told, and asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from socket import SocketType

_PROBES = 6
_INFO_BYTES = 60
"""Of struct tcp_info, up to and with `tcpi_last_ack_recv` (linux/tcp.h)"""
_LINGER_NOT = struct.pack("ii", 1, 0)


class Bridged(socket.socket):
    """A unix socket that stands for a TCP connection: what becomes of one becomes of the other."""

    __slots__ = ()

    def stands_for(self) -> SocketType:
        """That connection's socket, or another that stands for it; it may be closed already."""
        raise AssertionError("a bridge says what it leads to")

    def failure(self) -> int:
        """The error that ended that connection, if one did: reading an end of file does not tell."""
        raise AssertionError("a bridge says how its connection ended")

    def break_off(self) -> None:
        """Make closing it a reset of that connection."""
        raise AssertionError("a bridge says how it is broken off")


_UNIX, _TCP, _NODELAY = int(socket.AF_UNIX), int(socket.IPPROTO_TCP), int(socket.TCP_NODELAY)


def reset_on_close(sock: SocketType) -> None:
    """Make closing `sock` a reset, which discards what is queued; a unix socket is just closed."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    elif isinstance(sock, Bridged):
        sock.break_off()


def be_prompt(sock: SocketType) -> None:
    """Let small segments go at once (TCP_NODELAY); on a socket that broke meanwhile nothing happens."""
    if sock.family != _UNIX:
        with contextlib.suppress(OSError):
            sock.setsockopt(_TCP, _NODELAY, 1)


def unacknowledged(sock: SocketType) -> int:
    """Bytes in the send queue that the peer's kernel has not acknowledged (SIOCOUTQ); 0 if it cannot tell."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    except OSError:
        return 0


def keep_alive(sock: SocketType, after_s: int = 60, every_s: int = 15) -> None:
    """Probe a peer that has been silent for `after_s`, six times, `every_s` apart; then it is gone."""
    tcp = _connection(sock)
    if tcp is not None:
        # A socket that broke meanwhile refuses; its event is on its way.
        with contextlib.suppress(OSError):
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, after_s)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
            tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)


def unheard_for(sock: SocketType) -> float:
    """Seconds since the peer's kernel last answered, if it owes an answer to bytes or probes; else 0.

    This is not TCP_USER_TIMEOUT, which also ends a connection whose peer answers all the time that it
    has no room: a reader that pauses is not gone.
    """
    tcp = _connection(sock)
    if tcp is None:
        return 0.0
    try:
        info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
    except OSError:
        return 0.0
    retransmits, probes = info[2], info[3]
    # One of them may just be on its way.
    if max(retransmits, probes) < 2:
        return 0.0
    return int.from_bytes(info[56:60], sys.byteorder) / 1000


def _connection(sock: SocketType) -> SocketType | None:
    """The TCP connection that `sock` is or stands for; None for any other unix socket."""
    while sock.family == _UNIX:
        if not isinstance(sock, Bridged):
            return None
        sock = sock.stands_for()
    return sock
