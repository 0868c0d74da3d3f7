"""A question is one connection exactly when it says everything a decision needs."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.policy.policies import sound
from urelay.errors import PolicyError
from urelay.net.address import Endpoint
from urelay.policy.check import Connection, resolve_question
from urelay.policy.model import Policy, PortRange

POLICY = """
set private = { 10.0.0.0/8, 172.16.0.0/12 }
set one     = 10.1.2.3
listen lan  = transparent 127.0.0.1:1080 { table guests }
listen box  = transparent 127.0.0.1:1081
table guests { match any -> deny }
match { @private, @one } -> direct
"""
TEN, SOURCE = bytes((10, 1, 2, 3)), bytes((192, 168, 7, 9))
SIX = bytes.fromhex("20010db8000000000000000000000001")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return sound(tmp_path_factory.mktemp("question"), POLICY)


@pytest.mark.parametrize(
    ("text", "connection"),
    [
        ("10.1.2.3:22", Connection(Endpoint(TEN, 22), None, None, None)),
        ("10.1.2.3 port 22", Connection(Endpoint(TEN, 22), None, None, None)),
        ("@one port 22", Connection(Endpoint(TEN, 22), None, None, None)),
        (
            "10.1.2.3:22 from 192.168.7.9 on lan",
            Connection(Endpoint(TEN, 22), SOURCE, "lan", None),
        ),
        ("10.1.2.3:22 table guests", Connection(Endpoint(TEN, 22), None, None, "guests")),
        ("[2001:db8::1]:443", Connection(Endpoint(SIX, 443), None, None, None)),
        ("2001:db8::1 port 443", Connection(Endpoint(SIX, 443), None, None, None)),
        ("[2001:db8::1] port 443", Connection(Endpoint(SIX, 443), None, None, None)),
        ("::ffff:10.1.2.3 port 22", Connection(Endpoint(TEN, 22), None, None, None)),
        ("WWW.Corp.Example.:443", Connection(Endpoint("www.corp.example", 443), None, None, None)),
        ("localhost:80", Connection(Endpoint("localhost", 80), None, None, None)),
        ("intranet port 80", Connection(Endpoint("intranet", 80), None, None, None)),
        ("10.1.2.3", None),
        ("10.1.2.3 port 22-23", None),
        ("10.1.2.3 port { 22, 23 }", None),
        ("10.0.0.0/8 port 22", None),
        ("@private port 22", None),
        ("any port 22", None),
        ("*.corp.example:443", None),
        ("10.1.2.3:22 from 192.168.7.0/24", None),
        ("10.1.2.3:22 on { lan, box }", None),
        ("any table guests", None),
    ],
)
def test_questions(policy: Policy, text: str, connection: Connection | None) -> None:
    question = resolve_question(text, policy)
    assert question.connection == connection
    assert question.table == ("guests" if "guests" in text else None)


def test_a_region_is_what_an_expectation_would_mean(policy: Policy) -> None:
    region = resolve_question("@private port 22-23 on lan", policy).region
    assert region.destinations is not None
    assert [str(prefix) for prefix in region.destinations.prefixes] == ["10.0.0.0/8", "172.16.0.0/12"]
    assert (region.ports, region.listeners) == ((PortRange(22, 23),), frozenset({"lan"}))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("10.1.2.300:22", "UR105"),
        ("0177.1:22", "UR105"),
        ("2130706433:80", "UR105"),
        ("10.1.2.3:0", "UR106"),
        ("10.1.2.3:22 port 23", "UR102"),
        ("10.1.2.3:22 on wan", "UR101"),
        ("10.1.2.3:22 table mian", "UR101"),
        ("@privat port 22", "UR101"),
        ("", "UR001"),
        ("10.1.2.3 prot 22", "UR001"),
        ("[2001:db8::1:443", "UR105"),
        ("[example.com]:443", "UR105"),
    ],
)
def test_a_wrong_question_is_told_why(policy: Policy, text: str, code: str) -> None:
    with pytest.raises(PolicyError) as caught:
        resolve_question(text, policy)
    assert [found.code for found in caught.value.diagnostics] == [code]


WORDS = "10.1.2.3 [::1] :22 port 22-23 from on table any @private @one lan { } , * .a x".split()
questions = st.text(max_size=40) | st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)


def test_any_question_is_answered_or_refused_in_words(policy: Policy) -> None:
    @settings(max_examples=300, deadline=None)
    @given(questions)
    def ask(text: str) -> None:
        try:
            resolve_question(text, policy)
        except PolicyError as error:
            said = [found.message for found in error.diagnostics]
            assert said, text

    ask()
