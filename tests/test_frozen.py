"""`@frozen` makes what `dataclass(frozen=True, slots=True)` would, seen from outside."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from dataclasses import FrozenInstanceError, field

import pytest

from urelay.frozen import frozen


@frozen
class Place:
    """A value with a default, a hidden field and one that does not count."""

    name: str
    port: int = 80
    secret: str = field(default="", repr=False)
    note: tuple[str, ...] = field(default=(), compare=False)

    @property
    def text(self) -> str:
        return f"{self.name}:{self.port}"


@frozen
class Other:
    name: str
    port: int = 80
    secret: str = ""
    note: tuple[str, ...] = ()


@frozen
class Own:
    name: str

    def __repr__(self) -> str:
        return "mine"


def test_values_compare_by_their_fields_and_their_class() -> None:
    assert Place("a") == Place("a")
    assert Place("a") != Place("a", 81)
    assert Place("a") == Place("a", note=("seen",))
    assert Place("a") != Other("a")
    assert Place("a") != ("a", 80, "", ())


def test_equal_values_are_one_key() -> None:
    assert len({Place("a"), Place("a", note=("seen",)), Place("a", 81)}) == 2


def test_a_value_shows_its_fields_but_for_the_hidden_ones() -> None:
    assert repr(Place("a", secret="hush")) == "Place(name='a', port=80, note=())"
    assert repr(Own("a")) == "mine"


@pytest.mark.parametrize("name", ["name", "note", "text", "unheard_of"])
def test_nothing_of_a_value_can_be_changed(name: str) -> None:
    place = Place("a")
    with pytest.raises(AttributeError):
        setattr(place, name, "b")
    with pytest.raises(FrozenInstanceError):
        delattr(place, name)
    assert place == Place("a")
    assert place.text == "a:80"


def test_it_is_a_dataclass_to_those_who_ask() -> None:
    place = Place("a", 22, "hush", ("seen",))
    assert dataclasses.replace(place, port=23) == Place("a", 23, "hush")
    assert [one.name for one in dataclasses.fields(place)] == ["name", "port", "secret", "note"]
    assert not hasattr(place, "__dict__")
    match place:
        case Place(name, port):
            assert (name, port) == ("a", 22)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_the_same_value(copied: object) -> None:
    place = Place("a", 22, "hush", ("seen",))
    assert copied(place) == place  # type: ignore[operator]
    assert copied(place).note == ("seen",)  # type: ignore[operator]
