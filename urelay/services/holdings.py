"""What a relay holds from its start to its end: listening sockets, captured namespaces, slots.

They are the business of the process that was started, be it the relay itself or the supervisor of
workers, and all three change together: a generation gets what its policy asks for, or nothing
changes.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from urelay.services.captures import Captures
from urelay.services.listeners import Opener
from urelay.services.slots import Slots

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Mapping, MutableMapping, Sequence

    from urelay.services.generation import Generation
    from urelay.services.listeners import Key, Opened
    from urelay.services.preparing import Prepared


class Holdings:
    """Of one process. Must be closed, when nobody is connected any more."""

    def __init__(self, environ: MutableMapping[str, str], inherited: Iterable[int]) -> None:
        """`inherited` are the descriptors this process was started with."""
        self.captures = Captures()
        self.slots = Slots()
        self._opener = Opener(environ, inherited)

    def first(self, generation: Generation) -> list[Opened]:
        """What the first generation listens on. Raises StartError; then nothing is held."""
        opened = self._open(generation, {})
        self._opener.close_others()
        return opened

    def next(self, prepared: Prepared, now: Sequence[Opened]) -> list[Opened]:
        """What a prepared generation listens on; where it is the same place, the same socket as `now`.

        Raises StartError; then everything is as it was. `now` stays open, either way.
        """
        with contextlib.closing(prepared):
            held = {one.key: one.sock for one in now}
            return self._open(prepared.generation, {**held, **prepared.registered})

    def back_to(self, generation: Generation, opened: Sequence[Opened]) -> None:
        """Have again what a generation had, which listens on `opened`: the next one came to nothing."""
        self.captures.apply(opened)
        self.slots.apply(generation.policy.slots())

    def close(self) -> None:
        """Remove the files of unix sockets, the captures and the slots."""
        with contextlib.ExitStack() as at_exit:
            at_exit.callback(self._opener.close)
            at_exit.callback(self.captures.close)
            at_exit.callback(self.slots.close)

    def abandon(self) -> None:
        """Let go of all in a process that was forked, and leave it to the one that forked it."""
        self.captures.abandon()
        self.slots.abandon()

    def _open(self, generation: Generation, held: Mapping[Key, socket.socket]) -> list[Opened]:
        then = self.slots.before(generation.policy.slots(), self.captures.apply)
        return self._opener.open(generation.policy.listeners.values(), held, then)
