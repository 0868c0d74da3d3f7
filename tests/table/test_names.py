"""Names: the very name, then the longer suffix, then `*.x` before `.x`; one answer, no walking."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import pattern, patterns
from urelay.policy.model import NameKind, NamePattern
from urelay.table.names import NameTable

Answer = tuple[str, ...]

_HOSTS = (
    "example.com a.example.com b.a.example.com c.b.a.example.com d.c.b.a.example.com com org other.net "
    "x.other.net intranet myexample.com xa.example.com"
).split()


def _table(*texts: str) -> NameTable[Answer]:
    """A table whose answer is every pattern that covers a name, least specific first."""
    rules = {pattern(text): (number,) for number, text in enumerate(texts)}
    return NameTable(rules, (), lambda numbers, around: (*around, *(texts[n] for n in numbers)))


def _covers(one: NamePattern, name: str) -> bool:
    below = name.endswith("." + one.name)
    return {
        NameKind.EXACT: name == one.name,
        NameKind.BELOW: below,
        NameKind.SELF_AND_BELOW: below or name == one.name,
    }[one.kind]


def _strength(one: NamePattern) -> tuple[bool, int, int]:
    return one.kind is NameKind.EXACT, one.name.count("."), one.kind


@given(st.lists(patterns, unique=True, max_size=8))
def test_the_answer_is_every_pattern_that_covers_a_name_in_order_of_strength(
    found: list[NamePattern],
) -> None:
    table = _table(*(str(one) for one in found))
    for name in _HOSTS:
        expected = sorted((one for one in found if _covers(one, name)), key=_strength)
        assert table.lookup(name) == tuple(str(one) for one in expected), name


def test_a_star_does_not_cover_the_name_itself_and_a_dot_does() -> None:
    table = _table("*.example.com", ".b.example.com", "example.com")
    assert table.lookup("example.com") == ("example.com",)
    assert table.lookup("www.example.com") == ("*.example.com",)
    assert table.lookup("b.example.com") == ("*.example.com", ".b.example.com")
    assert table.lookup("myexample.com") == ()


@given(st.lists(patterns, unique=True, max_size=8))
def test_the_entries_are_where_answers_begin(found: list[NamePattern]) -> None:
    table = _table(*(str(one) for one in found))
    for (kind, name), answer in table.entries():
        probe = name if kind is NameKind.EXACT else f"no-such-label.{name}"
        assert table.lookup(probe) == answer
    covered = {str(one) for _, answer in table.entries() for one in map(pattern, answer)}
    assert covered == {str(one) for one in found}
    assert table.lookup("nothing.like.it") == table.elsewhere == ()
