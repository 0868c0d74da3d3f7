"""Cuts a policy into statements, so that each can be parsed, and can fail, alone.

A statement ends at a line end outside braces, unless the line ends with `->`, `,` or `then`, or the
next line begins with `{`. The braces of a `table` do not nest like others: what stands in them is cut
into statements too.

A brace that is never closed must not swallow the rest of the file. The words `set`, `match` and
most others that start a statement are never options or elements, so a line that begins with one ends
whatever brace is open and the statement around it; `dns` and `table`, which are also options, do so
only in their full shape (`dns NAME =`, `table NAME {`). A table that is still open is ended by a
statement at the left margin that cannot stand in a table. If the file ends first, the table is
ended in hindsight (see Cut.margin), where the left margin was first used again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.lang.grammar import grammar
from urelay.lang.lexeme import Lexeme
from urelay.lang.source import Source

_OPENS_ANYTHING = re.compile(
    r"""(?:include|set|upstream|listen|forbid|match|expect)(?=[\s"{])
      | dns [ \t]+ [^\s={]+ [ \t]* =
      | table [ \t]+ [^\s={]+ [ \t]* \n? [ \t]* \{""",
    re.VERBOSE,
)
_OPENING_LINE = re.compile(r"[ \t]*\{")
_IN_TABLES = frozenset({"match", "forbid", "expect"})
_SPECIAL = frozenset({"LBRACE", "RBRACE", "COMMA", "UNCLOSED"})
_GOES_ON = frozenset({"ARROW", "COMMA"})


@dataclass(slots=True)
class Cut:
    """One piece of a policy: a statement, the head of a table, or the end of one."""

    lexemes: list[Lexeme] = field(default_factory=list)
    """The tokens; inside braces a line end is a COMMA. The head of a table ends with its `{`"""
    fault: Diagnostic | None = None
    """Set when the piece is broken before it is parsed"""
    opens: bool = False
    """The head of a table: the following cuts stand in it until one closes it"""
    closes: bool = False
    """The innermost open table ends here; the cut holds its `}` or a fault"""
    margin: bool = False
    """It begins at the left margin"""


class Splitter:
    """Cuts one text. Never fails: what is broken is a Cut with a fault."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.comments: list[Lexeme] = []
        """Those met so far; all of them when `cuts` is exhausted"""
        self._cut = Cut()
        self._tables: list[Lexeme] = []  # the `{` of each open table
        self._braces: list[Lexeme] = []  # every other open `{`
        self._depth = 0  # len(_braces), and one more for each `{` that an unclosed string ate

    def cuts(self) -> Iterator[Cut]:
        """The pieces, in order and made as they are asked for; to be called once."""
        source = self.source
        first_on_line = True
        for match in grammar().token.finditer(source.text):
            kind = match.lastgroup or ""
            lexeme = Lexeme(kind, match[kind], match.start(kind), match.end(), source)
            if kind == "NEWLINE":
                first_on_line = True
                if self._depth:
                    self._separate(lexeme)
                elif self._cut.lexemes and not self._goes_on(lexeme):
                    yield self._finish()
            elif kind == "COMMENT":
                self.comments.append(lexeme)
            else:
                if first_on_line:
                    first_on_line = False
                    yield from self._start_line(lexeme)
                if kind in _SPECIAL:
                    yield from self._take(lexeme)
                else:
                    self._cut.lexemes.append(lexeme)
        yield from self._end_of_file()

    def _take(self, lexeme: Lexeme) -> Iterator[Cut]:
        """Put a token of a kind in _SPECIAL where it belongs."""
        lexemes = self._cut.lexemes
        if lexeme.type == "RBRACE":
            if self._depth:
                self._close(lexeme)
            elif self._tables:
                if lexemes:
                    yield self._finish()
                self._tables.pop()
                yield Cut([lexeme], closes=True)
            else:
                self._blame("this `}` closes nothing", lexeme)
                lexemes.append(lexeme)
            return
        if lexeme.type == "COMMA" and lexemes and lexemes[-1].type == "NEWLINE":
            lexemes.pop()
        lexemes.append(lexeme)
        if lexeme.type == "LBRACE":
            if lexemes[0].text == "table" and not self._depth:
                self._tables.append(lexeme)
                self._cut.opens = True
                yield self._finish()
            else:
                self._braces.append(lexeme)
                self._depth += 1
        elif lexeme.type == "UNCLOSED":
            self._blame('this `"` is never closed', lexeme)
            self._depth += max(0, lexeme.text.count("{") - lexeme.text.count("}"))

    def _separate(self, newline: Lexeme) -> None:
        """Keep a line end inside braces, where it may part two options or elements."""
        if self._cut.lexemes[-1].type not in ("LBRACE", "COMMA", "NEWLINE"):
            self._cut.lexemes.append(newline)

    def _close(self, brace: Lexeme) -> None:
        if self._cut.lexemes[-1].type == "NEWLINE":
            self._cut.lexemes.pop()
        self._cut.lexemes.append(brace)
        if self._braces:
            self._braces.pop()
        self._depth -= 1

    def _goes_on(self, newline: Lexeme) -> bool:
        """Whether the statement goes on behind this line end."""
        last = self._cut.lexemes[-1]
        if last.type in _GOES_ON or (last.type == "WORD" and last.text == "then"):
            return True
        return _OPENING_LINE.match(self.source.text, newline.end) is not None

    def _start_line(self, first: Lexeme) -> Iterator[Cut]:
        """End what a line that begins with `first` shows to be over."""
        margin = first.start in (0, self.source.line_starts[self.source.line_of(first.start) - 1])
        open_text = self._cut.lexemes or (self._tables and margin)
        if first.type == "WORD" and open_text and _OPENS_ANYTHING.match(self.source.text, first.start):
            if self._cut.lexemes:
                yield self._finish()
            if margin and first.text not in _IN_TABLES:
                yield from self._give_up_tables()
        if not self._cut.lexemes:
            self._cut.margin = margin

    def _give_up_tables(self) -> Iterator[Cut]:
        while self._tables:
            yield Cut(fault=_never_closed(self._tables.pop()), closes=True)

    def _end_of_file(self) -> Iterator[Cut]:
        if self._cut.lexemes:
            yield self._finish()
        yield from self._give_up_tables()

    def _finish(self) -> Cut:
        """The statement so far; the next one starts with nothing open but its tables."""
        cut, self._cut = self._cut, Cut()
        if self._braces and cut.fault is None:
            cut.fault = _never_closed(self._braces[0])
        self._braces.clear()
        self._depth = 0
        return cut

    def _blame(self, message: str, lexeme: Lexeme) -> None:
        if self._cut.fault is None:
            self._cut.fault = diagnostic("UR003", message, Label(lexeme.span))


def _never_closed(brace: Lexeme) -> Diagnostic:
    return diagnostic(
        "UR003",
        f"`{{` opened on line {brace.span.line} is never closed",
        Label(brace.span, "opened here"),
        remarks=(Remark("help", "put `}` where it ends"),),
    )
