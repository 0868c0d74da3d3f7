"""The seam: what a table answers and the engine acts on.

A Decision that rewrites nothing is made once, when the table is compiled, and shared by every
connection it decides: `destination` is None there and means *the destination asked for*. So the
hot path allocates nothing to decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from urelay.lang.source import Origin
from urelay.net.address import Endpoint
from urelay.policy.model import NO_SETTINGS, DenyHow, Outcome, RouteSettings


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with one connection, and which statement said so."""

    outcome: Outcome
    table: str
    """The table that decided last (after any `lookup`)"""
    policy: str
    """The digest of the policy it was decided by"""
    route: Origin | None = None
    """The route that decided; None for a wall and for the default deny"""
    wall: Origin | None = None
    """The wall that decided, first or at the final check"""
    upstream: str | None = None
    """`via` only: a name in the policy's upstreams"""
    deny_how: DenyHow = DenyHow.DEFAULT
    template: str | None = None
    """`unix` only: the path before its fields are filled in"""
    destination: Endpoint | None = None
    """Where it goes after rewriting; None: where the client asked to go"""
    rewrites: tuple[Endpoint, ...] = ()
    """Every destination a rewrite produced on the way, the last one included"""
    settings: RouteSettings = NO_SETTINGS
    needs_address: bool = False
    """The destination is a host name and acting needs its address: resolve it once, then ask
    `Table.settle` about each answer and dial only what that says."""
    why: str | None = None
    """Set where no statement tells: `no route matches`, `64:ff9b::/96 never carries 10.0.0.1 …`"""

    @property
    def denied(self) -> bool:
        """Whether nothing is dialled."""
        return self.outcome is Outcome.DENY or self.outcome is Outcome.SILENT
