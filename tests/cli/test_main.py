"""The command line: quick to answer, honest about what went wrong, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import urelay
from urelay.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]

HEAVY = {
    "lark", "netaddr", "dns", "python_socks", "aiohappyeyeballs", "asyncio", "socket", "logging", "json",
    "urelay.policy", "urelay.table", "urelay.engine", "urelay.analysis", "urelay.services",
}  # fmt: skip
"""What `urelay --help` has no use for"""

RELAYS = {
    "dns", "python_socks", "aiohappyeyeballs", "asyncio", "ssl", "json", "email",
    "importlib.metadata", "hypothesis", "urelay.engine", "urelay.namespaces", "urelay.protocols",
}  # fmt: skip
"""What `urelay check` and `explain` have no use for: a connection is only spoken of, and text is not
JSON (netaddr brings `socket` along)"""


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`python -m urelay` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "urelay", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60, **options,
    )  # fmt: skip


def imported_by(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """A run of `python -m urelay`, and every module it imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "urelay", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return done, {line.rpartition("|")[2].strip() for line in lines}


def test_help_names_every_command_and_imports_nothing_it_does_not_use() -> None:
    done, modules = imported_by("--help")
    assert done.returncode == 0
    assert "urelay.cli.main" in modules
    assert not HEAVY & modules
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].rstrip("_")
        assert any(line.split()[:1] == [name] for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules/site.urr"),
        ("explain", "rules/site.urr", "10.1.2.3:22", "from", "192.168.7.9", "on", "lan"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_asking_about_a_policy_imports_nothing_that_relays(arguments: tuple[str, ...]) -> None:
    done, modules = imported_by(*arguments)
    assert done.returncode == 0
    assert "lark" in modules
    assert not RELAYS & modules


@pytest.mark.parametrize("command", [one.__name__.rpartition(".")[2].rstrip("_") for one in COMMANDS])
def test_each_command_shows_an_example_and_its_exit_statuses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"  urelay {command} " in text
    assert "exit status:" in text


def test_the_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"urelay {urelay.__version__}\n"


@pytest.mark.parametrize(
    "arguments", [[], ["frobnicate"], ["check"], ["serve"], ["check", "--format", "xml", "x"], ["--frob"]]
)
def test_arguments_that_make_no_sense_exit_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: urelay" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_accident() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "urelay", "check", "rules/quickstart.urr"],
        cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 2
    assert done.stderr == ""


def test_output_that_cannot_be_written_is_said_so() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "urelay", "check", "rules/quickstart.urr"],
            cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "urelay: error: cannot write to standard output: no space left on device\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_standard_stream_that_is_closed_never_becomes_a_socket_s_number(closed: tuple[int, ...]) -> None:
    script = (
        f"import os, sys\nfor fd in {closed}: os.close(fd)\n"
        "from urelay.cli.main import main\n"
        "status = main(['check', 'rules/quickstart.urr'])\n"
        "os._exit(status or (9 if os.open('/dev/null', 0) < 3 else 0))\n"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=60).returncode == 0


def test_an_interrupt_is_no_accident_either(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(path: str, **_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("urelay.services.verdict.judge", interrupted)
    assert main(["check", "rules/quickstart.urr"]) == 130
    assert capsys.readouterr().err == ""
