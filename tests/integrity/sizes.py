"""Two forms of each test: a short one that always runs, and the full one behind `--long`."""

from __future__ import annotations

from typing import Any

import pytest

FULL = (pytest.mark.long, pytest.mark.timeout(1800))


def sizes(names: str, short: Any, full: Any) -> pytest.MarkDecorator:
    """Parametrizes a test with both."""
    return pytest.mark.parametrize(
        names, [pytest.param(*_row(short), id="short"), pytest.param(*_row(full), id="full", marks=FULL)]
    )


def _row(values: Any) -> tuple[Any, ...]:
    return values if isinstance(values, tuple) else (values,)
