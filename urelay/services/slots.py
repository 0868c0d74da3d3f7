"""Slots: programs register for a number and are handed the clients that a route sends there ("P").

`to socketbox "/run/slots" slot 7` means the sender's side of urelay.protocols.fd_passing:

    /run/slots      seqpacket: programs connect and register; made when the relay starts
    /run/slots.7    datagram: a socketbox, there while anybody is registered for slot 7

The routes hand over to the second as to any socketbox (urelay.engine.hand_over), so they fail at once
where nobody is registered; what arrives is passed on to those who are, in turn. That one step more
keeps all of this out of the relay: with workers, the process that looks after them has the slots, and
a reload leaves every program registered whose slot is still in the policy.

Both files are the relay's own user's. Nobody else's programs are registered, and root's.
"""

from __future__ import annotations

import array
import logging
import os
import socket
import struct
import time
from collections import deque
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from urelay.errors import ProtocolError, StartError
from urelay.net.address import printable
from urelay.policy.model import Slot
from urelay.protocols.fd_passing import (
    DELIVERY,
    DESCRIPTOR_LIMIT,
    DESCRIPTOR_SIZE,
    GRANTED,
    MESSAGE_LIMIT,
    descriptors,
    read_registration,
)
from urelay.services.unix_place import OWNER_ONLY, listen_at, receive_at

if TYPE_CHECKING:
    from collections.abc import Callable

    Watch: TypeAlias = Callable[[socket.socket, Callable[[], None]], object]
    Unwatch: TypeAlias = Callable[[socket.socket], object]

T = TypeVar("T")

_CREDENTIALS = struct.Struct("iII")
"""struct ucred, unix(7): process, user, group"""

_PROGRAMS = 64
"""Programs one path may have connected, registered or not"""
_BATCH = 64
_COMPLAINT_EVERY_S = 1.0
_ROOM = socket.CMSG_SPACE(DESCRIPTOR_LIMIT * DESCRIPTOR_SIZE)
_FLAGS = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC

_log = logging.getLogger(__name__)


class Slots:
    """The slots of a policy, at every path it names. Must be closed."""

    def __init__(self) -> None:
        self._desks: dict[str, _Desk] = {}
        self._slots: frozenset[Slot] = frozenset()
        self._watching: tuple[Watch, Unwatch] | None = None

    def before(self, slots: frozenset[Slot], then: Callable[[T], None]) -> Callable[[T], None]:
        """What applies these slots and then does `then`; if that fails, they are what they were."""

        def both(argument: T) -> None:
            now = self._slots
            self.apply(slots)
            try:
                then(argument)
            except BaseException:
                self.apply(now)
                raise

        return both

    def apply(self, slots: frozenset[Slot]) -> None:
        """Have these slots and no others. Raises StartError; then everything is as it was."""
        wanted: dict[str, set[int]] = {}
        for slot in slots:
            wanted.setdefault(slot.path, set()).add(slot.number)
        made: dict[str, _Desk] = {}
        problems: list[str] = []
        for path in sorted(wanted.keys() - self._desks.keys()):
            try:
                made[path] = _Desk(path)
            except StartError as error:
                problems += error.problems
        if problems:
            for desk in made.values():
                desk.close()
            raise StartError(*problems)
        for path in self._desks.keys() - wanted.keys():
            self._desks.pop(path).close()
        self._desks |= made
        for path, desk in self._desks.items():
            desk.keep(wanted[path])
            if path in made and self._watching is not None:
                desk.follow(*self._watching)
        self._slots = slots

    def follow(self, watch: Watch, unwatch: Unwatch) -> None:
        """Be at work from now on: `watch` is told what to call when a socket can be read."""
        self._watching = watch, unwatch
        for desk in self._desks.values():
            desk.follow(watch, unwatch)

    def close(self) -> None:
        """Let go of every program, and remove the files. The loop that watched is over."""
        while self._desks:
            self._desks.popitem()[1].close(removing=True, watched=False)

    def abandon(self) -> None:
        """Let go of everything in a process that was forked, and leave all to the one that forked it."""
        while self._desks:
            self._desks.popitem()[1].close(removing=False, watched=False)


class _Desk:
    """One path where programs register."""

    def __init__(self, path: str) -> None:
        """Raises StartError."""
        self._path = path
        self._sock, self._file = listen_at(path, OWNER_ONLY, _PROGRAMS, socket.SOCK_SEQPACKET)
        self._numbers: set[int] = set()
        self._programs: set[socket.socket] = set()
        self._boxes: dict[int, _Box] = {}
        self._watch: Watch = _watch_nothing
        self._unwatch: Unwatch = _unwatch_nothing

    def keep(self, numbers: set[int]) -> None:
        """Have these slots; who is registered for another one is let go."""
        self._numbers = numbers
        for number in self._boxes.keys() - numbers:
            for program in tuple(self._boxes[number].programs):
                self._let_go(program)

    def follow(self, watch: Watch, unwatch: Unwatch) -> None:
        self._watch, self._unwatch = watch, unwatch
        watch(self._sock, self._admit)

    def close(self, removing: bool = True, watched: bool = True) -> None:
        if not watched:
            self._unwatch = _unwatch_nothing
        self._unwatch(self._sock)
        self._sock.close()
        for box in self._boxes.values():
            self._unwatch(box.sock)
            box.close(removing)
        for program in self._programs:
            self._unwatch(program)
            program.close()
        if removing:
            self._file.remove()

    def _admit(self) -> None:
        """Somebody connects, who has yet to say what for."""
        try:
            program, _ = self._sock.accept()
        except OSError:
            return  # it left, or there is no descriptor: it may come again
        _, user, _ = _CREDENTIALS.unpack(
            program.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        if user not in (0, os.geteuid()) or len(self._programs) >= _PROGRAMS:
            program.close()
            return
        program.setblocking(False)
        self._programs.add(program)
        self._watch(program, lambda: self._hear(program))

    def _hear(self, program: socket.socket) -> None:
        """A program says what for, once; whatever it says later, it is let go."""
        if program not in self._programs:
            return  # it was let go a moment ago
        try:
            message = program.recv(MESSAGE_LIMIT)
            if any(program in box.programs for box in self._boxes.values()):
                raise ProtocolError("nothing more is to be said")
            number = read_registration(message)
            if number not in self._numbers:
                raise ProtocolError(f"no route hands over to slot {number}")
            if number not in self._boxes:
                box = self._boxes[number] = _Box(Slot(self._path, number), self._let_go)
                self._watch(box.sock, box.deliver)
            program.send(GRANTED, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except (OSError, ProtocolError, StartError) as error:
            if not isinstance(error, OSError):
                _log.warning("a program at %s is let go: %s", printable(self._path), error)
            self._let_go(program)
        else:
            self._boxes[number].programs.append(program)
        self._close_empty()

    def _let_go(self, program: socket.socket) -> None:
        self._unwatch(program)
        self._programs.discard(program)
        for box in self._boxes.values():
            if program in box.programs:
                box.programs.remove(program)
        program.close()
        self._close_empty()

    def _close_empty(self) -> None:
        for number in [number for number, box in self._boxes.items() if not box.programs]:
            box = self._boxes.pop(number)
            self._unwatch(box.sock)
            box.close()


class _Box:
    """The socketbox of one slot, and those who are registered for it."""

    def __init__(self, slot: Slot, let_go: Callable[[socket.socket], None]) -> None:
        """Raises StartError."""
        self._slot = slot
        self._let_go = let_go
        self._complained_at = -_COMPLAINT_EVERY_S
        self.programs: deque[socket.socket] = deque()
        """Whose turn it is stands first"""
        self.sock, self._file = receive_at(slot.box, OWNER_ONLY)

    def deliver(self) -> None:
        """Pass on what has arrived."""
        for _ in range(_BATCH):
            if not self.programs:
                return  # the last one is gone, and with it the box
            try:
                _, ancillary, _, _ = self.sock.recvmsg(MESSAGE_LIMIT, _ROOM, _FLAGS)
            except OSError:
                return  # nothing more, or no descriptor for it
            found = descriptors(ancillary)
            try:
                if found and not self._pass_on(found[0]):
                    self._complain()
            finally:
                for descriptor in found:
                    os.close(descriptor)

    def close(self, removing: bool = True) -> None:
        self.sock.close()
        if removing:
            self._file.remove()

    def _pass_on(self, descriptor: int) -> bool:
        """Whether somebody took it: the next in turn, or the first after it who has room."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (descriptor,)))
        for program in tuple(self.programs):
            self.programs.rotate(-1)
            try:
                program.sendmsg([DELIVERY], [rights], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                continue
            except OSError:
                self._let_go(program)
            else:
                return True
        return False

    def _complain(self) -> None:
        now = time.monotonic()
        if now - self._complained_at >= _COMPLAINT_EVERY_S:
            self._complained_at = now
            where = printable(self._slot.path)
            _log.warning("nobody takes what is for slot %d at %s", self._slot.number, where)


def _watch_nothing(sock: socket.socket, ready: Callable[[], None]) -> None:
    """What is done about sockets before `follow`: they are read when it is called."""


def _unwatch_nothing(sock: socket.socket) -> None:
    """What is done about them at the end."""
