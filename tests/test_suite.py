"""The suite can be believed: every program that a test needs is one that tests/run installs."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_program_that_a_test_asks_for_is_installed_by_the_run() -> None:
    """A name missing there is a test that is skipped for ever wherever the program is not there by chance."""
    [listed] = re.findall(r"^peers=\(\n(.*?)^\)", (TESTS / "run").read_text(), re.MULTILINE | re.DOTALL)
    installed = {pair.partition(":")[0] for pair in listed.split()}
    asked = {
        name
        for path in TESTS.rglob("test_*.py")
        if ".work" not in path.parts
        for name in re.findall(r'mark\.peer\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    }
    assert {"danted", "haproxy"} <= asked
    assert asked - installed == set()
