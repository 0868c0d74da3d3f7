"""How many connections each client's address has open.

A relay carries so many connections in all, and one client that opens them and lets them lie would
have all of them; so an address gets a share. An address is the kernel's text of it: whoever is in a
namespace where every address is local may choose many (language: UR222), and is stopped by the
relay's total.
"""

from __future__ import annotations


class Sources:
    """Counts by address. Clients without one (unix sockets) are not counted."""

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[object, int] = {}

    def enter(self, address: object, most: int) -> bool:
        """Count one more connection of a socket address; whether there are at most `most` now."""
        if not isinstance(address, tuple):
            return True
        text = address[0]
        count = self._open.get(text, 0) + 1
        self._open[text] = count
        return count <= most

    def leave(self, address: object) -> None:
        """One of these has ended."""
        if isinstance(address, tuple):
            text = address[0]
            count = self._open[text] - 1
            if count:
                self._open[text] = count
            else:
                del self._open[text]
