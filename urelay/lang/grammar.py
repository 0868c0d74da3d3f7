"""The grammar file, made usable once a process: Lark's parser and the splitter's token pattern.

`grammar/urr.lark` is the one place that says what a token is. The splitter's regular expression and
the table of keywords are made from its terminals, so the two cannot drift apart. Nothing is built
before the first parse, and never with Lark's `cache`, which unpickles a predictable file from the
temporary folder.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lark import Lark, Token
from lark.common import LexerConf
from lark.lexer import Lexer

from urelay.lang.build import Build
from urelay.resources import resource_dir

STATEMENT = "statement"
REGION = "region"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What `grammar/urr.lark` says, in the three forms that are needed."""

    lark: Lark
    """Starts at STATEMENT or REGION; its results are nodes of urelay.lang.ast"""
    keywords: dict[str, str]
    """The words of the language and their terminals: `match` is MATCH"""
    token: re.Pattern[str]
    """Matches one token at any place in any text, and blanks before it, which are not in its group;
    the name of the group is the terminal, UNCLOSED (a string without an end) or JUNK (anything else)"""
    answers: dict[tuple[str | int, ...], bool] = field(default_factory=dict, repr=False)
    """What `accepts` found out; the grammar has no deep nesting, so there are few stacks"""

    def accepts(self, parser: Any, terminal: str) -> bool:
        """Whether an interactive parser can go on with `terminal`.

        The table of the present state alone does not tell: LALR merges the lookahead of like
        states, so it offers what would fail a step later. Lark's own trial is right and slow; its
        answer depends on the stack of states only, and is remembered.
        """
        if terminal not in parser.choices():
            return False
        key = (terminal, *parser.parser_state.state_stack)
        answer = self.answers.get(key)
        if answer is None:
            answer = self.answers[key] = terminal in parser.accepts()
        return answer


@functools.cache
def grammar() -> Grammar:
    """The grammar, built at the first call (about 50 ms)."""
    lark = build_lark((resource_dir("grammar") / "urr.lark").read_text(encoding="utf-8"))
    keywords = {}
    patterns = []
    for terminal in lark.terminals:
        if terminal.pattern.type == "str" and terminal.pattern.value.isalnum():
            keywords[terminal.pattern.value] = terminal.name
        elif terminal.name != "BLANK":
            patterns.append(f"(?P<{terminal.name}>{terminal.pattern.to_regexp()})")
    # A run of hyphens is taken whole, or a long one would be tried again from each of its places.
    patterns.append(r'(?P<UNCLOSED>"[^"\n]*)|(?P<JUNK>-+(?!>)|.)')
    return Grammar(lark, keywords, re.compile(f"[ \\t]*(?:{'|'.join(patterns)})"))


class _NoLexer(Lexer):
    """Stands where Lark would build a lexer of its own: tokens come from urelay.lang.splitter."""

    def __init__(self, conf: LexerConf) -> None:
        self.conf = conf

    def lex(self, lexer_state: Any, parser_state: Any) -> Iterator[Token]:
        return iter(())


def build_lark(text: str) -> Lark:
    """The parser of a grammar; `strict` makes Lark raise at any conflict instead of choosing."""
    return Lark(
        text,
        parser="lalr",
        lexer=_NoLexer,
        start=[STATEMENT, REGION],
        maybe_placeholders=False,
        strict=True,
        transformer=Build(),
    )
