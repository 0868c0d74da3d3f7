"""In which order the members of a group are tried: `first` as written, `spread` by the connection.

Spreading is rendezvous hashing: each member's claim to a client (or a destination) is a hash of both,
and the highest claim wins. So every key has an order of members of its own, the same in every process
and after every restart, and when one fails, its keys move to their next ones, evenly, and no other
key moves at all.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from urelay.engine.health import Condition
from urelay.errors import Blame, DialError, Failure
from urelay.net.address import Address, Host
from urelay.policy.model import Upstream, UpstreamKind


class Bearer(NamedTuple):
    """Whose connection it is that a member is chosen for."""

    source: Address | None
    """None: a client on a unix socket"""
    destination: Host
    """As it was asked for: a name stays with its member whatever it resolves to"""


def candidates(group: Upstream, bearer: Bearer, conditions: Mapping[str, Condition], now: float) -> list[str]:
    """The members to try, best first: those that may be used in the group's order, then the suspect ones.

    All of them, because when nobody else is left, a member that was set aside is worth a try.
    """
    order = _ORDERS[group.kind](group, bearer)
    checked = group.check is not None
    ready = [name for name in order if conditions[name].ready(now, checked)]
    rest = sorted((name for name in order if name not in ready), key=lambda name: conditions[name].due())
    return ready + rest


def nobody_got_through(group: Upstream, errors: Sequence[DialError]) -> DialError:
    """What a group says when every member failed; there is at least one error."""
    blames = {error.blame for error in errors}
    failures = {error.failure for error in errors}
    return DialError(
        failures.pop() if len(failures) == 1 else Failure.HOST_UNREACHABLE,
        f"upstream `{group.name}`: nobody got through: " + "; ".join(map(str, errors)),
        blames.pop() if len(blames) == 1 else Blame.UNCLEAR,
    )


def _as_written(group: Upstream, bearer: Bearer) -> Sequence[str]:
    return group.members


def _spread(group: Upstream, bearer: Bearer) -> Sequence[str]:
    key = _KEYS[group.spread_by](bearer)
    if key is None:
        return random.sample(group.members, len(group.members))
    return sorted(group.members, key=lambda name: _claim(name, key), reverse=True)


def _claim(name: str, key: bytes) -> bytes:
    return hashlib.blake2b(name.encode() + b"\0" + key, digest_size=8).digest()


def _destination_key(bearer: Bearer) -> bytes:
    host = bearer.destination
    return host.encode() if isinstance(host, str) else host


_ORDERS: Final[Mapping[UpstreamKind, Callable[[Upstream, Bearer], Sequence[str]]]] = {
    UpstreamKind.FIRST: _as_written,
    UpstreamKind.SPREAD: _spread,
}
_KEYS: Final[Mapping[str, Callable[[Bearer], bytes | None]]] = {
    "source": lambda bearer: bearer.source or b"",
    "destination": _destination_key,
    "random": lambda bearer: None,
}
"""What keeps a connection on its member; None: nothing does"""
