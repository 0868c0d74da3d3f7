"""The reference tells the truth: its examples parse, its table of codes is the program's."""

from __future__ import annotations

import re

import pytest

from urelay.lang.codes import CODES
from urelay.lang.grammar import grammar
from urelay.lang.parser import parse
from urelay.lang.source import Source
from urelay.resources import resource_dir

GRAMMAR = resource_dir("grammar")
README = (GRAMMAR / "README.md").read_text(encoding="utf-8")
PAGES = (GRAMMAR / "diagnostics.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```urr\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def examples() -> list[object]:
    return [
        pytest.param(match[1], id=f"{name}:{text[: match.start()].count(chr(10)) + 2}")
        for name, text in (("README.md", README), ("diagnostics.md", PAGES))
        for match in _BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("text", examples())
def test_an_example_parses(text: str) -> None:
    document, diagnostics = parse(Source.from_text("example.urr", text))
    assert diagnostics == []
    assert document.statements


def test_the_reference_shows_every_word_of_the_language() -> None:
    shown = set(re.findall(r"[a-z0-9]+", "".join(_BLOCK.findall(README))))
    assert set(grammar().keywords) <= shown


def test_the_table_of_codes_is_the_program_s() -> None:
    rows = re.findall(r"^\| (UR\d{3}) \| ([EWN]) \| (.*) \|$", README, re.MULTILINE)
    assert rows == [(c.code, c.severity.name[0], c.title) for c in CODES.values()]


def test_the_pages_are_headed_as_the_table_says() -> None:
    headings = re.findall(r"^## (UR\d{3}): (.*)$", PAGES, re.MULTILINE)
    assert headings == [(c.code, c.title) for c in CODES.values()]
