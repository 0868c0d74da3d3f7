"""The next generation in the making, on a thread of its own, so that what runs is not held up.

Here is done whatever may take its time: the policy is judged, the files it names are read, and slots
of other programs, which answer when they like, are applied for. What comes of it is taken over
between two events of the relay, or not at all.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from urelay.errors import StartError
from urelay.services.generation import Generation, prepare
from urelay.services.listeners import key_of
from urelay.services.slot_place import register_at

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Mapping

    from urelay.policy.model import Listener
    from urelay.services.listeners import Key


@dataclass(frozen=True, slots=True)
class Prepared:
    """A generation that can take over. Must be closed, also when it has."""

    generation: Generation
    registered: Mapping[Key, socket.socket]
    """For its listeners at slots that are not held yet; whoever listens has descriptors of his own"""

    def close(self) -> None:
        """Give up what was registered, where nobody listens on it."""
        for sock in self.registered.values():
            sock.close()


class Preparing:
    """Begins at once. The thread is a daemon: a stop need not wait for a policy that nobody will use."""

    def __init__(self, path: str, held: Collection[Key], tell: Callable[[], object]) -> None:
        """`held` are the places that are listened on now. `tell` is called on the thread, at its end."""
        self.over = False
        self._path = path
        self._held = held
        self._tell = tell
        self._outcome: Prepared | BaseException
        self._thread = threading.Thread(target=self._work, name="reload", daemon=True)
        self._thread.start()

    def outcome(self) -> Prepared:
        """What came of it, once it is over; the thread is gone then. Raises what went wrong."""
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def _work(self) -> None:
        try:
            generation = prepare(self._path)
            registered = _register(generation.policy.listeners.values(), self._held)
            self._outcome = Prepared(generation, registered)
        except BaseException as error:
            self._outcome = error
        self.over = True
        self._tell()


def _register(listeners: Iterable[Listener], held: Collection[Key]) -> dict[Key, socket.socket]:
    """Sockets for the listeners at slots that are not held; raises StartError with all that failed."""
    registered: dict[Key, socket.socket] = {}
    problems = []
    for listener in listeners:
        place = listener.place
        if place.slot is None or place.text is None or (key := key_of(listener)) in held:
            continue
        try:
            registered[key] = register_at(place.text, place.slot)
        except StartError as error:
            problems.append(f"{listener.origin}: listener `{listener.name}`: {error}")
    if problems:
        for sock in registered.values():
            sock.close()
        raise StartError(*problems)
    return registered
