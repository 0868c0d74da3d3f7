"""What the kernel is told and asked of a TCP socket, beside its bytes. A unix socket is let be."""

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

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000),
)
_LINGER_NOT = struct.pack("ii", 1, 0)


class Bridged(socket.socket):
    """A unix socket that stands for a TCP connection: what becomes of one becomes of the other."""

    __slots__ = ()

    def break_off(self) -> None:
        """Make closing it a reset of that connection."""
        raise AssertionError("a bridge says how it is broken off")


def reset_on_close(sock: SocketType) -> None:
    """Make closing `sock` a reset, which discards what is queued; a unix socket is just closed."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    elif isinstance(sock, Bridged):
        sock.break_off()


def unacknowledged(sock: SocketType) -> int:
    """Bytes in the send queue that the peer's kernel has not acknowledged (SIOCOUTQ); 0 if it cannot tell."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    except OSError:
        return 0


def keep_alive(sock: SocketType) -> None:
    """Notice a peer that is gone: 60 s of silence, then six probes 15 s apart; 120 s for unread bytes."""
    if sock.family != socket.AF_UNIX:
        # A socket that broke meanwhile refuses; its event is on its way.
        with contextlib.suppress(OSError):
            for level, option, value in _KEEPALIVE:
                sock.setsockopt(level, option, value)
