"""Trees to meaning: `check_file` reads a policy and gives a model.Policy, or every reason it cannot.

Theory of operation. All files are parsed first and the names they define collected, so order never
matters. Then every definition and every rule is resolved by itself, inside `one_statement`: the first
flaw ends that statement and no other. What cannot be told from a statement alone (loops between
upstreams, two listeners in one place, things nothing uses) comes last. Errors that only follow from
another error are not told: a use of something broken raises `reported()`, and nothing is called unused
while a statement that might use it is broken.

The guard goes the same way, with a scope of its own: it sees no name of the policy's and lends none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from urelay.lang import ast
from urelay.lang.diagnostics import Diagnostic
from urelay.lang.printer import statement_text
from urelay.lang.source import Origin, Source
from urelay.policy.actions import resolve_action, resolve_claim
from urelay.policy.captures import check_captures
from urelay.policy.flaws import Findings
from urelay.policy.library import Library
from urelay.policy.listeners import check_places, check_slots, resolve_listener, resolve_service
from urelay.policy.model import (
    MAIN,
    NO_SETTINGS,
    Expectation,
    Policy,
    Route,
    RouteSettings,
    Wall,
    slots_of,
)
from urelay.policy.options import Owner
from urelay.policy.question import Connection, Question, resolve_question
from urelay.policy.regions import Reading, resolve_region
from urelay.policy.scope import Scope, collect
from urelay.policy.upstreams import check_chains, resolve_upstream
from urelay.policy.values import origin_of, read_options
from urelay.resources import resource_dir

__all__ = ["Checked", "Connection", "Question", "check_file", "resolve_question"]

GUARD_PATH = "rules/guard.urr"
"""How the guard's file is called in origins, wherever it is installed."""

Node = TypeVar("Node", ast.UpstreamDef, ast.ListenDef, ast.DnsDef)
Meaning = TypeVar("Meaning")


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found. `policy` is None when there is an error among `diagnostics`."""

    policy: Policy | None
    diagnostics: list[Diagnostic]
    documents: tuple[ast.Document, ...]
    """Every file that could be read, for the `# allow` comments in it"""


def check_file(path: str) -> Checked:
    """Read the policy at `path` and all it includes. Never raises: what is wrong is in the answer.

    The diagnostics are those of shape and sense (UR0xx, UR1xx, UR228, UR401), file by file in source order;
    `# allow` comments are not applied yet (urelay.policy.allow), since other findings may follow.
    """
    findings = Findings()
    library = Library(findings)
    library.load(path)
    documents = tuple(library.documents)
    scope = collect(documents, library, findings)
    scope.sets.resolve_all()
    upstreams = _definitions(scope.upstreams, resolve_upstream, scope)
    listeners = _definitions(scope.listeners, resolve_listener, scope)
    services = _definitions(scope.services, resolve_service, scope)
    rules = _Rules(scope)
    for document in documents:
        rules.add(document)
    check_chains(upstreams, scope)
    check_places(listeners, findings)
    check_slots(listeners, slots_of(rules.tables), findings)
    check_captures(listeners, upstreams, findings)
    guard_source, guard = _guard(library, findings)
    if not findings.failed:
        scope.report_unused()
    diagnostics = _in_order(findings.found, documents)
    if findings.failed:
        return Checked(None, diagnostics, documents)
    policy = Policy(
        path=path,
        digest=library.digest(),
        sources=(*(document.source for document in documents), guard_source),
        documents=documents,
        upstreams={**upstreams, **scope.inline},
        listeners=listeners,
        dns=services,
        tables={table: tuple(routes) for table, routes in rules.tables.items()},
        guard=guard,
        walls=tuple(rules.walls),
        expectations=tuple(rules.expectations),
    )
    return Checked(policy, diagnostics, documents)


def _definitions(
    nodes: Mapping[str, Node], resolve: Callable[[Node, Scope], Meaning], scope: Scope
) -> dict[str, Meaning]:
    """What each definition means, without those that are broken."""
    meanings: dict[str, Meaning] = {}
    for name, node in nodes.items():
        with scope.findings.one_statement():
            meanings[name] = resolve(node, scope)
    return meanings


@dataclass(slots=True)
class _Rules:
    """The routes, walls and expectations resolved so far."""

    scope: Scope
    guard: bool = False
    tables: dict[str, list[Route]] = field(default_factory=lambda: {MAIN: []})
    walls: list[Wall] = field(default_factory=list)
    expectations: list[Expectation] = field(default_factory=list)

    def add(self, document: ast.Document) -> None:
        """Resolve every rule of a file, those in the tables it defines too."""
        for node in document.statements:
            self._add(node, None)
            # Of a table defined twice only the first is looked at: the second is an error already.
            if isinstance(node, ast.TableDef) and self.scope.tables.get(node.name.text) is node:
                self.tables.setdefault(node.name.text, [])
                for inner in node.body:
                    self._add(inner, node.name.text)

    def _add(self, node: ast.Statement, table: str | None) -> None:
        with self.scope.findings.one_statement():
            match node:
                case ast.Match():
                    self.tables[table or MAIN].append(self._route(node, table or MAIN))
                case ast.Forbid():
                    self.walls.append(self._wall(node, table))
                case ast.Expect():
                    self.expectations.append(self._expectation(node, table))

    def _route(self, node: ast.Match, table: str) -> Route:
        origin = _origin(node)
        region = resolve_region(node.region, self.scope, Reading.MATCH).region
        action = resolve_action(node.action, region, self.scope, origin)
        settings = _route_settings(node.options, self.scope)
        return Route(table, region, action, settings, origin, node, self.guard)

    def _wall(self, node: ast.Forbid, table: str | None) -> Wall:
        region = resolve_region(node.region, self.scope, Reading.FORBID).region
        return Wall(table, region, _origin(node), node)

    def _expectation(self, node: ast.Expect, table: str | None) -> Expectation:
        origin = _origin(node)
        resolved = resolve_region(node.region, self.scope, Reading.EXPECT)
        claim = resolve_claim(node.outcome, self.scope, origin)
        return Expectation(
            table=resolved.table or table,
            region=resolved.region,
            negated=node.outcome.negated,
            outcome=claim.outcome,
            deny_how=claim.deny_how,
            upstream=claim.upstream,
            template=claim.template,
            destination=claim.destination,
            origin=origin,
            node=node,
        )


def _origin(node: ast.Match | ast.Forbid | ast.Expect) -> Origin:
    return origin_of(node.span, statement_text(node))


def _route_settings(nodes: tuple[ast.Option, ...], scope: Scope) -> RouteSettings:
    if not nodes:
        return NO_SETTINGS
    settings, _ = read_options(nodes, Owner.ROUTE, "", scope)
    # The table of options says which type each value has.
    values = {_SETTING_FIELDS[name]: setting.value for name, setting in settings.items()}
    return RouteSettings(**values)  # type: ignore[arg-type]


_SETTING_FIELDS = {"idle": "idle_timeout_s", "tag": "tag", "log": "log", "limit": "limit_per_source"}


def _guard(library: Library, findings: Findings) -> tuple[Source, tuple[Route, ...]]:
    text = (resource_dir("rules") / "guard.urr").read_text(encoding="utf-8")
    document = library.add(Source.from_text(GUARD_PATH, text))
    scope = collect([document], library, findings)
    rules = _Rules(scope, guard=True)
    rules.add(document)
    return document.source, tuple(rules.tables[MAIN])


def _in_order(found: Iterable[Diagnostic], documents: Iterable[ast.Document]) -> list[Diagnostic]:
    """By file, in the order they were read, then by place; what has no place comes first."""
    places = {document.source.path: number for number, document in enumerate(documents)}

    def key(diagnostic: Diagnostic) -> tuple[int, int]:
        if not diagnostic.labels:
            return -1, 0
        span = diagnostic.labels[0].span
        return places.get(span.source.path, len(places)), span.start

    return sorted(found, key=key)
