"""The splitter loses no character, cuts at line ends outside braces, and never lets a brace eat a file."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urelay.lang.grammar import grammar
from urelay.lang.source import Source
from urelay.lang.splitter import Cut, Splitter


def cuts(text: str) -> list[Cut]:
    return list(Splitter(Source.from_text("test.urr", text)).cuts())


def words(cut: Cut) -> list[str]:
    return [lexeme.text for lexeme in cut.lexemes]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("10.0.0.0/8->direct", ["WORD", "ARROW", "WORD"]),
        ("a-b--c-", ["WORD", "JUNK"]),
        ("--->x", ["JUNK", "ARROW", "WORD"]),
        ("-5", ["WORD"]),
        ("[::]:1080", ["WORD"]),
        ("*.onion .corp.example", ["WORD", "WORD"]),
        ("user:pw@host:1", ["WORD"]),
        ("@set{@a,@b}", ["SETNAME", "LBRACE", "SETNAME", "COMMA", "SETNAME", "RBRACE"]),
        ("@ @", ["JUNK", "JUNK"]),
        ('"a # b"x', ["STRING", "WORD"]),
        ('"a', ["UNCLOSED"]),
        ("=>", ["EQUAL", "JUNK"]),
        ("a\u00a0b", ["WORD", "JUNK", "WORD"]),
        ("\x00", ["JUNK"]),
    ],
)
def test_tokens(text: str, kinds: list[str]) -> None:
    assert [match.lastgroup for match in grammar().token.finditer(text)] == kinds


@given(st.text(st.sampled_from('ab-> {}@"#=,.\n\t\x00é'), max_size=60))
@settings(max_examples=300, deadline=None)
def test_tokens_cover_the_text_without_gaps(text: str) -> None:
    source = Source.from_text("fuzz.urr", text)
    assert "".join(match[0] for match in grammar().token.finditer(source.text)) == source.text


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        pytest.param("a b\nc\n", [["a", "b"], ["c"]], id="a line"),
        pytest.param("\n\n# x\na # y\n", [["a"]], id="nothing is no statement"),
        pytest.param(
            "a ->\n  b,\n\n c then\n d\ne", [["a", "->", "b", ",", "c", "then", "d"], ["e"]], id="goes on"
        ),
        pytest.param("a -> # why\n b", [["a", "->", "b"]], id="goes on behind a comment"),
        pytest.param("a\n  { b }\n", [["a", "{", "b", "}"]], id="a brace on its own line"),
        pytest.param("a {\n\nb\n\nc,\n}\n", [["a", "{", "b", "\n", "c", ",", "}"]], id="line ends part"),
        pytest.param("a { b\n, c }", [["a", "{", "b", ",", "c", "}"]], id="a comma after a line end"),
        pytest.param(
            "a ->\nmatch b", [["a", "->"], ["match", "b"]], id="a statement never goes on with another"
        ),
        pytest.param("a {\nmatch b", [["a", "{"], ["match", "b"]], id="an open brace"),
        pytest.param("a {\ndns x\n}", [["a", "{", "dns", "x", "}"]], id="dns as an option"),
        pytest.param("a {\ndns x = y\n", [["a", "{"], ["dns", "x", "=", "y"]], id="dns as a statement"),
        pytest.param(
            "a {\ntable x from y\n}", [["a", "{", "table", "x", "from", "y", "}"]], id="table as an option"
        ),
    ],
)
def test_statements(text: str, pieces: list[list[str]]) -> None:
    assert [words(cut) for cut in cuts(text)] == pieces


def test_a_table_is_a_head_its_statements_and_an_end() -> None:
    head, inner, other, end, behind = cuts("table t { match a\n  match b { c }\n}\nmatch d\n")
    assert (words(head), head.opens) == (["table", "t", "{"], True)
    assert words(inner) == ["match", "a"]
    assert words(other) == ["match", "b", "{", "c", "}"]
    assert (words(end), end.closes, end.fault) == (["}"], True, None)
    assert (words(behind), behind.margin) == (["match", "d"], True)


def test_faults_name_where_they_began() -> None:
    (broken, fine) = cuts("set a = {\n 1\nset b = 2\n")
    assert broken.fault is not None
    assert broken.fault.message == "`{` opened on line 1 is never closed"
    assert fine.fault is None


def test_comments_are_kept_apart() -> None:
    splitter = Splitter(Source.from_text("test.urr", "# one\na # two\n"))
    assert [words(cut) for cut in splitter.cuts()] == [["a"]]
    assert [comment.text for comment in splitter.comments] == ["# one", "# two"]
