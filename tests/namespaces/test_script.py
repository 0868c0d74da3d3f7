"""The commands that are shown do what the relay does, and their undoing leaves nothing."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.rig import Network
from tests.namespaces.test_capture import TPROXY, Lab, captured, listen

ROOT = Path(__file__).resolve().parents[2]


def urelay(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "urelay", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.netns
@pytest.mark.peer("nft")
@pytest.mark.parametrize("host", ["::", "10.1.0.1"])
def test_the_commands_do_what_the_relay_does(tmp_path: Path, host: str) -> None:
    with Network() as net:
        lab = Lab(net)
        before = lab.state()
        with listen(lab.gate, 1081, host) as sock, captured(lab, TPROXY, sock):
            installed = lab.state()
        policy = tmp_path / "site.urr"
        place = f"[{host}]" if ":" in host else host
        listener = f"listen lan = transparent {place}:1081 {{ netns {lab.gate.name}, capture tcp }}"
        policy.write_text(f"{listener}\nmatch any -> direct\n")
        shown = urelay("capture", str(policy), "--show")
        assert shown.returncode == 0, shown.stderr
        adding, removing = shown.stdout.split("# and to take it away:\n")
        for script, expected in ((adding, installed), (removing, before)):
            done = subprocess.run(["sh", "-e"], input=script, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            assert lab.state() == expected
        # What a killed relay left goes by a command too.
        subprocess.run(["sh", "-e"], input=adding, check=True, text=True)
        assert urelay("capture", str(policy), "--remove").returncode == 0
        assert lab.state() == before
        with listen(lab.gate, 1081, host) as sock, captured(lab, TPROXY, sock):
            refused = urelay("capture", str(policy), "--remove")
            assert refused.returncode == 2
            assert "another relay captures the connections" in refused.stderr
            assert lab.state() == installed


def test_a_policy_that_captures_nothing_has_nothing_to_show(tmp_path: Path) -> None:
    policy = tmp_path / "site.urr"
    policy.write_text("listen a = socks 127.0.0.1:1080\nmatch any -> direct\n")
    done = urelay("capture", shlex.quote(str(policy)), "--show")
    assert (done.returncode, done.stdout) == (2, "")
    assert "says `capture tcp`" in done.stderr


def test_a_namespace_that_is_missing_is_said_beside_the_commands(tmp_path: Path) -> None:
    policy = tmp_path / "site.urr"
    policy.write_text("listen a = transparent [::]:1 { netns urt-none, capture tcp }\nmatch any -> direct\n")
    done = urelay("capture", str(policy), "--show")
    assert done.returncode == 0
    assert "# add the addresses of its interfaces to both lists: there is no network namespace" in done.stdout
    assert "nsenter --net=/run/netns/urt-none" in done.stdout
