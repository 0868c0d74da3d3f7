"""Host names to answers: a dictionary of suffixes, one probe a label.

Precedence is the language's: the very name, then the longer suffix, then `*.x` before `.x`. As with
prefixes, everything less specific is flattened into the answer when the table is built, so the
first probe that hits is the whole answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from urelay.policy.model import NameKind, NamePattern

T = TypeVar("T")


class NameTable(Generic[T]):
    """Answers for every host name."""

    __slots__ = ("_below", "_itself", "elsewhere")

    def __init__(
        self,
        rules: Mapping[NamePattern, tuple[int, ...]],
        elsewhere: T,
        overlay: Callable[[tuple[int, ...], T], T],
    ) -> None:
        """`elsewhere` answers names that no pattern covers; `overlay` is that of prefixes.build."""
        self.elsewhere = elsewhere
        self._itself: dict[str, T] = {}
        self._below: dict[str, T] = {}
        # Short names first: the answer around `b.example.com` is the one below `example.com`.
        for name in sorted({pattern.name for pattern in rules}, key=lambda name: name.count(".")):
            around = self._around(name)
            whole = rules.get(NamePattern(NameKind.SELF_AND_BELOW, name))
            below = rules.get(NamePattern(NameKind.BELOW, name))
            exact = rules.get(NamePattern(NameKind.EXACT, name))
            if whole is not None:
                around = overlay(whole, around)
            if whole is not None or below is not None:
                self._below[name] = around if below is None else overlay(below, around)
            if whole is not None or exact is not None:
                self._itself[name] = around if exact is None else overlay(exact, around)

    def lookup(self, name: str) -> T:
        """The answer for a canonical host name (urelay.net.address.parse_name)."""
        found = self._itself.get(name)
        return self._around(name) if found is None else found

    def entries(self) -> Iterator[tuple[NamePattern, T]]:
        """Every name and suffix with an answer of its own.

        EXACT is the name itself; BELOW is every name below it that no longer entry covers. All
        other names have the answer `elsewhere`.
        """
        for name, answer in self._itself.items():
            yield NamePattern(NameKind.EXACT, name), answer
        for name, answer in self._below.items():
            yield NamePattern(NameKind.BELOW, name), answer

    def _around(self, name: str) -> T:
        below = self._below
        if below:
            dot = name.find(".")
            while dot != -1:
                name = name[dot + 1 :]
                found = below.get(name)
                if found is not None:
                    return found
                dot = name.find(".")
        return self.elsewhere
