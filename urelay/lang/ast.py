"""The tree of a policy: its shape, with a span on every node, and no judgement of its sense.

The grammar is looser than the language. A `Word` may turn out to be an address, a prefix, a name,
a port range, a duration or nonsense; `urelay.policy.check` decides, in messages that know what was
meant. Statements come in source order; a broken one is a diagnostic instead and the rest stand.
"""

from __future__ import annotations

from typing import TypeAlias

from urelay.frozen import frozen
from urelay.lang.source import Source, Span

# --- values: what stands where an address, port, source, listener or option value may stand


@frozen
class Word:
    """A bare word (`10.0.0.0/8`, `443`, `.corp.example`, `any`) or a quoted string (its contents)."""

    text: str
    span: Span
    quoted: bool = False


@frozen
class SetName:
    """`@private`; `name` is without the `@`."""

    name: str
    span: Span


@frozen
class FileItem:
    """`file "lists/ads.txt"`, in a set definition."""

    path: Word
    span: Span


@frozen
class Braces:
    """`{ 80, 443, @more }`; items may not be braces themselves."""

    items: tuple[Word | SetName | FileItem, ...]
    span: Span


Item: TypeAlias = Word | SetName | FileItem
Value: TypeAlias = Word | SetName | FileItem | Braces


@frozen
class Option:
    """`login env CORP_LOGIN`: a word and its values, as they stand inside `{ }` or after `with`."""

    name: Word
    values: tuple[Value, ...]
    span: Span


# --- "these connections": one syntax for match, forbid, expect, explain and diff --in


@frozen
class Clause:
    """`port @web`, `from @admins`, `on { lan, box }`, `table guests`."""

    keyword: Word
    value: Value
    span: Span


@frozen
class Region:
    """Which connections. `destination` is never missing: `forbid port 25` is a syntax error with a
    hint, `any` is the word. Clauses stand as written, in any order; a repeated one is kept for
    check to refuse. In `expect` and `explain` the destination may be `HOST:PORT`.
    """

    destination: Value
    clauses: tuple[Clause, ...]
    span: Span


# --- actions


@frozen
class RewritePart:
    """`to X`, `to nat64 X`, `from nat64 X` or `port X`."""

    kind: str
    """`to`, `to nat64`, `from nat64` or `port`"""
    value: Value
    span: Span


@frozen
class Deliver:
    """What happens to the connection: a verb and its words.

    verb        words
    direct        none
    deny          none, or one of: refused host-unreachable net-unreachable ttl-expired silently
    via           NAME; or KIND HOST:PORT (`socks5 10.0.0.8:1080`)
    to unix       the quoted path
    to socketbox  the quoted path; and perhaps `slot` and its number
    lookup        TABLE
    """

    verb: str
    words: tuple[Word, ...]
    span: Span


@frozen
class Action:
    """`rewrite PART, PART then DELIVER`, or only DELIVER (`rewrites` empty)."""

    rewrites: tuple[RewritePart, ...]
    deliver: Deliver
    span: Span


@frozen
class Outcome:
    """The right side of `expect`: `[not] DELIVER [to ENDPOINT]`."""

    negated: bool
    deliver: Deliver
    destination: Word | None
    span: Span


# --- statements


@frozen
class Include:
    """`include "common/*.urr"`."""

    path: Word
    span: Span


@frozen
class SetDef:
    """`set private = { 10.0.0.0/8 }`, `set ads = file "ads.txt"`, `set web = 80`."""

    name: Word
    value: Value
    span: Span


@frozen
class UpstreamDef:
    """`upstream NAME = KIND WORD… { options }`; for a group the words are its members.

    A comma between members is dropped: `first corp, wg` has the arguments corp and wg.
    """

    name: Word
    kind: Word
    arguments: tuple[Word, ...]
    options: tuple[Option, ...]
    span: Span


@frozen
class ListenDef:
    """`listen NAME = KIND PLACE… [to ENDPOINT] { options }`.

    `place` is every word between KIND and `to` or `{`: `[::]:1080`; `fd 3`; `fd env NAME`;
    `systemd "x"`; `unix "p"`; `socketbox "p"`; `socketbox "p" slot N`.
    """

    name: Word
    kind: Word
    place: tuple[Word, ...]
    to: Word | None
    options: tuple[Option, ...]
    span: Span


@frozen
class DnsDef:
    """`dns NAME = ADDR:PORT { options }`."""

    name: Word
    place: tuple[Word, ...]
    options: tuple[Option, ...]
    span: Span


@frozen
class Forbid:
    """`forbid REGION`: a wall."""

    region: Region
    span: Span


@frozen
class Match:
    """`match REGION -> ACTION [with OPTIONS]`: a route."""

    region: Region
    action: Action
    options: tuple[Option, ...]
    span: Span


@frozen
class Expect:
    """`expect REGION -> OUTCOME`: a proof obligation."""

    region: Region
    outcome: Outcome
    span: Span


@frozen
class TableDef:
    """`table NAME { … }`; the body holds match, forbid and expect."""

    name: Word
    body: tuple[Match | Forbid | Expect, ...]
    span: Span


Statement: TypeAlias = (
    Include | SetDef | UpstreamDef | ListenDef | DnsDef | Forbid | Match | Expect | TableDef
)


@frozen
class Allow:
    """`# allow UR220: lab network`, on a statement's line or alone on the line above it."""

    codes: tuple[str, ...]
    reason: str
    """Empty when none was given, which is a finding (UR005)."""
    lines: tuple[int, ...]
    """The 1-based lines whose findings it silences: its own, and the next one when it stands alone."""
    span: Span


@frozen
class Document:
    """One parsed file: every statement that has the right shape, in order."""

    source: Source
    statements: tuple[Statement, ...]
    allows: tuple[Allow, ...]
