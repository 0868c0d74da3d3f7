"""Every statement of the language becomes its tree; every broken one is one diagnostic, alone."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lang.trees import bare
from tests.mutations import COUNT, mutations
from urelay.errors import PolicyError
from urelay.lang import ast
from urelay.lang.diagnostics import Diagnostic
from urelay.lang.parser import parse, parse_region
from urelay.lang.source import Source

WHOLE = """\
include "common/bogons.urr"                     # defines @bogons
set private  = { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, fd00::/8 }
set admins   = 192.168.7.0/24
set web      = { 80, 443, 8000-8099 }
set ads      = file "lists/ads.txt"
set nat64    = 64:ff9b::/96
set more     = { @private, file "more.txt", 192.0.2.1 }
upstream corp = socks5 proxy.corp.example:1080 {
    login    env CORP_LOGIN                     # user:password stays out of this file
    dns      remote
    connect  5s
}
upstream tor  = socks5 127.0.0.1:9050 { via jump }
upstream wg   = direct { source 10.66.0.2, dev wg0, mark 0x51 }
upstream out  = first corp, wg { check 1.1.1.1:443 every 10s }
upstream file = socks5 127.0.0.1:1 { login file "secret" }
listen lan   = transparent [::]:1080 { netns lan, capture tcp, sniff tls http, idle 1h }
listen mail  = forward 0.0.0.0:2525 to mail.example.com:25
listen edge  = transparent fd 3 { accept-proxy from 192.0.2.0/28 }
listen env   = transparent fd env CTRTOOL_NS_OPEN_FILE_FD_1
listen box   = transparent socketbox "/run/socketbox/relay" {
    table guests from 10.9.0.0/16
}
dns lan = 10.99.0.1:53 { netns lan, fake 198.18.0.0/15, forward 9.9.9.9:53 via out }
forbid { @bogons, @metadata }
forbid any port { 135-139, 445 } on { lan, socks }
match any -> via out
match any port 25 on mail -> direct with tag smtp, limit 20 per source
match @ads -> deny host-unreachable
match .corp.example -> deny silently
match "intranet" -> via corp
match 198.51.100.0/24 -> rewrite to 10.20.30.0/24 then direct
match 198.51.100.7 port 80 -> to unix "/run/web/{listener}-{port}.sock"
match 198.51.100.8 port 8000-8099 -> rewrite port 9000-9099 then via socks5 10.0.0.8:1080
match @nat64 -> rewrite from nat64 @nat64, port 80 then lookup main
match any ->
    rewrite to 10.0.0.5,
        port 81 then
    direct
table guests {
    match any                              -> deny
    forbid any port 22
    expect any                             -> deny
}
table clat { match 0.0.0.0/0 -> rewrite to nat64 @nat64 then direct }
expect 10.1.2.3:22   from 192.168.7.9     -> via wg
expect 8.8.8.8:53    on clat              -> direct to [64:ff9b::808:808]:53
expect any port 25 on lan                 -> not direct
expect @private      table guests         -> deny
"""


def read(text: str) -> tuple[ast.Document, list[Diagnostic]]:
    return parse(Source.from_text("test.urr", text))


def only(text: str) -> ast.Statement:
    document, diagnostics = read(text)
    assert diagnostics == []
    (statement,) = document.statements
    return statement


def test_the_whole_language_parses() -> None:
    document, diagnostics = read(WHOLE)
    assert diagnostics == []
    assert len(document.statements) == 36
    assert {type(statement) for statement in document.statements} == {
        ast.Include,
        ast.SetDef,
        ast.UpstreamDef,
        ast.ListenDef,
        ast.DnsDef,
        ast.Forbid,
        ast.Match,
        ast.Expect,
        ast.TableDef,
    }


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        pytest.param(
            "match 10.0.0.0/8->direct",
            (
                "Match",
                ("Region", ("Word", "10.0.0.0/8", False), ()),
                ("Action", (), ("Deliver", "direct", ())),
                (),
            ),
            id="an arrow needs no spaces",
        ),
        pytest.param(
            "forbid any port { 1, @p } table x",
            (
                "Forbid",
                (
                    "Region",
                    ("Word", "any", False),
                    (
                        (
                            "Clause",
                            ("Word", "port", False),
                            ("Braces", (("Word", "1", False), ("SetName", "p"))),
                        ),
                        ("Clause", ("Word", "table", False), ("Word", "x", False)),
                    ),
                ),
            ),
            id="table is a clause",
        ),
        pytest.param(
            'set s = { @a, file "b", "c" }',
            (
                "SetDef",
                ("Word", "s", False),
                ("Braces", (("SetName", "a"), ("FileItem", ("Word", "b", True)), ("Word", "c", True))),
            ),
            id="set",
        ),
        pytest.param(
            "upstream u = first a, b",
            (
                "UpstreamDef",
                ("Word", "u", False),
                ("Word", "first", False),
                (("Word", "a", False), ("Word", "b", False)),
                (),
            ),
            id="the comma between members is dropped",
        ),
        pytest.param(
            'listen l = forward fd env X to h:1 { users "f", from { 1, 2 } }',
            (
                "ListenDef",
                ("Word", "l", False),
                ("Word", "forward", False),
                (("Word", "fd", False), ("Word", "env", False), ("Word", "X", False)),
                ("Word", "h:1", False),
                (
                    ("Option", ("Word", "users", False), (("Word", "f", True),)),
                    (
                        "Option",
                        ("Word", "from", False),
                        (("Braces", (("Word", "1", False), ("Word", "2", False))),),
                    ),
                ),
            ),
            id="words of the language are plain words among options",
        ),
        pytest.param(
            'upstream u = socks5 h:1 { login file "f"\n table t from 1 on table, via x }',
            (
                "UpstreamDef",
                ("Word", "u", False),
                ("Word", "socks5", False),
                (("Word", "h:1", False),),
                (
                    ("Option", ("Word", "login", False), (("Word", "file", False), ("Word", "f", True))),
                    (
                        "Option",
                        ("Word", "table", False),
                        tuple(("Word", word, False) for word in ("t", "from", "1", "on", "table")),
                    ),
                    ("Option", ("Word", "via", False), (("Word", "x", False),)),
                ),
            ),
            id="options end at commas and at line ends",
        ),
        pytest.param(
            "match any -> rewrite to nat64 @n, port 9 then deny silently with log full",
            (
                "Match",
                ("Region", ("Word", "any", False), ()),
                (
                    "Action",
                    (
                        ("RewritePart", "to nat64", ("SetName", "n")),
                        ("RewritePart", "port", ("Word", "9", False)),
                    ),
                    ("Deliver", "deny", (("Word", "silently", False),)),
                ),
                (("Option", ("Word", "log", False), (("Word", "full", False),)),),
            ),
            id="rewrite",
        ),
        pytest.param(
            'expect a -> not to unix "p" to b:1',
            (
                "Expect",
                ("Region", ("Word", "a", False), ()),
                ("Outcome", True, ("Deliver", "to unix", (("Word", "p", True),)), ("Word", "b:1", False)),
            ),
            id="expect",
        ),
        pytest.param(
            "expect a -> via socks5 h:1 to b:1",
            (
                "Expect",
                ("Region", ("Word", "a", False), ()),
                (
                    "Outcome",
                    False,
                    ("Deliver", "via", (("Word", "socks5", False), ("Word", "h:1", False))),
                    ("Word", "b:1", False),
                ),
            ),
            id="an inline upstream and a destination",
        ),
        pytest.param(
            "dns d = 10.0.0.1:53 { fake 198.18.0.0/15 }",
            (
                "DnsDef",
                ("Word", "d", False),
                (("Word", "10.0.0.1:53", False),),
                (("Option", ("Word", "fake", False), (("Word", "198.18.0.0/15", False),)),),
            ),
            id="dns",
        ),
    ],
)
def test_a_statement_becomes_its_tree(text: str, tree: object) -> None:
    assert bare(only(text)) == tree


def test_spans_are_exact() -> None:
    text = "# first\n\nmatch @private   port 22 from @admins -> via wg with log full, tag x # why\n"
    document, _ = read(text)
    (match,) = document.statements
    assert isinstance(match, ast.Match)
    assert (match.span.line, match.span.column) == (3, 1)
    assert match.span.text == text[9:].removesuffix(" # why\n")
    assert match.region.span.text == "@private   port 22 from @admins"
    assert [clause.span.text for clause in match.region.clauses] == ["port 22", "from @admins"]
    assert match.action.span.text == "via wg"
    assert [option.span.text for option in match.options] == ["log full", "tag x"]


def test_a_table_spans_its_braces_and_its_statements_keep_their_places() -> None:
    (table,) = read("table t {\n    match any -> deny\n}\nmatch any -> oops\n")[0].statements
    assert isinstance(table, ast.TableDef)
    assert table.span.text == "table t {\n    match any -> deny\n}"
    assert table.body[0].span.text == "match any -> deny"


@pytest.mark.parametrize(
    ("text", "code", "says", "underlined"),
    [
        (
            "match any prot 22 -> deny",
            "UR001",
            "here; after `match any` come `port`, `from`, `on`, `table` and `->` (did you mean `port`?)",
            "prot",
        ),
        ("mach any -> deny", "UR001", "(did you mean `match`?)", "mach"),
        ("} oops", "UR003", "this `}` closes nothing", "}"),
        ("match any 25 -> deny", "UR001", "(did you mean `port 25`?)", "25"),
        ("forbid port 25", "UR001", "there is no destination before `port`", "port"),
        ("match -> deny", "UR001", "`->` cannot stand here; after `match` comes a destination", "->"),
        ("match any port from @x -> deny", "UR001", "`port` needs a port before `from`", "from"),
        ("match any port from -> deny", "UR001", "`port` needs a port before `from`", "from"),
        ("match any -> to unix /run/x", "UR001", '(did you mean `"/run/x"`?)', "/run/x"),
        ("match any -> direct wth log full", "UR001", "(did you mean `with`?)", "wth"),
        ("match any -> reject", "UR001", "(did you mean `deny`?)", "reject"),
        ("match any port 80, 443 -> deny", "UR001", "`,` cannot stand here", ","),
        ("match any -> rewrite to", "UR001", "after `to` come a destination and `nat64`", ""),
        ("match any ->", "UR001", "this ends too soon; after `match any ->` come", ""),
        ("match any -> direct \x07", "UR001", "`\\x07` cannot stand here", "\x07"),
        ("set x = { 80 443 }", "UR001", "I do not know the word `443` here", "443"),
        ("set x = { 80,, 443 }", "UR001", "`,` cannot stand here", ","),
        ("include common.urr", "UR001", '(did you mean `"common.urr"`?)', "common.urr"),
        ("table t", "UR001", "this ends too soon; after `table t` comes `{`", ""),
        ("match any direct", "UR002", "there is no `->` before `direct`", "direct"),
        ("match any", "UR002", "this `match` has no `->`", ""),
        ("match any => deny", "UR002", "`->` belongs here, not `=`", "="),
        ("match any → deny", "UR002", "`->` belongs here, not `→`", "→"),
        ("match any -> rewrite to 1.2.3.4 direct", "UR002", "there is no `then` before `direct`", "direct"),
        ("match any -> rewrite to 1.2.3.4 -> direct", "UR002", "`then` belongs here, not `->`", "->"),
        ("set x 80", "UR002", "there is no `=` before `80`", "80"),
        ("set x { 80 }", "UR002", "there is no `=` before `{`", "{"),
        ("listen l", "UR002", "this `listen` has no `=`", ""),
        ("set x = { 80", "UR003", "`{` opened on line 2 is never closed", "{"),
        ('match any -> to unix "/run', "UR003", 'this `"` is never closed', '"/run'),
        ("set port = 80", "UR004", "`port` is a word of the language and cannot be a name", "port"),
        ("match any -> via with log full", "UR004", "`with` is a word of the language", "with"),
        ("match any on from -> deny", "UR004", "`from` is a word of the language", "from"),
        ("table any {", "UR003", "`{` opened on line 2 is never closed", "{"),
    ],
)
def test_a_slip_costs_one_statement(text: str, code: str, says: str, underlined: str) -> None:
    document, diagnostics = read(f"match any -> direct\n{text}\nset last = 1\n")
    assert [(found.code, found.labels[0].span.text) for found in diagnostics] == [(code, underlined)]
    assert says in diagnostics[0].message
    assert diagnostics[0].labels[0].span.line == 2
    first, *_, last = document.statements
    assert bare(first) == bare(only("match any -> direct"))
    assert bare(last) == bare(only("set last = 1"))


@pytest.mark.parametrize(
    ("text", "lines", "stand"),
    [
        pytest.param(
            "set a = {\n  80\nset b = 1\nmatch any -> deny\n",
            [1],
            ["SetDef", "Match"],
            id="the next statement ends an open brace",
        ),
        pytest.param(
            "upstream a = direct {\n  dev x\n\n  dns remote\ndns d = 1:53\n",
            [1],
            ["DnsDef"],
            id="dns ends it only in its full shape",
        ),
        pytest.param(
            "table t {\n  match any -> deny\nlisten l = socks 1:1\n",
            [1],
            ["TableDef", "ListenDef"],
            id="what cannot stand in a table ends one at the left margin",
        ),
        pytest.param(
            "table t {\n  match any -> deny\nmatch any -> direct\nexpect any -> direct\n",
            [1],
            ["TableDef", "Match", "Expect"],
            id="a table that the file ends in stops at the left margin",
        ),
        pytest.param(
            "table t {\nmatch any -> deny\n}\nmatch any -> direct\n",
            [],
            ["TableDef", "Match"],
            id="a closed table may use the left margin",
        ),
        pytest.param(
            "table t {\n  set x = 1\n  match any port { 1\n  match any -> deny\n}\nset y = 1\n",
            [2, 3],
            ["TableDef", "SetDef"],
            id="an open brace inside a table",
        ),
        pytest.param(
            "table t {\n  table u {\n    match any -> deny\n  }\n}\nset y = 1\n",
            [2],
            ["TableDef", "SetDef"],
            id="a table in a table",
        ),
        pytest.param(
            'upstream a = socks5 "h:1 {\n  dns remote\n}\nset y = 1\n',
            [1],
            ["SetDef"],
            id="an open string with a brace in it",
        ),
        pytest.param(
            "table t x {\n  match any -> deny\nset y = 1\n", [1], ["SetDef"], id="one finding a head"
        ),
        pytest.param("table {\n  match any -> deny\n  oops\n}\n", [1, 3], [], id="a table without a name"),
    ],
)
def test_recovery(text: str, lines: list[int], stand: list[str]) -> None:
    document, diagnostics = read(text)
    assert [found.labels[0].span.line for found in diagnostics] == lines
    assert [type(statement).__name__ for statement in document.statements] == stand


def test_several_ports_without_braces_are_shown_the_braces() -> None:
    (found,) = read("match any port 80, 443 -> deny")[1]
    assert [remark.text for remark in found.remarks] == ["several are written { 80, … }"]


def test_a_table_keeps_only_what_stands_in_it() -> None:
    document, _ = read("table t {\n  match any -> deny\nmatch any -> direct\n")
    table, match = document.statements
    assert isinstance(table, ast.TableDef)
    assert [inner.span.line for inner in table.body] == [2]
    assert match.span.line == 3


@pytest.mark.parametrize(
    ("text", "codes", "reason", "lines"),
    [
        ("match any -> deny  # allow UR220: lab network", ("UR220",), "lab network", (1,)),
        ("# allow UR220, UR116: both", ("UR220", "UR116"), "both", (1, 2)),
        ("# allow UR220", ("UR220",), "", (1, 2)),
        ("  # allow UR220:  \n", ("UR220",), "", (1, 2)),
        ("# allow UR1: a\n# allow UR2: b\nmatch any -> deny", ("UR1",), "a", (1, 3)),
    ],
)
def test_allow_comments(text: str, codes: tuple[str, ...], reason: str, lines: tuple[int, ...]) -> None:
    allow = read(text)[0].allows[0]
    assert (allow.codes, allow.reason, allow.lines) == (codes, reason, lines)


@pytest.mark.parametrize("text", ["# allowed UR220: x", "# we allow UR220", '"# allow UR220: x"', "# allow"])
def test_other_comments_allow_nothing(text: str) -> None:
    assert read(text)[0].allows == ()


def test_a_question_is_a_region() -> None:
    region = parse_region("10.1.2.3:22 from 192.168.7.9 on lan")
    assert bare(region) == (
        "Region",
        ("Word", "10.1.2.3:22", False),
        (
            ("Clause", ("Word", "from", False), ("Word", "192.168.7.9", False)),
            ("Clause", ("Word", "on", False), ("Word", "lan", False)),
        ),
    )


@pytest.mark.parametrize(
    "text", ["", "# nothing", "port 22", "a\nb", "a -> deny", "{", "}", 'a on "', "table t {"]
)
def test_what_is_no_question_is_one_error(text: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_region(text)
    assert len(caught.value.diagnostics) == 1


_FRAGMENTS = st.sampled_from(
    [
        *'{}=,"#@->\n\t\r\x00 ',
        "match any",
        "table t {",
        "->",
        "direct",
        "set x =",
        "port",
        "\n",
        "é漢\u202e",
        "with",
    ]
)


@given(st.one_of(st.text(max_size=80), st.lists(_FRAGMENTS, max_size=30).map(" ".join)))
@settings(max_examples=400, deadline=None)
def test_no_text_is_too_bad(text: str) -> None:
    source = Source.from_text("fuzz.urr", text)
    document, diagnostics = parse(source)
    every_statement_has_its_place(source, document, diagnostics)


def test_mutated_policies_are_statements_and_diagnostics() -> None:
    """S11: 100,000 seeded mutations, five to a file: each costs itself and perhaps its neighbours."""
    seeds = [
        b"match any -> deny\n",
        b"set x = { 80 }\n",
        b"table t {\n}\n",
        b'match @x -> to unix "x"\n',
    ]
    bad = (text for _, text in mutations(seeds, b"{", b"}", b'"', b"->", b"@", b"match ", end=b"\n"))
    statements = findings = 0
    for number, texts in enumerate(zip(*[bad] * 5, strict=True)):
        source = Source.from_text("fuzz.urr", b"".join(texts).decode("utf-8", "replace"))
        document, diagnostics = parse(source)
        statements += len(document.statements)
        findings += len(diagnostics)
        if number % 8 == 0:
            every_statement_has_its_place(source, document, diagnostics)
    assert min(statements, findings) > COUNT / 10


def every_statement_has_its_place(
    source: Source, document: ast.Document, diagnostics: list[Diagnostic]
) -> None:
    """What a text was read as lies in it, and if there was anything then something came of it."""
    for found in diagnostics:
        for label in found.labels:
            assert label.span.source is source
            assert 0 <= label.span.start <= label.span.end <= len(source.text)
    for statement in document.statements:
        assert 0 <= statement.span.start < statement.span.end <= len(source.text)
    with_shape = len(document.statements) + len(diagnostics)
    assert bool(with_shape) == any(line.split("#")[0].strip(" \t") for line in source.text.split("\n"))


@pytest.mark.parametrize(
    "piece",
    [
        pytest.param("match 10.1.2.0/24 port 22 from @admins -> via wg with log full\n", id="routes"),
        pytest.param("set a = {\n", id="open braces"),
        pytest.param("table t {\n", id="open tables"),
        pytest.param("-" * 20, id="hyphens"),
        pytest.param("}\n", id="closed braces"),
        pytest.param("a@", id="one word"),
        pytest.param("# allow UR220: x\n", id="allow comments"),
        pytest.param("match any prot 22 -> deny\n", id="slips"),
    ],
)
def test_time_grows_with_the_text_and_no_faster(piece: str) -> None:
    def cost(times: int) -> float:
        source = Source.from_text("long.urr", piece * times)
        best = float("inf")
        for _ in range(2):
            start = time.process_time()
            parse(source)
            best = min(best, time.process_time() - start)
        return best

    small, large = cost(200), cost(1600)
    assert large < small * 8 * 3 + 0.02  # eight times the text; quadratic would be 64 times the time
