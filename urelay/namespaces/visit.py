"""Opens sockets in other network namespaces while connections wait: for dialling, not for listening.

A thread is kept for it, because starting one for each socket costs ten times what the socket does.
It visits: for every socket it opens the namespace, enters it, makes the socket there, and goes home.
So no descriptor of a namespace is kept, and a relay never keeps one alive that somebody wants to
delete; a namespace that was deleted, or made anew under the same name, is seen with the next socket.

The caller waits for the answer, about 40 µs on a small machine (a third of it is the way there and
back, setns(2)); the thread of an event loop itself never leaves its namespace. A visitor that cannot
get home would make every later socket in the wrong place: it ends instead, and another is sent.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
from typing import NamedTuple

from urelay.errors import StartError
from urelay.namespaces.enter import EnterError, opened, set_namespace, start_error

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
        try:
            at_home = True
            while at_home and (order := self._orders.get()) is not None:
                made = _made(order)
                try:
                    set_namespace(home)
                except EnterError:
                    at_home = False
                self._answers.put(_Answer(made, at_home))
        finally:
            os.close(home)


def _made(order: _Order) -> socket.socket | Exception:
    """Goes there, and makes the socket."""
    try:
        with opened(order.netns) as descriptor:
            set_namespace(descriptor)
            return socket.socket(order.family, order.kind)
    except EnterError as error:
        return start_error(order.netns, error)
    except (OSError, StartError) as error:
        return error
