"""What statements mean; that nothing anybody can write makes the checker fail; that errors stay apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policy.policies import checked, codes, sound
from urelay.lang.diagnostics import Severity
from urelay.lang.render import render_json, render_text
from urelay.net.address import Endpoint, Prefix
from urelay.policy import allow, unserved
from urelay.policy.check import check_file
from urelay.policy.model import (
    AcceptProxy,
    Action,
    Deny,
    DenyHow,
    Destinations,
    Direct,
    FromNat64,
    HeaderTarget,
    Listener,
    Login,
    Lookup,
    NameKind,
    NamePattern,
    Outcome,
    Place,
    PlaceKind,
    PortRange,
    Region,
    Rewrite,
    RouteSettings,
    Silent,
    TableChoice,
    ToName,
    ToNat64,
    ToPrefix,
    Unix,
    UpstreamKind,
    Via,
)

NET10 = Prefix(4, 10 << 24, 8)
NAT64 = Prefix(6, 0x0064FF9B << 96, 96)
DEFINITIONS = """
set private = { 10.0.0.0/8, fd00::/8 }
set admins  = 192.168.7.0/24
set web     = { 80, 8000-8099 }
set nat64   = 64:ff9b::/96
set db      = "database"
upstream wg = direct
listen lan  = transparent 127.0.0.1:1080
listen box  = socks 127.0.0.1:1081 { table guests }
table guests { match any -> deny }
match any port 1 -> via wg
"""


def route(folder: Path, text: str) -> tuple[Region, Action]:
    """The region and action of the one route that `text` adds to DEFINITIONS."""
    found = sound(folder, DEFINITIONS + text + "\n").tables["main"][-1]
    return found.region, found.action


@pytest.mark.parametrize(
    ("text", "region"),
    [
        ("any", Region()),
        ("any port any from any on any", Region()),
        ("10.0.0.0/8", Region(Destinations((NET10,)))),
        ("@private", Region(Destinations((NET10, Prefix(6, 0xFD << 120, 8))))),
        (
            "{ .corp.example, 10.0.0.0/8 }",
            Region(Destinations((NET10,), (NamePattern(NameKind.SELF_AND_BELOW, "corp.example"),))),
        ),
        ('"intranet"', Region(Destinations((), (NamePattern(NameKind.EXACT, "intranet"),)))),
        ("any port 443", Region(ports=(PortRange(443, 443),))),
        (
            "any port { @web, 22 }",
            Region(ports=(PortRange(80, 80), PortRange(8000, 8099), PortRange(22, 22))),
        ),
        ("any from @admins", Region(sources=(Prefix(4, 0xC0A80700, 24),))),
        ("any from 192.168.7.9", Region(sources=(Prefix(4, 0xC0A80709, 32),))),
        ("any on { lan, box }", Region(listeners=frozenset({"lan", "box"}))),
        (
            "any on lan from @admins port 22",
            Region(None, (PortRange(22, 22),), (Prefix(4, 0xC0A80700, 24),), frozenset({"lan"})),
        ),
    ],
)
def test_regions(tmp_path: Path, text: str, region: Region) -> None:
    assert route(tmp_path, f"match {text} -> direct")[0] == region


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("direct", Action(Direct())),
        ("via wg", Action(Via("wg"))),
        ("via socks5 proxy:1080", Action(Via("socks5 proxy:1080"))),
        ("via socks4 [::1]:1080", Action(Via("socks4 [::1]:1080"))),
        ("deny", Action(Deny())),
        ("deny refused", Action(Deny(DenyHow.REFUSED))),
        ("deny host-unreachable", Action(Deny(DenyHow.HOST_UNREACHABLE))),
        ("deny net-unreachable", Action(Deny(DenyHow.NET_UNREACHABLE))),
        ("deny ttl-expired", Action(Deny(DenyHow.TTL_EXPIRED))),
        ("deny silently", Action(Silent())),
        ("lookup guests", Action(Lookup("guests"))),
        ("lookup main", Action(Lookup("main"))),
        ('to unix "/run/{listener}/#//7_.sock"', Action(Unix("/run/{listener}/#//7_.sock"))),
        ("rewrite to 11.0.0.0/8 then direct", Action(Direct(), Rewrite(ToPrefix(Prefix(4, 11 << 24, 8))))),
        ("rewrite to 192.0.2.5 then via wg", Action(Via("wg"), Rewrite(ToPrefix(Prefix(4, 0xC0000205, 32))))),
        ("rewrite to db.example then direct", Action(Direct(), Rewrite(ToName("db.example")))),
        ("rewrite to @db then direct", Action(Direct(), Rewrite(ToName("database")))),
        ("rewrite to nat64 @nat64 then direct", Action(Direct(), Rewrite(ToNat64(NAT64)))),
        ("rewrite port 81 then direct", Action(Direct(), Rewrite(ports=PortRange(81, 81)))),
        (
            "rewrite to 192.0.2.5, port 81 then lookup guests",
            Action(Lookup("guests"), Rewrite(ToPrefix(Prefix(4, 0xC0000205, 32)), PortRange(81, 81))),
        ),
    ],
)
def test_actions(tmp_path: Path, text: str, action: Action) -> None:
    assert route(tmp_path, f"match 10.0.0.0/8 -> {text}")[1] == action


def test_extracting_needs_the_prefix_it_extracts_from(tmp_path: Path) -> None:
    action = route(tmp_path, "match @nat64 -> rewrite from nat64 @nat64 then lookup main")[1]
    assert action == Action(Lookup("main"), Rewrite(FromNat64(NAT64)))


def test_a_range_of_ports_moves_onto_one_as_wide_or_one_port(tmp_path: Path) -> None:
    moved = route(tmp_path, "match any port 8000-8099 -> rewrite port 9000-9099 then direct")[1]
    assert moved.rewrite == Rewrite(ports=PortRange(9000, 9099))
    assert route(tmp_path, "match any -> rewrite port 81 then direct")[1].rewrite is not None


def test_settings_of_a_route(tmp_path: Path) -> None:
    text = "match any -> direct with idle 5m, tag smtp, log full, limit 20 per source\n"
    found = sound(tmp_path, text).tables["main"][0].settings
    assert found == RouteSettings(300.0, "smtp", "full", 20)


def test_upstreams(tmp_path: Path) -> None:
    policy = sound(
        tmp_path,
        """
        upstream corp = socks5 proxy.corp.example:1080 {
            login    env CORP_LOGIN
            dns      local
            connect  5s
        }
        upstream sock = socks4 { unix "run/proxy.sock", login file "login.txt" }
        upstream far  = socks5 192.0.2.1:1080 { via corp }
        upstream out  = first far, sock { check 1.1.1.1:443 every 10s }
        match any -> via out
        match 192.0.2.0/24 -> via socks5 192.0.2.9:1080
        """,
    )
    corp, sock, far, out = (policy.upstreams[name] for name in ("corp", "sock", "far", "out"))
    assert (corp.endpoint, corp.login, corp.takes_names, corp.connect_timeout_s) == (
        Endpoint("proxy.corp.example", 1080),
        Login(env="CORP_LOGIN"),
        False,
        5.0,
    )
    assert (sock.endpoint, sock.unix_path) == (None, str(tmp_path / "run/proxy.sock"))
    assert (sock.login, sock.takes_names) == (Login(file=str(tmp_path / "login.txt")), False)
    assert (far.via, far.takes_names) == ("corp", True)
    assert (out.kind, out.members) == (UpstreamKind.FIRST, ("far", "sock"))
    inline = policy.upstreams["socks5 192.0.2.9:1080"]
    assert (inline.kind, inline.endpoint) == (UpstreamKind.SOCKS5, Endpoint(bytes((192, 0, 2, 9)), 1080))
    assert str(corp.origin).endswith("main.urr:2")
    assert corp.origin.text.startswith("upstream corp = socks5 proxy.corp.example:1080 {")


@pytest.mark.parametrize(
    "hop", ["socks5 192.0.2.2:1080 {{ via u{} }}", "direct {{ tls, via u{} }}", "first u{}"]
)
def test_upstreams_stand_behind_each_other_so_deep_and_no_deeper(tmp_path: Path, hop: str) -> None:
    """Told once, and not by a stack that overflows."""
    lines = ["upstream u0 = socks5 192.0.2.1:1080"]
    lines += [f"upstream u{number} = {hop.format(number - 1)}" for number in range(1, 64)]
    sound(tmp_path, "\n".join([*lines, "match any -> via u63"]))
    lines += [f"upstream u{number} = {hop.format(number - 1)}" for number in range(64, 2000)]
    found = checked(tmp_path, "\n".join([*lines, "match any -> via u1999"]))
    assert codes(found) == ["UR107"]
    assert "more than 64 deep" in found.diagnostics[0].message


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("[::]:1080", Place(PlaceKind.ADDRESS, endpoint=Endpoint(bytes(16), 1080))),
        ("fd 3", Place(PlaceKind.FD, fd=3)),
        (
            "fd env CTRTOOL_NS_OPEN_FILE_FD_1",
            Place(PlaceKind.FD_ENV, text="CTRTOOL_NS_OPEN_FILE_FD_1"),
        ),
        ('systemd "relay.socket"', Place(PlaceKind.SYSTEMD, text="relay.socket")),
        ('socketbox "/run/box"', Place(PlaceKind.SOCKETBOX, text="/run/box")),
    ],
)
def test_places(tmp_path: Path, place: str, expected: Place) -> None:
    assert listener(tmp_path, f"transparent {place}").place == expected


def listener(folder: Path, text: str) -> Listener:
    policy = sound(
        folder, f"listen lan = {text}\ntable guests {{ match any -> deny }}\nmatch any -> direct\n"
    )
    return policy.listeners["lan"]


def test_a_listener_chooses_tables_by_source(tmp_path: Path) -> None:
    lan = listener(
        tmp_path,
        'socks [::]:1080 { netns lan, table guests from 10.0.0.0/8, table main, users "u.txt", idle 1h }',
    )
    assert set(lan.tables) == {TableChoice("guests", NET10), TableChoice("main")}
    assert (lan.netns, lan.users_file, lan.idle_timeout_s) == ("lan", str(tmp_path / "u.txt"), 3600.0)


def test_a_namespace_may_be_a_path(tmp_path: Path) -> None:
    assert (
        listener(tmp_path, 'transparent [::]:1080 { netns "/proc/self/ns/net" }').netns == "/proc/self/ns/net"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("transparent fd 3 { accept-proxy from 10.0.0.0/8 }", AcceptProxy((NET10,))),
        (
            "redirect fd 3 { accept-proxy from @private as address }",
            AcceptProxy((NET10,), HeaderTarget.ADDRESS),
        ),
        ("socks fd 3 { accept-proxy from 10.0.0.0/8 as name }", AcceptProxy((NET10,))),
        ('transparent unix "/run/x" { accept-proxy }', AcceptProxy(())),
        ('transparent unix "/run/x" { accept-proxy as inner }', AcceptProxy((), HeaderTarget.INNER)),
        ('transparent socketbox "/run/x" { accept-proxy }', AcceptProxy(())),
        ('transparent socketbox "/run/x" { accept-proxy from 10.0.0.0/8 }', AcceptProxy((NET10,))),
    ],
)
def test_headers_of_a_listener(tmp_path: Path, text: str, expected: AcceptProxy) -> None:
    policy = sound(tmp_path, f"set private = 10.0.0.0/8\nlisten lan = {text}\nmatch @private -> direct\n")
    assert policy.listeners["lan"].accept_proxy == expected


def test_a_listener_without_headers(tmp_path: Path) -> None:
    assert listener(tmp_path, "transparent fd 3").accept_proxy is None


def test_a_forwarder_has_its_destination(tmp_path: Path) -> None:
    lan = listener(tmp_path, "forward 127.0.0.1:2525 to mail:25")
    assert lan.to == Endpoint("mail", 25)


def test_walls_and_tables(tmp_path: Path) -> None:
    policy = sound(
        tmp_path,
        """
        forbid any port 25
        table guests {
            forbid @private
            match any -> direct
            expect @private -> deny
        }
        set private = 10.0.0.0/8
        listen lan = socks 127.0.0.1:1080 { table guests }
        """,
    )
    assert [(wall.table, wall.region.ports) for wall in policy.walls] == [
        (None, (PortRange(25, 25),)),
        ("guests", None),
    ]
    assert [one.table for one in policy.tables["guests"]] == ["guests"]
    assert policy.tables["main"] == ()
    assert policy.expectations[0].table == "guests"


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("10.1.2.3:80 -> direct", {"outcome": Outcome.DIRECT, "negated": False, "table": None}),
        ("any -> not direct", {"outcome": Outcome.DIRECT, "negated": True}),
        ("any -> deny", {"outcome": Outcome.DENY, "deny_how": None}),
        ("any -> deny refused", {"outcome": Outcome.DENY, "deny_how": DenyHow.REFUSED}),
        ("any -> deny silently", {"outcome": Outcome.SILENT, "deny_how": None}),
        ("any -> via wg", {"outcome": Outcome.VIA, "upstream": "wg"}),
        ("any table guests -> deny", {"table": "guests"}),
        ('any -> to unix "/run/{port}"', {"outcome": Outcome.UNIX, "template": "/run/{port}"}),
        ('any -> to socketbox "/run/#//P_"', {"outcome": Outcome.SOCKETBOX, "template": "/run/#//P_"}),
        (
            "8.8.8.8:53 -> direct to [64:ff9b::808:808]:53",
            {"destination": Endpoint((0x0064FF9B << 96 | 0x08080808).to_bytes(16), 53)},
        ),
    ],
)
def test_expectations(tmp_path: Path, text: str, fields: dict[str, object]) -> None:
    (found,) = sound(tmp_path, f"{DEFINITIONS}\nexpect {text}\n").expectations
    assert {name: getattr(found, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("www.corp.example:443", NamePattern(NameKind.EXACT, "www.corp.example")),
        ("intranet:443", NamePattern(NameKind.EXACT, "intranet")),
        (".corp.example:443", NamePattern(NameKind.SELF_AND_BELOW, "corp.example")),
        ("10.0.0.0/8:443", NET10),
        ("[2001:db8::1]:443", Prefix(6, 0x20010DB8 << 96 | 1, 128)),
    ],
)
def test_an_expectation_may_hold_a_port_in_its_destination(
    tmp_path: Path, text: str, host: Prefix | NamePattern
) -> None:
    (found,) = sound(tmp_path, f"{DEFINITIONS}\nexpect {text} -> deny\n").expectations
    assert found.region.ports == (PortRange(443, 443),)
    assert found.region.destinations is not None
    assert [*found.region.destinations.prefixes, *found.region.destinations.names] == [host]


def test_the_guard_is_there_and_lends_no_names(tmp_path: Path) -> None:
    policy = sound(tmp_path, "match any -> direct\n")
    assert policy.guard
    assert all(one.guard for one in policy.guard)
    assert {one.origin.file for one in policy.guard} == {"rules/guard.urr"}
    assert Prefix(4, 127 << 24, 8) in [one.region.destinations.prefixes[0] for one in policy.guard]  # type: ignore[union-attr]


def test_no_password_is_shown_by_any_rendering() -> None:
    corpus = Path(__file__).parent.parent / "corpus" / "sense" / "secrets.urr"
    found = check_file(str(corpus)).diagnostics
    assert len(found) == 7
    for text in (render_text(found), str(render_json(found))):
        assert "secret" not in text.replace("secrets.urr", "")
        assert "alice" not in text


def test_long_chains_are_no_trouble(tmp_path: Path) -> None:
    ups = "\n".join(f"upstream u{n} = socks5 192.0.2.1:1080 {{ via u{(n + 1) % 1000} }}" for n in range(1000))
    assert codes(checked(tmp_path, f"{ups}\nmatch any -> via u0\n")) == ["UR107"]
    sets = "\n".join(f"set s{n} = {{ @s{n + 1} }}" for n in range(1000)) + "\nset s1000 = 192.0.2.1"
    assert set(codes(checked(tmp_path, f"{sets}\nmatch @s0 -> deny\n"))) == {"UR107"}


def test_sets_that_double_each_other_are_stopped(tmp_path: Path) -> None:
    pairs = "\n".join(
        f"set a{n} = {{ @a{n + 1}, @b{n + 1} }}\nset b{n} = {{ @b{n + 1}, @a{n + 1} }}" for n in range(40)
    )
    found = checked(tmp_path, f"{pairs}\nset a40 = 192.0.2.1\nset b40 = 192.0.2.2\nmatch @a0 -> deny\n")
    assert "UR108" in codes(found)


def test_a_million_prefixes_are_not_copied(tmp_path: Path) -> None:
    lines = "".join(f"10.{n >> 8 & 255}.{n & 255}.0/24\n" for n in range(20_000))
    policy = sound(
        tmp_path,
        'set big = file "big.txt"\nset same = @big\nmatch @big -> deny\nmatch @same port 80 -> direct\n',
        big_txt=lines,
    )
    one, two = policy.tables["main"]
    assert one.region.destinations is not None
    assert two.region.destinations is not None
    assert len(one.region.destinations.prefixes) == 20_000
    assert one.region.destinations.prefixes is two.region.destinations.prefixes


SITE = (Path(__file__).parent.parent.parent / "rules" / "site.urr").read_text(encoding="utf-8")
WORDS = sorted(set(re.findall(r"[^\s,{}]+|[{}\n,]", SITE)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join) | st.text(max_size=80))
def test_any_text_is_checked_without_a_traceback(tmp_path: Path, text: str) -> None:
    found = checked(tmp_path, text.encode("utf-8", "replace").decode())
    assert (found.policy is None) == any(one.severity is Severity.ERROR for one in found.diagnostics)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_policy_is_checked_without_a_traceback(tmp_path: Path, data: st.DataObject) -> None:
    lines = SITE.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        words = lines[at].split(" ")
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.sampled_from(WORDS))
        lines[at] = " ".join(words)
    found = checked(tmp_path, "\n".join(lines))
    assert (found.policy is None) == any(one.severity is Severity.ERROR for one in found.diagnostics)
    render_text(allow.apply(found.diagnostics, found.documents))
    assert found.policy is None or unserved.find(found.policy)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=40) | st.text('0123456789.:/ -\n"@#ab', max_size=40))
def test_any_list_is_read_or_its_first_bad_line_is_drawn(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_bytes(text.encode("utf-8", "replace"))
    found = checked(tmp_path, 'set x = file "list.txt"\nmatch @x -> deny\n')
    errors = [one for one in found.diagnostics if one.severity is Severity.ERROR]
    assert (found.policy is None) == bool(errors)
    for one in errors:
        span = one.labels[0].span
        lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
        assert span.text in lines[span.line - 1]
    render_text(found.diagnostics)
