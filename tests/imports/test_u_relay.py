"""Universal Relay's maps as a policy: what they say is decided, what cannot be said is a comment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.mutations import COUNT, mutations
from tests.policy.policies import sound
from urelay.analysis import check
from urelay.cli.main import main
from urelay.errors import StartError
from urelay.imports.u_relay import convert
from urelay.lang.parser import parse
from urelay.lang.source import Source
from urelay.net.address import Endpoint, parse_address
from urelay.policy.check import check_file
from urelay.table.compile import compile_policy
from urelay.table.evaluate import Table

MAPS = {
    "relay_map": [["www.example.com", 1], ["host", "0x10002"], ["other.example", 1], ["bad name", 3]],
    "dc_map": [["alias.example", "www.example.com"], ["loop.example", "loop.example."]],
    "hosts_map": [["printer", "192.0.2.9"], ["link", "fe80::1%eth0"]],
    "resolve_map": [["db.example", ["10.0.0.5", "10.0.0.6"]]],
    "do_map": [
        ["ads.example", "delete"],
        ["onion", {"connFuncType": "socks", "socks_server": {"host": "127.0.0.1", "port": 9050}}],
        ["corp.example", {"socks_server": {"path": "/run/socks"}}],
        ["odd.example", {"tls_options": {}}],
    ],
    "ip_map": [
        ["::ffff:203.0.113.0/120", {"bind_addr4": "10.66.0.2"}],
        ["2001:db8:bad::/48", "delete"],
        ["::ffff:172.16.0.0/108", "delete"],
    ],
    "dns_map": [["x.example", ["2001:db8::1"]]],
    "groupsub_map": {"tor": {"domain_subst": "#.onion"}},
}


@pytest.fixture
def written(tmp_path: Path) -> str:
    text = convert(json.dumps(MAPS), "static_maps.json")
    (tmp_path / "relay.urr").write_text(text)
    return text


@pytest.fixture
def table(tmp_path: Path, written: str) -> Table:
    policy = check_file(str(tmp_path / "relay.urr")).policy
    assert policy is not None
    return compile_policy(policy)


def where(table: Table, host: str, port: int = 80) -> tuple[str, str | None, str | None]:
    asked: bytes | str = parse_address(host) if ":" in host or host[0].isdigit() else host
    decision = table.decide(asked, port, None, "relay")
    end = decision.destination or Endpoint(asked, port)
    return decision.outcome.value, decision.upstream, str(end)


def test_addresses_become_names(table: Table) -> None:
    prefix = "fedb:1200:4500:7800"
    assert where(table, f"{prefix}:5ff:7001:0:1") == ("direct", None, "www.example.com:80")
    assert where(table, f"{prefix}:5ff:7001:1:2") == ("direct", None, "host:80")
    assert where(table, "203.0.113.9")[:2] == ("via", "upstream-2")


@pytest.mark.parametrize(
    ("inside", "dialled"),
    [
        ("8.8.8.8", ("direct", None, "8.8.8.8:80")),
        ("10.0.0.5", ("direct", None, "10.0.0.5:80")),
        ("203.0.113.9", ("via", "upstream-2", "203.0.113.9:80")),
        ("172.16.3.4", ("deny", None, "172.16.3.4:80")),
        ("127.0.0.1", ("deny", None, "127.0.0.1:80")),
        ("169.254.169.254", ("deny", None, "169.254.169.254:80")),
        ("0.0.0.0", ("deny", None, "0.0.0.0:80")),
    ],
)
def test_the_ipv4_window_leads_where_the_address_itself_does(
    table: Table, inside: str, dialled: tuple[str, str | None, str]
) -> None:
    """Through the window a client reaches, and is denied, what it is by IPv4."""
    assert where(table, f"fedb:1200:4500:7800:5ff:6464:{inside}") == dialled
    assert where(table, inside)[:2] == dialled[:2]


def test_no_address_of_the_window_gets_round_a_denial(tmp_path: Path, written: str) -> None:
    """Proved for all of them, and for names that resolve into the window nothing else is decided."""
    window = "fedb:1200:4500:7800:5ff:6464:"
    claims = [f"expect {window}{block} -> deny" for block in ("ac10:0/108", "7f00:0/104")]
    policy = sound(tmp_path, "\n".join((written, *claims)))
    assert [found for found in check(compile_policy(policy)) if found.code == "UR301"] == []
    table = compile_policy(policy)
    asked = table.decide("evil.example", 80, None, "relay")
    assert asked.needs_address
    address = parse_address(f"{window}127.0.0.1")
    assert table.settle(asked, "evil.example", address, 80, None, "relay").denied


def test_what_a_map_says_of_a_window_stands(tmp_path: Path) -> None:
    window = "fedb:1200:4500:7800:5ff:6464"
    text = convert(json.dumps({"ip_map": [[f"{window}::/96", "delete"]]}), "x.json")
    table = compile_policy(sound(tmp_path, text))
    assert where(table, f"{window}:8.8.8.8")[0] == "deny"
    assert where(table, "8.8.8.8")[0] == "direct"


def test_names_become_names_and_addresses(table: Table) -> None:
    assert where(table, "alias.example") == ("direct", None, "www.example.com:80")
    assert where(table, "printer.u-relay.home.arpa") == ("direct", None, "192.0.2.9:80")
    assert where(table, "db.example") == ("direct", None, "10.0.0.5:80")


def test_ways_and_blocks(table: Table) -> None:
    assert where(table, "a.ads.example")[0] == "deny"
    assert where(table, "2001:db8:bad::1")[0] == "deny"
    assert where(table, "x.onion")[0] == "via"
    assert where(table, "corp.example")[:2] == ("via", "upstream-1")
    assert where(table, "198.51.100.1") == ("direct", None, "198.51.100.1:80")


@pytest.mark.parametrize(
    "lost",
    [
        "other.example",
        "bad name",
        "loop.example",
        "fe80::1%eth0",
        "10.0.0.6",
        "odd.example",
        "dns_map",
        "groupsub",
        "5ff:7007",
    ],
)
def test_what_has_no_equivalent_is_a_comment(written: str, lost: str) -> None:
    (line,) = [line for line in written.splitlines() if "not here" in line and lost in line]
    assert line.startswith("# ")


def test_the_policy_is_sound(tmp_path: Path, written: str) -> None:
    sound(tmp_path, written)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000])
def test_what_is_no_map_is_refused(text: str) -> None:
    with pytest.raises(StartError):
        convert(text, "x.json")


SMALL = [
    b'{"relay_map":[["a.example",1]]}',
    b'{"dc_map":[["b.example","a.example"]],"hosts_map":{"c":"192.0.2.1"}}',
    b'{"ip_map":[["10.0.0.0/8",{"socks_server":{"host":"192.0.2.1","port":1080}}]]}',
    b'{"do_map":[["d.example","delete"]],"resolve_map":[["e.example",["10.0.0.5"]]]}',
]


def test_mutated_maps_fail_in_one_way_only() -> None:
    written = 0
    for number, data in mutations(SMALL, b"[", b"}", b"1", b'"', b",[[]]"):
        try:
            text = convert(data.decode("latin-1"), "x.json")
        except StartError:
            continue
        written += 1
        if number % 1000 == 0:
            document, found = parse(Source.from_text("x.urr", text))
            assert found == []
            assert document.statements
    assert written > COUNT / 100


@pytest.mark.parametrize(
    "value", [None, 1, "x", [], [[]], [[1, 2, 3]], [None], {"a": None}, [["a\nmatch any", 1]]]
)
def test_maps_of_any_shape_make_a_policy(tmp_path: Path, value: object) -> None:
    text = convert(json.dumps(dict.fromkeys(MAPS, value)), "static\nmaps.json")
    sound(tmp_path, text)


def test_the_command_writes_what_check_accepts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    maps, policy = tmp_path / "static_maps.json", tmp_path / "relay.urr"
    maps.write_text(json.dumps(MAPS))
    assert main(["import", "u-relay", str(maps), "--prefix", "2001:db8:1:2::/64"]) == 0
    policy.write_text(capsys.readouterr().out)
    assert "2001:db8:1:2:5ff:7001:0:1" in policy.read_text()
    assert main(["check", "--strict", str(policy)]) == 0


@pytest.mark.parametrize("prefix", ["2001:db8::/48", "10.0.0.0/64", "2001:db8::1/64", "x", "::"])
def test_the_prefix_has_64_bits(tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.json").write_text("{}")
    assert main(["import", "u-relay", str(tmp_path / "m.json"), "--prefix", prefix]) == 2
    assert "--prefix" in capsys.readouterr().err


def test_a_file_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", "socketbox", str(tmp_path / "nothing")]) == 2
    assert "cannot read" in capsys.readouterr().err
