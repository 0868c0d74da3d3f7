"""`explain` tells the forwarder's decision, and for each loser the one comparison it lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from urelay.analysis.explain import answer, decide, explain, explain_region
from urelay.policy.check import Connection, check_file, resolve_question
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

POLICY = """
set private = { 10.0.0.0/8, 192.168.0.0/16 }
set own = 2001:db8:64::/96
upstream wg = direct { source 10.66.0.2 }
upstream far = socks5 192.0.2.1:1080
listen lan = socks 127.0.0.1:1080 { table guests from 10.9.0.0/16 }
listen box = socks 127.0.0.1:1081
forbid any port 25
match any                                  -> via far
match any port 1-1023                      -> via wg
match @private                             -> direct
match 10.0.0.0/8 port 20-29                -> direct with tag few
match 10.0.0.0/8 port 22                   -> deny
match 10.0.0.0/8 port 22 from 10.0.0.0/8   -> deny refused
match 10.0.0.0/8 port 22 from 10.8.0.0/16  -> via wg
match 10.0.0.0/8 port 22 from 10.8.0.0/16 on box -> direct
match .corp.example                        -> direct
match *.corp.example                       -> via far
match 198.51.100.7 port 80                 -> to unix "/run/web/{name}.sock"
match 198.51.100.8 port 80                 -> to unix "/run/web/{listener}-{port}.sock"
match 198.51.100.9                         -> rewrite to 10.1.1.1 then lookup main
match @own                                 -> rewrite from nat64 @own then direct
table guests {
    match any -> deny silently
}
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    path = tmp_path_factory.mktemp("policy") / "p.urr"
    path.write_text(POLICY)
    policy = check_file(str(path)).policy
    assert policy is not None
    return compile_policy(policy)


def asked(table: Table, text: str) -> Connection:
    connection = resolve_question(text, table.policy).connection
    assert connection is not None
    return connection


def reasons(table: Table, text: str) -> dict[int, str]:
    """Why each line lost."""
    return {origin.line: reason for origin, reason in explain(table, asked(table, text)).beaten}


def test_each_loser_lost_its_own_comparison(table: Table) -> None:
    assert reasons(table, "10.1.2.3:22 from 10.8.0.1 on box") == {
        15: "names no listener",
        14: "shorter source 10.0.0.0/8",
        13: "says nothing about the source",
        12: "more ports 20-29",
        11: "all ports",
        10: "any destination",
        9: "any destination",
    }


def test_names_lose_to_names_and_addresses_to_longer_prefixes(table: Table) -> None:
    assert reasons(table, "www.corp.example:443") == {
        17: "less specific name .corp.example",
        10: "any destination",
        9: "any destination",
    }
    assert reasons(table, "127.0.0.1:1080")[9] == "any destination"


def test_a_wall_comes_first(table: Table) -> None:
    found = answer(table, asked(table, "10.1.2.3:25"))
    assert found["outcome"] == "deny"
    assert found["route"] is None
    assert found["wall"] == {"file": table.policy.path, "line": 8, "text": "forbid any port 25"}
    assert set(reasons(table, "10.1.2.3:25").values()) == {"a wall comes first"}


@pytest.mark.parametrize(
    ("text", "outcome", "upstream", "destination", "name", "rewrites"),
    [
        ("10.1.2.3:80", "direct", None, "10.1.2.3:80", "main", []),
        ("[2001:db8::1]:8080", "via", "far", "[2001:db8::1]:8080", "main", []),
        ("8.8.8.8:1 from 10.9.1.1 on lan", "silent", None, "8.8.8.8:1", "guests", []),
        ("198.51.100.8:80 on lan", "unix", None, "/run/web/lan-80.sock", "main", []),
        ("198.51.100.7:80 on lan", "unix", None, None, "main", []),
        ("198.51.100.9:80", "direct", None, "10.1.1.1:80", "main", ["10.1.1.1:80"]),
        ("[2001:db8:64::a00:1]:80", "direct", None, "10.0.0.1:80", "main", ["10.0.0.1:80"]),
        ("corp.example:443", "direct", None, "corp.example:443", "main", []),
    ],
)
def test_answers_have_the_promised_keys(
    table: Table,
    text: str,
    outcome: str,
    upstream: str | None,
    destination: str | None,
    name: str,
    rewrites: list[str],
) -> None:
    found = answer(table, asked(table, text), text)
    expected = {
        "connection": text,
        "outcome": outcome,
        "upstream": upstream,
        "destination": destination,
        "table": name,
        "wall": None,
        "rewrites": rewrites,
    }
    assert {key: found[key] for key in expected} == expected


def test_a_path_that_cannot_be_filled_says_why(table: Table) -> None:
    found = answer(table, asked(table, "198.51.100.7:80 on lan"))
    assert "{name}" in str(found["why"])


def test_the_decision_always_has_a_destination(table: Table) -> None:
    connection = asked(table, "10.1.2.3:80")
    assert decide(table, connection).destination == connection.destination


def test_text_shows_the_way_and_the_cell(table: Table) -> None:
    text = explain(table, asked(table, "198.51.100.9:80 from 10.8.0.1 on box")).text()
    assert text.splitlines()[0] == "direct"
    assert "rewritten 10.1.1.1:80" in text
    assert "walls     none of 1 covers it" in text
    text = explain(table, asked(table, "10.1.2.3:22 from 10.8.0.1 on box")).text()
    assert text.splitlines()[-1] == "  same for  10.0.0.0/8 port 22 from 10.8.0.0/16 on box"


@pytest.mark.parametrize(
    ("question", "same"),
    [
        pytest.param("10.1.2.3:22 from 10.8.0.1", "10.0.0.0/8 port 22 from 10.8.0.0/16", id="source alone"),
        pytest.param("10.1.2.3:22 on box", "10.0.0.0/8 port 22 on box", id="listener alone"),
        pytest.param("10.1.2.3:22", "10.0.0.0/8 port 22", id="neither"),
    ],
)
def test_the_cell_says_no_more_than_the_question(table: Table, question: str, same: str) -> None:
    assert explain(table, asked(table, question)).text().splitlines()[-1] == f"  same for  {same}"


def test_a_cell_that_is_everything_of_its_kind_ends_without_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "x.urr"
    path.write_text("match 2001:db8::/56 -> rewrite from nat64 2001:db8::/56 then direct\n")
    policy = check_file(str(path)).policy
    assert policy is not None
    table = compile_policy(policy)
    last = explain(table, asked(table, "[2001:db8::100:0:0:0]:80")).text().splitlines()[-1]
    assert last.startswith("  same for  IPv6 addresses with an IPv4 address inside, like 2001:db8:")
    assert not last.endswith(",")


def test_a_region_prints_its_partition(table: Table) -> None:
    question = resolve_question("10.0.0.0/8 port 20-25 table guests", table.policy)
    lines = explain_region(table, question).splitlines()
    assert [line.split("  ")[0] for line in lines if not line.startswith(" ")] == ["deny", "deny silently"]
    assert "  10.0.0.0/8 port 25" in lines
    assert "  10.0.0.0/8 port 20-24" in lines


def test_site_is_explained_as_its_reference_says() -> None:
    root = Path(__file__).parent.parent.parent
    policy = check_file(str(root / "rules" / "site.urr")).policy
    assert policy is not None
    table = compile_policy(policy)
    found = explain(table, asked(table, "10.1.2.3:22 from 192.168.7.9 on lan"))
    assert found.decision.upstream == "wg"
    assert [loser.reason for loser in found.beaten] == [
        "says nothing about the source",
        "all ports",
        "any destination",
    ]
