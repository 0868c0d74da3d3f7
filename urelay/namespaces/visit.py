"""Opens sockets in other network namespaces while connections wait: for dialling, not for listening.

A thread is kept for it, because starting one for each socket costs ten times what the socket does.
It visits: for every socket it opens the namespace, enters it, makes the socket there, and goes home.
So no descriptor of a namespace is kept, and a relay never keeps one alive that somebody wants to
delete; a namespace that was deleted, or made anew under the same name, is seen with the next socket.

A namespace of another user namespace lets no thread in. There a child goes and stays
(urelay.namespaces.child): the first socket waits for it, the next ones cost what they cost here. It is
called back when nobody has asked for two seconds, for a namespace lives as long as somebody is in it.

The caller waits for the answer, about 40 µs on a small machine (a third of it is the way there and
back, setns(2)); the thread of an event loop itself never leaves its namespace. A visitor that cannot
get home would make every later socket in the wrong place: it ends instead, and another is sent.
"""

from __future__ import annotations

import errno
import os
import queue
import socket
import threading
from typing import TYPE_CHECKING, NamedTuple

from urelay.errors import StartError
from urelay.namespaces.enter import EnterError, foreign_owner, opened, set_namespace, start_error

if TYPE_CHECKING:
    from urelay.namespaces.child import Ferry

_IDLE_S = 2.0
_HOME = "/proc/thread-self/ns/net"


class _Order(NamedTuple):
    """One socket to be made."""

    netns: str
    family: int
    kind: int


class _Answer(NamedTuple):
    """What came of it, and whether the thread is at home again."""

    made: socket.socket | Exception
    at_home: bool


class Visitor:
    """Makes sockets in other namespaces, one at a time. Close it to end its thread."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[_Answer] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._one_at_a_time = threading.Lock()

    def socket(self, netns: str, family: int, kind: int) -> socket.socket:
        """A socket of this family and kind (`SOCK_STREAM`, perhaps with `SOCK_NONBLOCK`) in `netns`.

        Raises StartError when the namespace is missing, is none or may not be entered, and OSError
        when the kernel has no socket to give.
        """
        with self._one_at_a_time:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="netns visitor", daemon=True)
                self._thread.start()
            self._orders.put(_Order(netns, family, kind))
            made, at_home = self._answers.get()
            if not at_home:
                self._thread = None
        if isinstance(made, Exception):
            raise made
        return made

    def close(self) -> None:
        """End the thread, if there is one; a later `socket` starts another."""
        with self._one_at_a_time:
            if self._thread is not None:
                self._orders.put(None)
                self._thread.join()
                self._thread = None

    def _work(self) -> None:
        home = os.open(_HOME, os.O_RDONLY | os.O_CLOEXEC)
        ferries = _Ferries()
        try:
            at_home = True
            while at_home and (order := self._next_order(ferries)) is not None:
                made = _made(order, ferries)
                try:
                    set_namespace(home)
                except EnterError as error:
                    # Who may enter no namespace has not left this one either.
                    at_home = error.errno == errno.EPERM and _is_here(home)
                self._answers.put(_Answer(made, at_home))
        finally:
            ferries.close()
            os.close(home)

    def _next_order(self, ferries: _Ferries) -> _Order | None:
        try:
            return self._orders.get(timeout=_IDLE_S if ferries else None)
        except queue.Empty:
            ferries.close()
            return self._orders.get()


class _Ferries:
    """The children that are in namespaces where the thread cannot go, by device and inode."""

    def __init__(self) -> None:
        self._ferries: dict[tuple[int, int], Ferry] = {}

    def __bool__(self) -> bool:
        return bool(self._ferries)

    def socket(self, descriptor: int, order: _Order) -> socket.socket | None:
        """A socket in the namespace; None: it is not one that a child could enter.

        Raises StartError and OSError.
        """
        # Only those pay for starting programs who need one.
        from urelay.namespaces.child import Ferry

        owner = foreign_owner(descriptor)
        if owner is None:
            return None
        try:
            status = os.fstat(descriptor)
            there = status.st_dev, status.st_ino
            ferry = self._ferries.get(there)
            if ferry is None:
                ferry = self._ferries[there] = Ferry(owner, descriptor)
        finally:
            os.close(owner)
        try:
            return ferry.socket(order.family, order.kind)
        except StartError:
            # It has ended, or lies: the next one goes with another child.
            self._ferries.pop(there).close()
            raise

    def close(self) -> None:
        """Call every child back."""
        while self._ferries:
            self._ferries.popitem()[1].close()


def _is_here(home: int) -> bool:
    """Whether this thread is in the namespace."""
    return os.path.samestat(os.fstat(home), os.stat(_HOME))


def _made(order: _Order, ferries: _Ferries) -> socket.socket | Exception:
    """Goes there, and makes the socket."""
    try:
        with opened(order.netns) as descriptor:
            try:
                set_namespace(descriptor)
            except EnterError as error:
                if error.errno != errno.EPERM or (sock := ferries.socket(descriptor, order)) is None:
                    raise
                return sock
            return socket.socket(order.family, order.kind)
    except EnterError as error:
        return start_error(order.netns, error)
    except (OSError, StartError) as error:
        return error
