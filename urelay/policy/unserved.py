"""What `check` understands and `serve` cannot run yet.

Nothing is ever silently ignored: a policy that uses one of these is refused by `serve`, with one error
for each place that does (UR405). The rows leave this module as the relay learns them; options carry
their own `served` in urelay.policy.options.
"""

from __future__ import annotations

from collections.abc import Iterator

from urelay.lang import ast
from urelay.lang.diagnostics import Diagnostic, Label, diagnostic
from urelay.lang.source import Span
from urelay.policy.model import Policy
from urelay.policy.options import Owner, options_of


def find(policy: Policy) -> list[Diagnostic]:
    """An error for every construct this release cannot serve, in the order of the policy's files."""
    return [
        diagnostic("UR405", f"this relay cannot serve {what} yet", Label(span))
        for document in policy.documents
        for statement in document.statements
        for what, span in _in_statement(statement)
    ]


def _in_statement(node: ast.Statement) -> Iterator[tuple[str, Span]]:
    match node:
        case ast.UpstreamDef():
            yield from _options(node.options, Owner.UPSTREAM, node.kind.text)
        case ast.ListenDef():
            yield from _options(node.options, Owner.LISTENER, node.kind.text)
        case ast.DnsDef():
            yield "`dns`", node.name.span
        case ast.Match():
            yield from _options(node.options, Owner.ROUTE, "")
        case ast.TableDef():
            for inner in node.body:
                yield from _in_statement(inner)


def _options(nodes: tuple[ast.Option, ...], owner: Owner, kind: str) -> Iterator[tuple[str, Span]]:
    known = options_of(owner, kind)
    for node in nodes:
        if not known[node.name.text].served:
            yield f"the {owner} option `{node.name.text}`", node.span
