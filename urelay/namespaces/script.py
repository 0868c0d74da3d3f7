"""The shell commands that capture a namespace's connections as the relay does with `capture tcp`.

For those who would rather run them themselves, with another program or at another time. They are the
TPROXY way, since a socket lookup program has no command; a `transparent` listener needs to know nothing
of who brings it connections.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from urelay.namespaces.enter import namespace_path
from urelay.namespaces.routes import PROTOCOL, TABLE, route, rules
from urelay.namespaces.tproxy import TABLE as NFT_TABLE
from urelay.namespaces.tproxy import ruleset

if TYPE_CHECKING:
    from collections.abc import Iterable

    from urelay.net.address import Endpoint, Prefix


def install(netns: str | None, endpoint: Endpoint, own: Iterable[Prefix]) -> str:
    """Commands that bring every connection of a namespace (None: through ours) to a listener there."""
    families = _families(endpoint)
    to = str(endpoint) if any(_packed(endpoint)) else f":{endpoint.port}"
    lines = ["nft -f - <<'rules'", ruleset([(family, to) for family in families], own).rstrip("\n"), "rules"]
    for family in families:
        lines.append(route(family).shell())
        lines += [rule.shell() for rule in rules(family, born=netns is not None)]
    return _inside(netns, lines)


def remove(netns: str | None, endpoint: Endpoint) -> str:
    """Commands that take all of that away."""
    lines = []
    for family in _families(endpoint):
        lines.append(f"ip -{family} rule flush protocol {PROTOCOL}")
        lines.append(f"ip -{family} route flush table {TABLE}")
    return _inside(netns, [*lines, f"nft delete table {NFT_TABLE}"])


def _families(endpoint: Endpoint) -> list[int]:
    """Which families a listener takes: `[::]` takes both."""
    if len(_packed(endpoint)) == 4:
        return [4]
    return [6] if any(_packed(endpoint)) else [4, 6]


def _packed(endpoint: Endpoint) -> bytes:
    assert isinstance(endpoint.host, bytes), "a listener's place is an address"
    return endpoint.host


def _inside(netns: str | None, lines: list[str]) -> str:
    shell = "sh -e" if netns is None else f"nsenter --net={shlex.quote(namespace_path(netns))} -- sh -e"
    return "\n".join([f"{shell} <<'commands'", *lines, "commands", ""])
