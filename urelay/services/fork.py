"""Forks a process that does one thing and ends, untouched by the signals of the one that forked it."""

from __future__ import annotations

import logging
import os
import signal
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_log = logging.getLogger(__name__)


def fork(life: Callable[[], None], deaf_to: Iterable[signal.Signals]) -> int:
    """The number of a child that calls `life` and ends with 0, or 1 when it raised; raises OSError.

    The child ignores the signals `deaf_to`, from its first instruction on. It runs nothing of what
    was to come after this call, no `finally` and nothing registered to be done at exit. The caller
    must have no other thread: a lock that one held would stay locked in the child for ever.
    """
    signals = frozenset(deaf_to)
    # Blocked meanwhile: our handlers, in the child, would tell the parent of signals it never got.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        child = os.fork()
        if child == 0:
            _live(life, signals, before)
        return child
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _live(life: Callable[[], None], deaf_to: frozenset[signal.Signals], mask: Iterable[int]) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in deaf_to:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGCHLD else signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        life()
        status = 0
    except BaseException:
        _log.exception("a worker failed for a reason nobody foresaw")
    finally:
        os._exit(status)
