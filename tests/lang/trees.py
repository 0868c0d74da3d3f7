"""Trees without places: what tests compare, and a strategy that makes every shape of statement."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from urelay.lang import ast
from urelay.lang.source import Source, Span

NOWHERE = Span(Source.from_text("nowhere", ""), 0, 0)


def bare(node: object) -> object:
    """`node` as nested tuples without spans, clauses in the printer's order."""
    if isinstance(node, tuple):
        return tuple(bare(child) for child in node)
    if isinstance(node, ast.Region):
        order = ["port", "from", "on", "table"]
        clauses = sorted(node.clauses, key=lambda clause: order.index(clause.keyword.text))
        return ("Region", bare(node.destination), bare(tuple(clauses)))
    if dataclasses.is_dataclass(node) and not isinstance(node, Source | Span):
        fields = [f.name for f in dataclasses.fields(node) if f.name not in ("span", "source")]
        return (type(node).__name__, *(bare(getattr(node, name)) for name in fields))
    return node


def w(text: str, *, quoted: bool = False) -> ast.Word:
    return ast.Word(text, NOWHERE, quoted)


_PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789./:[]*%_;'!?é漢"
_KEYWORDS = frozenset(
    "include set upstream listen dns table forbid match expect port from on rewrite to nat64 then direct"
    " deny via unix socketbox lookup not with file".split()
)

names = st.from_regex(r"[a-z][a-z0-9_]{0,6}(-[a-z0-9]{1,3})?", fullmatch=True).filter(
    lambda text: text not in _KEYWORDS
)
plain_words = st.one_of(
    names,
    st.sampled_from(
        [
            "any",
            "10.0.0.0/8",
            "fd00::/8",
            "[::]:1080",
            ".corp.example",
            "*.onion",
            "443",
            "8000-8099",
            "5m",
            "a@b",
        ]
    ),
    st.text(_PLAIN, min_size=1, max_size=8),
).filter(lambda text: text not in _KEYWORDS)
strings = st.text(st.characters(exclude_characters='"\n', exclude_categories=("Cs", "Cc")), max_size=12)

name = names.map(w)
plain = plain_words.map(w)
quoted = strings.map(lambda text: w(text, quoted=True))
word = st.one_of(plain, quoted)
set_name = names.map(lambda text: ast.SetName(text, NOWHERE))
file_item = quoted.map(lambda path: ast.FileItem(path, NOWHERE))
item = st.one_of(word, set_name, file_item)


def _tuples(strategy: st.SearchStrategy, most: int = 3) -> st.SearchStrategy:
    return st.lists(strategy, max_size=most).map(tuple)


braces = _tuples(item).map(lambda items: ast.Braces(items, NOWHERE))
value = st.one_of(item, braces)
# Keywords are ordinary words among options.
option_word = st.one_of(word, st.sampled_from(sorted(_KEYWORDS)).map(w))
option_value = st.one_of(option_word, set_name, braces)
option_name = st.one_of(plain, st.sampled_from(sorted(_KEYWORDS)).map(w))
option = st.builds(ast.Option, option_name, _tuples(option_value), st.just(NOWHERE))
options = _tuples(option)
clause = st.builds(
    ast.Clause, st.sampled_from(["port", "from", "on", "table"]).map(w), value, st.just(NOWHERE)
)
region = st.builds(ast.Region, value, _tuples(clause, 5), st.just(NOWHERE))
deliver = st.one_of(
    st.builds(ast.Deliver, st.just("direct"), st.just(()), st.just(NOWHERE)),
    st.builds(ast.Deliver, st.just("deny"), st.lists(plain, max_size=1).map(tuple), st.just(NOWHERE)),
    st.builds(
        ast.Deliver, st.just("via"), st.lists(plain, min_size=1, max_size=2).map(tuple), st.just(NOWHERE)
    ),
    st.builds(ast.Deliver, st.sampled_from(("to unix", "to socketbox")), st.tuples(quoted), st.just(NOWHERE)),
    st.builds(ast.Deliver, st.just("to socketbox"), st.tuples(quoted, plain, plain), st.just(NOWHERE)),
    st.builds(ast.Deliver, st.just("lookup"), st.tuples(name), st.just(NOWHERE)),
)
part = st.builds(
    ast.RewritePart, st.sampled_from(["to", "to nat64", "from nat64", "port"]), value, st.just(NOWHERE)
)
action = st.builds(ast.Action, _tuples(part), deliver, st.just(NOWHERE))
outcome = st.builds(ast.Outcome, st.booleans(), deliver, st.none() | plain, st.just(NOWHERE))

match = st.builds(ast.Match, region, action, options, st.just(NOWHERE))
forbid = st.builds(ast.Forbid, region, st.just(NOWHERE))
expect = st.builds(ast.Expect, region, outcome, st.just(NOWHERE))
statement = st.one_of(
    st.builds(ast.Include, quoted, st.just(NOWHERE)),
    st.builds(ast.SetDef, name, value, st.just(NOWHERE)),
    st.builds(ast.UpstreamDef, name, name, _tuples(word), options, st.just(NOWHERE)),
    st.builds(ast.ListenDef, name, name, _tuples(word), st.none() | plain, options, st.just(NOWHERE)),
    st.builds(ast.DnsDef, name, _tuples(word), options, st.just(NOWHERE)),
    match,
    forbid,
    expect,
    st.builds(ast.TableDef, name, _tuples(st.one_of(match, forbid, expect)), st.just(NOWHERE)),
)
