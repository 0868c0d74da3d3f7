"""A finding looks the same on every screen: exact text, exact columns, nothing a terminal obeys."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.lang.render import render_github, render_json, render_text
from urelay.lang.source import Source, Span


def label(source: Source, line: int, text: str, said: str = "") -> Label:
    start = source.text.index(text, source.line_starts[line - 1])
    return Label(Span(source, start, start + len(text)), said)


def lines(*numbered: tuple[int, str], path: str = "rules/site.urr") -> Source:
    """A source with the given lines at the given numbers and nothing elsewhere."""
    text = [""] * max(number for number, _ in numbered)
    for number, line in numbered:
        text[number - 1] = line
    return Source.from_text(path, "\n".join(text))


SITE = lines(
    (46, "match @private      port 22  -> deny"),
    (48, "match @private               -> deny"),
    (58, "match 10.0.0.0/8    port 22  -> direct"),
)


def test_two_places_far_apart() -> None:
    found = diagnostic(
        "UR201",
        "two routes claim the same connections with different outcomes",
        label(SITE, 46, "match @private      port 22"),
        label(SITE, 46, "deny", "one says this"),
        label(SITE, 58, "match 10.0.0.0/8    port 22"),
        label(SITE, 58, "direct", "the other says this"),
        remarks=(Remark("both", "10.0.0.0/8 port 22"), Remark("help", "remove one")),
    )
    assert render_text([found]) == (
        """\
error[UR201]: two routes claim the same connections with different outcomes
  --> rules/site.urr:46:1
   |
46 | match @private      port 22  -> deny
   | ^^^^^^^^^^^^^^^^^^^^^^^^^^^     ---- one says this
...
58 | match 10.0.0.0/8    port 22  -> direct
   | ---------------------------     ------ the other says this
   |
   = both    10.0.0.0/8 port 22
   = help    remove one
"""
    )


def test_the_line_between_two_is_shown_and_long_headings_align() -> None:
    found = diagnostic(
        "UR301",
        "this expectation fails",
        label(SITE, 46, "deny", "here"),
        label(SITE, 48, "deny", "there"),
        remarks=(Remark("for example", "10.7.0.0:443"), Remark("exactly", "10.7.0.0/16\nport 80")),
    )
    assert render_text([found]).splitlines()[3:] == [
        "46 | match @private      port 22  -> deny",
        "   |                                 ^^^^ here",
        "47 |",
        "48 | match @private               -> deny",
        "   |                                 ---- there",
        "   |",
        "   = for example  10.7.0.0:443",
        "   = exactly      10.7.0.0/16",
        "                  port 80",
    ]


def test_several_texts_under_one_line_do_not_collide() -> None:
    source = lines((1, "match @a port 22 -> deny"))
    found = diagnostic(
        "UR220",
        "a message",
        label(source, 1, "@a", "first"),
        label(source, 1, "port 22", "second"),
        label(source, 1, "deny", "third"),
    )
    assert render_text([found]).splitlines()[3:] == [
        " 1 | match @a port 22 -> deny",
        "   |       ^^ -------    ---- third",
        "   |       |  second",
        "   |       first",
    ]


def test_places_in_other_files_follow_the_first() -> None:
    other = lines((120, "set x = 80"), path="common/bogons.urr")
    found = diagnostic(
        "UR102", "`x` is defined twice", label(SITE, 46, "deny"), label(other, 120, "x", "first here")
    )
    assert render_text([found]).splitlines()[1:] == [
        "   --> rules/site.urr:46:33",
        "    |",
        " 46 | match @private      port 22  -> deny",
        "    |                                 ^^^^",
        "   ::: common/bogons.urr:120:5",
        "    |",
        "120 | set x = 80",
        "    |     - first here",
    ]


@pytest.mark.parametrize(
    ("line", "word", "shown", "under"),
    [
        ("\tmatch x", "x", "    match x", " " * 10 + "^"),
        ("ab\tx", "x", "ab  x", " " * 4 + "^"),
        ("漢字 x", "x", "漢字 x", " " * 5 + "^"),
        ("a 漢字 x", "漢字", "a 漢字 x", "  ^^^^"),
        ("e\u0301 x", "x", "e\u0301 x", "  ^"),
        ("a\x1b[31m x", "x", "a␛[31m x", " " * 7 + "^"),
        ("a\u202e x", "x", "a\ufffd x", " " * 3 + "^"),
    ],
    ids=["tab", "tab stop", "wide before", "wide itself", "combining", "escape", "direction"],
)
def test_columns_are_those_of_the_screen(line: str, word: str, shown: str, under: str) -> None:
    source = lines((1, line))
    drawn = render_text([diagnostic("UR001", "m", label(source, 1, word))]).splitlines()
    assert drawn[3:] == [f" 1 | {shown}", f"   | {under}"]


def test_a_very_long_line_is_shown_round_its_mark() -> None:
    source = lines((1, "a" * 500 + " here " + "b" * 500))
    *_, shown, under = render_text([diagnostic("UR001", "m", label(source, 1, "here"))]).splitlines()
    assert len(shown) < 180
    assert shown[5] == shown[-1] == "…"
    assert shown[under.index("^") :].startswith("here b")
    assert under.count("^") == 4


def test_a_place_that_goes_on_stops_at_the_line_end() -> None:
    source = lines((1, "set a = {"), (2, "  80"))
    found = diagnostic("UR001", "m", Label(Span(source, 8, 14), "all of it"))
    assert render_text([found]).splitlines()[3:] == [" 1 | set a = {", "   |         ^ all of it"]


def test_an_empty_place_still_has_a_caret() -> None:
    source = lines((1, "match any"))
    found = diagnostic("UR002", "m", Label(Span(source, 9, 9)))
    assert render_text([found]).splitlines()[4:] == ["   |          ^"]


def test_a_finding_without_a_place_is_a_message() -> None:
    assert render_text([diagnostic("UR401", "no such file", remarks=(Remark("help", "look"),))]) == (
        "error[UR401]: no such file\n   = help    look\n"
    )


def test_findings_are_parted_by_an_empty_line_and_none_is_nothing() -> None:
    note = diagnostic("UR223", "one")
    assert render_text([note, note]) == "note[UR223]: one\n\nnote[UR223]: one\n"
    assert render_text([]) == ""


def test_colour_adds_only_colour() -> None:
    found = diagnostic(
        "UR220",
        "m",
        label(SITE, 46, "deny", "a"),
        label(SITE, 46, "@private", "b"),
        remarks=(Remark("help", "h"),),
    )
    coloured = render_text([found], colour=True)
    assert "\x1b[1;33mwarning[UR220]\x1b[0m" in coloured
    plain = ""
    while "\x1b" in coloured:
        before, _, rest = coloured.partition("\x1b")
        plain += before
        coloured = rest.partition("m")[2]
    assert [line.rstrip() for line in (plain + coloured).splitlines()] == render_text([found]).splitlines()


def test_json_is_plain_data() -> None:
    found = diagnostic("UR202", "m", label(SITE, 46, "deny", "x"), remarks=(Remark("help", "h"),))
    (entry,) = json.loads(json.dumps(render_json([found])))
    place = {"file": "rules/site.urr", "line": 46, "column": 33, "end_line": 46, "end_column": 37}
    assert entry == {
        "code": "UR202",
        "severity": "warning",
        "message": "m",
        **place,
        "labels": [{**place, "text": "x"}],
        "remarks": [{"heading": "help", "text": "h"}],
    }


def test_json_of_a_finding_without_a_place() -> None:
    (entry,) = render_json([diagnostic("UR401", "m")])
    assert (entry["file"], entry["line"], entry["labels"]) == (None, None, [])


def test_github_commands_escape_what_would_end_them() -> None:
    source = lines((1, "match any"), path="a,b:c.urr")
    found = diagnostic("UR223", "100%", label(source, 1, "any"), remarks=(Remark("help", "x\ny"),))
    assert render_github([found]) == (
        "::notice file=a%2Cb%3Ac.urr,line=1,endLine=1,col=7,endColumn=10,title=UR223::100%25%0Ahelp: x%0Ay\n"
    )


@given(st.text(max_size=60), st.data())
@settings(max_examples=200, deadline=None)
def test_any_places_in_any_text_can_be_drawn(text: str, data: st.DataObject) -> None:
    source = Source.from_text("fuzz.urr", text)
    offsets = st.integers(0, len(source.text) - 1)
    labels = []
    for _ in range(data.draw(st.integers(1, 4))):
        start, end = sorted((data.draw(offsets), data.draw(offsets)))
        labels.append(Label(Span(source, start, end), data.draw(st.text(max_size=5))))
    found = Diagnostic("UR001", text, tuple(labels))
    drawn = render_text([found])
    assert all(char.isprintable() or char == "\n" for char in drawn)
    assert "^" in drawn
    json.dumps(render_json([found]))
    assert render_github([found]).count("\n") == 1
