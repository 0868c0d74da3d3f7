"""Options as written become checked values: one reader for each kind of value in the table.

`read_options` is the only way in. It knows which options the owner has, says what was meant when a
name is wrong, refuses what is said twice, and never shows a password that was put into a policy: not
even in the line of source that a finding draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from urelay.errors import AddressError
from urelay.lang import ast
from urelay.lang.source import Origin, Span
from urelay.net.address import Endpoint, Prefix, parse_address, parse_name, printable
from urelay.policy.flaws import closest, flaw, password, read_word
from urelay.policy.library import beside
from urelay.policy.model import AcceptProxy, HeaderTarget, HealthCheck, Login, Setting, TableChoice
from urelay.policy.options import Option, Owner, ValueKind, options_of
from urelay.policy.paths import read_socket_path
from urelay.policy.scope import Scope
from urelay.policy.words import read_duration, read_endpoint, read_number, read_prefix

_INTERFACE = re.compile(r"[^\s/:]{1,15}")
_NAMESPACE = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.-]{0,254}")
_FILE_MODE = re.compile(r"0?[0-7]{3}")
_VARIABLE = re.compile(r"[A-Za-z_][0-9A-Za-z_]*")
_TAG = re.compile(r"[0-9A-Za-z_][0-9A-Za-z_.:-]{0,63}")


@dataclass(frozen=True, slots=True)
class Forward:
    """`forward 9.9.9.9:53 via out`; `upstream` is None to ask directly."""

    endpoint: Endpoint
    upstream: str | None


def read_options(
    nodes: Iterable[ast.Option], owner: Owner, kind: str, scope: Scope
) -> tuple[dict[str, Setting], tuple[TableChoice, ...]]:
    """The settings by name, and apart from them the `table` choices, which may be several.

    Raises PolicyError: the first option that is unknown, repeated or wrong.
    """
    known = options_of(owner, kind)
    settings: dict[str, Setting] = {}
    tables: list[TableChoice] = []
    for node in nodes:
        option = known.get(node.name.text)
        if option is None:
            raise _no_such_option(node, owner, kind, known)
        value = _READERS[option.value](node, option, scope)
        if isinstance(value, TableChoice):
            if value.source in [choice.source for choice in tables]:
                raise flaw("UR102", "these clients are given a table twice", node.span)
            tables.append(value)
            continue
        if option.name in settings:
            raise flaw("UR102", f"`{option.name}` is said twice", node.span)
        settings[option.name] = Setting(value, origin_of(node.span))
    return settings, tuple(tables)


def origin_of(span: Span, text: str | None = None) -> Origin:
    """The origin of what stands at `span`; its text is the source on one line, unless given."""
    return Origin(span.source.path, span.line, " ".join(span.text.split()) if text is None else text)


def _no_such_option(node: ast.Option, owner: Owner, kind: str, known: Iterable[str]) -> Exception:
    name = node.name.text
    guess = closest(name, known)
    ending = f'; did you mean "{guess}"?' if guess is not None else ""
    whose = f"{kind} {owner}s" if kind else f"{owner}s"
    message = f'{whose} have no option "{printable(name)}"{ending}'
    return flaw("UR109", message, node.name.span, None if guess else f"there are {', '.join(known)}")


# --- readers: the node, its row of the table and the scope give a value


def _wrong(node: ast.Option, option: Option, what: str | None = None) -> Exception:
    message = what or f"`{option.name}` is followed by {_plain(option)}"
    return flaw("UR110", message, node.span, f"write it like: {option.syntax}")


def _plain(option: Option) -> str:
    """What the option's value is, in the words of the table."""
    if option.choices and option.value in (ValueKind.CHOICE, ValueKind.CHOICES):
        return " or ".join(f"`{choice}`" for choice in option.choices)
    return option.value.value.partition(";")[0]


def _words(node: ast.Option, option: Option, *counts: int) -> tuple[ast.Word, ...]:
    """The option's values, all of them words and as many as one of `counts`."""
    words = tuple(value for value in node.values if isinstance(value, ast.Word))
    if len(words) != len(node.values) or len(words) not in counts:
        raise _wrong(node, option)
    return words


def _flag(node: ast.Option, option: Option, scope: Scope) -> bool:
    _words(node, option, 0)
    return True


def _duration(node: ast.Option, option: Option, scope: Scope) -> float:
    # `5 sec` is two words and one duration, wrongly written.
    words = _words(node, option, 1, 2)
    whole = ast.Word(" ".join(word.text for word in words), words[0].span.to(words[-1].span))
    return read_word(whole, read_duration)


def _choice(node: ast.Option, option: Option, scope: Scope) -> str:
    (word,) = _words(node, option, 1)
    return _one_of(word, node, option)


def _choices(node: ast.Option, option: Option, scope: Scope) -> tuple[str, ...]:
    words = _words(node, option, *range(1, len(option.choices) + 1))
    chosen = tuple(_one_of(word, node, option) for word in words)
    if len(set(chosen)) != len(chosen):
        raise _wrong(node, option, f"`{option.name}` says the same twice")
    return chosen


def _one_of(word: ast.Word, node: ast.Option, option: Option) -> str:
    if word.text not in option.choices:
        raise _wrong(node, option)
    return word.text


def _text(pattern: re.Pattern[str]) -> Callable[[ast.Option, Option, Scope], str]:
    def read(node: ast.Option, option: Option, scope: Scope) -> str:
        (word,) = _words(node, option, 1)
        if not pattern.fullmatch(word.text):
            raise _wrong(node, option, f"`{printable(word.text)}` is not {_plain(option)}")
        return word.text

    return read


def _host_name(node: ast.Option, option: Option, scope: Scope) -> str:
    (word,) = _words(node, option, 1)
    try:
        return parse_name(word.text)
    except AddressError as error:
        raise flaw("UR105", str(error), word.span) from None


def _address(node: ast.Option, option: Option, scope: Scope) -> bytes:
    (word,) = _words(node, option, 1)
    try:
        return parse_address(word.text)
    except AddressError as error:
        raise flaw("UR105", str(error), word.span) from None


def _mark(node: ast.Option, option: Option, scope: Scope) -> int:
    (word,) = _words(node, option, 1)
    return read_word(word, lambda text: read_number(text, 1, 0xFFFFFFFF))


def _file_mode(node: ast.Option, option: Option, scope: Scope) -> int:
    (word,) = _words(node, option, 1)
    if not _FILE_MODE.fullmatch(word.text):
        raise _wrong(node, option, f"`{printable(word.text)}` is not {_plain(option)}")
    return int(word.text, 8)


def _namespace(node: ast.Option, option: Option, scope: Scope) -> str:
    (word,) = _words(node, option, 1)
    if "/" in word.text:
        return beside(word)
    if not _NAMESPACE.fullmatch(word.text):
        raise _wrong(node, option, f"`{printable(word.text)}` is not the name of a network namespace")
    return word.text


def _file(node: ast.Option, option: Option, scope: Scope) -> str:
    (word,) = _words(node, option, 1)
    return beside(word)


def _socket(node: ast.Option, option: Option, scope: Scope) -> str:
    (word,) = _words(node, option, 1)
    return read_socket_path(word)


def refuse_password(node: ast.Option) -> None:
    """Raise UR114 for a `login` that says who it is instead of where that is kept."""
    if node.name.text == "login" and node.values and _login_source(node) is None:
        raise password(node.values[0].span.to(node.values[-1].span))


def _login_source(node: ast.Option) -> Login | None:
    match node.values:
        case (ast.Word("env", quoted=False), ast.Word() as name) if _VARIABLE.fullmatch(name.text):
            return Login(env=name.text)
        case (ast.Word("file", quoted=False), ast.Word() as path):
            return Login(file=beside(path))
    return None


def _login(node: ast.Option, option: Option, scope: Scope) -> Login:
    refuse_password(node)
    login = _login_source(node)
    if login is None:
        raise _wrong(node, option)
    return login


def _upstream(node: ast.Option, option: Option, scope: Scope) -> str:
    (word,) = _words(node, option, 1)
    return scope.upstream(word)


def _check(node: ast.Option, option: Option, scope: Scope) -> HealthCheck:
    match node.values:
        case (ast.Word() as endpoint, ast.Word("every", quoted=False), ast.Word() as interval):
            return HealthCheck(read_word(endpoint, read_endpoint), read_word(interval, read_duration))
    raise _wrong(node, option)


def _limit(node: ast.Option, option: Option, scope: Scope) -> int:
    match node.values:
        case (ast.Word() as count, ast.Word("per"), ast.Word("source")):
            return read_word(count, lambda text: read_number(text, 1, 1_000_000))
    raise _wrong(node, option)


def _table(node: ast.Option, option: Option, scope: Scope) -> TableChoice:
    match node.values:
        case (ast.Word() as table,):
            return TableChoice(scope.table(table))
        case (ast.Word() as table, ast.Word("from", quoted=False), ast.Word() as source):
            return TableChoice(scope.table(table), read_word(source, read_prefix))
        case (ast.Word() as table, ast.Word("from", quoted=False), ast.SetName() as source):
            return TableChoice(scope.table(table), _one_prefix(source, option, scope))
    raise _wrong(node, option)


def _accept_proxy(node: ast.Option, option: Option, scope: Scope) -> AcceptProxy:
    values, target = node.values, HeaderTarget.NAME
    match values:
        case (*others, ast.Word("as", quoted=False), ast.Word() as word):
            if word.text not in option.choices:
                choices = ", ".join(f"`{choice}`" for choice in option.choices)
                raise _wrong(node, option, f"`{option.name} … as` is followed by one of {choices}")
            values, target = tuple(others), HeaderTarget(word.text)
    match values:
        case ():
            return AcceptProxy((), target)
        case (ast.Word("from", quoted=False), value):
            return AcceptProxy(tuple(scope.sets.of_prefixes(value, option.name)), target)
    raise _wrong(node, option)


def _prefix(node: ast.Option, option: Option, scope: Scope) -> Prefix:
    match node.values:
        case (value,):
            return _one_prefix(value, option, scope)
    raise _wrong(node, option)


def _one_prefix(value: ast.Value, option: Option, scope: Scope) -> Prefix:
    prefixes = scope.sets.of_prefixes(value, option.name)
    if len(prefixes) != 1:
        message = f"this holds {len(prefixes):,} prefixes; `{option.name}` needs exactly one"
        raise flaw("UR108", message, value.span)
    return prefixes[0]


def _forward(node: ast.Option, option: Option, scope: Scope) -> Forward:
    match node.values:
        case (ast.Word() as endpoint,):
            return Forward(read_word(endpoint, read_endpoint), None)
        case (ast.Word() as endpoint, ast.Word("via", quoted=False), ast.Word() as upstream):
            return Forward(read_word(endpoint, read_endpoint), scope.upstream(upstream))
    raise _wrong(node, option)


_READERS: dict[ValueKind, Callable[[ast.Option, Option, Scope], object]] = {
    ValueKind.FLAG: _flag,
    ValueKind.DURATION: _duration,
    ValueKind.CHOICE: _choice,
    ValueKind.CHOICES: _choices,
    ValueKind.WORD: _text(_TAG),
    ValueKind.HOST_NAME: _host_name,
    ValueKind.ADDRESS: _address,
    ValueKind.INTERFACE: _text(_INTERFACE),
    ValueKind.FILE_MODE: _file_mode,
    ValueKind.MARK: _mark,
    ValueKind.NAMESPACE: _namespace,
    ValueKind.FILE: _file,
    ValueKind.SOCKET: _socket,
    ValueKind.LOGIN: _login,
    ValueKind.UPSTREAM: _upstream,
    ValueKind.CHECK: _check,
    ValueKind.LIMIT: _limit,
    ValueKind.TABLE: _table,
    ValueKind.ACCEPT_PROXY: _accept_proxy,
    ValueKind.PREFIX: _prefix,
    ValueKind.FORWARD: _forward,
}
