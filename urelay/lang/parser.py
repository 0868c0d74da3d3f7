"""Text to tree: every statement with the right shape, and one diagnostic for every other.

The splitter cuts the text into statements and Lark parses each alone (LALR(1), started anew), so
time and memory are linear in the text and an error costs its own statement only. Words are told
from keywords here, by what the parser can go on with at that place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

from lark import Token
from lark.exceptions import UnexpectedToken

from urelay.errors import PolicyError
from urelay.lang import ast, mistakes
from urelay.lang.diagnostics import Diagnostic, Label, diagnostic
from urelay.lang.grammar import REGION, STATEMENT, grammar
from urelay.lang.lexeme import Lexeme
from urelay.lang.source import Source, Span
from urelay.lang.splitter import Cut, Splitter

_ALLOW = re.compile(r"#+[ \t]*allow[ \t]+(UR\w+(?:[ \t]*,[ \t]*UR\w+)*)[ \t]*(?::[ \t]*(.*?)[ \t]*)?")
_NOT_IN_A_TABLE = (ast.Include, ast.SetDef, ast.UpstreamDef, ast.ListenDef, ast.DnsDef, ast.TableDef)


def parse(source: Source) -> tuple[ast.Document, list[Diagnostic]]:
    """The tree of one file and what is wrong with its shape, both in source order. Never raises."""
    splitter = Splitter(source)
    diagnostics: list[Diagnostic] = []
    statements = _statements(splitter.cuts(), diagnostics)
    diagnostics.sort(key=lambda found: found.labels[0].span.start)
    return ast.Document(source, statements, _allows(source, splitter.comments)), diagnostics


def parse_region(text: str) -> ast.Region:
    """The region that `text` spells, as in `expect`; its spans are in a source called `(question)`.

    Raises PolicyError with one diagnostic.
    """
    source = Source.from_text("(question)", text)
    cuts = [cut for cut in Splitter(source).cuts() if not cut.closes]
    if len(cuts) == 1:
        found = _parse_one(cuts[0], REGION)
        if isinstance(found, Diagnostic):
            raise PolicyError([found])
        return cast(ast.Region, found)
    if not cuts:
        raise PolicyError([diagnostic("UR001", "the question is empty", Label(Span(source, 0, 0)))])
    second = cuts[1].lexemes[0].span
    raise PolicyError([diagnostic("UR001", "a question is one region on one line", Label(second))])


@dataclass(slots=True)
class _OpenTable:
    """A table whose end has not been reached."""

    head: ast.TableDef | None
    """None when the head is broken, or the table stands in another: its body is checked and dropped"""
    body: list[ast.Statement] = field(default_factory=list)
    margin: int | None = None
    """How many statements stand before the first one at the left margin"""


def _statements(cuts: Iterable[Cut], diagnostics: list[Diagnostic]) -> tuple[ast.Statement, ...]:
    """Parse every cut, and give each table its body."""
    outer: list[ast.Statement] = []
    tables: list[_OpenTable] = []
    for cut in cuts:
        body = tables[-1].body if tables else outer
        if cut.closes:
            table = tables.pop()
            if cut.fault is not None and table.head is not None:  # else its head is a finding already
                diagnostics.append(cut.fault)
            (tables[-1].body if tables else outer).extend(_closed(table, cut))
            continue
        if tables and cut.margin and tables[-1].margin is None:
            tables[-1].margin = len(body)
        found = _parse_one(cut, STATEMENT)
        if tables and isinstance(found, _NOT_IN_A_TABLE):
            found = mistakes.not_in_a_table(cut.lexemes[0])
        if cut.opens:
            tables.append(_OpenTable(found if isinstance(found, ast.TableDef) else None))
        if isinstance(found, Diagnostic):
            diagnostics.append(found)
        elif not cut.opens:
            body.append(cast(ast.Statement, found))
    return tuple(outer)


def _closed(table: _OpenTable, end: Cut) -> Iterator[ast.Statement]:
    """The table, and the statements that turn out to stand behind it because it was never closed."""
    inside, behind = table.body, []
    if end.fault is not None and table.margin is not None:
        inside, behind = inside[: table.margin], inside[table.margin :]
    if table.head is not None:
        span = table.head.span.to(end.lexemes[0].span) if end.lexemes else table.head.span
        yield replace(table.head, body=cast(Any, tuple(inside)), span=span)
    yield from behind


def _parse_one(cut: Cut, start: str) -> object:
    """The node that the cut spells, or the one Diagnostic about it."""
    if cut.fault is not None:
        return cut.fault
    lexemes = cut.lexemes
    if cut.opens:  # the grammar sees a table with nothing in it
        lexemes = [*lexemes, lexemes[-1]._replace(type="RBRACE")]
    words, accepts = grammar().keywords, grammar().accepts
    state = grammar().lark.parse_interactive(start=start)
    fed: list[Lexeme] = []
    suspects: list[int] = []
    try:
        for lexeme in lexemes:
            if lexeme.type == "WORD":
                keyword = words.get(lexeme.text)
                if keyword is not None:
                    if accepts(state, keyword):
                        lexeme = lexeme._replace(type=keyword)
                    else:
                        suspects.append(len(fed))
            elif lexeme.type == "NEWLINE":
                lexeme = lexeme._replace(type="COMMA")
            # Lark's parser reads nothing but `.type`; a Lexeme costs a third of a lark.Token.
            state.feed_token(cast(Any, lexeme))
            fed.append(lexeme)
        node: object = state.feed_token(Token("$END", ""))
    except UnexpectedToken:
        suspects = [at for at in suspects if at < len(fed)]
        return mistakes.unexpected(lexemes, fed, suspects, start)
    return mistakes.misused(fed, suspects) or node


def _allows(source: Source, comments: list[Lexeme]) -> tuple[ast.Allow, ...]:
    """The comments that silence findings; see ast.Allow."""
    below: dict[int, int] = {}  # of each comment that stands alone, the line of what it is above
    for comment in reversed(comments):
        if _stands_alone(source, comment):
            line = source.line_of(comment.start)
            below[line] = below.get(line + 1, line + 1)  # several may share the statement below them
    allows = []
    for comment in comments:
        match = _ALLOW.fullmatch(comment.text)
        if match is not None:
            line = source.line_of(comment.start)
            lines = (line, below[line]) if line in below else (line,)
            codes = tuple(code.strip() for code in match[1].split(","))
            allows.append(ast.Allow(codes, match[2] or "", lines, comment.span))
    return tuple(allows)


def _stands_alone(source: Source, comment: Lexeme) -> bool:
    line_start = source.line_starts[source.line_of(comment.start) - 1]
    return not source.text[line_start : comment.start].strip()
