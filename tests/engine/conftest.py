"""The rig as a fixture, and the promise that nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.engine.rig import Rig, no_descriptor_left
from urelay.engine.limits import Limits


@pytest.fixture
def rig() -> Iterator[Rig]:
    """A pump with the default limits."""
    with no_descriptor_left():
        rig = Rig()
        yield rig
        rig.close()


@pytest.fixture
def make_rig() -> Iterator[Callable[[Limits], Rig]]:
    """A pump with limits of the test's own."""
    made = []

    def make(limits: Limits) -> Rig:
        made.append(Rig(limits))
        return made[-1]

    with no_descriptor_left():
        yield make
        for rig in made:
            rig.close()
