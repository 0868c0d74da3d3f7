"""Every code has a page, and a page says what the code is about."""

from __future__ import annotations

import pytest

from urelay.lang.codes import CODES, Severity
from urelay.lang.diagnostics import diagnostic


def test_every_code_has_its_own_page_and_every_page_a_code() -> None:
    pages = {code: entry.page for code, entry in CODES.items()}  # a missing page is a KeyError
    assert len(set(pages.values())) == len(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_page_is_a_few_sentences_and_an_example(code: str) -> None:
    page = CODES[code].page
    assert 100 < len(page) < 1500
    assert "```" in page


@pytest.mark.parametrize(
    ("code", "severity", "fixable"),
    [
        ("UR002", Severity.ERROR, True),
        ("UR005", Severity.WARNING, True),
        ("UR202", Severity.WARNING, True),
        ("UR211", Severity.NOTE, True),
        ("UR220", Severity.WARNING, False),
        ("UR223", Severity.NOTE, False),
        ("UR303", Severity.NOTE, False),
    ],
)
def test_weights(code: str, severity: Severity, fixable: bool) -> None:
    assert (CODES[code].severity, CODES[code].fixable) == (severity, fixable)
    assert diagnostic(code, "m").severity is severity
