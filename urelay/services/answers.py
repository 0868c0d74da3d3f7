"""What the operator is told about a start, a reload, a stop: on standard error, and by sd_notify.

One wording for a relay that is one process and for one that has workers.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

from urelay.errors import PolicyError, StartError
from urelay.lang.render import render_text
from urelay.net.address import Endpoint, parse_address, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from urelay.engine.stats import Stats
    from urelay.lang.diagnostics import Diagnostic
    from urelay.services.generation import Generation
    from urelay.services.listeners import Opened
    from urelay.services.notify import Notifier

_log = logging.getLogger(__name__)


class Answers:
    """Tells an operator and a service manager how it goes."""

    def __init__(self, path: str, write: Callable[[bytes], None], notifier: Notifier) -> None:
        """`write` takes what goes to standard error as it is: lines that bear no time."""
        self._path = path
        self._write = write
        self._notifier = notifier

    def serving(
        self, generation: Generation, opened: Iterable[Opened], ways: Mapping[str, str], workers: int = 1
    ) -> None:
        """Everything listens: the one line that scripts wait for.

        `ways`: how connections are captured, by the name of the listener they are brought to.
        """
        listeners = ", ".join(_described(one, ways.get(one.listener.name)) for one in opened)
        listeners = listeners or "nothing listens"
        many = f"; {workers} workers" if workers > 1 else ""
        self._write(f"urelay: serving {generation.title}: {listeners}{many}\n".encode())
        self.ready(generation)

    def ready(self, generation: Generation) -> None:
        """The service manager's part of `serving`; also after a reload, however it went."""
        self._notifier.ready(f"serving {generation.title}")

    def findings(self, diagnostics: Sequence[Diagnostic]) -> None:
        """Warnings or errors of a policy."""
        if diagnostics:
            self._write(render_text(diagnostics).encode())

    def reloading(self) -> None:
        """A reload begins; `ready` must follow."""
        self._notifier.reloading()

    def reloaded(self, generation: Generation) -> None:
        """New connections are decided by this generation."""
        _log.info("reloaded %s", generation.title)

    def not_reloaded(self, error: Exception, in_force: Generation) -> None:
        """A reload failed, and all is as it was. To be called where the error is handled."""
        if isinstance(error, PolicyError):
            self.findings(error.diagnostics)
            why = "it has errors"
        elif isinstance(error, StartError):
            for problem in error.problems:
                _log.error("%s", problem)
            why = "it cannot be served"
        else:
            _log.exception("an unexpected error while reloading")
            why = "an unexpected error"
        digest = in_force.policy.digest[:8]
        _log.error("%s was not reloaded: %s; policy %s stays in force", self._path, why, digest)

    def stopping(self, active: int, drain_s: float) -> None:
        """Nobody is accepted any more; so many connections may finish."""
        if active:
            who = "1 connection" if active == 1 else f"{active} connections"
            _log.info("stopping: %s may finish for %g s", who, drain_s)
        else:
            _log.info("stopping")
        self._notifier.stopping("waiting for connections to finish")

    def hurrying(self) -> None:
        """Whoever asked to stop has asked again."""
        _log.info("asked twice: closing every connection now")

    def status(self, stats: Stats) -> None:
        """The counters, when asked for."""
        _log.info("status: %s", stats.text())


def _described(one: Opened, way: str | None) -> str:
    """`lan transparent [::]:1080 in netns lan, capturing by sk_lookup`."""
    listener, bound = one.listener, one.sock.getsockname()
    place = listener.place
    if place.slot is not None:
        return f"{listener.name} {listener.kind} {printable(place.text or '')} slot {place.slot}"
    if one.sock.family == socket.AF_UNIX:
        return f"{listener.name} {listener.kind} {printable(os.fsdecode(bound))}"
    # A link-local address comes with a zone, which is the interface's business.
    endpoint = Endpoint(parse_address(bound[0].partition("%")[0]), bound[1])
    where = f" in netns {listener.netns}" if listener.netns is not None else ""
    captured = f", capturing by {way}" if way is not None else ""
    return f"{listener.name} {listener.kind} {endpoint}{where}{captured}"
