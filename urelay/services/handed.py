"""The descriptors this process was started with: which are meant for us, and the end of all others.

    fd N            a number
    fd env NAME     a number that stands in the environment
    systemd "name"  sd_listen_fds(3): LISTEN_FDS of them from 3 on, called what LISTEN_FDNAMES says;
                    only if LISTEN_PID is this very process, else they are somebody else's business

A number counts only if it was open when the process began: it must never come to mean one of our own
sockets. Descriptors are borrowed (duplicated) until everything else a start needs is known to be
right, and ours from then on. A service manager may hand over several sockets under one name (a unit
with several ListenStream= lines): the listener that names it gets them all, as those who wrote the
unit expect.

Everything else that was open, `close_others` closes once the relay has what it asked for. A
descriptor that leaked into us from whoever started us (a namespace, a folder, a database) is of no
use here and may be of use to somebody who gets into this process. What systemd handed over stays,
for a later policy may name it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from typing import TYPE_CHECKING

from urelay.errors import StartError
from urelay.net.address import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping

_FIRST = 3
"""SD_LISTEN_FDS_START"""
_UNNAMED = "unknown"
"""What systemd calls a descriptor when it gives no names"""
_STANDARD_STREAMS = (0, 1, 2)
_DESCRIPTOR = re.compile(r"[0-9]{1,7}")
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class HandedOver:
    """What we were started with. The variables of systemd's protocol are taken out of `environ`:
    no program we start may believe that they are meant for it."""

    def __init__(self, environ: MutableMapping[str, str], inherited: Iterable[int]) -> None:
        """`inherited`: what `inherited_descriptors` said when the process began."""
        self._environ = environ
        self._open = set(inherited).difference(_STANDARD_STREAMS)
        pid, count, names = (environ.pop(name, None) for name in _VARIABLES)
        self._for = pid
        self._named = _named(pid, count, names)

    def numbered(self, descriptor: int, claimed: set[int]) -> socket.socket:
        """A duplicate of one descriptor, which is then in `claimed`; raises StartError."""
        if descriptor in claimed:
            raise StartError(f"descriptor {descriptor} belongs to another listener")
        if descriptor not in self._open:
            raise StartError(f"descriptor {descriptor} was not handed to this process")
        sock = duplicate(descriptor)
        claimed.add(descriptor)
        return sock

    def in_variable(self, variable: str) -> int:
        """The number in an environment variable; raises StartError."""
        text = self._environ.get(variable)
        if text is None:
            raise StartError(f"the environment variable `{printable(variable)}` is not set")
        if not _DESCRIPTOR.fullmatch(text):
            raise StartError(
                f"the environment variable `{variable}` is `{printable(text)}`, which is no descriptor"
            )
        return int(text)

    def from_systemd(self, name: str) -> list[int]:
        """The numbers of every socket that systemd handed over under a name; raises StartError."""
        found = [number for number, called in self._named.items() if called == name]
        if found:
            return found
        if self._named:
            known = ", ".join(f"`{printable(one)}`" for one in dict.fromkeys(self._named.values()))
            raise StartError(f"systemd handed over no socket called `{printable(name)}`; there is {known}")
        if self._for is not None and self._for != str(os.getpid()):
            whom = f"process {printable(self._for)}"
            raise StartError(f"the sockets of LISTEN_FDS are meant for {whom}, this is {os.getpid()}")
        raise StartError(f"systemd handed over no sockets (LISTEN_FDS is not set), so none is `{name}`")

    def keep(self, claimed: Iterable[int]) -> None:
        """The duplicates of these are in use now: let go of the originals."""
        for descriptor in claimed:
            os.close(descriptor)
            self._open.discard(descriptor)
            self._named.pop(descriptor, None)

    def close_others(self) -> tuple[str, ...]:
        """Close what nobody asked for; the names of the systemd sockets that are left unused."""
        for descriptor in self._open.difference(self._named):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._open.intersection_update(self._named)
        for descriptor in self._open:
            os.set_inheritable(descriptor, False)
        return tuple(dict.fromkeys(self._named.values()))


def inherited_descriptors() -> frozenset[int]:
    """Every descriptor that is open now; to be called before the process opens any of its own."""
    # The folder's own descriptor is in the list too, and closed by the time we look.
    return frozenset(int(name) for name in os.listdir("/proc/self/fd") if _is_open(int(name)))


def duplicate(descriptor: int) -> socket.socket:
    """A socket object with a descriptor of its own; raises StartError."""
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise StartError(f"descriptor {descriptor} is not a socket")
        return socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StartError(f"descriptor {descriptor} cannot be used: {reason}") from None


def _named(pid: str | None, count: str | None, names: str | None) -> dict[int, str]:
    """The names of the descriptors from systemd, by number."""
    if pid != str(os.getpid()) or count is None or not _DESCRIPTOR.fullmatch(count):
        return {}
    called = names.split(":") if names else []
    numbers = [number for number in range(_FIRST, _FIRST + min(int(count), 4096)) if _is_open(number)]
    return {
        number: called[number - _FIRST] if number - _FIRST < len(called) else _UNNAMED for number in numbers
    }


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
