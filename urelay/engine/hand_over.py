"""`to socketbox`: the client's own socket goes to whoever receives at a path, and is no longer ours.

The other half of urelay.engine.receiver, and as unceremonious: a datagram with one descriptor, which
nobody answers. What can be known beforehand is asked beforehand (whether somebody receives there, and
has room for one more), because a client that waits for an answer must have it before its next owner
can say anything.

What was read of the client already could not follow it. A client that sent more than its request
(SOCKS, HTTP, a PROXY header) before it had its answer can therefore not be handed over.
"""

from __future__ import annotations

import array
import os
import select
import socket
from typing import TYPE_CHECKING

from urelay.engine.connect import FAILURES, words
from urelay.errors import DialError, Failure
from urelay.net.address import printable
from urelay.protocols.fd_passing import HAND_OVER

if TYPE_CHECKING:
    from socket import SocketType


def sender_to(path: str) -> socket.socket:
    """A socket by which somebody at `path` can be handed a client now. Raises DialError."""
    try:
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise _refusal(path, error) from None
    try:
        sender.connect(os.fsencode(path))
        ready = select.poll()
        ready.register(sender, select.POLLOUT)
        if not ready.poll(0):
            raise DialError(Failure.ERROR, f"{printable(path)}: too many connections wait there")
    except OSError as error:
        sender.close()
        raise _refusal(path, error) from None
    except BaseException:
        sender.close()
        raise
    return sender


def hand_over(sender: socket.socket, client: SocketType) -> None:
    """Send a client's socket; ours is still to be closed then. Raises OSError.

    It is blocking from now on: its next owner has the very same socket, and expects one that was
    accepted just now.
    """
    client.setblocking(True)
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (client.fileno(),)))
    try:
        sender.sendmsg([HAND_OVER], [rights], socket.MSG_NOSIGNAL)
    except OSError:
        client.setblocking(False)
        raise


def _refusal(path: str, error: OSError) -> DialError:
    return DialError(FAILURES.get(error.errno or 0, Failure.ERROR), f"{printable(path)}: {words(error)}")
