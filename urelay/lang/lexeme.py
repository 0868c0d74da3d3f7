"""One token of a policy, with its place."""

from __future__ import annotations

from typing import NamedTuple

from urelay.lang import ast
from urelay.lang.source import Source, Span


class Lexeme(NamedTuple):
    """A token. Lark's parser reads its `type` and nothing else; `grammar/urr.lark` lists the types.

    Two types are the splitter's own: UNCLOSED, a string without an end, and JUNK, what no token of
    the language starts with.
    """

    type: str
    text: str
    start: int
    end: int
    source: Source

    @property
    def span(self) -> Span:
        """Where it stands."""
        return Span(self.source, self.start, self.end)

    def value(self) -> ast.Word | ast.SetName:
        """What a WORD, a STRING or a SETNAME is in a tree."""
        if self.type == "SETNAME":
            return ast.SetName(self.text[1:], self.span)
        return self.word()

    def word(self) -> ast.Word:
        """What a WORD or a STRING, or a keyword, is in a tree."""
        if self.type == "STRING":
            return ast.Word(self.text[1:-1], self.span, quoted=True)
        return ast.Word(self.text, self.span)
