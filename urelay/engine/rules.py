"""What connections live by that are accepted now: one reference, captured at accept."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from urelay.engine.dial import Dialer
    from urelay.table.evaluate import Table

_REMEMBERED: Final = 4096


class Rules:
    """A table, and the dialer that holds what its upstreams need."""

    __slots__ = ("decide", "dialer", "table")

    def __init__(self, table: Table, dialer: Dialer) -> None:
        self.table = table
        self.dialer = dialer
        # A table never changes, so neither do its answers; and clients ask the same few questions
        # again and again, which saves the dearest part of short connections.
        self.decide = functools.lru_cache(_REMEMBERED)(table.decide)
        """`Table.decide`"""
