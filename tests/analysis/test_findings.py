"""Every finding of the analysis is in the corpus as people see it, with a near-miss beside it.

`tests/corpus/findings/urNNN_*.urr` shows URNNN; `urNNN_fine_*.urr` comes close and must not. What is
printed stands beside each in a `.txt`. After a deliberate change write them anew with
`python -m tests.analysis.test_findings` and read the difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from urelay.analysis import check
from urelay.lang.diagnostics import Diagnostic
from urelay.lang.render import render_text
from urelay.policy.check import check_file
from urelay.table.compile import compile_policy

FOLDER = Path(__file__).parent.parent / "corpus" / "findings"
CASES = sorted(FOLDER.glob("*.urr"))
CODES = "UR201 UR202 UR203 UR210 UR220 UR221 UR222 UR223 UR224 UR225 UR226 UR227 UR301 UR302 UR303".split()


def findings(path: Path) -> list[Diagnostic]:
    checked = check_file(str(path))
    assert checked.policy is not None, render_text(checked.diagnostics)
    return check(compile_policy(checked.policy), cover="ur303" in path.stem)


def rendered(found: list[Diagnostic]) -> str:
    """As `check` prints them, with paths as seen from the corpus."""
    return render_text(found).replace(f"{FOLDER}/", "").rstrip() + "\n"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_findings_read_as_in_the_corpus(path: Path) -> None:
    found = findings(path)
    code = path.stem[:5].upper()
    told = [finding.code for finding in found]
    if "_fine_" in path.stem:
        assert code not in told, rendered(found)
    else:
        assert code in told, rendered(found)
    assert rendered(found) == path.with_suffix(".txt").read_text()


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_case_and_a_near_miss(code: str) -> None:
    names = [path.stem for path in CASES if path.stem.startswith(code.lower())]
    assert any("_fine_" in name for name in names)
    assert any("_fine_" not in name for name in names)


if __name__ == "__main__":
    for case in CASES:
        text = rendered(findings(case))
        target = case.with_suffix(".txt")
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
            sys.stdout.write(f"wrote {target.name}\n")
