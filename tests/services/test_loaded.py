"""`import urelay`: the same decisions for Python programs, from text or bytes, and plain errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import urelay
from urelay.policy.model import Outcome
from urelay.services.verdict import judge

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site() -> urelay.LoadedPolicy:
    """The example that shows the whole language."""
    return urelay.load(ROOT / "rules/site.urr")


def test_the_example_of_the_language(site: urelay.LoadedPolicy) -> None:
    decision = site.decide("10.1.2.3", 22, source="192.168.7.9", listener="lan")
    assert (decision.outcome, decision.upstream) == (Outcome.VIA, "wg")
    assert decision.policy == site.digest
    assert decision.route is not None
    assert decision.route.text.startswith("match @private port 22 from @admins -> via wg")
    assert isinstance(decision, urelay.Decision)


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        ("10.1.2.3", "10.1.2.3:443"),
        (bytes((10, 1, 2, 3)), "10.1.2.3:443"),
        (bytes(10) + b"\xff\xff" + bytes((10, 1, 2, 3)), "10.1.2.3:443"),
        ("::ffff:10.1.2.3", "10.1.2.3:443"),
        ("[2001:db8::1]", "[2001:db8::1]:443"),
        ("WWW.Example.COM.", "www.example.com:443"),
    ],
)
def test_the_destination_is_always_filled_in(
    site: urelay.LoadedPolicy, destination: str | bytes, text: str
) -> None:
    assert str(site.decide(destination, 443).destination) == text


def test_it_is_the_evaluator_of_the_relay(site: urelay.LoadedPolicy) -> None:
    table = judge(str(ROOT / "rules/site.urr")).proved()
    for host in (bytes((10, 1, 2, 3)), bytes((8, 8, 8, 8)), "www.corp.example", "x.onion"):
        for port in (22, 25, 80, 8080):
            for listener in (None, "lan", "clat", "mail"):
                ours = site.decide(host, port, bytes((192, 168, 7, 9)), listener)
                theirs = table.decide(host, port, bytes((192, 168, 7, 9)), listener)
                assert ours.destination == (theirs.destination or (host, port))
                assert (ours.outcome, ours.route, ours.wall) == (theirs.outcome, theirs.route, theirs.wall)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("10.0.0.300", 80), "300 is more than 255", id="address"),
        pytest.param(("127.0.0.1\0.example.com", 80), "not a host name", id="nul"),
        pytest.param(("10.0.0.1", 0), "0 is not a port", id="port 0"),
        pytest.param(("10.0.0.1", 65536), "65536 is not a port", id="port"),
        pytest.param((b"12345", 80), "an address has 4 or 16 bytes, not 5", id="bytes"),
        pytest.param(("10.0.0.1", 80, "x"), "`x` is not an address", id="source"),
        pytest.param(("10.0.0.1", 80, None, "lann"), "no listener called `lann`", id="listener"),
        pytest.param(("10.0.0.1", 80, None, None, "guest"), "no table called `guest`", id="table"),
    ],
)
def test_nonsense_is_refused_in_words(site: urelay.LoadedPolicy, arguments: tuple, said: str) -> None:
    with pytest.raises(urelay.AddressError) as caught:
        site.decide(*arguments)
    assert said in str(caught.value)


def test_a_policy_with_errors_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "p.urr"
    path.write_text("match any -> via nowhere\nmatch 10.0.0.1/8 -> direct\n")
    with pytest.raises(urelay.PolicyError) as caught:
        urelay.load(path)
    assert [one.code for one in caught.value.diagnostics] == ["UR101", "UR104"]


def test_a_question_about_many_is_not_one_connection(site: urelay.LoadedPolicy) -> None:
    with pytest.raises(urelay.AddressError, match="`@private` names more than one connection"):
        site.explain("@private")


def test_importing_it_is_cheap_and_every_public_name_is_there() -> None:
    script = (
        "import sys, urelay\n"
        "assert not [name for name in sys.modules if name.startswith('urelay.')], 'imported too much'\n"
        "for name in urelay.__all__: getattr(urelay, name)\n"
        "try: urelay.nothing\n"
        "except AttributeError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "module `urelay` has no attribute `nothing`\n", done.stderr
