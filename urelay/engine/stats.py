"""What the relay has done so far, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stats:
    """One moment of a relay. Counts are since its start."""

    accepted: int
    active: int
    """Connections that have not ended"""
    handshaking: int
    """Of these: clients that have not said where they want to go"""
    dialing: int
    """Of these: waiting for a name, a proxy or a unix socket"""
    ended: Mapping[str, int]
    """How many ended how (urelay.engine.record.End)"""
    bytes_up: int
    """Of connections that have ended"""
    bytes_down: int
    pipes_open: int
    pipes_in_use: int
    pipes_refused: int
    """How often the kernel gave no pipe, or a small one: bytes are copied for a second then"""
    accept_pauses: int
    """How often accepting stopped because descriptors or connections ran out"""
    wakeups: int
