"""What the relay has done so far, in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True, slots=True)
class Stats:
    """One moment of a relay. Counts are since its start."""

    accepted: int = 0
    active: int = 0
    """Connections that have not ended"""
    handshaking: int = 0
    """Of these: clients that have not said where they want to go"""
    dialing: int = 0
    """Of these: waiting for a name, a proxy or a unix socket"""
    ended: Mapping[str, int] = field(default_factory=dict)
    """How many ended how (urelay.engine.record.End)"""
    bytes_up: int = 0
    """Of connections that have ended"""
    bytes_down: int = 0
    pipes_open: int = 0
    pipes_in_use: int = 0
    accept_pauses: int = 0
    """How often accepting stopped because descriptors or connections ran out"""
    wakeups: int = 0

    def settled(self) -> Stats:
        """What stays true when the relay is gone: its counts, and nothing that is going on."""
        return replace(self, active=0, handshaking=0, dialing=0, pipes_open=0, pipes_in_use=0)

    def text(self) -> str:
        """`2 connections (1 handshaking, 0 dialing); 9 accepted; 7 ended (6 eof, 1 denied); …`."""
        ends = ", ".join(f"{count} {how}" for how, count in sorted(self.ended.items()))
        return (
            f"{self.active} connection{'s' if self.active != 1 else ''}"
            f" ({self.handshaking} handshaking, {self.dialing} dialing); {self.accepted} accepted;"
            f" {sum(self.ended.values())} ended{f' ({ends})' if ends else ''};"
            f" {self.bytes_up} bytes up, {self.bytes_down} down;"
            f" {self.pipes_in_use} of {self.pipes_open} pipes in use;"
            f" accepting paused {self.accept_pauses} time{'s' if self.accept_pauses != 1 else ''}"
        )


def total(parts: Iterable[Stats]) -> Stats:
    """The sum of several relays, number by number; of none: all zero."""
    sums: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for part in parts:
        ended.update(part.ended)
        sums.update({name: getattr(part, name) for name in _NUMBERS})
    return Stats(ended=dict(ended), **sums)


_NUMBERS = tuple(one.name for one in fields(Stats) if one.name != "ended")
