"""What the commands share when they write."""

from __future__ import annotations

import os
from typing import TextIO


def use_colour(stream: TextIO) -> bool:
    """Whether a stream shows colours: a terminal that is not dumb, unless NO_COLOR is set."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def count(number: int, noun: str) -> str:
    """`1 route`, `12 routes`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
