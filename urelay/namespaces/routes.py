"""The routes and rules that make every address of a namespace a local one, for TCP: as data.

One table of our own holds one route, "everything is local". Rules say who is led there, and they come
before the main table and behind the local one, so the namespace's own addresses are never asked about:

    mark 0x7572                       nobody who carries it: the way out for whoever must not be captured
    arriving by an interface, TCP     captured: connections routed through the namespace
    born here, TCP, no source yet     captured: a program that connects without binding an address
    born here, TCP, a loopback source captured: the same connection, now that it has one

A program that connects gets the source 127.0.0.1 or ::1 from our route, and its packets are known by
that later. Everything else born here has one of the namespace's own addresses as its source: it is an
answer to somebody (of a captured client's connection, of a program that listens here), or a program
that bound its address on purpose, as routing daemons do to reach their neighbours. These go the
ordinary way. So does whatever is not TCP.

The kernel asks these rules a second question: whether a packet came from where its source would be
answered (rp_filter). That question has both addresses and the interface `lo`, so no rule captures it.

IPv4 and IPv6 differ in one thing. A lookup without a source matches `from 0.0.0.0` in IPv4; in IPv6 it
matches no `from` at all, so those that have one are led around the rule.

Rules and routes bear our own number as their protocol, which is how what a crash left is found.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from urelay.policy.model import UNCAPTURED

TABLE: Final = 7533
PROTOCOL: Final = 117
"""rtm_protocol and FRA_PROTOCOL of all that is ours; nobody in rt_protos has it"""

_FIRST: Final = 1081
"""The lowest priority: behind the local table (0) and the kernel's own for VRFs (1000)"""

_ANY = {4: "0.0.0.0/0", 6: "::/0"}
_SOURCE = {4: "127.0.0.1", 6: "::1"}
"""The source that programs get, which is how their packets are told from answers"""


class Rule(NamedTuple):
    """One policy routing rule (ip-rule(8)). What is empty or None matches everything."""

    family: int
    priority: int
    action: str
    """`goto`, `lookup` or `nop`"""
    to: int = 0
    """The priority to go to, or the table to look up"""
    mark: int | None = None
    born_here: bool = False
    source: str | None = None
    tcp: bool = False

    def shell(self, verb: str = "add") -> str:
        """The command that adds it."""
        words = ["ip", "-6" if self.family == 6 else "-4", "rule", verb, "pref", str(self.priority)]
        if self.source is not None:
            words += ["from", self.source]
        if self.mark is not None:
            words += ["fwmark", f"{self.mark:#x}"]
        if self.born_here:
            words += ["iif", "lo"]
        if self.tcp:
            words += ["ipproto", "tcp"]
        words += [self.action] if self.action == "nop" else [self.action, str(self.to)]
        return " ".join([*words, "protocol", str(PROTOCOL)])


class Route(NamedTuple):
    """The one route of a family: everything is local."""

    family: int
    to: str
    source: str

    def shell(self, verb: str = "add") -> str:
        """The command that adds it."""
        version = "-6" if self.family == 6 else "-4"
        return (
            f"ip {version} route {verb} local {self.to} dev lo src {self.source}"
            f" table {TABLE} protocol {PROTOCOL}"
        )


def route(family: int) -> Route:
    """The route of a family, 4 or 6."""
    return Route(family, _ANY[family], _SOURCE[family])


def rules(family: int, born: bool) -> list[Rule]:
    """The rules of a family, in order; `born`: those who connect from here are captured too."""
    at_home, arriving, end = _FIRST + 3, _FIRST + 2, _FIRST + 7
    found = [
        Rule(family, _FIRST, "goto", end, mark=UNCAPTURED),
        Rule(family, _FIRST + 1, "goto", at_home if born else end, born_here=True),
        Rule(family, arriving, "lookup", TABLE, tcp=True),
    ]
    if born and family == 4:
        found += [
            Rule(4, at_home, "lookup", TABLE, born_here=True, source="0.0.0.0/32", tcp=True),
            Rule(4, at_home + 1, "lookup", TABLE, born_here=True, source="127.0.0.0/8", tcp=True),
        ]
    elif born:
        found += [
            Rule(6, at_home, "lookup", TABLE, born_here=True, source="::1/128", tcp=True),
            Rule(6, at_home + 1, "goto", end, source="::/1"),
            Rule(6, at_home + 2, "goto", end, source="8000::/1"),
            Rule(6, at_home + 3, "lookup", TABLE, born_here=True, tcp=True),
        ]
    return [*found, Rule(family, end, "nop")]
