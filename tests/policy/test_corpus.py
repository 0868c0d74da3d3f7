"""What a checker says about bad policies: the code, the place, the exact text underlined, the words.

Every `tests/corpus/sense/NAME.urr` has its findings beside it in `NAME.expected`, one a line. After a
deliberate change, write them anew with `python -m tests.policy.test_corpus` and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from urelay.lang.diagnostics import Diagnostic
from urelay.policy.check import check_file

FOLDER = Path(__file__).parent.parent / "corpus" / "sense"
POLICIES = sorted(FOLDER.glob("*.urr"))


def findings(policy: Path) -> list[str]:
    """One line a finding; paths as seen from the corpus."""
    before = Path.cwd()
    os.chdir(FOLDER)
    try:
        return [line(found) for found in check_file(policy.name).diagnostics]
    finally:
        os.chdir(before)


def line(found: Diagnostic) -> str:
    place = "-"
    if found.labels:
        span = found.labels[0].span
        place = f"{span.source.path}:{span.line}:{span.column} <{' '.join(span.text.split())}>"
    remarks = "".join(f" | {remark.heading}: {remark.text}" for remark in found.remarks)
    return f"{found.code} {place} {found.message}{remarks}"


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.stem)
def test_every_finding_is_the_expected_one(policy: Path) -> None:
    assert findings(policy) == policy.with_suffix(".expected").read_text(encoding="utf-8").splitlines()


def test_every_code_about_sense_is_in_the_corpus() -> None:
    expected = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.expected"))
    codes = {code.split()[0] for code in expected.splitlines()}
    assert {f"UR{number}" for number in range(101, 120)} <= codes


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.stem)
def test_at_most_one_error_a_statement(policy: Path) -> None:
    starts = [
        (found.labels[0].span.source.path, found.labels[0].span.line)
        for found in check_file(str(policy)).diagnostics
        if found.labels
    ]
    assert len(starts) == len(set(starts))


if __name__ == "__main__":
    for path in POLICIES:
        path.with_suffix(".expected").write_text("\n".join(findings(path)) + "\n", encoding="utf-8")
