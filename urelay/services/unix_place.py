"""A unix socket at a path, listening or for datagrams, and the file that stands for it.

The file outlives the process that made it: after a crash it is still there, and binding fails. So a
file that nobody listens behind is replaced, and one that somebody listens behind is left alone. Only
connecting tells them apart: ECONNREFUSED means nobody.

Whoever may write to the file may connect. It is made for its owner alone unless the policy says
`mode`, and with no more bits than that at any moment: the bits of the unbound socket are those of the
file that bind(2) makes, less the umask. At the end the file is removed if it is still the one we made.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass

from urelay.errors import StartError
from urelay.net.address import printable

OWNER_ONLY = 0o600
"""The bits of the file when nothing is said"""


@dataclass(frozen=True, slots=True)
class SocketFile:
    """The file of a socket we listen on: its path, and what tells it from another one there."""

    path: str
    device: int
    inode: int
    made_ns: int
    """Its modification time, which chmod leaves alone: numbers of inodes are used again at once"""

    @classmethod
    def at(cls, path: str) -> SocketFile:
        """What is at `path` now; raises OSError."""
        status = os.lstat(path)
        return cls(path, status.st_dev, status.st_ino, status.st_mtime_ns)

    def remove(self) -> None:
        """Remove it, unless it is gone or somebody has put another in its place."""
        with contextlib.suppress(OSError):
            if SocketFile.at(self.path) == self:
                os.unlink(self.path)


def listen_at(
    path: str, mode: int, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> tuple[socket.socket, SocketFile]:
    """A non-blocking listening socket at `path`, and its file; raises StartError."""
    return _open_at(path, mode, kind, lambda sock: sock.listen(backlog))


def receive_at(path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """A non-blocking datagram socket at `path`, and its file; raises StartError."""
    return _open_at(path, mode, socket.SOCK_DGRAM, lambda sock: None)


def _open_at(
    path: str, mode: int, kind: socket.SocketKind, begin: Callable[[socket.socket], None]
) -> tuple[socket.socket, SocketFile]:
    sock = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        os.fchmod(sock.fileno(), mode)
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_stale(path)
            sock.bind(path)
        file = SocketFile.at(path)
        try:
            set_mode(path, mode)
            begin(sock)
        except OSError:
            file.remove()
            raise
    except OSError as error:
        sock.close()
        raise StartError(f"cannot listen on `{printable(path)}`: {_reason(error)}") from None
    except StartError:
        sock.close()
        raise
    return sock, file


def set_mode(path: str, mode: int) -> None:
    """Give the socket file at `path` these bits; raises OSError, also for what is no socket.

    The umask took some away, or a reload says others.
    """
    # Not by its name: a link that was put in its place in the meantime must not be followed.
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISSOCK(status.st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
        if stat.S_IMODE(status.st_mode) != mode:
            os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def _remove_stale(path: str) -> None:
    """Remove a socket file that nobody listens behind; raises StartError if it is anything else."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"cannot listen on `{printable(path)}`: there is a file that is no socket")
        found = SocketFile.at(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            code = probe.connect_ex(path)
        if code == errno.ECONNREFUSED:
            found.remove()
        elif code != errno.ENOENT:
            raise StartError(f"cannot listen on `{printable(path)}`: somebody listens there already")


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "somebody else made it just now"
    return (error.strerror or str(error)).lower()
