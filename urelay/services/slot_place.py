"""A slot of somebody else's socketbox, as a place to listen: registered before the relay says it serves."""

from __future__ import annotations

import select
import socket

from urelay.engine.registration import apply_for
from urelay.errors import ProtocolError, StartError
from urelay.net.address import printable
from urelay.protocols.fd_passing import MESSAGE_LIMIT, check_granted

_PATIENCE_S = 2.0
"""How long the answer may take: the sender is a program on this machine"""


def register_at(path: str, slot: int) -> socket.socket:
    """A non-blocking socket through which the clients of this slot come; raises StartError."""
    try:
        sock = apply_for(path, slot)
        try:
            _await_grant(sock)
        except BaseException:
            sock.close()
            raise
    except (OSError, ProtocolError) as error:
        why = error.strerror.lower() if isinstance(error, OSError) and error.strerror else str(error)
        raise StartError(f"cannot register for slot {slot} at `{printable(path)}`: {why}") from None
    return sock


def _await_grant(sock: socket.socket) -> None:
    """Returns when the registration is accepted. Raises OSError and ProtocolError."""
    answered = select.poll()
    answered.register(sock, select.POLLIN)
    if not answered.poll(_PATIENCE_S * 1000):
        raise TimeoutError(f"no answer in {_PATIENCE_S:g} s")
    check_granted(sock.recv(MESSAGE_LIMIT))
