"""A client before its hand-over: what it says, what it is told, and whether it is still there.

Only clients of whom more is known than where they came from and where they go have one: they are asked,
announced, counted by their route, wait for a dial, or could not be led out. Where it watches the
client, it stands for its socket in the poller until the pump does.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from urelay.engine.record import End
from urelay.engine.session import Announced, Ask, Command, Refuse, Reply, Session

if TYPE_CHECKING:
    import asyncio

    from urelay.engine.connection import Connection
    from urelay.engine.sources import Sources
    from urelay.net.address import Endpoint

GONE = select.EPOLLERR | select.EPOLLHUP


class Handshake:
    """What is known of such a client, and its session."""

    __slots__ = (
        "_connection",
        "asking",
        "patience_s",
        "quota",
        "session",
        "source",
        "task",
        "told",
        "tries",
        "user",
        "watched",
    )

    def __init__(self, connection: Connection, session: Session) -> None:
        self._connection = connection
        self.session = session
        self.asking = False
        """Whether the client has yet to say where it wants to go"""
        self.patience_s = 0.0
        """How long it may take, from its first moment on"""
        self.watched = False
        self.told = 0
        """The events its socket has reported so far"""
        self.user: str | None = None
        self.source: Endpoint | None = None
        """For whom the client spoke, if not for itself"""
        self.task: asyncio.Task[None] | None = None
        """The dial of several steps"""
        self.tries: tuple[str, ...] = ()
        self.quota: Sources | None = None
        """Where this connection is counted, if its route has a limit"""

    def ask(self, patience_s: float) -> None:
        """Listen to the client until it has said where it wants to go, or its time is over."""
        connection = self._connection
        self.asking = True
        connection.relay.begin_handshake(connection)
        self._wait(patience_s)
        self.watch()

    def watch(self) -> None:
        """Notice it when the client leaves. Raises OSError."""
        if not self.watched:
            self._connection.relay.poller.add(self._connection.client, self)
            self.watched = True

    def on_event(self, events: int) -> None:
        """The client sent something, or left."""
        self.told |= events
        if self.asking:
            self._receive()
        elif events & GONE:
            self._connection.leave()

    def on_crash(self) -> None:
        """A fault of ours: let go of the client."""
        self._connection.on_crash()

    def send(self, data: bytes) -> bool:
        """Send a whole reply; False for a client that leaves no room for some bytes."""
        try:
            return not data or self._connection.client.send(data) == len(data)
        except OSError:
            return False

    def _wait(self, patience_s: float) -> None:
        self.patience_s = patience_s
        connection = self._connection
        connection.relay.wheel.set(connection, connection.started + patience_s)

    def _receive(self) -> None:
        connection = self._connection
        limit = connection.relay.limits.handshake_bytes
        while self.asking:
            try:
                data = connection.client.recv(limit)
            except BlockingIOError:
                return
            except OSError:
                connection.leave()
                return
            if not data:
                connection.cut(End.EOF, f"the client left without a {self.session.waits_for}")
                return
            self._obey(self.session.receive(data))

    def _obey(self, command: Command) -> None:
        connection = self._connection
        match command:
            case Reply():
                if not self.send(command.data):
                    connection.cut(End.RESET, "the client takes no reply")
            case Ask():
                if not self.send(command.reply):
                    connection.cut(End.RESET, "the client takes no reply")
                    return
                self.asking = False
                self.user = command.user
                connection.relay.handshaking.pop(connection, None)
                connection.decide(command.destination)
            case Announced():
                self.session = command.session
                if connection.announce(command.source):
                    self._wait(connection.relay.limits.handshake_s)
                    self._obey(command.then)
            case Refuse():
                connection.refuse(command, End.ERROR, command.error)
            case _:
                raise AssertionError(f"{command} answers nothing a client says")
