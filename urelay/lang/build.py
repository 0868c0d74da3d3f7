"""What each rule of the grammar becomes: nodes of urelay.lang.ast.

Lark calls one method a rule, bottom up, with the nodes and lexemes the rule has matched; no parse
tree is made in between. Every node's span runs from its first token to its last.
"""

# ruff: noqa: D102   each method is described by the rule of its name in grammar/urr.lark
from __future__ import annotations

from typing import Any, TypeAlias

from lark import Transformer

from urelay.lang import ast
from urelay.lang.lexeme import Lexeme
from urelay.lang.source import Span

Children: TypeAlias = list[Any]
"""Lexemes and the results of other methods; the grammar is what types them"""


class Build(Transformer[Any, Any]):
    """Every method builds the node its rule is named after."""

    # --- values

    def file(self, children: Children) -> ast.FileItem:
        keyword, path = children
        return ast.FileItem(path.word(), _span(keyword, path))

    def braces(self, children: Children) -> ast.Braces:
        items = tuple(_value(child) for child in children[1:-1] if not _is(child, "COMMA"))
        return ast.Braces(items, _span(children[0], children[-1]))

    # --- options

    def option(self, children: Children) -> ast.Option:
        name, *values = children
        return ast.Option(name.word(), tuple(map(_value, values)), _span(name, children[-1]))

    def block(self, children: Children) -> tuple[tuple[ast.Option, ...], Span | None]:
        if not children:
            return (), None
        return _options(children), children[-1].span

    def settings(self, children: Children) -> tuple[ast.Option, ...]:
        return _options(children)

    # --- regions and actions

    def clause(self, children: Children) -> ast.Clause:
        keyword, value = children
        return ast.Clause(keyword.word(), _value(value), _span(keyword, value))

    def region(self, children: Children) -> ast.Region:
        destination, *clauses = children
        return ast.Region(_value(destination), tuple(clauses), _span(destination, children[-1]))

    def part(self, children: Children) -> ast.RewritePart:
        *keywords, value = children
        kind = " ".join(keyword.text for keyword in keywords)
        return ast.RewritePart(kind, _value(value), _span(keywords[0], value))

    def deliver(self, children: Children) -> ast.Deliver:
        words = tuple(child.word() for child in children if child.type in ("WORD", "STRING"))
        verb = " ".join(child.text for child in children[: len(children) - len(words)])
        return ast.Deliver(verb, words, _span(children[0], children[-1]))

    def action(self, children: Children) -> ast.Action:
        parts = tuple(child for child in children if isinstance(child, ast.RewritePart))
        return ast.Action(parts, children[-1], _span(children[0], children[-1]))

    def outcome(self, children: Children) -> ast.Outcome:
        negated = _is(children[0], "NOT")
        deliver = children[1] if negated else children[0]
        destination = children[-1].word() if _is(children[-1], "WORD") else None
        return ast.Outcome(negated, deliver, destination, _span(children[0], children[-1]))

    # --- statements

    def include(self, children: Children) -> ast.Include:
        keyword, path = children
        return ast.Include(path.word(), _span(keyword, path))

    def set(self, children: Children) -> ast.SetDef:
        keyword, name, _equal, value = children
        return ast.SetDef(name.word(), _value(value), _span(keyword, value))

    def arguments(self, children: Children) -> tuple[ast.Word, ...]:
        return tuple(child.word() for child in children if not _is(child, "COMMA"))

    def place(self, children: Children) -> tuple[ast.Word, ...]:
        return tuple(child.word() for child in children)

    def upstream(self, children: Children) -> ast.UpstreamDef:
        keyword, name, _equal, kind, arguments, (options, end) = children
        last = end or (arguments or (kind,))[-1].span
        return ast.UpstreamDef(name.word(), kind.word(), arguments, options, keyword.span.to(last))

    def listen(self, children: Children) -> ast.ListenDef:
        keyword, name, _equal, kind, place, *to, (options, end) = children
        last = end or (to or place or (kind,))[-1].span
        target = to[1].word() if to else None
        return ast.ListenDef(name.word(), kind.word(), place, target, options, keyword.span.to(last))

    def dns(self, children: Children) -> ast.DnsDef:
        keyword, name, equal, place, (options, end) = children
        last = end or (place or (equal,))[-1].span
        return ast.DnsDef(name.word(), place, options, keyword.span.to(last))

    def table(self, children: Children) -> ast.TableDef:
        """The head alone; the parser puts the body in."""
        keyword, name, _open, close = children
        return ast.TableDef(name.word(), (), _span(keyword, close))

    def forbid(self, children: Children) -> ast.Forbid:
        keyword, region = children
        return ast.Forbid(region, _span(keyword, region))

    def match(self, children: Children) -> ast.Match:
        keyword, region, _arrow, action, options = children
        return ast.Match(region, action, options, _span(keyword, options[-1] if options else action))

    def expect(self, children: Children) -> ast.Expect:
        keyword, region, _arrow, outcome = children
        return ast.Expect(region, outcome, _span(keyword, outcome))


def _value(child: Any) -> Any:
    return child.value() if isinstance(child, Lexeme) else child


def _options(children: Children) -> tuple[ast.Option, ...]:
    return tuple(child for child in children if isinstance(child, ast.Option))


def _is(child: Any, kind: str) -> bool:
    return isinstance(child, Lexeme) and child.type == kind


def _span(first: Any, last: Any) -> Span:
    """From the start of one lexeme or node to the end of another."""
    start = first if isinstance(first, Lexeme) else first.span
    end = last if isinstance(last, Lexeme) else last.span
    return Span(start.source, start.start, end.end)
