"""An expectation holds exactly when every connection it speaks of keeps it, at the price of what differs."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests import strategies as build
from tests.analysis.test_cells import ASKED_PORTS, BLOCKS, LISTENERS, tables
from urelay.analysis import check
from urelay.analysis.boxes import audience, clients
from urelay.analysis.cells import Cells
from urelay.analysis.expectations import prove
from urelay.lang import ast
from urelay.lang.parser import parse
from urelay.lang.source import Origin, Source
from urelay.net.address import Address, Endpoint, address_of, parse_address, parse_endpoint
from urelay.policy.check import check_file
from urelay.policy.model import MAIN, DenyHow, Expectation, Outcome, Region
from urelay.table.compile import compile_policy
from urelay.table.decision import Decision
from urelay.table.evaluate import Table

NODE = parse(Source.from_text("test.urr", "expect any -> deny\n"))[0].statements[0]
assert isinstance(NODE, ast.Expect)

SMALL = [block for block in BLOCKS if block.bits - block.length <= 4]
SOURCES: list[Address] = list(map(parse_address, "10.0.0.1 10.1.0.1 11.0.0.1 fd00::1 ::1".split()))
AIMS = list(map(parse_endpoint, "10.0.0.5:80 10.0.0.9:443 [2001:db8::3]:85 [64:ff9b::808:808]:80".split()))
PORTS = [(build.ports(text),) for text in ("80", "80-89", "85-94", "443")]
FROM = [(build.prefix(text),) for text in ("10.0.0.0/8", "fd00::/8")]

expectations = st.builds(
    Expectation,
    table=st.none() | st.sampled_from((MAIN, "guests")),
    region=st.builds(
        Region,
        destinations=st.sampled_from(SMALL).map(lambda block: build.region(str(block)).destinations),
        ports=st.none() | st.sampled_from(PORTS),
        sources=st.none() | st.sampled_from(FROM),
        listeners=st.none() | st.sampled_from(LISTENERS).map(lambda name: frozenset((name,))),
    ),
    negated=st.booleans(),
    outcome=st.sampled_from(Outcome),
    deny_how=st.none(),
    upstream=st.just("remote"),
    template=st.just("/run/x"),
    destination=st.none() | st.sampled_from(AIMS),
    origin=st.just(Origin("test.urr", 99, "expect")),
    node=st.just(NODE),
)


def kept(expectation: Expectation, decision: Decision, asked: Endpoint) -> bool:
    """What an expectation means for one connection, straight from the specification."""
    match expectation.outcome:
        case Outcome.DENY:
            holds = decision.denied
        case Outcome.VIA:
            holds = decision.outcome is Outcome.VIA and decision.upstream == "remote"
        case other:
            holds = decision.outcome is other
    if holds and expectation.destination is not None:
        holds = (decision.destination or asked) == expectation.destination
    return holds != expectation.negated


def broken_by(table: Table, expectation: Expectation) -> str | None:
    """The first connection of the small universe that breaks an expectation, found by trying all."""
    region = expectation.region
    assert region.destinations is not None
    (block,) = region.destinations.prefixes
    first, last = region.ports[0] if region.ports is not None else (1, 65535)
    ports = [port for port in ASKED_PORTS if first <= port <= last]
    sources = [source for source in SOURCES if region.sources is None or source in region.sources[0]]
    for number, port, source, listener in itertools.product(
        range(block.first, block.last + 1), ports, sources, region.listeners or LISTENERS
    ):
        lives_in = table.world_for(listener, source).name
        wanted = expectation.table or (lives_in if region.listeners is not None else MAIN)
        if lives_in != wanted:
            continue
        host = address_of(block.family, number)
        decision = table.decide(host, port, source, listener, wanted)
        if not kept(expectation, decision, Endpoint(host, port)):
            return f"{Endpoint(host, port)} from {source!r} on {listener} in {wanted}: {decision}"
    return None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables(), st.lists(expectations, min_size=1, max_size=4))
def test_a_broken_expectation_is_found_and_its_counterexample_is_one(
    table: Table, claims: list[Expectation]
) -> None:
    table = compile_policy(replace(table.policy, expectations=tuple(claims)))
    assume(not any(finding.code == "UR225" for finding in check(table)))
    for claim in claims:
        one = compile_policy(replace(table.policy, expectations=(claim,)))
        codes = [finding.code for finding in prove(Cells(one))]
        broken = broken_by(one, claim)
        if broken is not None:
            assert codes == ["UR301"], broken
        elif codes == ["UR301"]:
            # Not in the small universe, then: the one that is shown must be real.
            (finding,) = prove(Cells(one))
            example = next(remark.text for remark in finding.remarks if remark.heading == "for example")
            assert really_broken(one, claim, example), example


def really_broken(table: Table, claim: Expectation, example: str) -> bool:
    """Whether some client of the policy, asking for the example's endpoint, breaks the claim."""
    endpoint = parse_endpoint(example.split()[0])
    asked = clients(table.policy)
    if claim.table is not None or claim.region.listeners is None:
        name = claim.table or MAIN
        asked = {name: audience(table.policy, name)}
    told = [parse_address(example.split(" from ")[1].split()[0])] if " from " in example else []
    for name, boxes in asked.items():
        for box in boxes:
            for part in box.within(None, claim.region.sources, claim.region.listeners):
                for source in (part.sources.example, *told):
                    decision = table.decide(endpoint.host, endpoint.port, source, part.listener, name)
                    if not kept(claim, decision, endpoint):
                        return True
    return False


def checked(tmp_path: Path, text: str) -> list[tuple[str, list[str]]]:
    path = tmp_path / "policy.urr"
    path.write_text(text)
    policy = check_file(str(path)).policy
    assert policy is not None
    return [
        (finding.code, [remark.text for remark in finding.remarks])
        for finding in check(compile_policy(policy))
        if finding.code.startswith("UR3")
    ]


def test_failing_regions_are_exact_across_neighbours(tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        """
        listen lan = socks 127.0.0.1:1080
        listen box = socks 127.0.0.1:1081
        match any -> deny
        match 10.0.0.0/25 port 80 on lan -> direct
        match 10.0.0.128/25 port { 80, 443 } on lan -> direct
        match 10.0.0.128/26 port 443 on lan -> deny
        expect 10.0.0.0/24 -> deny
        """,
    )
    ((_, (_, *exactly)),) = found
    assert exactly == [
        "{ 10.0.0.0/25, 10.0.0.128/26 } port 80 on lan",
        "10.0.0.192/26 port { 80, 443 } on lan",
    ]


def test_a_million_neighbours_are_judged_by_the_leaf(tmp_path: Path) -> None:
    """Twenty thousand here: no decision is asked for twice, whatever the number of prefixes."""
    lines = "".join(f"{10 + n // 25600}.{n // 100 % 256}.{n % 100 * 2}.0/24\n" for n in range(20_000))
    (tmp_path / "many.txt").write_text(lines)
    path = tmp_path / "policy.urr"
    path.write_text(
        'set many = file "many.txt"\nmatch any -> direct\nmatch @many -> deny\nexpect @many -> deny\n'
        "expect any -> not direct\n"
    )
    policy = check_file(str(path)).policy
    assert policy is not None
    table = compile_policy(policy)
    asked = 0

    class Counting(Cells):
        def decide(self, *args: object) -> Decision:
            nonlocal asked
            asked += 1
            return super().decide(*args)  # type: ignore[arg-type]

    (finding,) = prove(Counting(table))
    assert finding.code == "UR301"
    # IPv6 blocks that may carry IPv4 addresses are looked at one by one; no prefix of the list is.
    assert asked < 5_000


def test_denies_are_told_apart_only_when_asked(tmp_path: Path) -> None:
    found = checked(
        tmp_path,
        "match any -> deny refused\nexpect 192.0.2.1:1 -> deny\nexpect 192.0.2.1:1 -> deny refused\n"
        "expect 192.0.2.1:1 -> deny ttl-expired\n",
    )
    assert [code for code, _ in found] == ["UR301"]
    assert DenyHow.REFUSED.value in found[0][1][0]
