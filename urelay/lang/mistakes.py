"""What to say about a statement that does not parse: one diagnostic, in the writer's words.

The parser knows where it could not go on and, from LALR's tables, exactly which terminals it could
have gone on with there. This module turns both into a sentence, and knows the usual slips: no
arrow, no `then`, no `=`, no destination, a word of the language used as a name.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Any

from urelay.lang.diagnostics import Diagnostic, Label, Remark, diagnostic
from urelay.lang.grammar import STATEMENT, grammar
from urelay.lang.lexeme import Lexeme
from urelay.lang.source import Span
from urelay.net.address import printable

_NOUNS = {
    "MATCH": "a destination",
    "FORBID": "a destination",
    "EXPECT": "a destination",
    "PORT": "a port",
    "FROM": "a source",
    "ON": "a listener",
    "TO": "a destination",
    "NAT64": "a prefix",
    "TABLE": "the name of a table",
    "VIA": "an upstream",
    "LOOKUP": "the name of a table",
    "SET": "a name",
    "UPSTREAM": "a name",
    "LISTEN": "a name",
    "DNS": "a name",
    "WITH": "an option",
}
"""What a word means behind each keyword; elsewhere it is a word."""

_NAMES = frozenset({"SET", "UPSTREAM", "LISTEN", "DNS", "TABLE", "ON", "VIA", "LOOKUP"})
_VALUES = frozenset({"MATCH", "FORBID", "EXPECT", "PORT", "FROM"})
_NOT_VALUES = frozenset({"port", "from", "on", "table", "then", "with"})
_HARMLESS = frozenset({"nat64", "unix", "socketbox", "file"})
"""Keywords only in places where no name can stand: `set nat64 = …` is fine."""

_ACTIONS = frozenset({"direct", "deny", "via", "to", "lookup", "rewrite", "not"})
_STARTS = ("include", "set", "upstream", "listen", "dns", "table", "forbid", "match", "expect")
_OTHER_WORDS = {
    "accept": "direct",
    "allow": "direct",
    "block": "deny",
    "drop": "deny silently",
    "pass": "direct",
    "permit": "direct",
    "proxy": "via",
    "reject": "deny",
}
"""What other languages call an action."""

_SLIPS = {"ARROW": "->", "THEN": "then", "EQUAL": "="}
"""The joints of a statement: UR002 when one is missing."""

_NEARLY = {"ARROW": ("EQUAL", "JUNK", "THEN"), "THEN": ("ARROW", "EQUAL")}
"""What people write instead of each joint."""


def not_in_a_table(first: Lexeme) -> Diagnostic:
    """A statement in a table that is not `match`, `forbid` or `expect`."""
    message = f"`{first.text}` cannot stand in a table; `match`, `forbid` and `expect` can"
    return diagnostic("UR001", message, Label(first.span))


def misused(fed: list[Lexeme], suspects: list[int]) -> Diagnostic | None:
    """A word of the language where a name or a value belongs.

    `suspects` are the places in `fed` of keywords that were taken for plain words.
    """
    for at in suspects:
        word = fed[at]
        before = fed[at - 1].type if at else "MATCH"  # a region alone begins like one behind `match`
        if before in _NAMES and word.text not in _HARMLESS:
            message = f"`{word.text}` is a word of the language and cannot be a name"
            return diagnostic("UR004", message, Label(word.span))
        if before in _VALUES and word.text in _NOT_VALUES:
            return _missing_value(fed, at)
    return None


def unexpected(lexemes: list[Lexeme], fed: list[Lexeme], suspects: list[int], start: str) -> Diagnostic:
    """Why the parser could take `fed` and not what follows it in `lexemes` (perhaps nothing)."""
    found = lexemes[len(fed)] if len(fed) < len(lexemes) else None
    if not fed and start == STATEMENT:
        return _no_statement(lexemes[0])
    misuse = misused(fed, suspects)
    if misuse is not None:
        return misuse
    accepted = _accepted(fed, start)
    joint = _missing_joint(found, accepted)
    if joint is not None:
        return _no_joint(joint, fed, found)
    if found is None:
        message = f"this ends too soon; {_what_comes(fed, accepted)}"
        return diagnostic("UR001", message, Label(_behind(fed)))
    if found.type in ("WORD", "STRING", "SETNAME"):
        thing = "word" if found.type == "WORD" else "value"
        message = f"I do not know the {thing} `{_shown(found.text)}` here; {_what_comes(fed, accepted)}"
    else:
        what = "a line end" if found.type == "NEWLINE" else f"`{_shown(found.text)}`"
        message = f"{what} cannot stand here; {_what_comes(fed, accepted)}"
    guess = _guess(found, accepted)
    if guess:
        message += f" (did you mean `{guess}`?)"
    remarks = []
    if found.type == "COMMA" and fed and fed[-1].type in ("WORD", "SETNAME", "STRING"):
        remarks.append(Remark("help", f"several are written {{ {_shown(fed[-1].text)}, … }}"))
    return diagnostic("UR001", message, Label(found.span), remarks=remarks)


def _no_statement(first: Lexeme) -> Diagnostic:
    message = f"I do not know the statement `{_shown(first.text)}`; there are {_listed(_STARTS, 'and')}"
    close = difflib.get_close_matches(first.text.lower(), _STARTS, 1)
    if close:
        message += f" (did you mean `{close[0]}`?)"
    return diagnostic("UR001", message, Label(first.span))


def _missing_value(fed: list[Lexeme], at: int) -> Diagnostic:
    word = fed[at]
    if at and fed[at - 1].type in ("PORT", "FROM"):
        before = fed[at - 1]
        message = f"`{before.text}` needs {_NOUNS[before.type]} before `{word.text}`"
        return diagnostic("UR001", message, Label(word.span))
    message = f"there is no destination before `{word.text}`"
    lead = f"{fed[at - 1].text} " if at else ""
    help_ = Remark("help", f"every destination?   {lead}any {word.text} …")
    return diagnostic("UR001", message, Label(word.span), remarks=(help_,))


def _missing_joint(found: Lexeme | None, accepted: Collection[str]) -> str | None:
    """The joint that is missing where `found` stands, if that is what is wrong."""
    if "EQUAL" in accepted:
        return "EQUAL"
    for joint in ("ARROW", "THEN"):
        if joint in accepted and (
            found is None
            or found.text in _ACTIONS
            or found.text in ("→", "⇒")
            or found.type in _NEARLY[joint]
        ):
            return joint
    return None


def _no_joint(joint: str, fed: list[Lexeme], found: Lexeme | None) -> Diagnostic:
    sign = _SLIPS[joint]
    if found is None:
        message = f"this `{fed[0].text}` has no `{sign}`"
        place = _behind(fed)
    else:
        message = f"there is no `{sign}` before `{_shown(found.text)}`"
        place = found.span
        if found.text not in _ACTIONS and joint != "EQUAL":
            message = f"`{sign}` belongs here, not `{_shown(found.text)}`"
    return diagnostic("UR002", message, Label(place), remarks=(Remark("help", f"write `{sign}` here"),))


def _accepted(fed: list[Lexeme], start: str) -> set[str]:
    """The terminals that could follow `fed`; the failed attempt itself has spoilt its parser's state."""
    state: Any = grammar().lark.parse_interactive(start=start)
    for lexeme in fed:
        state.feed_token(lexeme)
    accepted = {terminal for terminal in state.choices() if grammar().accepts(state, terminal)}
    if "WORD" in accepted:
        accepted.discard("FILE")  # right in a set only, and a word is right there too
    return accepted


def _what_comes(fed: list[Lexeme], accepted: Collection[str]) -> str:
    """`after X come A, B and C`, in the order of the grammar."""
    words = {terminal: word for word, terminal in grammar().keywords.items()}
    things = []
    if "WORD" in accepted:
        things.append(_NOUNS.get(fed[-1].type if fed else "MATCH", "a word"))
    elif "STRING" in accepted:
        things.append("a path in quotes")
    if "LBRACE" in accepted and "SETNAME" not in accepted:
        things.append("`{`")
    offered = [terminal for terminal in words if terminal in accepted]
    offered.sort(key=lambda terminal: terminal == "TABLE")  # the rarest clause; as a statement it came early
    things += [f"`{words[terminal]}`" for terminal in offered]
    for terminal, sign in (("EQUAL", "="), ("COMMA", ","), ("RBRACE", "}"), ("ARROW", "->")):
        if terminal in accepted:
            things.append(f"`{sign}`")
    if not things:
        return f"nothing comes after `{_context(fed)}`"
    after = f"after `{_context(fed)}` " if fed else "here "
    return f"{after}{'comes' if len(things) == 1 else 'come'} {_listed(things, 'and', quoted=True)}"


def _context(fed: list[Lexeme]) -> str:
    """The words before the mistake, from the last keyword on."""
    keywords = set(grammar().keywords.values())
    at = max((i for i, lexeme in enumerate(fed) if lexeme.type in keywords), default=0)
    text = fed[at].source.text[fed[at].start : fed[-1].end]
    if len(text) > 30 or "\n" in text:
        text = f"{fed[at].text} …" if len(fed) - at > 1 else fed[at].text
    return _shown(text)


def _guess(found: Lexeme, accepted: Collection[str]) -> str | None:
    """What the writer may have meant by a word that fits nowhere here."""
    if "DENY" in accepted and found.text.lower() in _OTHER_WORDS:
        return _OTHER_WORDS[found.text.lower()]
    if "PORT" in accepted and found.text[:1].isdigit() and found.text.replace("-", "").isdigit():
        return f"port {_shown(found.text)}"
    words = [word for word, terminal in grammar().keywords.items() if terminal in accepted]
    close = difflib.get_close_matches(found.text.lower(), words, 1)
    if not close and "STRING" in accepted and "WORD" not in accepted and found.type == "WORD":
        return f'"{_shown(found.text)}"'
    return close[0] if close else None


def _behind(fed: list[Lexeme]) -> Span:
    """The place right behind the last token."""
    last = fed[-1]
    return Span(last.source, last.end, last.end)


def _listed(things: Collection[str], last: str, *, quoted: bool = False) -> str:
    shown = list(things) if quoted else [f"`{thing}`" for thing in things]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {last} {shown[-1]}"


def _shown(text: str) -> str:
    return text if text.isprintable() and len(text) <= 40 else printable(text, 40)
