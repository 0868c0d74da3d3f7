"""What is known of the members of groups: which of them work, from the connections that tried them.

A member that fails is *suspect*: it is set aside for a second, and for twice as long each time it
fails again, a minute at most. When its time is up, one connection tries it while all others go on
without it; if that one gets through, the member is as good as the others again. Where a group has a
`check`, no client is made to try: the check does it. Who is suspect is tried only when nobody else is
left.

A member that fails again soon after it came back starts where it was, so one that comes and goes is
mostly away. Nobody is asked anything in advance: a member is taken to work until it does not.

INVARIANT: one outage counts once. Connections that were under way when a member became suspect say
nothing new by failing too.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping

from urelay.policy.model import Upstream

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""How long a member is set aside at first, and at most; also how long it must do well to start afresh"""


class Condition:
    """How one member is doing. Times are those of the event loop."""

    __slots__ = ("_failed_at", "_name", "_pause_s", "_suspect", "_until", "_worked_at")

    def __init__(self, name: str) -> None:
        """`name` is for the log."""
        self._name = name
        self._suspect = False
        self._until = 0.0
        self._pause_s = 0.0
        self._failed_at = float("-inf")
        self._worked_at = float("-inf")

    @property
    def suspect(self) -> bool:
        """Whether it failed, and has not worked since."""
        return self._suspect

    def ready(self, now: float, checked: bool = False) -> bool:
        """Whether a client may be sent there. `checked`: something else finds out when it works again."""
        return not self._suspect or (not checked and now >= self._until)

    def due(self) -> float:
        """When its time is up."""
        return self._until

    def worked_since(self, then: float) -> bool:
        """Whether it has worked at that time or later."""
        return self._worked_at >= then

    def begin(self, now: float) -> None:
        """Somebody tries it: if it is suspect, nobody else shall until this is settled."""
        if self._suspect:
            self._until = now + self._pause_s

    def worked(self, now: float) -> None:
        """It was reached."""
        self._worked_at = now
        if now - self._failed_at > LONGEST_PAUSE_S:
            self._pause_s = 0.0
        if self._suspect:
            self._suspect = False
            log.info("upstream `%s` works again", self._name)

    def failed(self, began: float, now: float, why: object) -> None:
        """It could not be reached by an attempt that began then."""
        if began < self._failed_at:
            return
        self._failed_at = now
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) if self._pause_s else FIRST_PAUSE_S
        self._until = now + self._pause_s
        if not self._suspect:
            self._suspect = True
            log.warning("upstream `%s` is set aside: %s", self._name, why)


class Health:
    """The condition of every upstream, from one policy to the next."""

    def __init__(self) -> None:
        self._conditions: dict[Hashable, Condition] = {}

    def adopt(self, upstreams: Mapping[str, Upstream]) -> dict[str, Condition]:
        """The conditions of a policy's upstreams by name.

        An upstream that leads the same way as one before, whatever it is called, keeps its condition;
        what leads another way is as good as new.
        """
        kept: dict[Hashable, Condition] = {}
        conditions = {}
        for name in upstreams:
            way = _way(upstreams, name)
            kept[way] = conditions[name] = self._conditions.get(way) or kept.get(way) or Condition(name)
        self._conditions = kept
        return conditions


def _way(upstreams: Mapping[str, Upstream], name: str) -> Hashable:
    """What makes two upstreams the same: all that decides where a connection goes, names and lines apart."""
    upstream = upstreams[name]
    options = [(option, setting.value) for option, setting in upstream.options.items() if option != "via"]
    via = None if upstream.via is None else _way(upstreams, upstream.via)
    members = tuple(_way(upstreams, member) for member in upstream.members)
    return upstream.kind, upstream.endpoint, members, via, frozenset(options)
