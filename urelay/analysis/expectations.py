"""Every `expect` is proved, or refuted with a connection and the exact regions (UR301, UR302).

What an expectation leaves open is meant for all: all ports, every source and listener that can ask
its table. Its region is cut into cells and every cell is asked; a decision that many cells share is
judged once. About a host name the decision about the name is judged: a name that is yet to be
resolved counts as `direct` (or `via`), whatever its addresses turn out to be.

`-> deny` is kept by every refusal, `deny silently` too. `direct to ENDPOINT` speaks of the final
destination: the part of a cell that reaches another one is traced back through the rewrites.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from urelay.analysis.boxes import IPV4_SOURCES, IPV6_SOURCES, Box, audience, clients
from urelay.analysis.cells import Cell, Cells, Wanted, address_stretches, cubes_of, where_of
from urelay.analysis.cubes import Cube, cube_of
from urelay.analysis.phrases import stretch_text
from urelay.analysis.summary import Summary
from urelay.analysis.trails import Trail
from urelay.analysis.verdicts import outcome_text
from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.lang.source import Origin
from urelay.net.address import Endpoint, address_text, host_prefix
from urelay.policy.model import MAIN, Expectation, NameKind, NamePattern, Outcome, Policy, PortRange
from urelay.table.decision import Decision


@dataclass(frozen=True, slots=True)
class Failure:
    """Cells of one table that an expectation is wrong about."""

    table: str
    audience: list[Box]
    summary: Summary
    counterexample: Cell


def prove(cells: Cells, touched: set[Origin] | None = None) -> list[Diagnostic]:
    """UR301 and UR302 for every expectation of the policy that `cells` cuts.

    The routes that decide some connection of an expectation are added to `touched`.
    """
    found = []
    for expectation in cells.table.policy.expectations:
        finding = _prove(cells, expectation, touched)
        if finding is not None:
            found.append(finding)
    return found


def _prove(cells: Cells, expectation: Expectation, touched: set[Origin] | None) -> Diagnostic | None:
    asked = list(_asked(cells.table.policy, expectation))
    if not asked:
        return _about_nothing(expectation, "no client of these listeners and sources uses this table")
    where = expectation.region.destinations
    if where is not None and not where.prefixes and not where.names:
        return _about_nothing(expectation, "its set of destinations is empty")
    failures = []
    for table, everybody, boxes in asked:
        summary = Summary(everybody)
        worst: Cell | None = None
        holds = _judge(expectation)
        for cell in cells.of(table, where, boxes, _worth_a_look(expectation, touched)):
            if touched is not None:
                touched.update(_deciders(cell))
            for part, kept in holds(cell):
                if not kept:
                    summary.add(part)
                    if worst is None or _order(part) < _order(worst):
                        worst = part
        if worst is not None:
            failures.append(Failure(table, everybody, summary, worst))
    return _refuted(expectation, failures) if failures else None


def _asked(policy: Policy, expectation: Expectation) -> Iterator[tuple[str, list[Box], list[Box]]]:
    """The tables an expectation is about: who uses each, and which of those are meant."""
    region = expectation.region
    if expectation.table is not None:
        tables = [expectation.table]
    elif region.listeners is None:
        tables = [MAIN]
    else:
        tables = [
            table
            for table, boxes in clients(policy).items()
            if any(not box.listeners.isdisjoint(region.listeners) for box in boxes)
        ]
    for table in tables:
        # `on lan` without a table means lan's own clients there, not those another table sends on.
        own = clients(policy).get(table, []) if expectation.table is None else []
        everybody = own if own and region.listeners is not None else audience(policy, table)
        boxes = [
            part for box in everybody for part in box.within(region.ports, region.sources, region.listeners)
        ]
        if boxes:
            yield table, everybody, boxes


def _deciders(cell: Cell) -> Iterator[Origin]:
    if cell.decision.route is not None:
        yield cell.decision.route
    for _, route, _ in cell.steps:
        yield route.origin


# --- what is expected


def _worth_a_look(expectation: Expectation, touched: set[Origin] | None) -> Wanted:
    """Whether cells with a decision may break the expectation; notes who decided either way."""

    def wanted(decision: Decision) -> bool:
        if touched is not None and decision.route is not None:
            touched.add(decision.route)
        kept = _kept(expectation, decision)
        # Where an endpoint is named the decision alone does not tell.
        return (kept and expectation.destination is not None) or kept == expectation.negated

    return wanted


def _judge(expectation: Expectation) -> Callable[[Cell], Iterator[tuple[Cell, bool]]]:
    """Cuts a cell into parts that keep the expectation and parts that do not."""
    known: dict[int, tuple[Decision, bool]] = {}
    aim = expectation.destination

    def judge(cell: Cell) -> Iterator[tuple[Cell, bool]]:
        decision = cell.decision
        # The decision is kept beside its verdict, so that its id stays its own.
        if id(decision) not in known:
            known[id(decision)] = decision, _kept(expectation, decision)
        kept = known[id(decision)][1]
        if aim is None:
            yield cell, kept != expectation.negated
        elif not kept:
            yield cell, expectation.negated
        else:
            for part, there in _aimed(cell, aim):
                yield part, there != expectation.negated

    return judge


def _kept(expectation: Expectation, decision: Decision) -> bool:
    """Whether a decision is what stands behind the arrow, `not` and the endpoint aside."""
    match expectation.outcome:
        case Outcome.DENY:
            if expectation.deny_how is None:
                return decision.denied
            return decision.outcome is Outcome.DENY and decision.deny_how is expectation.deny_how
        case Outcome.VIA:
            return decision.outcome is Outcome.VIA and decision.upstream == expectation.upstream
        case Outcome.UNIX | Outcome.SOCKETBOX as outcome:
            return decision.outcome is outcome and decision.template == expectation.template
    return decision.outcome is expectation.outcome


def _aimed(cell: Cell, aim: Endpoint) -> Iterator[tuple[Cell, bool]]:
    """The parts of a cell whose final destination is `aim`, and the others."""
    final = cell.bearing.fixed
    cubes = cubes_of(cell.where)
    if final is not None or not cubes or isinstance(aim.host, str):
        # One destination for all, or names: those of a class are one host only when it names it.
        varies = final == cell.example and cell.where != NamePattern(NameKind.EXACT, str(final))
        there = final == aim.host and not (varies and not cubes)
        yield from _aimed_ports(cell, aim.port) if there else ((cell, False),)
        return
    if not cell.bearing.maps and not cell.holds_host(aim.host):
        yield cell, False
        return
    target = cube_of(host_prefix(aim.host))
    for cube in cubes:
        trail = Trail(cube, cell.box, cell.bearing)
        inside = trail.within(target)
        for part in trail.outside(target):
            yield _part(cell, part), False
        if inside is not None:
            yield from _aimed_ports(_part(cell, inside), aim.port)


def _part(cell: Cell, trail: Trail) -> Cell:
    assert isinstance(trail.origin, Cube)
    return replace(cell, where=where_of(trail.origin), example=trail.origin.example)


def _aimed_ports(cell: Cell, port: int) -> Iterator[tuple[Cell, bool]]:
    """A cell that reaches the right host, by whether it reaches `port` there."""
    ports, fixed = cell.box.ports, cell.bearing.port
    if fixed is not None:
        yield cell, fixed == port
        return
    asked = port - cell.bearing.shift
    for first, last in (
        (ports.first, min(ports.last, asked - 1)),
        (max(ports.first, asked), min(ports.last, asked)),
        (max(ports.first, asked + 1), ports.last),
    ):
        if first <= last:
            yield replace(cell, box=cell.box._replace(ports=PortRange(first, last))), first == last == asked


# --- what is said when it fails


def _about_nothing(expectation: Expectation, why: str) -> Diagnostic:
    return diagnostic(
        "UR302",
        "an expectation is about nothing",
        Label(expectation.node.span, why),
        remarks=(Remark("note", "nothing is proved by it, so nothing would be noticed"),),
    )


def _refuted(expectation: Expectation, failures: list[Failure]) -> Diagnostic:
    first = failures[0]
    remarks = [Remark("for example", _counterexample(expectation, first))]
    for at, line in enumerate(line for failure in failures for line in failure.summary.lines()):
        remarks.append(Remark("exactly" if at == 0 else "", line))
    return diagnostic(
        "UR301",
        "this expectation fails",
        Label(expectation.node.span, _count(expectation, failures)),
        remarks=tuple(remarks),
    )


def _order(cell: Cell) -> tuple[object, ...]:
    """Counterexamples one can try come first: IPv4, then IPv6, then names; low numbers first."""
    if isinstance(cell.example, str):
        return 9, 0, cell.box.ports.first
    return len(cell.example), int.from_bytes(cell.example), cell.box.ports.first


def _counterexample(expectation: Expectation, failure: Failure) -> str:
    cell = failure.counterexample
    text = str(Endpoint(cell.example, cell.box.ports.first))
    source = cell.box.sources
    split = any(box.sources not in (IPV4_SOURCES, IPV6_SOURCES) for box in failure.audience)
    if source.example is not None and (split or source not in (IPV4_SOURCES, IPV6_SOURCES)):
        text += f" from {address_text(source.example)}"
    if cell.box.listener is not None:
        text += f" on {cell.box.listener}"
    decision = cell.decision
    goes = outcome_text(decision)
    if expectation.destination is not None and not decision.denied:
        goes += f" to {decision.destination or Endpoint(cell.example, cell.box.ports.first)}"
    verb = "is answered with" if decision.denied else "goes"
    return f"{text}  {verb}  {goes}   ({_place(expectation, decision)})"


def _place(expectation: Expectation, decision: Decision) -> str:
    origin = decision.wall or decision.route
    if origin is None:
        return decision.why or "no route matches"
    if origin.file == expectation.origin.file:
        return f"line {origin.line}"
    return str(origin)


def _count(expectation: Expectation, failures: list[Failure]) -> str:
    """`65,536 of 17,891,328 IPv4 addresses are not denied`."""
    wrong = _wrong(expectation, plural=True)
    for family in (4, 6):
        failing = max(failure.summary.addresses(family) for failure in failures)
        if not failing:
            continue
        stretches = [
            one for one in address_stretches(expectation.region.destinations) if one.family == family
        ]
        total = sum(last - first + 1 for _, first, last in stretches)
        if total == 1:
            return f"{stretch_text(*stretches[0])} {_wrong(expectation, plural=False)}"
        if family == 4:
            return f"{failing:,} of {total:,} IPv4 addresses {wrong}"
        return f"some of its IPv6 addresses {wrong}"
    if isinstance(failures[0].counterexample.example, str):
        return f"some of its names {wrong}"
    return f"some of its addresses {wrong}"


def _wrong(expectation: Expectation, *, plural: bool) -> str:
    is_, goes, does_not = ("are", "go", "do not") if plural else ("is", "goes", "does not")
    to = "" if expectation.destination is None else f" to {expectation.destination}"
    how = "" if expectation.deny_how is None else f" as {expectation.deny_how}"
    match expectation.outcome:
        case Outcome.DENY | Outcome.SILENT:
            silently = " silently" if expectation.outcome is Outcome.SILENT else ""
            return f"{is_} {'' if expectation.negated else 'not '}denied{silently}{how}"
        case Outcome.DIRECT:
            where = f"direct{to}"
        case Outcome.VIA:
            where = f"via {expectation.upstream}{to}"
        case Outcome.UNIX | Outcome.SOCKETBOX as outcome:
            where = f'to {outcome} "{expectation.template}"'
    return f"{goes} {where}" if expectation.negated else f"{does_not} go {where}"


def find_untouched(policy: Policy, touched: set[Origin]) -> Iterator[Diagnostic]:
    """UR303: the routes that decided nothing about any expectation."""
    for routes in policy.tables.values():
        for route in routes:
            if route.origin not in touched:
                yield diagnostic(
                    "UR303",
                    "no expectation touches this route",
                    Label(route.node.span, "nothing is proved of it"),
                )
