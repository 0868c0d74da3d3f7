"""The grammar says one thing only: no conflict between rules, no text that two terminals begin."""

from __future__ import annotations

import re
import sys

import pytest
from lark.exceptions import GrammarError

from urelay.lang.grammar import build_lark, grammar
from urelay.resources import resource_dir

TEXT = (resource_dir("grammar") / "urr.lark").read_text(encoding="utf-8")


def test_the_grammar_has_no_conflict_and_one_would_be_noticed() -> None:
    build_lark(TEXT)
    place = "place:     (WORD | STRING)*"
    assert place in TEXT
    with pytest.raises(GrammarError):
        build_lark(TEXT.replace(place, place + " arguments"))


def test_at_most_one_terminal_starts_with_any_character() -> None:
    patterns = [
        re.compile(terminal.pattern.to_regexp())
        for terminal in grammar().lark.terminals
        if terminal.name not in grammar().keywords.values()
    ]
    for code in range(sys.maxunicode + 1):
        if not (0x3000 < code < 0x10000 or code > 0x11000):  # nothing but letters as far as we care
            text = chr(code) + 'a"'
            assert sum(pattern.match(text) is not None for pattern in patterns) <= 1, hex(code)


def test_keywords_are_words_and_the_arrow_is_not() -> None:
    word = re.compile(next(t for t in grammar().lark.terminals if t.name == "WORD").pattern.to_regexp())
    assert all(word.fullmatch(keyword) for keyword in grammar().keywords)
    assert word.match("->") is None
    assert word.match("-->") is None
