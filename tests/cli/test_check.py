"""`urelay check`: findings in three forms, a summary a file, and an exit status scripts can trust."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from urelay.cli.main import main

GOOD = """\
set private = { 10.0.0.0/8, 192.168.0.0/16 }
listen socks = socks 127.0.0.1:1080
match any -> direct
match @private -> deny
forbid any port 25
expect @private -> deny
expect any port 25 -> deny
"""
UNUSED = GOOD + "set spare = 10.0.0.1\n"
BAD = GOOD + "match @privat -> direct\nmatch 10.0.0.1 prot 80 -> deny\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with these policies in it."""
    monkeypatch.chdir(tmp_path)
    Path("good.urr").write_text(GOOD)
    Path("unused.urr").write_text(UNUSED)
    Path("bad.urr").write_text(BAD)


def test_a_good_policy_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.urr"]) == 0
    assert capsys.readouterr().out == "good.urr: 2 routes, 1 wall, 2 expectations proved, no findings\n"


def test_every_error_is_shown_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "bad.urr"]) == 1
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "error[UR101]" in shown.out
    assert "--> bad.urr:8:" in shown.out
    assert "error[UR001]" in shown.out
    assert "--> bad.urr:9:" in shown.out
    assert shown.out.endswith("bad.urr: 2 errors\n")
    assert "\x1b" not in shown.out, "no colours where nobody looks"


def test_a_warning_fails_only_a_strict_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "unused.urr"]) == 0
    out = capsys.readouterr().out
    assert "warning[UR116]" in out
    assert out.endswith("unused.urr: 2 routes, 1 wall, 2 expectations proved, 1 warning\n")
    assert main(["check", "--strict", "unused.urr"]) == 1


def test_several_files_are_judged_one_by_one_and_the_worst_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "good.urr", "bad.urr", "good.urr"]) == 1
    lines = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("good.urr:", "bad.urr:"))
    ]
    assert [line.split(":")[0] for line in lines] == ["good.urr", "bad.urr", "good.urr"]
    assert main(["check", "bad.urr", "none.urr"]) == 2


def test_a_missing_file_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "none.urr"]) == 2
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "error[UR401]: cannot read none.urr: no such file or directory"
    assert len([line for line in out if line]) == 1


def test_json_is_one_list_of_findings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "json", "bad.urr", "unused.urr"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert [(one["code"], one["file"], one["line"]) for one in findings] == [
        ("UR101", "bad.urr", 8),
        ("UR001", "bad.urr", 9),
        ("UR116", "unused.urr", 8),
    ]
    assert main(["check", "--format", "json", "good.urr"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_github_annotates_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--format", "github", "bad.urr"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("::error ") for line in lines)
    assert "file=bad.urr" in lines[0]
    assert "line=8" in lines[0]


def test_colours_only_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["check", "bad.urr"])
    assert "\x1b[" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    main(["check", "bad.urr"])
    assert "\x1b[" not in capsys.readouterr().out
