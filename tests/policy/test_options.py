"""Every row of the table of options can be written as it says, and is read into what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy.policies import checked, codes, sound
from urelay.net.address import Endpoint, Prefix
from urelay.policy.model import AcceptProxy
from urelay.policy.options import CLASHES, NEEDS, OPTIONS, Option, Owner, options_of
from urelay.policy.values import Forward, HealthCheck

DEFINITIONS = """
upstream jump = socks5 192.0.2.1:1080
upstream out  = direct
table guests { match any -> deny }
match any -> via jump
"""
CASES = [
    pytest.param(option, kind, id=f"{option.owner} {kind or 'any'} {option.name}")
    for option in OPTIONS
    for kind in (sorted(option.kinds) or ["transparent" if option.owner is Owner.LISTENER else ""])
]


def policy_with(option: Option, kind: str, written: str) -> str:
    """A policy that uses `written`, options of such an owner, once."""
    match option.owner:
        case Owner.UPSTREAM:
            members = {"direct": "", "first": "jump, out", "spread": "jump, out"}
            arguments = "" if option.name == "unix" else members.get(kind, "192.0.2.2:1080")
            statement = f"upstream x = {kind} {arguments} {{ {written} }}\nmatch 192.0.2.9 -> via x"
        case Owner.LISTENER:
            place = 'unix "/run/x"' if option.name == "mode" else "127.0.0.1:1080"
            kind = "forward" if option.name == "mode" else kind
            to = " to 192.0.2.1:25" if kind == "forward" else ""
            statement = f"listen x = {kind} {place}{to} {{ {written} }}"
        case Owner.DNS:
            statement = f"dns x = 127.0.0.1:53 {{ {written} }}"
        case Owner.ROUTE:
            statement = f"match 192.0.2.9 -> direct with {written}"
    return f"{DEFINITIONS}\n{statement}\n"


def written(option: Option, kind: str) -> str:
    """The option's own example, with what it cannot stand without."""
    if (option.name, kind) == ("via", "direct"):
        return f"{option.syntax}, tls"
    if option.owner is Owner.DNS and option.name not in ("fake", "forward"):
        return f"{option.syntax}, fake 198.18.0.0/15"
    return f"{option.syntax}, {NEEDS[option.name]}" if option.name in NEEDS else option.syntax


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_the_example_of_every_option_is_accepted(tmp_path: Path, option: Option, kind: str) -> None:
    sound(tmp_path, policy_with(option, kind, written(option, kind)))


@pytest.mark.parametrize(("option", "kind"), CASES)
def test_no_option_is_accepted_twice_or_with_nonsense(tmp_path: Path, option: Option, kind: str) -> None:
    once = written(option, kind)
    if not option.repeats:
        found = checked(tmp_path, policy_with(option, kind, f"{once}, {option.syntax}"))
        assert "UR102" in codes(found)
    found = checked(tmp_path, policy_with(option, kind, f"{option.name} {{ a, b }} per c"))
    assert found.policy is None


@pytest.mark.parametrize("owner", Owner)
def test_names_are_told_apart_within_an_owner(owner: Owner) -> None:
    rows = [option for option in OPTIONS if option.owner is owner]
    assert len({option.name for option in rows}) == len(rows)


def test_an_option_is_for_its_kinds_only() -> None:
    assert "login" in options_of(Owner.UPSTREAM, "socks5")
    assert "login" not in options_of(Owner.UPSTREAM, "direct")
    assert "users" not in options_of(Owner.LISTENER, "transparent")


@pytest.mark.parametrize("names", [(one, other) for one, other, _ in CLASHES], ids="-".join)
def test_what_cannot_stand_together_is_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    kind = "spread" if "by" in names else "socks5"
    rows = [options_of(Owner.UPSTREAM, kind)[name] for name in names]
    # `unix` first: it decides whether the proxy has an address.
    rows.sort(key=lambda row: row.name != "unix")
    text = policy_with(rows[0], kind, ", ".join(row.syntax for row in rows))
    assert codes(checked(tmp_path, text))[0] == "UR109"


def test_values_have_the_types_the_table_promises(tmp_path: Path) -> None:
    policy = sound(
        tmp_path,
        """
        set lb = 192.0.2.0/28
        upstream wg   = direct { source 10.66.0.2, dev wg0, mark 0x51, netns blue, send-proxy v2 }
        upstream out  = first wg { check 1.1.1.1:443 every 10s }
        upstream bulk = spread wg { random }
        upstream web  = http 192.0.2.1:443 { tls, server-name Proxy.Example, ca "ca.pem" }
        listen lan    = transparent [::]:1 { sniff tls http, accept-proxy from @lb, limit 200 per source }
        dns lan       = 127.0.0.1:53 { fake 198.18.0.0/15, forward 9.9.9.9:53 via out }
        match any -> via bulk
        match 192.0.2.0/24 -> via web
        """,
    )
    ups = {name: {k: s.value for k, s in up.options.items()} for name, up in policy.upstreams.items()}
    assert ups["wg"] == {
        "source": bytes((10, 66, 0, 2)),
        "dev": "wg0",
        "mark": 0x51,
        "netns": "blue",
        "send-proxy": "v2",
    }
    assert ups["out"] == {"check": HealthCheck(Endpoint(bytes((1, 1, 1, 1)), 443), 10.0)}
    assert ups["bulk"] == {"random": True}
    assert ups["web"] == {"tls": True, "server-name": "proxy.example", "ca": str(tmp_path / "ca.pem")}
    assert {name: setting.value for name, setting in policy.listeners["lan"].options.items()} == {
        "sniff": ("tls", "http"),
        "accept-proxy": AcceptProxy((Prefix(4, 0xC0000200, 28),)),
        "limit": 200,
    }
    assert {name: setting.value for name, setting in policy.dns["lan"].options.items()} == {
        "fake": Prefix(4, 0xC6120000, 15),
        "forward": Forward(Endpoint(bytes((9, 9, 9, 9)), 53), "out"),
    }
    assert policy.listeners["lan"].options["limit"].origin.text == "limit 200 per source"
