"""A policy's text and places in it."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """One file, normalised once: no BOM, `\\n` line ends, a final newline. Compares by identity."""

    path: str
    """As the user named it (or as an include reached it); what diagnostics and logs print."""
    text: str
    line_starts: tuple[int, ...] = field(repr=False)

    @classmethod
    def from_text(cls, path: str, text: str) -> Source:
        """Normalise `text` and index its lines."""
        text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
        if not text.endswith("\n"):
            text += "\n"
        starts = [0]
        at = text.find("\n")
        while at != -1:
            starts.append(at + 1)
            at = text.find("\n", at + 1)
        return cls(path, text, tuple(starts[:-1]))

    def line_of(self, offset: int) -> int:
        """The 1-based line that holds `offset`."""
        return bisect_right(self.line_starts, offset)

    def line_text(self, line: int) -> str:
        """The text of a 1-based line, without its newline."""
        start = self.line_starts[line - 1]
        return self.text[start : self.text.index("\n", start)]


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a source: offsets into the normalised text, `end` exclusive."""

    source: Source
    start: int
    end: int

    @property
    def line(self) -> int:
        """1-based line of the first character."""
        return self.source.line_of(self.start)

    @property
    def column(self) -> int:
        """1-based column of the first character, in characters."""
        return self.start - self.source.line_starts[self.line - 1] + 1

    @property
    def text(self) -> str:
        """The characters themselves."""
        return self.source.text[self.start : self.end]

    def to(self, other: Span) -> Span:
        """From the start of this span to the end of `other`, which lies behind it."""
        return Span(self.source, self.start, other.end)


@dataclass(frozen=True, slots=True)
class Origin:
    """Which statement decided: what a Decision, the access log and `explain` carry of a policy.

    It holds no span and no tree, so a table keeps nothing of the text it was compiled from.
    """

    file: str
    line: int
    text: str
    """The statement in its canonical one-line form (urelay.lang.printer)."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"
