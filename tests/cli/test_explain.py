"""`urelay explain`: the forwarder's own answer, for a person, for a program, and for thousands at once."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import urelay
from urelay.cli.main import main
from urelay.lang.codes import CODES

ROOT = Path(__file__).resolve().parents[2]
POLICY = """\
set private = 10.0.0.0/8
listen lan = transparent 127.0.0.1:1081
listen socks = socks 127.0.0.1:1080
upstream tor = socks5 127.0.0.1:9050
forbid any port 25
match any                             -> direct
match @private port 22                -> deny refused
match @private port 22 from 192.0.2.1 -> via tor
match 10.1.0.0/16 port 80             -> rewrite to 10.2.0.0/16, port 8080 then direct
match 10.9.9.9                        -> to unix "/run/web/{listener}-{port}.sock"
match *.onion on socks                -> via tor
match 10.8.0.0/16                     -> deny silently
"""

ANSWERS = [
    pytest.param(
        "192.0.2.7:443",
        {"outcome": "direct", "destination": "192.0.2.7:443", "table": "main", "route": 6, "upstream": None},
        id="direct",
    ),
    pytest.param("10.0.0.1:22", {"outcome": "deny", "route": 7, "wall": None}, id="deny"),
    pytest.param(
        "10.0.0.1:22 from 192.0.2.1",
        {"outcome": "via", "upstream": "tor", "route": 8, "wall": None},
        id="via",
    ),
    pytest.param(
        "10.1.2.3:80 on lan",
        {"outcome": "direct", "destination": "10.2.2.3:8080", "rewrites": ["10.2.2.3:8080"], "route": 9},
        id="rewrite",
    ),
    pytest.param(
        "10.9.9.9:80 on lan",
        {"outcome": "unix", "destination": "/run/web/lan-80.sock", "route": 10},
        id="unix",
    ),
    pytest.param(
        "x.onion:80 on socks",
        {"outcome": "via", "upstream": "tor", "destination": "x.onion:80", "route": 11},
        id="name",
    ),
    pytest.param("10.8.0.1:80", {"outcome": "silent", "route": 12}, id="silent"),
    pytest.param("192.0.2.7:25", {"outcome": "deny", "route": None, "wall": 5}, id="wall"),
    pytest.param("[2001:db8::7]:443", {"outcome": "direct", "destination": "[2001:db8::7]:443"}, id="ipv6"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test in a folder of its own, with the policy in it."""
    monkeypatch.chdir(tmp_path)
    Path("p.urr").write_text(POLICY)


def assert_answer(entry: dict[str, object], question: str, expected: dict[str, object]) -> None:
    """That an object has the promised keys and says what is expected; routes are lines of POLICY."""
    promised = ["connection", "outcome", "upstream", "destination", "table", "route", "wall", "rewrites"]
    assert list(entry)[: len(promised)] == promised
    assert entry["connection"] == question
    for key, value in expected.items():
        if key in ("route", "wall") and value is not None:
            place = entry[key]
            assert place["file"] == "p.urr"
            assert place["line"] == value
            assert place["text"].startswith(("match ", "forbid "))
        else:
            assert entry[key] == value, key


@pytest.mark.parametrize(("question", "expected"), ANSWERS)
def test_one_connection_as_json(
    question: str, expected: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "p.urr", *question.split(), "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert_answer(json.loads(line), question, expected)


def test_many_connections_come_back_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [case.values[0] for case in ANSWERS] * 3
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(questions) + "\n"))
    assert main(["explain", "p.urr", "--batch"]) == 0
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(entries) == len(questions)
    for entry, case in zip(entries, ANSWERS * 3, strict=True):
        assert_answer(entry, *case.values)


def test_a_line_that_is_no_connection_gets_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["192.0.2.7:443", "10.0.0.300:80", "", "@private", "192.0.2.7:443 on nowhere", "192.0.2.7:80"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["explain", "p.urr", "--batch"]) == 1
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["connection"] for entry in entries] == lines
    assert ["error" in entry for entry in entries] == [False, True, True, True, True, False]
    assert "300 is more than 255" in entries[1]["error"]


def test_bytes_that_are_no_text_are_an_answer_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "urelay", "explain", "rules/quickstart.urr", "--batch"],
        cwd=ROOT, input=b"\xff\xfe:80\n192.0.2.7:443\n", capture_output=True, timeout=60,
    )  # fmt: skip
    first, second = [json.loads(line) for line in done.stdout.splitlines()]
    assert "error" in first
    assert second["outcome"] == "direct"
    assert done.returncode == 1
    assert done.stderr == b""


def test_each_line_is_answered_before_the_next_is_asked() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "urelay", "explain", "rules/quickstart.urr", "--batch"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as asked:  # fmt: skip
        assert asked.stdin
        assert asked.stdout
        for number in range(3):
            asked.stdin.write(f"192.0.2.7:{number + 1}\n")
            asked.stdin.flush()
            assert json.loads(asked.stdout.readline())["connection"] == f"192.0.2.7:{number + 1}"
        asked.stdin.close()
        assert asked.wait(60) == 0


def test_the_answer_for_people_names_the_route_and_the_losers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "p.urr", "10.0.0.1:22 from 192.0.2.1 on lan"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("via tor")
    because = next(line for line in lines if line.lstrip().startswith("because"))
    assert "p.urr:8" in because
    assert any("p.urr:7" in line for line in lines), "the deny that lost"
    assert any("p.urr:6" in line for line in lines), "the route for everything"


def test_python_gets_the_same_answers(capsys: pytest.CaptureFixture[str]) -> None:
    policy = urelay.load("p.urr")
    for case in ANSWERS:
        question, expected = case.values
        assert_answer(policy.explain(question).json() | {"connection": question}, question, expected)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param(["none.urr", "10.0.0.1:80"], 2, "UR401", id="no policy"),
        pytest.param(["p.urr", "10.0.0.300:80"], 1, "300 is more than 255", id="no address"),
        pytest.param(["p.urr", "10.0.0.1:80", "on", "lann"], 1, 'did you mean "lan"', id="no listener"),
        pytest.param(["p.urr"], 2, "name a connection", id="no question"),
        pytest.param(["p.urr", "10.0.0.1:80", "--batch"], 2, "name a connection", id="both"),
        pytest.param(["p.urr", "@private", "--json"], 2, "more than one connection", id="region as json"),
        pytest.param(["UR999"], 2, "there is no finding called UR999", id="no code"),
    ],
)
def test_what_cannot_be_answered_says_why(
    arguments: list[str], status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", *arguments]) == status
    shown = capsys.readouterr()
    assert said in shown.err
    assert shown.out == ""


def test_a_policy_with_errors_is_not_explained(capsys: pytest.CaptureFixture[str]) -> None:
    Path("p.urr").write_text("match any -> dirct\n")
    assert main(["explain", "p.urr", "10.0.0.1:80"]) == 1
    assert "error[UR001]" in capsys.readouterr().err


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_finding_has_a_page(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", code.lower()]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{code} ({CODES[code].severity.value}): ")
    assert len(out) > 100
