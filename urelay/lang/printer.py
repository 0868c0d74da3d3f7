"""Tree to text: the canonical spelling of every node.

One line, single spaces, clauses in the order port, from, on, table. What is printed parses to the
same tree (with the clauses in that order), and printing that gives the same text again. Only a
`table` takes more than one line, one for each statement in it, because its statements end at line
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from urelay.lang import ast

_CLAUSE_ORDER = {"port": 0, "from": 1, "on": 2, "table": 3}
_GROUPS = frozenset({"first", "spread"})
"""Kinds of upstream whose arguments are members, which read better with commas."""


def statement_text(statement: ast.Statement) -> str:
    """The canonical text of a statement, such as `match @private port 22 -> deny`."""
    return _STATEMENTS[type(statement)](statement)


def region_text(region: ast.Region) -> str:
    """The canonical text of a region, such as `@private port 22 from @admins`."""
    clauses = sorted(region.clauses, key=lambda clause: _CLAUSE_ORDER[clause.keyword.text])
    parts = (f"{clause.keyword.text} {value_text(clause.value)}" for clause in clauses)
    return " ".join((value_text(region.destination), *parts))


def action_text(action: ast.Action) -> str:
    """The canonical text of an action, such as `rewrite to 10.0.0.5 then direct`."""
    if not action.rewrites:
        return deliver_text(action.deliver)
    parts = ", ".join(f"{part.kind} {value_text(part.value)}" for part in action.rewrites)
    return f"rewrite {parts} then {deliver_text(action.deliver)}"


def deliver_text(deliver: ast.Deliver) -> str:
    """The canonical text of the last part of an action, such as `via corp`."""
    return _words((deliver.verb, *map(value_text, deliver.words)))


def outcome_text(outcome: ast.Outcome) -> str:
    """The canonical text of the right side of `expect`, such as `not direct`."""
    text = deliver_text(outcome.deliver)
    if outcome.negated:
        text = f"not {text}"
    return text if outcome.destination is None else f"{text} to {value_text(outcome.destination)}"


def value_text(value: ast.Value) -> str:
    """The canonical text of a word, a string, a set's name, a file or a list in braces."""
    match value:
        case ast.Word():
            return f'"{value.text}"' if value.quoted else value.text
        case ast.SetName():
            return f"@{value.name}"
        case ast.FileItem():
            return f"file {value_text(value.path)}"
        case ast.Braces():
            items = ", ".join(map(value_text, value.items))
            return f"{{ {items} }}" if items else "{ }"


def option_text(option: ast.Option) -> str:
    """The canonical text of an option, such as `login env CORP_LOGIN`."""
    return _words((value_text(option.name), *map(value_text, option.values)))


def _words(words: Iterable[str]) -> str:
    return " ".join(word for word in words if word)


def _block(options: tuple[ast.Option, ...]) -> str:
    return f"{{ {', '.join(map(option_text, options))} }}" if options else ""


def _include(statement: ast.Include) -> str:
    return f"include {value_text(statement.path)}"


def _set(statement: ast.SetDef) -> str:
    return f"set {value_text(statement.name)} = {value_text(statement.value)}"


def _upstream(statement: ast.UpstreamDef) -> str:
    between = ", " if statement.kind.text in _GROUPS else " "
    arguments = between.join(map(value_text, statement.arguments))
    head = f"upstream {value_text(statement.name)} ="
    return _words((head, value_text(statement.kind), arguments, _block(statement.options)))


def _listen(statement: ast.ListenDef) -> str:
    words = [f"listen {value_text(statement.name)} =", value_text(statement.kind)]
    words += map(value_text, statement.place)
    if statement.to is not None:
        words.append(f"to {value_text(statement.to)}")
    return _words((*words, _block(statement.options)))


def _dns(statement: ast.DnsDef) -> str:
    place = map(value_text, statement.place)
    return _words((f"dns {value_text(statement.name)} =", *place, _block(statement.options)))


def _forbid(statement: ast.Forbid) -> str:
    return f"forbid {region_text(statement.region)}"


def _match(statement: ast.Match) -> str:
    text = f"match {region_text(statement.region)} -> {action_text(statement.action)}"
    if statement.options:
        text += f" with {', '.join(map(option_text, statement.options))}"
    return text


def _expect(statement: ast.Expect) -> str:
    return f"expect {region_text(statement.region)} -> {outcome_text(statement.outcome)}"


def _table(statement: ast.TableDef) -> str:
    body = "".join(f"    {statement_text(inner)}\n" for inner in statement.body)
    return f"table {value_text(statement.name)} {{\n{body}}}"


_STATEMENTS: dict[type, Callable[[Any], str]] = {
    ast.Include: _include,
    ast.SetDef: _set,
    ast.UpstreamDef: _upstream,
    ast.ListenDef: _listen,
    ast.DnsDef: _dns,
    ast.Forbid: _forbid,
    ast.Match: _match,
    ast.Expect: _expect,
    ast.TableDef: _table,
}
