"""Listeners in, connections out: owns the poller, the pump, the timers, every task and every limit.

Lives in one event loop. The table and the dialer are one attribute each, swapped by `replace`;
connections captured theirs at accept. A relay has a budget of connections: above it, or when the
kernel runs out of descriptors, accepting pauses and the backlog waits; the descriptors it keeps in
reserve are free then for a reload, a log, a name server.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from socket import SocketType
from typing import TYPE_CHECKING

from urelay.engine.acceptor import Acceptor
from urelay.engine.connection import Connection
from urelay.engine.farewell import Farewell
from urelay.engine.limits import Limits
from urelay.engine.loops import CarefulJudge, OwnListeners, first_ephemeral_port
from urelay.engine.poller import running_poller
from urelay.engine.pump import Pump
from urelay.engine.receiver import Receiver
from urelay.engine.record import End, Record
from urelay.engine.rules import Rules
from urelay.engine.sources import Sources
from urelay.engine.stats import Stats
from urelay.engine.timers import Wheel
from urelay.policy.model import PlaceKind

if TYPE_CHECKING:
    from urelay.engine.dial import Dialer, Judge
    from urelay.lang.source import Origin
    from urelay.policy.model import Listener
    from urelay.protocols.users import Users
    from urelay.table.evaluate import Table

log = logging.getLogger(__name__)

_SPARE_DESCRIPTORS = 8
_COMPLAINT_EVERY_S = 1.0


class Relay:
    """Relays the connections of its listeners, each by the table it was accepted under."""

    def __init__(
        self,
        table: Table,
        dialer: Dialer,
        on_end: Callable[[Record], None],
        limits: Limits | None = None,
        ids: Iterator[int] | None = None,
        shared: bool = False,
    ) -> None:
        """Must be made inside a RelayLoop, and closed. `on_end` gets every connection's record.

        Connections are numbered by `ids`, which must not end; None counts from one. `shared`: other
        processes accept from the same sockets, and are to get their share.
        """
        self.loop = asyncio.get_running_loop()
        self.limits = limits or Limits.for_this_process()
        self.rules = Rules(table, dialer)
        self.poller = running_poller()
        self.wheel = Wheel(self.loop, self.limits.tick_s)
        self.pump = Pump(self.loop, self.poller, self.wheel, self.limits)
        self.first_look_s = min(self.limits.connect_s, self.limits.handshake_s, self.pump.first_look_s)
        """How long after accept every connection is looked at first"""
        self.own = OwnListeners()
        self.first_ephemeral_port = first_ephemeral_port()
        self.handshaking: dict[Connection, None] = {}
        """Clients that have not said where they want to go, the oldest first"""
        self._on_end = on_end
        self._shared = shared
        self._ids = itertools.count(1) if ids is None else ids
        self._acceptors: list[Acceptor] = []
        self._connections: set[Connection] = set()
        self._farewells: set[Farewell] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._few = 0
        """As many connections as an address may have at any listener: up to here none has too many"""
        self._sources: Sources | None = None
        """Connections by address; None: there are few, and nobody counts"""
        self._quotas: dict[Origin | None, Sources] = {}
        self._drained: asyncio.Event | None = None
        """Set when the last connection has ended, if somebody waits for that"""
        self._paused = False
        self._resume_timer: asyncio.TimerHandle | None = None
        self._complained_at = -_COMPLAINT_EVERY_S
        self._spare = [os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) for _ in range(_SPARE_DESCRIPTORS)]
        self._accepted = 0
        self._accept_pauses = 0
        self._ended = dict.fromkeys(End, 0)
        self._bytes_up = 0
        self._bytes_down = 0
        self._checking = self._begin_checks()

    # --- listeners

    def add_listener(self, listener: Listener, sock: SocketType, users: Users | None = None) -> None:
        """Accept clients of `sock`, which becomes the relay's own.

        It is listening, or bound and brings descriptors, if the listener's place is a socketbox.

        `users`: who may log in, where clients are asked; None lets everybody in. One listener may have
        several sockets: each is added by a call of its own.
        """
        idle_s = listener.idle_timeout_s
        if idle_s is None:
            idle_s = self.limits.idle_for(listener.kind)
        # Whoever is born in a captured namespace has a loopback address: they are many, and no hog.
        share = self.limits.max_connections if listener.captures else self.limits.per_source
        kind = Receiver if listener.place.kind is PlaceKind.SOCKETBOX else Acceptor
        acceptor = kind(
            self, self.poller, listener, sock, users, idle_s, self.limits.accept_batch,
            listener.limit_per_source or share, self._shared,
        )  # fmt: skip
        self._acceptors.append(acceptor)
        self._few = min(one.per_source for one in self._acceptors)
        self.own.add(listener.name, sock)
        if not self._paused:
            acceptor.resume()

    def remove_listener(self, name: str) -> None:
        """Accept no more clients of this listener, if there is one, and close its sockets."""
        self.own.discard(name)
        for acceptor in [one for one in self._acceptors if one.name == name]:
            self._acceptors.remove(acceptor)
            acceptor.close()

    def replace(self, table: Table, dialer: Dialer) -> None:
        """Decide and dial by these from the next accept on; nobody already accepted is affected."""
        self.rules = Rules(table, dialer)
        self._end_checks()
        self._checking = self._begin_checks()

    # --- what acceptors and connections need

    def room(self) -> int:
        """How many more connections fit; if none does, accepting is paused until one ends."""
        if self._paused:
            return 0
        room = self.limits.max_connections - len(self._connections)
        if room <= 0:
            self._complain(f"{len(self._connections)} connections, as many as allowed: no more are accepted")
            self._pause()
            return 0
        return room

    def welcome(self, acceptor: Acceptor, client: SocketType, address: object) -> None:
        """Take in a client."""
        self._accepted += 1
        if self._sources is None and len(self._connections) >= self._few:
            self._begin_to_count()
        connection = Connection()
        connection.take_in(self, acceptor, client, address, next(self._ids))
        self._connections.add(connection)
        wheel = self.wheel
        wheel.young[connection] = None
        if wheel.asleep:
            wheel.wind()
        try:
            if acceptor.announcer is not None:
                connection.await_header(acceptor.announcer)
            elif self._sources is None or self._sources.enter(address, acceptor.per_source):
                connection.begin()
            else:
                connection.turn_away(acceptor.per_source)
        except Exception:
            log.exception("a connection failed for a reason nobody foresaw")
            connection.on_crash()

    def begin_handshake(self, connection: Connection) -> None:
        """A client is to say where it wants to go; one too many costs the one that took longest its place."""
        if len(self.handshaking) >= self.limits.max_handshakes:
            next(iter(self.handshaking)).evict()
        self.handshaking[connection] = None

    def enter(self, connection: Connection) -> bool:
        """Count a connection as its address's; one too many is turned away, and this says False."""
        most = connection.acceptor.per_source
        if self._sources is None or self._sources.enter(connection.address, most):
            return True
        connection.turn_away(most)
        return False

    def _begin_to_count(self) -> None:
        """From now on somebody may have too many."""
        self._sources = Sources()
        for connection in self._connections:
            self._sources.enter(connection.address, self._few)

    def own_box(self, address: object) -> str | None:
        """The name of the listener that is handed clients at a unix socket's address, if it is ours."""
        boxes = (one for one in self._acceptors if isinstance(one, Receiver))
        return next((box.name for box in boxes if box.sock.getsockname() == address), None)

    def out_of_room(self, error: OSError) -> None:
        """No descriptor or no memory: accept nobody for a moment, and let go of the reserve."""
        self._complain(f"accepting pauses: {os.strerror(error.errno or 0).lower()}")
        self._release_spare()
        self._pause()
        if self._resume_timer is None:
            self._resume_timer = self.loop.call_later(self.limits.accept_pause_s, self._resume)

    def spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a connection's coroutine in a task that the relay owns."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def quota_of(self, route: Origin | None) -> Sources:
        """The counts of a route that has a limit."""
        return self._quotas.setdefault(route, Sources())

    def judge(self, table: Table) -> Judge:
        """`table`, for a dialer: it also knows that our own listeners lead nowhere."""
        return CarefulJudge(table, self.own)

    def say_farewell(self, client: SocketType, watched: bool) -> None:
        """Close a client that is owed time to read what was sent to it last."""
        farewell = Farewell(client, self.poller, self.wheel, self._farewells.discard)
        self._farewells.add(farewell)
        farewell.begin(watched, self.poller.now + self.limits.farewell_s)

    def ended(self, connection: Connection, end: End, record: Record, bytes_up: int, bytes_down: int) -> None:
        """A connection is over, and moved so many bytes."""
        self._connections.discard(connection)
        if self._sources is not None:
            self._sources.leave(connection.address)
            if len(self._connections) < self._few // 2:
                self._sources = None
        if connection.handshake is not None:
            self.handshaking.pop(connection, None)
        self._ended[end] += 1
        self._bytes_up += bytes_up
        self._bytes_down += bytes_down
        if self._paused and self._resume_timer is None:
            self._resume()
        elif self._drained is not None and not self._connections:
            self._drained.set()
        try:
            self._on_end(record)
        except Exception:
            log.exception("the record of connection %d was lost", record.id)

    # --- the whole

    async def drain(self, timeout_s: float | None) -> None:
        """Close the listeners, let connections end for `timeout_s`, reset those that have not.

        None: however long it takes them.
        """
        self._close_listeners()
        self._drained = asyncio.Event()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._drained.wait()
        self._abort_all("the relay is stopping")

    def snapshot(self) -> Stats:
        """The numbers of this moment."""
        return Stats(
            accepted=self._accepted,
            active=len(self._connections),
            handshaking=len(self.handshaking),
            dialing=len(self._tasks),
            ended={end: count for end, count in self._ended.items() if count},
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            pipes_open=self.pump.pipes.open,
            pipes_in_use=self.pump.pipes.in_use,
            pipes_refused=self.pump.pipes.refused,
            accept_pauses=self._accept_pauses,
            wakeups=self.poller.batches,
        )

    def close(self) -> None:
        """Reset every connection, close everything. The relay is of no use afterwards."""
        self._close_listeners()
        self._abort_all("the relay is stopping")
        for farewell in list(self._farewells):
            farewell.close()
        for task in self._tasks:
            task.cancel()
        self._end_checks()
        if self._resume_timer is not None:
            self._resume_timer.cancel()
        self.pump.close()
        self.wheel.close()
        self._release_spare()

    def _begin_checks(self) -> asyncio.Task[None] | None:
        """The task that looks after the members of groups; None: nothing asks for it."""
        checks = self.rules.dialer.checks(self.rules.table, self.own)
        return self.loop.create_task(checks.run()) if checks else None

    def _end_checks(self) -> None:
        if self._checking is not None:
            self._checking.cancel()
            self._checking = None

    def _close_listeners(self) -> None:
        while self._acceptors:
            self.remove_listener(self._acceptors[0].name)

    def _abort_all(self, why: str) -> None:
        for connection in list(self._connections):
            connection.abort(End.ERROR, why)

    # --- pausing

    def _pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._accept_pauses += 1
            for acceptor in self._acceptors:
                acceptor.pause()

    def _resume(self) -> None:
        self._resume_timer = None
        self._acquire_spare()
        if len(self._spare) < _SPARE_DESCRIPTORS:
            # Still none to be had. The few there are stay free for a reload, a log, a name server.
            self._release_spare()
            self._resume_timer = self.loop.call_later(self.limits.accept_pause_s, self._resume)
            return
        if len(self._connections) >= self.limits.max_connections:
            return
        self._paused = False
        for acceptor in self._acceptors:
            acceptor.resume()

    def _complain(self, text: str) -> None:
        """Warn, once a second at most."""
        now = self.loop.time()
        if now - self._complained_at >= _COMPLAINT_EVERY_S:
            self._complained_at = now
            log.warning("%s", text)

    def _acquire_spare(self) -> None:
        with contextlib.suppress(OSError):
            while len(self._spare) < _SPARE_DESCRIPTORS:
                self._spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))

    def _release_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())
