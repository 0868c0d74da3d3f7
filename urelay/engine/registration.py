"""Registered for a slot: how a listener gets its clients from a sender that keeps a list ("P").

The other way round than a socketbox of our own: the sender, python-socketbox or another urelay, has a
socket at a path, and we connect to it and say for which slot. Clients come through that connection
(urelay.engine.receiver reads it), so it can end, with the sender or at its will. Then the listener has
nobody to hear from until it is registered again, which is tried once a second.

The descriptor keeps its number all the while (dup2(2)): what is known of the listening socket
elsewhere, and handed on to the next generation, stays true.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, Protocol

from urelay.engine.connect import words
from urelay.errors import ProtocolError
from urelay.net.address import printable
from urelay.protocols.fd_passing import check_granted, registration

if TYPE_CHECKING:
    from socket import SocketType

    from urelay.policy.model import Place

log = logging.getLogger(__name__)

_AGAIN_S = 1.0


def apply_for(path: str, slot: int) -> socket.socket:
    """A connection to whoever hands out slots at `path`, on which one was asked for. Raises OSError.

    It is non-blocking. The answer comes as its first message, before any client: see
    urelay.protocols.fd_passing.check_granted.
    """
    kind = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        sock.connect(os.fsencode(path))
        sock.send(registration(slot), socket.MSG_NOSIGNAL)
    except OSError:
        sock.close()
        raise
    return sock


class Applicant(Protocol):
    """Who reads the socket that is registered."""

    def pause(self) -> None:
        """The socket is of no use for now: watch it no longer."""

    def registered(self) -> None:
        """The same descriptor leads to the sender again."""


class Registration:
    """One listener's place on a sender's list. Must be closed."""

    __slots__ = ("_applicant", "_name", "_path", "_slot", "_sock", "_timer", "_told")

    def __init__(self, name: str, place: Place, sock: SocketType, applicant: Applicant) -> None:
        """`sock` was registered once, and may have been lost since then; reading it tells."""
        assert place.text is not None
        assert place.slot is not None
        self._name = name
        self._path = place.text
        self._slot = place.slot
        self._sock = sock
        self._applicant = applicant
        self._timer: asyncio.TimerHandle | None = None
        self._told = False
        """The loss was said in the log, and its end was not"""

    @property
    def is_lost(self) -> bool:
        """Whether the socket leads nowhere just now."""
        return self._timer is not None

    def told(self, message: bytes) -> bool:
        """What the sender said without handing anything over; False: nothing more is to be read."""
        if not message:
            self.lost("it closed the connection")
            return False
        try:
            check_granted(message)
        except ProtocolError as error:
            self.lost(str(error))
            return False
        if self._told:
            self._told = False
            log.warning("listener `%s` is registered for slot %d again", self._name, self._slot)
        return True

    def lost(self, why: str) -> None:
        """The connection is over: have another in a moment."""
        if not self._told:
            self._told = True
            path = printable(self._path)
            log.warning("listener `%s` lost slot %d at %s: %s", self._name, self._slot, path, why)
        self._applicant.pause()
        # Its sender may still have it open: it must not hand over to somebody who does not read.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._timer = asyncio.get_running_loop().call_later(_AGAIN_S, self._register)

    def close(self) -> None:
        """Give up."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _register(self) -> None:
        self._timer = None
        try:
            fresh = apply_for(self._path, self._slot)
        except OSError as error:
            self.lost(words(error))
            return
        with fresh:
            os.dup2(fresh.fileno(), self._sock.fileno(), inheritable=False)
        self._applicant.registered()
