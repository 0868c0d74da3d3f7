"""The policies that ship check without a finding about sense, and say what the design says they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy.policies import sound
from urelay import analysis
from urelay.lang.codes import CODES
from urelay.lang.diagnostics import Severity
from urelay.net.address import Prefix
from urelay.net.nat64 import EMBEDDINGS
from urelay.policy import allow, unserved
from urelay.policy.check import check_file
from urelay.policy.words import read_prefix
from urelay.table.compile import compile_policy

RULES = Path(__file__).parent.parent.parent / "rules"
SHIPPED = sorted(RULES.glob("*.urr"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_it_checks(path: Path) -> None:
    found = check_file(str(path))
    assert found.policy is not None
    assert [one.message for one in found.diagnostics] == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_its_expectations_are_proved_and_every_warning_is_answered(path: Path) -> None:
    found = check_file(str(path))
    assert found.policy is not None
    decided = analysis.check(compile_policy(found.policy))
    kept = allow.apply([*found.diagnostics, *decided], found.documents)
    assert [one.message for one in kept if one.severity is not Severity.NOTE] == []


@pytest.mark.parametrize("name", sorted({path.stem for path in SHIPPED} - {"site", "guard"}))
def test_it_can_be_served_and_proves_something(name: str) -> None:
    policy = check_file(str(RULES / f"{name}.urr")).policy
    assert policy is not None
    assert unserved.find(policy) == []
    assert policy.expectations
    assert policy.listeners


def test_the_readme_lists_every_policy() -> None:
    text = (RULES / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in SHIPPED if f"[{path.name}]({path.name})" not in text] == []


@pytest.mark.parametrize(
    "prefix",
    [
        "127.0.0.0/8", "::1/128", "0.0.0.0/8", "169.254.0.0/16", "fe80::/10", "fec0::/10",
        "224.0.0.0/4", "ff00::/8", "240.0.0.0/4", *map(str, EMBEDDINGS),
    ],
)  # fmt: skip
def test_the_guard_denies(tmp_path: Path, prefix: str) -> None:
    guarded = [
        one.region.destinations.prefixes
        for one in sound(tmp_path, "match any -> direct\n").guard
        if one.region.destinations is not None
    ]
    assert (read_prefix(prefix),) in guarded


def test_the_guard_leaves_ipv4_open(tmp_path: Path) -> None:
    guard = sound(tmp_path, "match any -> direct\n").guard
    prefixes = [
        prefix for one in guard if one.region.destinations for prefix in one.region.destinations.prefixes
    ]
    assert len(prefixes) == len(guard)
    assert not any(prefix.covers(Prefix(4, 8 << 24, 8)) for prefix in prefixes)
    assert Prefix(6, 0, 0) not in prefixes


def test_comments_in_shipped_policies_name_known_codes() -> None:
    for path in SHIPPED:
        policy = check_file(str(path)).policy
        assert policy is not None
        for document in policy.documents:
            assert all(code in CODES and one.reason for one in document.allows for code in one.codes)
