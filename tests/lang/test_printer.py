"""Printing is canonical: it keeps the tree, sorts the clauses, and prints itself again unchanged."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.lang.trees import bare, region, statement
from urelay.lang import ast
from urelay.lang.parser import parse, parse_region
from urelay.lang.printer import action_text, region_text, statement_text
from urelay.lang.source import Source


def only(text: str) -> ast.Statement:
    document, diagnostics = parse(Source.from_text("test.urr", text))
    assert diagnostics == []
    (statement,) = document.statements
    return statement


@given(statement)
@settings(max_examples=200, deadline=None)
def test_a_printed_tree_parses_to_the_same_tree(tree: ast.Statement) -> None:
    text = statement_text(tree)
    again = only(text)
    assert bare(again) == bare(tree)
    assert statement_text(again) == text


@given(region)
@settings(max_examples=100, deadline=None)
def test_a_printed_region_is_a_question(tree: ast.Region) -> None:
    assert bare(parse_region(region_text(tree))) == bare(tree)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        (
            "match @private on lan   from @admins port 22->via wg with log full",
            "match @private port 22 from @admins on lan -> via wg with log full",
        ),
        ("set web={80,443,\n  8000-8099,\n}", "set web = { 80, 443, 8000-8099 }"),
        ("set none = {}", "set none = { }"),
        (
            "upstream corp = socks5 proxy:1080 {\n login env X # here\n\n dns remote\n}",
            "upstream corp = socks5 proxy:1080 { login env X, dns remote }",
        ),
        ("upstream out = first corp wg", "upstream out = first corp, wg"),
        ("upstream wg = direct { }", "upstream wg = direct"),
        ("listen m = forward 0.0.0.0:25 to mx:25", "listen m = forward 0.0.0.0:25 to mx:25"),
        ("table t { forbid any }", "table t {\n    forbid any\n}"),
        ("expect any -> not  via out to a:1", "expect any -> not via out to a:1"),
        (
            'match any -> rewrite to nat64 @x,port 80 then to unix "/run/{port}"',
            'match any -> rewrite to nat64 @x, port 80 then to unix "/run/{port}"',
        ),
    ],
)
def test_the_canonical_text(written: str, canonical: str) -> None:
    assert statement_text(only(written)) == canonical


def test_a_route_in_two_halves() -> None:
    tree = only("match any on lan port 1 -> rewrite port 2 then lookup main")
    assert isinstance(tree, ast.Match)
    assert region_text(tree.region) == "any port 1 on lan"
    assert action_text(tree.action) == "rewrite port 2 then lookup main"
