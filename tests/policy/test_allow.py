"""`# allow` silences what it names, where it stands, and nothing that is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy.policies import checked
from urelay.lang import ast
from urelay.lang.diagnostics import Label, diagnostic
from urelay.lang.parser import parse
from urelay.lang.source import Source, Span
from urelay.policy import allow
from urelay.policy.check import Checked


def after(found: Checked, folder: Path) -> list[tuple[str, str]]:
    """What stays, after the comments of main.urr."""
    text = (folder / "main.urr").read_text(encoding="utf-8")
    document, _ = parse(Source.from_text(str(folder / "main.urr"), text))
    return [(one.code, one.message) for one in allow.apply(found.diagnostics, [document])]


@pytest.mark.parametrize(
    "text",
    [
        "set spare = 80  # allow UR116: for later\n",
        "# allow UR116: for later\nset spare = 80\n",
        "# allow UR116, UR117: for later\nset spare = {\n}\n",
        '# allow UR117: filled by a job\nset ads = {\n  file "ads.txt"\n}\nmatch @ads -> deny\n',
    ],
    ids=["on the line", "above", "two codes", "inside braces"],
)
def test_a_comment_silences_a_warning(tmp_path: Path, text: str) -> None:
    found = checked(tmp_path, text, ads_txt="")
    assert found.diagnostics
    assert after(found, tmp_path) == []


def test_a_comment_reaches_into_a_table(tmp_path: Path) -> None:
    text = "table a {\n  match any -> deny\n  # allow UR220: lab\n  match any port 1 -> deny\n}\n"
    document, _ = parse(Source.from_text("x.urr", text))
    (table,) = document.statements
    assert isinstance(table, ast.TableDef)
    findings = [diagnostic("UR220", "m", Label(node.span)) for node in table.body]
    assert allow.apply(findings, [document]) == findings[:1]


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("match any -> direct  # allow UR220: why\n", ["`allow UR220` silences nothing"]),
        ("set spare = 80  # allow UR116\n", ["`allow UR116` gives no reason"]),
        ("set spare = 80  # allow UR116, UR220: why\n", ["`allow UR220` silences nothing"]),
        ("match any -> direct  # allow UR999: why\n", ["`allow UR999` silences nothing"]),
        ("match any -> direct  # allow UR223: a note, which may not have been asked for\n", []),
        (
            "set spare = 80\n\n# allow UR116: too far\n\n",
            ['nothing uses set "spare"', "`allow UR116` silences nothing"],
        ),
    ],
    ids=["useless", "no reason", "half useless", "unknown", "note", "elsewhere"],
)
def test_a_comment_that_is_of_no_use_is_a_finding(tmp_path: Path, text: str, messages: list[str]) -> None:
    assert [message for _, message in after(checked(tmp_path, text), tmp_path)] == messages


def test_an_error_is_never_silenced(tmp_path: Path) -> None:
    found = checked(tmp_path, "match @no -> deny  # allow UR101: it is fine\n")
    assert [code for code, _ in after(found, tmp_path)] == ["UR101", "UR005"]


def test_beside_an_error_a_comment_may_be_for_what_was_not_looked_for(tmp_path: Path) -> None:
    found = checked(tmp_path, "match @no -> deny\nmatch any -> deny  # allow UR220: lab\n")
    assert [code for code, _ in after(found, tmp_path)] == ["UR101"]


def test_a_finding_elsewhere_or_without_a_place_stays() -> None:
    document, _ = parse(Source.from_text("x.urr", "match any -> deny  # allow UR116: why\n"))
    other = Source.from_text("y.urr", "set spare = 80\n")
    findings = [diagnostic("UR116", "m"), diagnostic("UR116", "m", Label(Span(other, 0, 3)))]
    assert allow.apply(findings, [document])[:2] == findings
