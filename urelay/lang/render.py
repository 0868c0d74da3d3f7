"""Diagnostics as text for people, as JSON for programs, and as GitHub annotations.

The text form shows the lines a finding is about, with carets under the primary place and dashes
under the others:

    error[UR201]: two routes claim the same connections with different outcomes
      --> rules/site.urr:46:1
       |
    46 | match @private port 22 -> deny
       | ^^^^^^^^^^^^^^^^^^^^^^    ---- one says this
    ...
       = help    remove one

Columns on the screen are not characters: tabs are widened, wide characters count twice, combining
ones not at all. Whatever else a terminal might obey (escapes, direction marks) is shown as a mark,
because the text of a policy may come from elsewhere.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from urelay.lang.diagnostics import Diagnostic, Label, Severity
from urelay.lang.source import Source, Span

_TAB = 4
_WIDEST = 160
"""Columns of one line that are shown; of a longer one, what is round its first mark."""

_COLOURS = {
    Severity.ERROR: "1;31",
    Severity.WARNING: "1;33",
    Severity.NOTE: "1;36",
}
_GUTTER, _BOLD, _OTHER = "1;34", "1", "36"


def render_text(diagnostics: Iterable[Diagnostic], *, colour: bool = False) -> str:
    """Every finding as text, an empty line between two; ends with a newline unless there are none."""
    return "\n".join(_Page(colour).finding(diagnostic) for diagnostic in diagnostics)


def render_json(diagnostics: Iterable[Diagnostic]) -> list[dict[str, Any]]:
    """Every finding as plain data.

    Lines and columns count from 1 and in characters; the end column is the one behind the last
    character. A finding without a place has null for `file`, `line` and the other four.
    """
    nowhere = dict.fromkeys(("file", "line", "column", "end_line", "end_column"))
    return [
        {
            "code": found.code,
            "severity": found.severity.value,
            "message": found.message,
            **(_place(found.labels[0].span) if found.labels else nowhere),
            "labels": [{**_place(label.span), "text": label.text} for label in found.labels],
            "remarks": [{"heading": remark.heading, "text": remark.text} for remark in found.remarks],
        }
        for found in diagnostics
    ]


def render_github(diagnostics: Iterable[Diagnostic]) -> str:
    """Every finding as a workflow command, a line each, which GitHub shows beside the changed lines."""
    kinds = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
    lines = []
    for found in diagnostics:
        where = ""
        if found.labels:
            place = _place(found.labels[0].span)
            where = (
                f"file={_property(place['file'])},line={place['line']},endLine={place['end_line']},"
                f"col={place['column']},endColumn={place['end_column']},"
            )
        said = [found.message, *(f"{remark.heading}: {remark.text}" for remark in found.remarks)]
        message = "\n".join(_visible(line) for text in said for line in text.split("\n"))
        lines.append(f"::{kinds[found.severity]} {where}title={found.code}::{_escaped(message)}\n")
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _escaped(text).replace(":", "%3A").replace(",", "%2C")


def _place(span: Span) -> dict[str, Any]:
    end = Span(span.source, span.end, span.end)
    return {
        "file": span.source.path,
        "line": span.line,
        "column": span.column,
        "end_line": end.line,
        "end_column": end.column,
    }


def _visible(text: str) -> str:
    """`text` with every character that a terminal might act upon replaced."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else chr(0x2400 + ord(c)) if c < " " else "\ufffd" for c in text)


def _width(text: str) -> int:
    """How many columns visible `text` takes on a screen."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


@dataclass(frozen=True, slots=True)
class _Mark:
    """One label on one line, in columns of the screen."""

    start: int
    width: int
    sign: str
    text: str


class _Page:
    """Draws one finding."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour
        self.gutter = 2

    def finding(self, found: Diagnostic) -> str:
        """The text of one finding, with a final newline."""
        colour = _COLOURS[found.severity]
        head = self._paint(colour, f"{found.severity.value}[{found.code}]")
        lines = [head + self._paint(_BOLD, f": {_visible(found.message)}")]
        self.gutter = max([2, *(len(str(label.span.line)) for label in found.labels)])
        for at, (source, labels) in enumerate(_by_source(found.labels)):
            lines += self._section(source, labels, found.labels[0], colour, "-->" if at == 0 else ":::")
        if found.remarks:
            if found.labels:
                lines.append(self._bar())
            lines += self._remarks(found)
        return "\n".join(line.rstrip() for line in lines) + "\n"

    def _section(
        self, source: Source, labels: list[Label], primary: Label, colour: str, arrow: str
    ) -> Iterable[str]:
        """One file's lines."""
        span = (primary if primary in labels else labels[0]).span
        place = f"{_visible(source.path)}:{span.line}:{span.column}"
        yield f"{' ' * self.gutter}{self._paint(_GUTTER, arrow)} {place}"
        yield self._bar()
        by_line: dict[int, list[Label]] = {}
        for label in labels:
            by_line.setdefault(label.span.line, []).append(label)
        before = None
        for line in sorted(by_line):
            if before is not None and line == before + 2:
                yield self._numbered(line - 1, _Line(source, line - 1, 0).text)
            elif before is not None and line > before + 2:
                yield self._paint(_GUTTER, "...")
            before = line
            shown = _Line(source, line, min(label.span.start for label in by_line[line]))
            yield self._numbered(line, shown.text)
            marks = [shown.mark(label, "^" if label is primary else "-") for label in by_line[line]]
            yield from self._under(marks, colour)

    def _under(self, marks: list[_Mark], colour: str) -> Iterable[str]:
        """The signs under a line, then what they mean: the last beside its sign, the others below."""
        marks = sorted(marks, key=lambda mark: (mark.start, mark.sign))
        row = _Row()
        for mark in sorted(marks, key=lambda mark: mark.sign == "^"):  # carets are drawn over dashes
            row.put(mark.start, mark.sign * mark.width, colour if mark.sign == "^" else _OTHER)
        waiting = [mark for mark in marks if mark.text]
        if waiting and waiting[-1] is marks[-1]:
            last = waiting.pop()
            row.put(row.end + 1, _visible(last.text), colour if last.sign == "^" else _OTHER)
        yield f"{self._bar()} {row.painted(self._paint)}"
        while waiting:
            last = waiting.pop()
            row = _Row()
            for mark in waiting:
                row.put(mark.start, "|", _OTHER)
            row.put(last.start, _visible(last.text), colour if last.sign == "^" else _OTHER)
            yield f"{self._bar()} {row.painted(self._paint)}"

    def _remarks(self, found: Diagnostic) -> Iterable[str]:
        wide = max(6, *(len(remark.heading) for remark in found.remarks)) + 2
        pad = " " * (self.gutter + 1)
        for remark in found.remarks:
            first, *more = remark.text.split("\n")
            yield f"{pad}{self._paint(_GUTTER, '=')} {remark.heading:<{wide}}{_visible(first)}"
            for line in more:
                yield f"{pad}  {'':<{wide}}{_visible(line)}"

    def _numbered(self, line: int, text: str) -> str:
        return f"{self._paint(_GUTTER, f'{line:>{self.gutter}} |')} {text}"

    def _bar(self) -> str:
        return self._paint(_GUTTER, " " * self.gutter + " |")

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colour else text


class _Line:
    """One line of a source as it is shown, and where its characters are on the screen."""

    def __init__(self, source: Source, number: int, focus: int) -> None:
        raw = source.line_text(number)
        self.start = source.line_starts[number - 1]
        self.columns = [0]  # of each character, and behind the last one
        pieces = []
        for char in raw:
            column = self.columns[-1]
            piece = " " * (_TAB - column % _TAB) if char == "\t" else _visible(char)
            pieces.append(piece)
            self.columns.append(column + _width(piece))
        self.skipped = 0
        if self.columns[-1] > _WIDEST:
            pieces = self._crop(pieces, max(0, focus - self.start))
        self.text = "".join(pieces)

    def mark(self, label: Label, sign: str) -> _Mark:
        """Where a label's sign belongs; one that goes on over the line's end stops there."""
        first = self._column(label.span.start)
        last = self._column(label.span.end)
        return _Mark(first, max(1, last - first), sign, label.text)

    def _column(self, offset: int) -> int:
        at = min(offset - self.start, len(self.columns) - 1)
        return max(0, min(self.columns[at] - self.skipped, _WIDEST + 1))

    def _crop(self, pieces: list[str], focus: int) -> list[str]:
        """The stretch of a very long line that holds `focus`, with `…` where something was cut off."""
        first = max(0, min(focus, len(pieces) - 1) - _WIDEST // 4)
        last = first
        while last < len(pieces) and self.columns[last + 1] - self.columns[first] <= _WIDEST:
            last += 1
        cut = pieces[first:last]
        if first:
            self.skipped = self.columns[first] - 1
            cut.insert(0, "…")
        if last < len(pieces):
            cut.append("…")
        return cut


class _Row:
    """A line of signs and words at given columns; later ones are put over earlier ones."""

    def __init__(self) -> None:
        self.cells: dict[int, tuple[str, str]] = {}
        self.end = 0

    def put(self, column: int, text: str, colour: str) -> None:
        for char in text:
            self.cells[column] = (char, colour)
            column += _width(char)
        self.end = max(self.end, column)

    def painted(self, paint: Callable[[str, str], str]) -> str:
        runs: list[tuple[str, str]] = []
        column = 0
        for at in sorted(self.cells):
            char, colour = self.cells[at]
            if at > column:
                runs.append(("", " " * (at - column)))
            if runs and runs[-1][0] == colour:
                runs[-1] = (colour, runs[-1][1] + char)
            else:
                runs.append((colour, char))
            column = at + max(1, _width(char))
        return "".join(paint(colour, text) if colour else text for colour, text in runs)


def _by_source(labels: Sequence[Label]) -> list[tuple[Source, list[Label]]]:
    """Labels of each file, the primary one's file first."""
    groups: dict[int, tuple[Source, list[Label]]] = {}
    for label in labels:
        groups.setdefault(id(label.span.source), (label.span.source, []))[1].append(label)
    return list(groups.values())
