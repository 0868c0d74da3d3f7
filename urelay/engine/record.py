"""What is known of a connection once it has ended: all that the access log needs.

A Record keeps the values it was given and turns them into text only when asked, because most of
them are never asked (`log off`) and the rest belong to whoever writes the log.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from urelay.engine.ends import packed
from urelay.net.address import Endpoint, host_text

if TYPE_CHECKING:
    from urelay.lang.source import Origin
    from urelay.policy.model import Outcome
    from urelay.table.decision import Decision


class End(enum.StrEnum):
    """How a connection ended."""

    # Counted and written for every connection: as the text it is, not through Enum's own methods.
    __hash__ = str.__hash__
    __format__ = str.__format__  # type: ignore[assignment]

    EOF = "eof"
    """Both sides said everything they had to say"""
    RESET = "reset"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    """The way out was not to be had: refused, unreachable, or it led back to the relay"""
    DENIED = "denied"
    ERROR = "error"


class Record(NamedTuple):
    """One finished connection."""

    id: int
    """Unique in this relay; in the order of arrival, where one process accepts all"""
    ts: float
    """Seconds since the epoch when it was accepted"""
    listener: str
    client: object
    """Whose connection it was: an address as accept(2) gives it, or an Endpoint; no tuple on a unix socket"""
    asked: Endpoint | None
    """Where it wanted to go; None when it ended before saying so"""
    user: str | None
    """Who logged in to the listener"""
    decision: Decision | None
    """The last word of the policy; None when it was never asked"""
    way: Endpoint | str | None
    """What answered: an endpoint, its text, a unix path, or None"""
    tried: tuple[str, ...]
    """Everything that was dialled, in order, if it was not just `way`"""
    bytes_up: int
    """Client bytes the other side's kernel took"""
    bytes_down: int
    duration_s: float
    end: End
    error: str | None

    @property
    def policy(self) -> str | None:
        """The digest of the policy that decided."""
        return None if self.decision is None else self.decision.policy

    @property
    def source(self) -> str | None:
        """The client's endpoint as text; None on a unix socket."""
        if not isinstance(self.client, tuple):
            return None
        host, port, *_ = self.client
        return str(Endpoint(packed(host) if isinstance(host, str) else host, port))

    @property
    def destination(self) -> str | None:
        """The address asked for as text; None when a name was asked for."""
        return None if self.asked is None or isinstance(self.asked.host, str) else host_text(self.asked.host)

    @property
    def name(self) -> str | None:
        """The host name asked for; None when an address was asked for."""
        return self.asked.host if self.asked is not None and isinstance(self.asked.host, str) else None

    @property
    def port(self) -> int | None:
        """The port asked for."""
        return None if self.asked is None else self.asked.port

    @property
    def dialed(self) -> str | None:
        """What answered as text: `10.0.0.1:80`, a unix path, or None."""
        return None if self.way is None else str(self.way)

    @property
    def tries(self) -> tuple[str, ...]:
        """Everything that was dialled, in order."""
        return self.tried or (() if self.way is None else (str(self.way),))

    @property
    def outcome(self) -> Outcome | None:
        """What the policy said."""
        return None if self.decision is None else self.decision.outcome

    @property
    def table(self) -> str | None:
        """The table that decided."""
        return None if self.decision is None else self.decision.table

    @property
    def route(self) -> Origin | None:
        """The route that decided; None for a wall and for the default deny."""
        return None if self.decision is None else self.decision.route

    @property
    def wall(self) -> Origin | None:
        """The wall that decided."""
        return None if self.decision is None else self.decision.wall

    @property
    def upstream(self) -> str | None:
        """The upstream it went through."""
        return None if self.decision is None else self.decision.upstream

    @property
    def rewrites(self) -> tuple[str, ...]:
        """Every destination a rewrite produced on the way."""
        return () if self.decision is None else tuple(str(endpoint) for endpoint in self.decision.rewrites)

    @property
    def tag(self) -> str | None:
        """The route's `tag`."""
        return None if self.decision is None else self.decision.settings.tag

    @property
    def log(self) -> str:
        """How much of it the route wants logged: `end`, `full` or `off`."""
        return "end" if self.decision is None else self.decision.settings.log

    @property
    def duration_ms(self) -> int:
        """From accept to end."""
        return round(self.duration_s * 1000)
