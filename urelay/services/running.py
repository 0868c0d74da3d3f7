"""A relay at work, with its listeners and its access log: what every process that relays is made of.

Who gives the orders is not known here: signals, where the relay is one process
(urelay.services.daemon), or a supervisor, where it is one of several workers.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from urelay.engine.dial import Dialer
from urelay.engine.health import Health
from urelay.engine.relay import Relay
from urelay.namespaces.visit import Visitor
from urelay.services.access_log import AccessLog

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from urelay.engine.limits import Limits
    from urelay.engine.record import Record
    from urelay.engine.resolve import Resolver
    from urelay.engine.stats import Stats
    from urelay.services.generation import Generation
    from urelay.services.listeners import Opened
    from urelay.services.sink import Sink


class Running:
    """Belongs to one event loop, in which it is made. Must be closed."""

    def __init__(
        self,
        generation: Generation,
        resolver: Resolver,
        limits: Limits,
        access_sink: Sink | None,
        ids: Iterator[int] | None = None,
    ) -> None:
        """Accepts nobody yet. `ids` number the connections of one worker among several; None: it is alone."""
        self.generation = generation
        """The one that decides about new connections"""
        self.opened: list[Opened] = []
        """What listens"""
        self._loop = asyncio.get_running_loop()
        self._resolver = resolver
        self._visitor = Visitor()
        self._health = Health()
        self._access_log = None if access_sink is None else AccessLog(access_sink, self._loop)
        on_end = _forget if self._access_log is None else self._access_log.write
        self._relay = Relay(generation.table, self._dialer(generation), on_end, limits, ids, ids is not None)
        self._deadline: float | None = None
        self._patience: asyncio.Timeout | None = None

    def listen(self, opened: Sequence[Opened]) -> None:
        """Let clients in by these listeners of the generation; their sockets are the relay's own now."""
        for one in opened:
            self._relay.add_listener(one.listener, one.sock, self.generation.users.get(one.listener.name))
            self.opened.append(one)

    def stop_listening(self) -> None:
        """Accept nobody any more; the sockets are closed."""
        for one in self.opened:
            self._relay.remove_listener(one.listener.name)
        self.opened.clear()

    def replace(self, generation: Generation, opened: Sequence[Opened]) -> None:
        """Go on with another generation and its listeners; who is connected notices nothing."""
        self._relay.replace(generation.table, self._dialer(generation))
        self.stop_listening()
        self.generation = generation
        self.listen(opened)

    def snapshot(self) -> Stats:
        """The numbers of this moment."""
        return self._relay.snapshot()

    def reopen_log(self) -> None:
        """Go on in a new file: the access log's may have been moved away."""
        if self._access_log is not None:
            self._access_log.reopen()

    async def finish(self) -> None:
        """Accept nobody any more; returns when the last connection ended, or patience did (`hasten`)."""
        self.stop_listening()
        try:
            async with asyncio.timeout_at(self._deadline) as self._patience:
                await self._relay.drain(None)
        except TimeoutError:
            return  # `close` resets those that are left
        finally:
            self._patience = None

    def hasten(self, seconds: float) -> None:
        """Let `finish` take so long from now, unless it may take less already."""
        deadline = self._loop.time() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline = deadline
            if self._patience is not None:
                self._patience.reschedule(deadline)

    def close(self) -> None:
        """Reset who is still connected, and write the access log to its end."""
        self._relay.close()
        self._visitor.close()
        if self._access_log is not None:
            self._access_log.close()

    def _dialer(self, generation: Generation) -> Dialer:
        return Dialer(
            self._resolver,
            generation.logins,
            abroad=self._visitor,
            conditions=self._health.adopt(generation.policy.upstreams),
            tls=generation.tls,
        )


def _forget(record: Record) -> None:
    """What becomes of a connection's record when there is no access log."""
