"""socketbox's first match and the policy's most specific route agree, on random rules too."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.imports.boxes import goes, random_connection, random_rules, table
from tests.mutations import COUNT, mutations
from tests.policy.policies import sound
from urelay.errors import StartError
from urelay.imports.socketbox import convert
from urelay.lang.parser import parse
from urelay.lang.source import Source
from urelay.net.address import parse_address

EXAMPLE = """\
max-maps:10
max-rules:10
# two services, a map, and the rest
rule-set:0 size:10
ip:2001:db8::1 jump-unix:run/one.sock
ip:2001:db8::/32 port:80 jump-unix:run/web.sock
rip:::ffff:10.0.0.0/104 jump-map:3
ip:::ffff:192.0.2.0/120 jump-rule:1
ip:2001:db8:5::/ffff:ffff:ffff:: fail
port:22 rport:1000 jump-unix:run/odd.sock
ip:2001:db8::/ffff::ffff jump-unix:run/holes.sock
port:23 jump-fd:5
default jump-unix:run/rest-#//7_.sock
rule-set:1 size:2
port:443 jump-unix:run/tls.sock
default fail
map-set:3 size:2 match-lip:120 match-lport:1
ip:::ffff:198.51.100.77 port:8080 jump-unix:run/mapped.sock
default fail
"""


@pytest.mark.parametrize(
    ("host", "port", "source", "expected"),
    [
        ("2001:db8::1", 1, "203.0.113.1", "one.sock"),
        ("2001:db8::1", 80, "10.1.1.1", "one.sock"),
        ("2001:db8::2", 80, "10.1.1.1", "web.sock"),
        ("2001:db8::2", 81, "203.0.113.1", "rest-#//7_.sock"),
        ("198.51.100.9", 8080, "10.1.1.1", "mapped.sock"),
        ("198.51.100.9", 8081, "10.1.1.1", "deny"),
        ("198.51.100.9", 8080, "203.0.113.1", "rest-#//7_.sock"),
        ("192.0.2.5", 443, "203.0.113.1", "tls.sock"),
        ("192.0.2.5", 80, "203.0.113.1", "deny"),
        ("192.0.2.5", 443, "10.1.1.1", "deny"),
        ("2001:db8:5::9", 1, "203.0.113.1", "deny"),
        ("2001:db8:5::9", 80, "203.0.113.1", "web.sock"),
        ("203.0.113.5", 1, "2001:db8:99::1", "rest-#//7_.sock"),
    ],
)
def test_every_connection_goes_where_it_went(
    tmp_path: Path, host: str, port: int, source: str, expected: str
) -> None:
    assert goes(table(tmp_path, EXAMPLE), host, port, source) == expected


def test_what_cannot_be_said_is_named() -> None:
    text = convert(EXAMPLE, "socketbox.conf")
    for line, why in ((10, "rport"), (11, "a mask with holes"), (12, "jump-fd")):
        assert f"# not here: line {line}: {why}" in text


def test_the_policy_is_sound(tmp_path: Path) -> None:
    sound(tmp_path, convert(EXAMPLE, "socketbox.conf"))


def test_random_rules_agree_with_the_first_match(tmp_path: Path) -> None:
    rng = random.Random(5)
    for _ in range(15):
        rules = [(words, f"{number}.sock") for number, words in enumerate(random_rules(rng))]
        lines = [" ".join([*words, f"jump-unix:/run/{name}"]) for words, name in rules]
        decided = table(tmp_path, "\n".join(["max-rules:1", "rule-set:0 size:9", *lines]))
        for _ in range(60):
            host, port, source = random_connection(rng)
            expected = next((name for words, name in rules if fits(words, host, port, source)), "deny")
            assert goes(decided, host, port, source) == expected, (lines, host, port, source)


def fits(words: list[str], host: str, port: int, source: str) -> bool:
    for word in words:
        key, _, value = word.partition(":")
        if key == "port":
            if int(value) != port:
                return False
            continue
        text, _, length = value.partition("/")
        shift = 128 - int(length)
        wanted = int.from_bytes(parse_address(text))
        there = int.from_bytes(parse_address(host if key == "ip" else source))
        if wanted >> shift != there >> shift:
            return False
    return True


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no `rule-set:0`"),
        ("ip:::1 fail", "stands in no set"),
        ("rule-set:0\nip:10.0.0.1 fail", "is not an IPv6 address"),
        ("rule-set:0\nip:::1/129 fail", "not a number up to 128"),
        ("rule-set:0\nport:70000 fail", "not a number up to 65535"),
        ("rule-set:0\nport:http fail", "not a number"),
        ("rule-set:0\njump-to:5", "no word of socketbox"),
        ("rule-set:5000", "not a number"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(text: str, why: str) -> None:
    with pytest.raises(StartError, match=why):
        convert(text, "x.conf")


def test_jumps_that_never_end_are_denied(tmp_path: Path) -> None:
    decided = table(tmp_path, "rule-set:0\nip:::1 jump-rule:0\ndefault jump-rule:0")
    assert goes(decided, "192.0.2.1", 80) == "deny"


SMALL = [
    b"rule-set:0\nip:2001:db8::/32 port:80 jump-unix:run/x\n",
    b"rule-set:0\nrip:::ffff:10.0.0.0/104 jump-map:1\nmap-set:1 match-lport:1\nport:22 jump-unix:a\n",
    b"rule-set:0 size:10\ndefault jump-rule:1\nrule-set:1\nport:22 fail\n",
    b"rule-set:0\nip:2001:db8:5::/ffff:: jump-fd:5\ndefault fail\n",
]


@pytest.mark.parametrize(
    ("seeds", "count"), [([EXAMPLE.encode()], 1_000), (SMALL, COUNT)], ids=["whole", "small"]
)
def test_mutated_configurations_fail_in_one_way_only(seeds: list[bytes], count: int) -> None:
    written = 0
    for number, data in mutations(seeds, b":", b"\n", b"/", b"0", b"rule-set:1", count=count):
        try:
            text = convert(data.decode("latin-1"), "x.conf")
        except StartError:
            continue
        written += 1
        if number % 1000 == 0:
            document, found = parse(Source.from_text("x.urr", text))
            assert found == []
            assert document.statements
    assert written > count / 100
