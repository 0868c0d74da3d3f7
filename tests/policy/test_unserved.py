"""`serve` refuses by name and line what it cannot run; what it can run is never refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.policy.policies import sound
from urelay.policy import unserved
from urelay.policy.check import check_file

DEFINITIONS = """
upstream wg = direct
table guests { match any -> deny }
match any port 1 -> via wg
"""


def refused(folder: Path, text: str) -> list[tuple[int, str]]:
    """The line (of `text`) and the words of each refusal."""
    before = DEFINITIONS.count("\n")
    found = unserved.find(sound(folder, DEFINITIONS + text))
    assert {one.code for one in found} <= {"UR405"}
    return [(one.labels[0].span.line - before, one.message) for one in found]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("listen x = transparent 127.0.0.1:1 { sniff tls }", "the listener option `sniff`"),
        ("dns x = 127.0.0.1:53 { forward 9.9.9.9:53 }", "`dns`"),
    ],
)
def test_what_cannot_be_served_is_named_with_its_line(tmp_path: Path, text: str, what: str) -> None:
    assert refused(tmp_path, f"\n{text}\n") == [(2, f"this relay cannot serve {what} yet")]


def test_each_place_is_named() -> None:
    site = check_file(str(Path(__file__).parent.parent.parent / "rules" / "site.urr")).policy
    assert site is not None
    found = unserved.find(site)
    assert {one.labels[0].span.source.path for one in found} == {site.path}
    starts = [one.labels[0].span.start for one in found]
    assert starts == sorted(set(starts))
    assert starts


def test_what_is_served_is_not_refused(tmp_path: Path) -> None:
    text = """
    upstream a = socks5 192.0.2.1:1 { login env X, dns local, connect 5s, via b }
    upstream b = socks4 { unix "/run/x", login file "x" }
    upstream g = direct { source 192.0.2.1, dev wg0, mark 1, netns blue }
    upstream h = socks5 192.0.2.1:1 { source 192.0.2.1, dev wg0, mark 1, netns blue }
    upstream l = direct { tls, server-name example.com, ca "ca.pem" }
    upstream m = socks5 192.0.2.1:1 { tls, insecure }
    upstream i = first g, h { check 192.0.2.1:80 every 10s }
    upstream j = spread g, i { by destination, check 192.0.2.1:80 every 10s }
    upstream k = spread g, i { random }
    listen c = socks [::]:1 { netns lan, users "u", idle 1h, table guests from 10.0.0.0/8, table main }
    upstream n = http 192.0.2.1:1 { login file "x", via a }
    listen h = http [::]:1 { users "u" }
    listen m = mixed 127.0.0.1:1 { users "u", idle 1h }
    listen d = transparent fd 3 { limit 9 per source }
    listen e = transparent fd env X
    listen i = redirect 127.0.0.1:3
    listen g = socks systemd "relay"
    listen k = socks unix "/run/x" { mode 0660 }
    listen l = transparent unix "/run/y" { accept-proxy }
    listen n = transparent socketbox "/run/z" { accept-proxy from 10.0.0.0/8 as inner }
    listen o = transparent socketbox "/run/slots" slot 7 { accept-proxy from 10.0.0.0/8 }
    listen f = forward 127.0.0.1:2 to example.com:25
    match 192.0.2.0/24 -> via a with idle 5m, tag x, log off, limit 5 per source
    match 192.0.2.7 -> via socks5 192.0.2.1:1
    match 192.0.2.6 -> via http 192.0.2.1:1
    match 192.0.2.8 -> to unix "/run/{port}"
    match 192.0.2.10 -> to socketbox "/run/{port}"
    match 192.0.2.11 -> to socketbox "/run/others" slot 7
    match 192.0.2.9 -> deny silently
    """
    assert refused(tmp_path, text) == []
