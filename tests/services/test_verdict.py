"""One judgement for every command: what counts, what is silenced, and which exit status follows."""

from __future__ import annotations

from pathlib import Path

import pytest

from urelay.errors import PolicyError
from urelay.services.verdict import COULD_NOT_RUN, FINDINGS, FINE, judge

EMPTY_SET = 'set spam = file "spam.txt"   # allow UR117: filled by a timer\nmatch @spam -> deny\n'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    Path("spam.txt").write_text("")


@pytest.mark.parametrize(
    ("text", "status", "codes"),
    [
        pytest.param("match any -> direct\n", FINE, [], id="good"),
        pytest.param("set spare = 10.0.0.1\n", FINE, ["UR116"], id="warning"),
        pytest.param("match @spare -> direct\n", FINDINGS, ["UR101"], id="error"),
        pytest.param("match ->\nmatch @spare -> direct\n", FINDINGS, ["UR001", "UR101"], id="two errors"),
        pytest.param('include "none.urr"\n', COULD_NOT_RUN, ["UR401"], id="missing include"),
        pytest.param(
            'set s = file "none.txt"\nmatch @s -> deny\n', COULD_NOT_RUN, ["UR401"], id="missing list"
        ),
        pytest.param(EMPTY_SET, FINE, [], id="allowed"),
        pytest.param(
            EMPTY_SET + "match @spare -> direct\n", FINDINGS, ["UR101"], id="allowed beside an error"
        ),
    ],
)
def test_the_findings_make_the_status(text: str, status: int, codes: list[str]) -> None:
    Path("p.urr").write_text(text)
    verdict = judge("p.urr")
    assert [one.code for one in verdict.diagnostics if one.severity.value != "note"] == codes
    assert verdict.status == status
    if status == FINE:
        assert verdict.proved() is verdict.table
    else:
        with pytest.raises(PolicyError) as caught:
            verdict.proved()
        assert [one.code for one in caught.value.diagnostics] == codes
